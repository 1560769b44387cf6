"""Tests of transparent parts: at full depth, premultiplied, and where Pillow loses them."""

from __future__ import annotations

import io
import struct
import threading

import numpy as np
import pytest
from PIL import Image

from devnet_jax.data.decode import decode_image, decode_mask, to_pillow
from devnet_jax.data.decode.opening import open_image, open_pillow
from devnet_jax.data.decode.rgb import highest_value
from tests.data.decode.encoded import GREY, GREY_ALPHA, RGB, RGBA, chunk, png, tiff

VALUES = [0, 4095, 2048, 0]
OPAQUE, CLEAR = [65535] * 4, [0] * 4
LAST_CLEAR, LAST_HALF = [65535] * 3 + [0], [65535] * 3 + [32768]
PLAIN = [0, 255, 128, 0]


def planes(*channels: list[int]) -> np.ndarray:
    return np.array([channels], np.uint16).transpose(0, 2, 1)


def premultiplied(alpha: list[int]) -> np.ndarray:
    """Returns colours that are multiplied by their opacity; unless all are transparent."""
    share = np.array(alpha) / 65535 if any(alpha) else np.ones(4)
    colours = np.rint(VALUES * share).astype(int).tolist()
    return planes(colours, colours, colours, alpha)


FILES = {
    "grey PNG": lambda alpha: png(planes(VALUES, alpha), GREY_ALPHA),
    "PNG": lambda alpha: png(planes(VALUES, VALUES, VALUES, alpha), RGBA),
    "TIFF": lambda alpha: tiff(
        planes(VALUES, VALUES, VALUES, alpha), photometric="rgb", extrasamples=["unassalpha"]
    ),
    "big-endian TIFF": lambda alpha: tiff(
        planes(VALUES, VALUES, VALUES, alpha),
        photometric="rgb",
        extrasamples=["unassalpha"],
        byteorder=">",
        compression="zlib",
    ),
    "premultiplied TIFF": lambda alpha: tiff(
        premultiplied(alpha), photometric="rgb", extrasamples=["assocalpha"]
    ),
}


@pytest.mark.parametrize(
    ("alpha", "expected"),
    [
        (OPAQUE, PLAIN),
        (CLEAR, PLAIN),
        (LAST_CLEAR, [0, 255, 128, 255]),
        (LAST_HALF, [0, 255, 128, 127]),
    ],
)
@pytest.mark.parametrize("kind", FILES)
def test_12_bits_with_transparency(kind: str, alpha: list[int], expected: list[int]) -> None:
    """The white level counts, and the background is as white as it says."""
    data = FILES[kind](alpha)
    decoded = decode_image(data, "a", white_level=4095)
    assert np.abs(decoded[0].astype(int) - np.array(expected)[:, None]).max() <= 1
    assert highest_value(open_image(data, "a")) == 4095


def test_a_transparent_colour_of_16_bits_is_blended_as_of_8() -> None:
    """The file names one colour, of which no other value is transparent."""
    grey = np.array([[0, 4095, 2048, 2049]], np.uint16)
    data = png(grey, GREY, chunk(b"tRNS", struct.pack(">H", 2048)))
    assert decode_image(data, "a", white_level=4095)[0, :, 0].tolist() == [0, 255, 255, 128]
    colours = np.repeat(grey[..., None], 3, -1)
    data = png(colours, RGB, chunk(b"tRNS", struct.pack(">HHH", 2048, 2048, 2048)))
    assert decode_image(data, "a", white_level=4095)[0, :, 0].tolist() == [0, 255, 255, 128]
    # Of an image that Pillow has opened, it is not known; black, the low byte, is not it.
    shown = to_pillow(open_pillow(Image.open(io.BytesIO(data)), "a"), "a")
    assert np.asarray(shown)[0, :, 0].tolist() == [0, 15, 8, 8]


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("n_colours", [1, 3])
def test_premultiplied_colours_of_8_bits(n_colours: int, order: str) -> None:
    def decode(alpha: int) -> list[int]:
        pixels = np.array([[[0], [100], [50]]], np.uint8).repeat(n_colours, -1)
        full = np.concatenate([pixels, np.full((1, 3, 1), alpha, np.uint8)], -1)
        full[0, 0, -1] = min(alpha * 255, 255)
        photometric = "rgb" if n_colours == 3 else "minisblack"
        data = tiff(
            full,
            photometric=photometric,
            planarconfig="contig",
            extrasamples=["assocalpha"],
            byteorder=order,
        )
        return decode_image(data, "a.tif")[0, :, 0].tolist()

    assert decode(0) == decode(255) == [0, 100, 50]
    # Half of white shows through, and the stored colours are already halved.
    np.testing.assert_allclose(decode(128), [0, 100 + 127, 50 + 127], atol=1)


def test_inverted_grey_with_transparency() -> None:
    pixels = np.array([[[0, 255], [255, 255], [100, 255], [0, 0]]], np.uint8)
    data = tiff(
        pixels, photometric="miniswhite", planarconfig="contig", extrasamples=["unassalpha"]
    )
    assert decode_image(data, "a.tif")[0, :, 0].tolist() == [255, 0, 155, 255]


def test_transparent_pixels_of_a_deep_mask_are_background() -> None:
    colours = [0, 60000, 60000, 0]
    data = png(planes(colours, colours, colours, [65535, 65535, 0, 0]), RGBA)
    assert decode_mask(data, "a").tolist() == [[False, True, False, False]]


def test_orientation_turns_the_transparency_with_the_values() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the first row is the right side
    pixels = np.zeros((2, 3, 2), np.uint16)
    pixels[..., 1] = 65535
    pixels[0, 0, 1] = 0
    part = chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
    decoded = decode_image(png(pixels, GREY_ALPHA, part), "a")[..., 0]
    expected = np.zeros((3, 2))
    expected[0, 1] = 255
    assert (decoded == expected).all()


def test_values_above_the_white_level_are_told_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("devnet_jax.data.decode.rgb._has_warned_of_clipping", threading.Event())
    within = png(np.array([[0, 1023]], np.uint16), GREY)
    decode_image(within, "a.png", white_level=1023)
    assert not caplog.messages
    above = png(np.array([[0, 4000]], np.uint16), GREY)
    for _ in range(2):
        assert decode_image(above, "b.png", white_level=1023)[0, 1, 0] == 255
    (message,) = caplog.messages
    assert "'b.png' has values up to 4000, above the white level 1023" in message


def test_premultiplied_pillow_images() -> None:
    image = Image.frombytes("La", (2, 1), bytes([100, 255, 50, 128]))
    file = io.BytesIO()
    to_pillow(image, "a").save(file, "PNG")
    np.testing.assert_allclose(decode_image(file.getvalue(), "a")[0, :, 0], [100, 177], atol=1)
