"""Large images cut into parts: the parts are lossless PNGs, each with its part of the mask."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image

from devnet_jax.data.datasets.builder import Produced, png, require_equal_sizes
from devnet_jax.data.decode import decode_image, decode_mask
from devnet_jax.data.paths import read_file

Box = tuple[slice, slice]  # rows, columns


class Part(NamedTuple):
    """A part of an image; the mask is None where the part has no defect."""

    image: Produced
    mask: Produced | None


def cut(
    image: Path, masks: tuple[Path, ...], boxes: Callable[[int, int], Iterable[Box]]
) -> list[Part]:
    """Cuts an image: its masks and its header are read now, its pixels when a part is made.

    A part's mask is white where any of the masks is not black. Greyscale stays greyscale.

    Args:
      image: the file to cut.
      masks: of its defects; none if it has no defect.
      boxes: height, width → the parts.

    Raises:
      UserError: a file is no image, or damaged, or a mask is not of the image's size.
    """
    shape = _shape(image)
    stamp = image.stat().st_mtime_ns
    defect = _defect(masks, image, shape)
    parts = []
    for box in boxes(*shape):
        picture = Produced(functools.partial(_image_part, image, stamp, box), (image,))
        mask = Produced(functools.partial(_mask_part, masks, image, shape, box), masks)
        parts.append(Part(picture, mask if defect[box].any() else None))
    return parts


def _shape(image: Path) -> tuple[int, int]:
    """Height and width, from the header."""
    try:
        with Image.open(image) as header:
            turned = header.getexif().get(ExifTags.Base.Orientation, 1) >= 5
            return (header.width, header.height) if turned else (header.height, header.width)
    except Exception:  # Pillow raises almost anything; decoding says what is wrong
        return decode_image(read_file(image), str(image)).shape[:2]


# Parts are made in order by many threads, which then all need the same image: one decodes it.
_DECODING = threading.Lock()


def _image_part(image: Path, stamp: int, box: Box) -> bytes:
    with _DECODING:
        pixels = _decoded(image, stamp)
    return png(pixels[box])


@functools.lru_cache(maxsize=32)  # more than are in hand at once with a hundred threads
def _decoded(image: Path, stamp: int) -> np.ndarray:
    """uint8 [H, W] or, if there are colours, [H, W, 3]; the stamp tells a changed file."""
    rgb = decode_image(read_file(image), str(image))
    red, green, blue = np.moveaxis(rgb, -1, 0)
    grey = (red == green).all() and (green == blue).all()
    return red.copy() if grey else rgb


def _mask_part(masks: tuple[Path, ...], image: Path, shape: tuple[int, int], box: Box) -> bytes:
    return png(_defect(masks, image, shape)[box].astype(np.uint8) * 255)


def _defect(masks: tuple[Path, ...], image: Path, shape: tuple[int, int]) -> np.ndarray:
    """Where any of the image's masks is not black: bool [H, W]."""
    defect = np.zeros(shape, bool)
    for mask in masks:
        marked = decode_mask(read_file(mask), str(mask), any_value=True)
        require_equal_sizes(str(mask), marked.shape, str(image), shape)
        defect |= marked
    return defect
