"""Tests of defect masks as labelling tools, cameras and data sets write them."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageFilter

from devnet_jax.data.decode import decode_mask, read_mask
from devnet_jax.errors import UserError


def encode(image: Image.Image, file_format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def areas(*values: object, side: int = 8) -> np.ndarray:
    """Returns a row of squares, each of one value."""
    return np.repeat(np.repeat(np.array([values], np.uint8), side, axis=0), side, axis=1)


def of_areas(mask: np.ndarray, side: int = 8) -> list[int]:
    """Returns the values of the squares; each must have one."""
    squares = mask.reshape(side, -1, side)
    assert (squares == squares[:1, :, :1]).all()
    return squares[0, :, 0].astype(int).tolist()


def voc_palette() -> list[int]:
    """Returns the colours of PASCAL VOC: bit j of a class is in bit 7 - j // 3 of channel j % 3."""
    colours = np.zeros((256, 3), int)
    for class_ in range(256):
        for bit in range(8):
            colours[class_, bit % 3] |= (class_ >> bit & 1) << (7 - bit // 3)
    return colours.ravel().tolist()


@pytest.mark.parametrize("classes", [(0, 1, 2, 8, 16, 24), (0, 7), (0, 5, 0, 200)])
def test_all_classes_of_a_palette_are_defects(classes: tuple[int, ...]) -> None:
    image = Image.fromarray(np.array([classes], np.uint8))
    image.putpalette(voc_palette())
    expected = [int(c > 0) for c in classes]
    for file_format in ("PNG", "GIF", "TIFF"):
        assert decode_mask(encode(image, file_format), "m")[0].astype(int).tolist() == expected


def test_the_background_of_a_palette() -> None:
    """Index 0 if it is used, whatever its colour; else black, else the border's commonest."""
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8))
    image.putpalette([31, 119, 180, 255, 127, 14, 0, 0, 0])
    assert decode_mask(encode(image), "m")[0].tolist() == [False, True, True]
    late = Image.fromarray(np.array([[10, 3, 7]], np.uint8))
    late.putpalette([9, 99, 199] * 10 + [0, 0, 0])
    assert decode_mask(encode(late), "m")[0].tolist() == [False, True, True]
    framed = np.full((6, 6), 5, np.uint8)
    framed[1:5, 1:5] = 7
    framed[3:, 2] = 7  # the defect touches the border
    without_black = Image.fromarray(framed)
    without_black.putpalette([0, 0, 0] * 5 + [255, 255, 255, 0, 0, 0, 255, 0, 0])
    assert (decode_mask(encode(without_black), "m") == (framed == 7)).all()
    # A palette of greys is greyscale, in any order.
    inverted = Image.fromarray(np.array([[0, 1]], np.uint8))
    inverted.putpalette([255, 255, 255, 0, 0, 0])
    assert decode_mask(encode(inverted), "m")[0].tolist() == [True, False]


def test_thin_classes_of_a_grey_palette() -> None:
    image = Image.fromarray(np.array([[0, 1, 2, 3]], np.uint8))
    image.putpalette([0, 0, 0, 85, 85, 85, 170, 170, 170, 255, 255, 255])
    mask = read_mask(encode(image), "m")
    assert mask.defect[0].tolist() == [False, True, True, True]
    assert mask.levels == (85,)
    white = Image.fromarray(np.zeros((1, 2), np.uint8))
    white.putpalette([255, 255, 255])
    assert decode_mask(encode(white), "m").all()


@pytest.mark.parametrize(
    ("values", "levels"),
    [
        ((0, 85, 170, 255), (85,)),
        ((0, 60, 255, 120), (60, 120)),
        ((0, 1, 2, 3), ()),  # numbered classes: nothing is above half
        ((0, 236, 240, 255), ()),  # MVTec LOCO: all are above half
        ((0, 255), ()),
        ((0, 1, 2, 255), (1, 2)),  # 255 for what belongs to no class
    ],
)
def test_grey_levels_of_areas_are_classes(values: tuple[int, ...], levels: tuple[int]) -> None:
    mask = read_mask(encode(Image.fromarray(areas(*values))), "m")
    assert of_areas(mask.defect) == [int(v > 0) for v in values]
    assert mask.levels == levels


def test_colours_of_classes() -> None:
    """The dark colours of VOC beside bright ones."""
    image = areas((0, 0, 0), (64, 0, 0), (0, 128, 0), (255, 255, 255), (64, 64, 0))
    assert of_areas(decode_mask(encode(Image.fromarray(image)), "m")) == [0, 1, 1, 1, 1]


SQUARE = np.zeros((64, 64), np.uint8)
SQUARE[20:40, 20:40] = 255


