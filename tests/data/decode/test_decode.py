"""Tests of decoding: every image type against known pixel values."""

import contextlib
import io
import struct
import threading
import time
import zlib

import numpy as np
import pytest
import pyvips
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from devnet_jax.data.decode import (
    NotAnImageError,
    decode_image,
    decode_mask,
    load_image,
    load_images,
    load_mask,
    map_in_threads,
)
from devnet_jax.data.preprocessing import Preprocessing
from devnet_jax.errors import UserError


def encode(image: Image.Image, file_format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def encode_npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def grey(*values: int) -> list[list[int]]:
    """Returns a row of grey RGB pixels."""
    return [[v, v, v] for v in values]


def decode_row(data: bytes) -> list[list[int]]:
    """Decodes an image of one row."""
    image = decode_image(data, "name")
    assert image.dtype == np.uint8
    assert image.shape[0] == 1
    return image[0].tolist()


def palette_image(**info) -> Image.Image:
    """Returns a palette image of a red, a green and a blue pixel."""
    image = Image.new("P", (3, 1))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.putdata([0, 1, 2])
    image.info.update(info)
    return image


def one_row(mode: str, *values) -> Image.Image:
    """Returns an image of one row."""
    image = Image.new(mode, (len(values), 1))
    image.putdata(values)
    return image


RGB = [[255, 0, 0], [0, 255, 0], [0, 0, 255]]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (encode(one_row("RGB", *map(tuple, RGB))), RGB),
        (encode(one_row("RGB", *map(tuple, RGB)), "BMP"), RGB),
        (encode(one_row("RGB", *map(tuple, RGB)), "WEBP", lossless=True), RGB),
        (encode(one_row("L", 0, 7, 255)), grey(0, 7, 255)),
        (encode(one_row("1", 0, 255, 0)), grey(0, 255, 0)),
        # Composited over white: grey 100 at half transparency, and full transparency.
        (encode(one_row("LA", (100, 255), (100, 128), (100, 0))), grey(100, 177, 255)),
        (
            encode(one_row("RGBA", (9, 8, 7, 255), (0, 0, 0, 51), (1, 2, 3, 0))),
            [[9, 8, 7], [204] * 3, [255] * 3],
        ),
        (encode(palette_image()), RGB),
        (encode(palette_image(), transparency=1), [RGB[0], [255] * 3, RGB[2]]),
        (
            encode(palette_image(), transparency=bytes([255, 0, 51])),
            [RGB[0], [255] * 3, [204, 204, 255]],
        ),
        (encode(palette_image(), "GIF", transparency=2), [RGB[0], RGB[1], [255] * 3]),
        (
            encode(one_row("RGB", *map(tuple, RGB)), transparency=(0, 255, 0)),
            [RGB[0], [255] * 3, RGB[2]],
        ),
        (
            encode(one_row("CMYK", (0, 0, 0, 0), (255, 0, 0, 0), (0, 0, 0, 255)), "TIFF"),
            [[255] * 3, [0, 255, 255], [0] * 3],
        ),
        (encode(one_row("I;16", 0, 257 * 100, 65535)), grey(0, 100, 255)),
        (encode(one_row("I;16", 0, 257 * 100, 65535), "TIFF"), grey(0, 100, 255)),
        (encode(one_row("I", 0, 257 * 100, 65535), "TIFF"), grey(0, 100, 255)),
        (encode(one_row("F", 0.0, 0.4, 1.0), "TIFF"), grey(0, 102, 255)),
        (b"P5 3 1 65535\n" + struct.pack(">3H", 0, 257 * 100, 65535), grey(0, 100, 255)),
        (encode_npy(np.array([[1, 2, 255]], np.uint8)), grey(1, 2, 255)),
        (encode_npy(np.array([[[1], [2]]], np.uint8)), grey(1, 2)),
        (encode_npy(np.array([[0, 257 * 100, 65535]], np.uint16)), grey(0, 100, 255)),
        (encode_npy(np.array([[0, 0.4, 1]])), grey(0, 102, 255)),
        (encode_npy(np.array([[False, True]])), grey(0, 255)),
        (encode_npy(np.array([[[1, 2, 3, 4, 5, 6]]], np.uint8)), [[1, 2, 3]]),
        (encode_npy(np.asfortranarray([[[1, 2, 3], [4, 5, 6]]], np.uint8)), [[1, 2, 3], [4, 5, 6]]),
    ],
)
def test_known_pixels(data, expected):
    assert decode_row(data) == expected


