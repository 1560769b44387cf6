"""Tests that damage to sound files is noticed, and that nothing else is called damage."""

from __future__ import annotations

import io
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

from devnet_jax.data.decode import count_pages, decode_image, decode_mask
from devnet_jax.errors import UserError
from tests.data.decode.encoded import GREY, RGB, chunk, png, tiff

Y, X = np.mgrid[:64, :48].astype(np.uint8)
COLOURS = np.dstack([Y * 3, X * 3, Y + X])
NOISE = np.random.default_rng(0).integers(0, 256, (32, 32), np.uint8)


@pytest.mark.parametrize("data", [png(COLOURS, RGB), png(NOISE, GREY), png(Y, GREY)])
def test_a_flipped_bit_of_png_pixels_is_noticed(data: bytes) -> None:
    """Also where it is only the checksum that tells."""
    start, end = data.index(b"IDAT") + 4, data.index(b"IEND") - 4
    for place in np.unique(np.linspace(start, end - 1, 60).astype(int)):
        damaged = bytearray(data)
        damaged[place] ^= 0x10
        for decode in (decode_image, decode_mask):
            with pytest.raises(UserError, match=r"a\.png' is truncated or damaged"):
                decode(bytes(damaged), "a.png")


def test_zeros_in_place_of_the_second_half_of_a_png_are_noticed() -> None:
    data = png(COLOURS, RGB)
    with pytest.raises(UserError, match=r"a\.png' is truncated or damaged"):
        decode_image(data[: len(data) // 2].ljust(len(data), b"\0"), "a.png")


@pytest.mark.parametrize("file_format", ["TIFF", "WEBP", "GIF", "JPEG2000", "JPEG", "BMP", "TGA"])
def test_nothing_is_read_that_pillow_alone_refuses(file_format: str) -> None:
    options = {"compression": "tiff_lzw"} if file_format == "TIFF" else {}
    file = io.BytesIO()
    Image.fromarray(COLOURS).save(file, file_format, **options)
    data, rng = file.getvalue(), np.random.default_rng(1)
    for _ in range(60):
        damaged = bytearray(data)
        damaged[rng.integers(len(data))] ^= 1 << rng.integers(8)
        if rng.random() < 0.3:
            del damaged[rng.integers(len(data)) :]
        try:
            Image.open(io.BytesIO(damaged)).load()
        except Exception:
            with pytest.raises(UserError):
                decode_image(bytes(damaged), "a")


LONG = b"k\0\0" + zlib.compress(bytes(2 << 20))
TEXTS = {
    "wrong checksum": chunk(b"tEXt", b"k\0text")[:-1] + b"\0",
    "too long": chunk(b"zTXt", LONG),
    "wrong checksum of a size": chunk(b"pHYs", bytes(9))[:-1] + b"\0",
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_odd_texts_of_a_png_do_not_matter(text: bytes) -> None:
    for data in (png(COLOURS, RGB, text), png(COLOURS, RGB, after=text)):
        assert (decode_image(data, "a.png") == COLOURS).all()


def stacks() -> dict[str, bytes]:
    """Returns a stack of three pages as each of several programs writes it."""
    pages = np.stack([Y, X, Y + X])
    file = io.BytesIO()
    first, *others = map(Image.fromarray, pages)
    first.save(file, "TIFF", save_all=True, append_images=others)
    separate = io.BytesIO()
    with tifffile.TiffWriter(separate) as writer:
        for page in pages:  # each with its pixels before its tags
            writer.write(page, photometric="minisblack", contiguous=False, metadata=None)
    return {
        "Pillow": file.getvalue(),
        "tifffile": tiff(pages, photometric="minisblack"),
        "one by one": separate.getvalue(),
        "ImageJ": tiff(pages, imagej=True),
        "BigTIFF": tiff(pages, photometric="minisblack", bigtiff=True),
        "big-endian": tiff(pages, photometric="minisblack", byteorder=">"),
        "OME": tiff(pages, photometric="minisblack", ome=True),
    }


@pytest.mark.parametrize("writer", stacks())
def test_pages_that_are_cut_off_are_missed(writer: str) -> None:
    """At any length, an error comes up; no page is lost without one."""
    data = stacks()[writer]
    assert count_pages(data) == 3
    for page, pixels in enumerate((Y, X, Y + X)):
        assert (decode_image(data, "a.tif", page=page) == pixels[..., None]).all()
    needed = len(data.rstrip(b"\0"))  # some programs fill up the end
    said = 0
    for length in np.linspace(16, needed - 300, 40).astype(int):
        with pytest.raises(UserError, match=r"a\.tif.*(truncated|damaged)") as raised:
            decode_pages(data[:length])
        said += "more pages should follow" in str(raised.value)
    assert said


def decode_pages(data: bytes) -> None:
    n_pages = count_pages(data)
    for page in range(n_pages):
        decode_image(data, "a.tif", page=page if n_pages > 1 else None)