@pytest.mark.parametrize("scale", [1, 2, 3])
@pytest.mark.parametrize("resampling", ["BILINEAR", "BICUBIC", "LANCZOS"])
def test_soft_edges_neither_widen_a_defect_nor_leave_specks(scale: int, resampling: str) -> None:
    image = Image.fromarray(SQUARE)
    image = image.resize((64 * scale, 64 * scale), Image.Resampling[resampling])
    for data in (encode(image), encode(image, "JPEG", quality=60), encode(image, "WEBP")):
        mask = read_mask(data, "m")
        assert mask.levels == ()
        assert abs(int(mask.defect.sum()) - 400 * scale**2) <= 16 * scale
        assert not mask.defect[: 18 * scale].any()


def test_lines_of_a_class_beside_other_defects() -> None:
    """A line too thin for areas of one level; no soft edge, because nothing brighter touches it."""
    values = np.zeros((32, 32), np.uint8)
    values[4:6] = 100
    values[10:20, 10:20] = 255
    mask = read_mask(encode(Image.fromarray(values)), "m")
    assert (mask.defect == (values > 0)).all()
    assert mask.levels == (100,)


LOSSY = [("JPEG", 60), ("JPEG", 75), ("JPEG", 95), ("WEBP", 80)]


@pytest.mark.parametrize(("file_format", "quality"), LOSSY)
def test_classes_in_lossy_files(file_format: str, quality: int) -> None:
    """Noise makes one level many, some of them above half of the range."""
    one, three = np.zeros((2, 32, 32), np.uint8)
    one[10:20, 10:20] = 120
    three[4:12, 4:12], three[16:24, 16:24], three[26:30, 2:30] = 64, 128, 192
    for values, levels in ((one, 0), (three, 1)):
        mask = read_mask(encode(Image.fromarray(values), file_format, quality=quality), "m")
        assert (mask.defect != (values > 0)).sum() <= 4
        assert len(mask.levels) == levels


@pytest.mark.parametrize(("file_format", "quality"), LOSSY)
def test_blurred_defects_in_lossy_files_are_cut_at_half(file_format: str, quality: int) -> None:
    blurred = Image.fromarray(np.kron(SQUARE, np.ones((4, 4), np.uint8)))
    blurred = blurred.filter(ImageFilter.GaussianBlur(8))
    mask = read_mask(encode(blurred, file_format, quality=quality), "m")
    assert mask.levels == ()
    assert abs(int(mask.defect.sum()) - 80**2) <= 400


@pytest.mark.parametrize("mode", ["L", "P"])
@pytest.mark.parametrize("quality", [50, 75, 90, 95, 98])
def test_a_mask_that_was_a_jpeg_file_has_no_classes(mode: str, quality: int) -> None:
    values = np.zeros((64, 64), np.uint8)
    values[13:30, 21:50] = 255
    with Image.open(io.BytesIO(encode(Image.fromarray(values), "JPEG", quality=quality))) as image:
        mask = read_mask(encode(image.convert(mode)), "m")
    assert (mask.defect == (values > 0)).all()
    assert mask.levels == ()


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (200, 0, 0)])
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_a_mask_in_alpha(colour: tuple[int, int, int], mode: str) -> None:
    image = Image.new("RGB", (64, 64), colour)
    image.putalpha(Image.fromarray(SQUARE))
    data = encode(image.convert(mode))
    assert (decode_mask(data, "m") == (SQUARE > 0)).all()


def test_transparent_parts_of_a_mask_of_two_colours_are_background() -> None:
    values = np.zeros((1, 3, 4), np.uint8)
    values[0, 0], values[0, 1], values[0, 2] = (255, 255, 255, 0), (0, 0, 0, 255), [255] * 4
    assert decode_mask(encode(Image.fromarray(values)), "m")[0].tolist() == [False, False, True]


@pytest.mark.parametrize("dtype", ["i1", ">i2", "<i4", "i8", ">u4"])
def test_arrays_of_labels_have_any_integer_type(dtype: str) -> None:
    labels = np.array([[0, 1, 100], [0, 0, 3]], dtype)
    for array in (labels, np.asfortranarray(labels)):
        file = io.BytesIO()
        np.save(file, array)
        assert (decode_mask(file.getvalue(), "m.npy") == (labels != 0)).all()
        with pytest.raises(UserError, match=r"array 'm\.npy' "):
            decode_mask(file.getvalue()[:-1], "m.npy")


def test_soft_masks_of_more_than_8_bits() -> None:
    grey = (SQUARE.astype(np.uint16) * 257).astype(np.uint16)
    assert decode_mask(encode(Image.fromarray(grey)), "m").sum() == 400
    assert decode_mask(encode(Image.fromarray(grey // 64)), "m").sum() == 400  # 10 bits
    floats = Image.fromarray(SQUARE.astype(np.float32) / 255)
    assert decode_mask(encode(floats, "TIFF"), "m").sum() == 400


def test_any_nonzero() -> None:
    data = encode(Image.fromarray(np.array([[0, 1, 255]], np.uint8)))
    assert decode_mask(data, "m")[0].tolist() == [False, False, True]
    assert decode_mask(data, "m", any_nonzero=True)[0].tolist() == [False, True, True]