def test_jpeg_in_grey_colour_and_cmyk():
    for mode, value, expected in (
        ("L", 77, [77] * 3),
        ("RGB", (200, 100, 50), [200, 100, 50]),
        ("CMYK", (55, 155, 205, 0), [200, 100, 50]),
    ):
        image = decode_image(encode(Image.new(mode, (16, 16), value), "JPEG", quality=100), "name")
        assert np.abs(image.astype(int) - expected).max() <= 3


COLOURS = np.asarray(
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 7, 3), np.uint8)).resize((64, 48))
)
DEEP = pyvips.Image.new_from_array(COLOURS.astype(np.uint16) * 251)
IMAGE = Image.fromarray(COLOURS)
TRANSPARENT = Image.merge("RGBA", [*IMAGE.split(), IMAGE.getchannel("G")])


@pytest.mark.parametrize(
    "data",
    [
        encode(IMAGE.convert("1")),
        encode(IMAGE.convert("L")),
        encode(IMAGE),
        encode(IMAGE.quantize(16)),
        encode(TRANSPARENT),
        encode(TRANSPARENT.convert("LA")),
        DEEP[0].copy(interpretation="grey16").pngsave_buffer(),
        DEEP.copy(interpretation="rgb16").pngsave_buffer(),
        encode(IMAGE, "JPEG"),
        encode(IMAGE.convert("L"), "JPEG", progressive=True),
        encode(IMAGE, "GIF"),
        encode(IMAGE, "WEBP"),
        encode(TRANSPARENT, "WEBP", lossless=True),
        encode(IMAGE, "AVIF", subsampling="4:4:4"),  # else libvips enlarges colours otherwise
        encode(IMAGE, "TIFF", compression="jpeg"),
        encode(IMAGE.quantize(16), "TIFF", compression="tiff_lzw"),
        encode(IMAGE.convert("1"), "TIFF", compression="group4"),
    ],
)
def test_libvips_reads_the_same_pixels(data: bytes) -> None:
    read = pyvips.Image.new_from_buffer(data, "").colourspace("srgb")
    read = (read.flatten(background=255) if read.hasalpha() else read).cast("uchar").numpy()
    # libvips rounds down.
    assert np.abs(decode_image(data, "a").astype(int) - read.astype(int)).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    # The pixels that a camera stores for each orientation if the image should look like `upright`.
    upright = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright),
        7: upright[::-1, ::-1].T,
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(Image.fromarray(np.ascontiguousarray(stored)), exif=exif)
    np.testing.assert_array_equal(decode_image(data, "name")[..., 0], upright)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_unreadable_exif_is_ignored():
    data = encode(Image.new("L", (2, 2), 9), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert decode_image(data, "name").shape == (2, 2, 3)


@pytest.mark.parametrize("file_format", ["GIF", "PNG", "WEBP"])
def test_the_first_frame_of_an_animation_is_used_with_a_warning(
    file_format: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("devnet_jax.data.decode.opening._has_warned", threading.Event())
    frames = [Image.new("RGB", (1, 1), color) for color in ("white", "black")]
    decode_row(encode(frames[0], file_format))
    assert not caplog.messages
    data = encode(frames[0], file_format, save_all=True, append_images=frames[1:], lossless=True)
    assert decode_row(data) == decode_row(data) == [[255, 255, 255]]
    assert len(caplog.messages) == 1
    assert "'name' is an animation" in caplog.messages[0]


def test_type_is_detected_from_the_content():
    data = encode(Image.new("L", (1, 1), 5))
    assert decode_image(data, "photo.jpg").tolist() == [[[5, 5, 5]]]


@given(hnp.arrays(np.uint16, (1, 8)))
def test_16_bits_are_rounded_to_8_bits(values):
    for data in (encode_npy(values), encode(Image.fromarray(values))):
        np.testing.assert_array_equal(
            decode_image(data, "name")[..., 0], np.rint(values * (255 / 65535))
        )


def test_errors_of_damaged_content_name_the_file():
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    for file_format in ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF"):
        data = encode(Image.fromarray(noise), file_format)
        with pytest.raises(UserError, match=r"folder/a\.x.*damaged") as error:
            decode_image(data[: len(data) // 2], "folder/a.x")
        assert "\n" not in str(error.value)
        assert not isinstance(error.value, NotAnImageError)
    with pytest.raises(UserError, match=r"a\.npy.*truncated"):
        decode_image(encode_npy(noise)[:-1], "a.npy")
    with pytest.raises(UserError, match=r"a\.png.*empty"):
        decode_image(b"", "a.png")


@pytest.mark.parametrize("data", [b"path,label\n", b"BMW", b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_other_content_is_not_an_image(data):
    with pytest.raises(NotAnImageError, match="notes"):
        decode_image(data, "notes")


@given(
    st.binary(min_size=1, max_size=80), st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\x93NUMPY"])
)
def test_any_bytes_give_pixels_or_a_user_error(data, beginning):
    with contextlib.suppress(UserError):
        image = decode_image(beginning + data, "name")
        assert image.dtype == np.uint8
        assert image.shape[2] == 3


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 2, 2), np.uint8), r"shape \(2, 2, 2\)"),
        (np.zeros(4, np.uint8), r"shape \(4,\)"),
        (np.zeros((0, 4), np.uint8), r"shape \(0, 4\)"),
        (np.zeros((2, 2), np.int64), "type int64"),
        (np.full((2, 2), 1.5), "from 1.5 to 1.5, outside 0 to 1"),
        (np.full((2, 2), np.nan), "nan"),
        (np.array([[{}]]), "pickle"),
    ],
)
def test_arrays_that_are_not_images(array, message):
    with pytest.raises(UserError, match=f"a.npy.*{message}"):
        decode_image(encode_npy(array), "a.npy")


def test_decompression_bomb_is_refused_before_it_is_decoded():
    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    with pytest.raises(UserError, match=r"huge\.png.*pixels"):
        decode_image(data, "huge.png")
    claim = io.BytesIO()
    shape = (10**9, 10**6)
    np.lib.format.write_array_header_1_0(
        claim, {"descr": "|u1", "fortran_order": False, "shape": shape}
    )
    with pytest.raises(UserError, match=r"huge\.npy.*truncated"):
        decode_image(claim.getvalue(), "huge.npy")


def test_load_image_resizes_with_antialiasing():
    # The stripes are finer than the pixels of the resized image.
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 255
    image = load_image(encode(Image.fromarray(stripes)), "name", Preprocessing(8, 8))
    assert image.shape == (8, 8, 3)
    assert np.abs(image.astype(int) - 127).max() <= 6
    tall = load_image(encode(Image.new("RGB", (10, 40), (1, 2, 3))), "a", Preprocessing(16, 16))
    assert (tall == [1, 2, 3]).all()
    assert tall.shape == (16, 16, 3)


def noise(mode: str, seed: int = 3) -> Image.Image:
    channels = len(Image.new(mode, (1, 1)).getbands())
    shape = (21, 34, channels) if channels > 1 else (21, 34)
    values = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return Image.fromarray(values, mode) if mode != "1" else Image.fromarray(values > 99)


@pytest.mark.parametrize("size", [5, 21, 60])
@pytest.mark.parametrize(
    "data",
    [
        *(encode(noise(mode)) for mode in ("L", "RGB", "1", "LA", "RGBA")),
        *(encode(noise(mode), "JPEG") for mode in ("L", "RGB", "CMYK")),
        *(encode(noise(mode), transparency=0) for mode in ("L", "P")),
        encode(noise("RGB"), transparency=(0, 0, 0)),
        encode(noise("P"), "GIF"),
        encode(Image.fromarray(np.asarray(noise("L")).astype(np.uint16) * 200)),
        encode_npy(np.asarray(noise("L"))),
        encode_npy(np.asarray(noise("RGB"))),
    ],
)
def test_load_image_equals_resizing_decode_image(data: bytes, size: int) -> None:
    decoded = Image.fromarray(decode_image(data, "name"))
    expected = np.asarray(decoded.resize((size, size), Image.Resampling.BILINEAR))
    loaded = load_image(data, "name", Preprocessing(size, size))
    assert loaded.dtype == np.uint8
    np.testing.assert_array_equal(loaded, expected)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (one_row("L", 0, 255, 120, 130), [0, 1, 0, 1]),  # edges of a lossy or smoothed mask
        (one_row("L", 0, 1, 0, 2), [0, 1, 0, 1]),  # numbered classes
        (one_row("1", 0, 255, 0, 255), [0, 1, 0, 1]),
        (one_row("L", 0, 0, 0, 0), [0, 0, 0, 0]),
        (one_row("I;16", 0, 65535, 0, 1), [0, 1, 0, 0]),
        (one_row("I;16", 0, 1, 0, 1), [0, 1, 0, 1]),
        (one_row("RGB", (0, 0, 0), (0, 0, 200), (0, 9, 0), (128, 0, 0)), [0, 1, 0, 1]),
        (one_row("RGBA", *[(255, 0, 0, a) for a in (0, 255, 10, 250)]), [0, 1, 0, 1]),
    ],
)
def test_mask_values(image, expected):
    mask = decode_mask(encode(image), "name")
    assert mask.dtype == bool
    assert mask[0].astype(int).tolist() == expected


