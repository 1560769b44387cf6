"""Cuts large images and their masks into parts, encoded as PNG."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image

from devnet_jax.data.datasets.builder import LazyBytes, encode_png
from devnet_jax.data.datasets.verify import require_equal_sizes
from devnet_jax.data.decode import decode_image, decode_mask
from devnet_jax.data.paths import FileState, file_state, read_file

Box = tuple[slice, slice]  # rows, columns


class Part(NamedTuple):
    """A part of an image; its mask is None if it has no defect."""

    image: LazyBytes
    mask: LazyBytes | None


def cut_image(
    image: Path, masks: tuple[Path, ...], boxes: Callable[[int, int], Iterable[Box]]
) -> list[Part]:
    """Cuts an image into parts.

    The masks and the image's header are read now; its pixels are read when a part is made. The mask
    of a part is white where any of the masks is not black. Greyscale images stay greyscale.

    Args:
      image: image file to cut.
      masks: mask files of its defects; () if it has no defect.
      boxes: function of height and width that returns the boxes of the parts.

    Raises:
      UserError: if a file is not an image or is damaged, or a mask has another size than the image.
    """
    state = file_state(image)  # first: opening a pipe might never end
    shape = _image_shape(image)
    defect = _defect_mask(masks, image, shape)
    parts = []
    for box in boxes(*shape):
        pixels = LazyBytes(functools.partial(_image_part, image, state, box), (image,))
        mask = LazyBytes(functools.partial(_mask_part, masks, image, shape, box), masks)
        parts.append(Part(pixels, mask if defect[box].any() else None))
    return parts


def _image_shape(image: Path) -> tuple[int, int]:
    """Returns height and width of an upright image, from its header."""
    try:
        with Image.open(image) as header:
            transposed = header.getexif().get(ExifTags.Base.Orientation, 1) >= 5
            return (header.width, header.height) if transposed else (header.height, header.width)
    except Exception:  # Pillow raises errors of many types; decoding explains the error
        return decode_image(read_file(image), str(image)).shape[:2]


# Threads that make the parts of one image wait until one of them has decoded it.
_DECODING = threading.Lock()


def _image_part(image: Path, state: FileState, box: Box) -> bytes:
    """Returns a part of an image as PNG."""
    with _DECODING:
        pixels = _decode_cached(image, state)
    return encode_png(pixels[box])


@functools.lru_cache(maxsize=32)  # more images than are in use at once by a hundred threads
def _decode_cached(image: Path, state: FileState) -> np.ndarray:
    """Decodes an image to uint8 [H, W], or [H, W, 3] if it has colours.

    The state is an argument so that a changed file is decoded again.
    """
    rgb = decode_image(read_file(image), str(image))
    red, green, blue = np.moveaxis(rgb, -1, 0)
    grey = (red == green).all() and (green == blue).all()
    return red.copy() if grey else rgb


def _mask_part(masks: tuple[Path, ...], image: Path, shape: tuple[int, int], box: Box) -> bytes:
    """Returns a part of the defect mask of an image as PNG."""
    return encode_png(_defect_mask(masks, image, shape)[box].astype(np.uint8) * 255)


def _defect_mask(masks: tuple[Path, ...], image: Path, shape: tuple[int, int]) -> np.ndarray:
    """Returns the union of the masks of an image: bool [H, W], True where any is not black."""
    union = np.zeros(shape, bool)
    for mask in masks:
        defect = decode_mask(read_file(mask), str(mask), any_nonzero=True)
        require_equal_sizes(str(mask), defect.shape, str(image), shape)
        union |= defect
    return union
