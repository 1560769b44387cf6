"""Tests of TIFF files of every depth, polarity and byte order, as other programs write them."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
import pyvips
import tifffile
from PIL import Image

from devnet_jax.data.decode import (
    UnreadableTypeError,
    count_pages,
    decode_image,
    decode_mask,
    to_pillow,
)
from devnet_jax.data.decode.opening import open_pillow
from devnet_jax.errors import UserError

RNG = np.random.default_rng(0)
SHARES = np.concatenate([[[0, 1, 0.25, 0.5]], RNG.random((4, 4))])
COMPRESSIONS = (None, "zlib")


def write(array: np.ndarray, **options: object) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, array, **options)
    return file.getvalue()


def packed(bits: int, photometric: int, values: list[int], order: str = "<") -> bytes:
    """Returns a TIFF file of one row of greyscale, whose samples take `bits` bits each."""
    text = "".join(f"{value:0{bits}b}" for value in values)
    data = int(text.ljust(-(-len(text) // 8) * 8, "0"), 2).to_bytes(-(-len(text) // 8), "big")
    tags = [(256, len(values)), (257, 1), (258, bits), (259, 1), (262, photometric), (273, 0)]
    tags += [(277, 1), (278, 1), (279, len(data))]
    start = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(
        struct.pack(f"{order}HHII", tag, 4, 1, start if tag == 273 else value)
        for tag, value in tags
    )
    magic = b"II*\0" if order == "<" else b"MM\0*"
    head = magic + struct.pack(f"{order}IH", 8, len(tags))
    return head + entries + struct.pack(f"{order}I", 0) + data


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
@pytest.mark.parametrize("dtype", ["bool", "uint8", "uint16", "float32"])
def test_greyscale(dtype: str, photometric: str, order: str, compression: str | None) -> None:
    """0 is white in `miniswhite`, whatever the depth; libvips agrees where it inverts, too."""
    highest = np.iinfo(dtype).max if dtype.startswith("u") else 1
    values = SHARES > 0.5 if dtype == "bool" else (SHARES * highest).astype(dtype)
    data = write(values, photometric=photometric, byteorder=order, compression=compression)
    expected = values.astype(float) / highest
    if photometric == "miniswhite":
        expected = 1 - expected
    decoded = decode_image(data, "a.tif")
    assert np.abs(decoded - expected[..., None] * 255).max() <= 0.51
    if dtype in ("uint8", "uint16"):
        read = pyvips.Image.new_from_buffer(data, "").numpy() / (highest / 255)
        assert np.abs(decoded[..., 0] - read).max() <= 0.51


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_colours(dtype: str, planar: str, order: str, compression: str | None) -> None:
    values = (RNG.random((5, 6, 3)) * np.iinfo(dtype).max).astype(dtype)
    data = write(
        np.moveaxis(values, -1, 0) if planar == "separate" else values,
        photometric="rgb",
        planarconfig=planar,
        byteorder=order,
        compression=compression,
    )
    expected = values * (255 / np.iinfo(dtype).max)
    assert np.abs(decode_image(data, "a.tif") - expected).max() < 1


@pytest.mark.parametrize("photometric", [0, 1])
@pytest.mark.parametrize("bits", [2, 4, 8, 12])
def test_packed_bits(bits: int, photometric: int) -> None:
    """The highest value of the file's own bits is white, or black."""
    highest = 2**bits - 1
    values = [0, highest, highest // 3, highest // 2]
    decoded = decode_image(packed(bits, photometric, values), "a.tif")[0, :, 0]
    expected = np.array(values) * 255 / highest
    assert np.abs(decoded - (expected if photometric else 255 - expected)).max() <= 0.51


@pytest.mark.parametrize(
    "data",
    [packed(14, 1, [0, 1]), packed(10, 0, [0, 1], ">"), write(SHARES), write(SHARES.astype("f2"))],
)
def test_kinds_that_cannot_be_read_are_not_called_damaged(data: bytes) -> None:
    with pytest.raises(UnreadableTypeError, match=r"a\.tif.* bits.*convert"):
        decode_image(data, "a.tif")
    with pytest.raises(UserError, match="damaged"):
        decode_image(data[:30], "a.tif")


def test_a_camera_of_10_bits_in_a_file_of_16() -> None:
    values = np.array([[0, 1023, 512, 100]], np.uint16)
    expected = [0, 255, 128, 25]
    for data in (write(values), write(values, byteorder=">")):
        assert decode_image(data, "a.tif", white_level=1023)[0, :, 0].tolist() == expected
    colours = np.repeat(values[..., None], 3, axis=-1)
    data = write(colours, photometric="rgb")
    assert decode_image(data, "a.tif", white_level=1023)[0, :, 0].tolist() == expected
    # A type that states its bits needs no level.
    level = packed(12, 1, [0, 4095])
    assert decode_image(level, "a.tif", white_level=1023)[0, :, 0].tolist() == [0, 255]


@pytest.mark.parametrize("dtype", ["int8", "int16"])
def test_signed_samples_are_refused(dtype: str) -> None:
    values = np.array([[0, 100]], dtype)
    with pytest.raises(UnreadableTypeError, match=r"greyscale of (8|16) bits, signed\): convert"):
        decode_image(write(values), "a.tif")


def test_32_bits() -> None:
    """They are read as far as 16 bits hold them; the message states the values themselves."""
    for dtype in (np.uint32, np.int32):
        decoded = decode_image(write(np.array([[0, 65535]], dtype)), "a.tif")
        assert decoded[0, :, 0].tolist() == [0, 255]
    with pytest.raises(UserError, match="values from 7 to 4294967295, outside 0 to 65535"):
        decode_image(write(np.array([[7, 2**32 - 1]], np.uint32)), "a.tif")


def test_few_bits_of_compressed_bands_are_refused() -> None:
    """Pillow gives only the high bytes of such files, which are enough for 16 bits."""
    options = {"photometric": "rgb", "planarconfig": "separate", "compression": "zlib"}
    values = np.array([[[0, 1023, 512, 100]]] * 3, np.uint16)
    assert decode_image(write(values * 64, **options), "a.tif")[0, 1, 0] == 255
    with pytest.raises(UnreadableTypeError, match="compressed band by band"):
        decode_image(write(values, **options), "a.tif", white_level=1023)
    del options["compression"]
    decoded = decode_image(write(values, **options), "a.tif", white_level=1023)
    assert decoded[0, :, 0].tolist() == [0, 255, 128, 25]


def test_a_file_without_the_mark_of_its_end_is_sound() -> None:
    data = packed(8, 1, [3, 5])
    head, tags, pixels = b"II*\0" + struct.pack("<I", 10), data[8:-6], data[-2:]
    place = tags.index(struct.pack("<HHI", 273, 4, 1)) + 8
    tags = tags[:place] + struct.pack("<I", len(head)) + tags[place + 4 :]
    assert decode_image(head + pixels + tags, "a.tif")[0, :, 0].tolist() == [3, 5]


@pytest.mark.parametrize("background", [1023, 65535])
def test_an_inverted_deep_mask(background: int) -> None:
    """Its background is its highest value, whatever the depth of the program that drew it."""
    values = np.array([[background, background, 0, 0]], np.uint16)
    data = write(values, photometric="miniswhite")
    assert decode_mask(data, "a.tif").tolist() == [[False, False, True, True]]


PGM = b"P5 4 1 %d\n" + np.array([0, 1023, 512, 100], ">u2").tobytes()
VALUES = np.array([[0, 1023, 512, 100]], np.uint16)


@pytest.mark.parametrize("white_level", [0, 1023])
@pytest.mark.parametrize(
    "data",
    [
        write(VALUES, photometric="miniswhite"),
        write(VALUES),
        write((VALUES / 1023).astype(np.float32), photometric="miniswhite"),
        write((VALUES // 4).astype(np.uint8), photometric="miniswhite"),
        write(VALUES.T, extratags=[(274, "H", 1, 6, True)]),
        packed(12, 1, [0, 4095, 512, 100]),
        PGM % 1023,
        PGM % 65535,
        b"P2 4 1 1023 0 1023 512 100",
    ],
)
def test_an_image_that_pillow_has_opened_shows_what_its_file_shows(
    data: bytes, white_level: int
) -> None:
    expected = decode_image(data, "a", white_level=white_level)
    image = Image.open(io.BytesIO(data))
    shown = np.asarray(to_pillow(open_pillow(image, "a"), "a", white_level).convert("RGB"))
    np.testing.assert_array_equal(shown, expected)


def test_pages() -> None:
    pages = [np.full((4, 4), value, np.uint8) for value in (10, 20, 30)]
    with io.BytesIO() as file:
        with tifffile.TiffWriter(file) as writer:
            writer.write(pages[0], subifds=1)
            writer.write(pages[0][::2, ::2], subfiletype=1)  # a smaller copy, within the first
            writer.write(pages[1])
            writer.write(pages[1][::2, ::2], subfiletype=1)  # a smaller copy beside it
            writer.write(pages[2])
        data = file.getvalue()
    assert count_pages(data) == 3
    for page, pixels in enumerate(pages):
        assert (decode_image(data, "a.tif", page=page) == pixels[..., None]).all()
    with pytest.raises(UserError, match=r"3 pages: save its pages .*stack\.tif#3"):
        decode_image(data, "a.tif")
    with pytest.raises(UserError, match=r"no page 4"):
        decode_image(data, "a.tif", page=3)
    assert count_pages(write(pages[0])) == count_pages(b"GIF89a") == 1


def test_big_tiff() -> None:
    data = write(np.array([[0, 65535]], np.uint16), bigtiff=True, photometric="miniswhite")
    assert decode_image(data, "a.tif")[0, :, 0].tolist() == [255, 0]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(orientation: int) -> None:
    """All orientations of a picture whose left upper corner is bright, 8 bits and 16."""
    upright = np.zeros((4, 6), np.uint16)
    upright[0, 0], upright[0, 5] = 65535, 30000
    # Axes that bring the upright picture to the stored one.
    stored = upright.T if orientation >= 5 else upright
    axes = {1: (), 2: (1,), 3: (0, 1), 4: (0,), 5: (), 6: (0,), 7: (0, 1), 8: (1,)}[orientation]
    stored = np.flip(stored, axes)
    exif = Image.Exif()
    exif[0x0112] = orientation
    for array in (stored, (stored >> 8).astype(np.uint8)):
        file = io.BytesIO()
        Image.fromarray(array).save(file, "PNG", exif=exif)
        expected = np.rint(upright / 257)
        assert np.abs(decode_image(file.getvalue(), "a")[..., 0] - expected).max() <= 1
        data = write(array, extratags=[(274, "H", 1, orientation, True)])
        assert np.abs(decode_image(data, "a")[..., 0] - expected).max() <= 1