def test_npy_masks():
    for array in (np.array([[0, 3]], np.uint8), np.array([[False, True]]), np.array([[0.1, 0.9]])):
        assert decode_mask(encode_npy(array), "name").tolist() == [[False, True]]


def test_load_mask_keeps_its_edges_sharp():
    square = np.zeros((4, 4), np.uint8)
    square[1:3, 1:3] = 255
    mask = load_mask(encode(Image.fromarray(square)), "name", Preprocessing(8, 8))
    assert mask.dtype == bool
    np.testing.assert_array_equal(mask, square.repeat(2, 0).repeat(2, 1) > 0)


class GreyImages:
    """Encoded images of grey level i; image 99 is empty."""

    def image_bytes(self, i: int) -> bytes:
        return encode(Image.new("L", (5, 7), i)) if i < 99 else b""

    def image_name(self, i: int) -> str:
        return f"image {i}"


def test_load_images_keeps_the_order_of_the_indices():
    images = load_images(GreyImages(), [3, 1, 2, 1], Preprocessing(4, 4))
    assert images.shape == (4, 4, 4, 3)
    assert images[:, 0, 0, 0].tolist() == [3, 1, 2, 1]
    assert load_images(GreyImages(), [], Preprocessing(4, 4)).shape == (0, 4, 4, 3)


def test_load_images_error_names_the_image():
    with pytest.raises(UserError, match="image 99"):
        load_images(GreyImages(), [1, 99, 2], Preprocessing(4, 4))


def test_map_in_threads_stops_at_the_first_error():
    started = []

    def step(i: int) -> None:
        started.append(i)
        time.sleep(0.001)
        if i == 3:
            raise ValueError(i)

    with pytest.raises(ValueError, match="3"):
        list(map_in_threads(step, range(5_000), "steps"))
    assert len(started) < 5_000
