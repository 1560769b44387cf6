"""Turns decoded images of any kind into 8-bit RGB, as a viewer shows them."""

from __future__ import annotations

import logging
import threading

import numpy as np
from PIL import Image

from devnet_jax.data.decode.opening import Opened, open_image
from devnet_jax.data.decode.values import FULL_16_BITS, Values
from devnet_jax.errors import UserError

logger = logging.getLogger(__name__)

_ROWS = 256  # composited at a time, so that a large image needs little more than itself

_has_warned = threading.Event()
_has_warned_of_clipping = threading.Event()


def decode_image(
    data: bytes, path: str, *, page: int | None = None, white_level: int = 0
) -> np.ndarray:
    """Decodes an image to RGB, as a viewer shows it: uint8 [H, W, 3].

    - The type is detected from the content, not from the file's name.
    - EXIF orientation is applied; colour profiles are not.
    - Transparent images are composited over white, as most viewers do. If every pixel is
      transparent, transparency is ignored.
    - An animation gives its first frame; a TIFF file has pages.
    - Greyscale in which 0 is white is inverted.
    - More than 8 bits are scaled, not clipped, to 8 bits. Floats must be in [0, 1].
    - An `.npy` array must be H×W, H×W×1 or H×W×C with C ≥ 3; its first three channels are red,
      green and blue.

    Args:
      data: content of the file.
      path: name of the file, for messages.
      page: number of the page, from 0; `None` for the only one.
      white_level: value that is white in images of 16 bits; 0 means 65535. Types that state their
        number of bits do not need it.

    Raises:
      NotAnImageError: if the content is of no image type, in a file not named as an image.
      UserError: if the file is empty, damaged, too large or of a type that cannot be read, or has
        an unsupported range of values.
    """
    return to_rgb(open_image(data, path, page).content, path, white_level)


def to_rgb(
    content: Image.Image | Values, path: str, white_level: int = 0, background: str = "white"
) -> np.ndarray:
    """Converts a decoded image to uint8 [H, W, 3]; see `decode_image`.

    Args:
      content: upright image.
      path: name of the image, for messages.
      white_level: value that is white in images of 16 bits; 0 means 65535.
      background: colour that shows through transparent parts.
    """
    if isinstance(content, Values):
        pixels = to_8_bits(content, path, white_level)
        return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))
    return np.asarray(to_rgb_image(content, path, background))


def to_rgb_image(image: Image.Image, path: str, background: str = "white") -> Image.Image:
    """Converts a Pillow image of 8 bits to mode RGB; see `to_rgb`."""
    try:
        if image.mode in ("La", "RGBa"):
            image = image.convert(image.mode.upper())
        if not image.has_transparency_data:
            return image.convert("RGB")
        layer = image.convert("RGBA")
    except Exception as error:  # Pillow has no palette of some damaged and nested files
        raise UserError(
            f"image '{path}' has the colour mode {image.mode}, which cannot be converted to RGB:"
            " save it as an RGB or greyscale image"
        ) from error
    lowest, highest = layer.getchannel("A").getextrema()
    if lowest == 255 or highest == 0:
        return layer.convert("RGB")
    result = Image.new("RGB", layer.size)
    for top in range(0, layer.height, _ROWS):
        part = layer.crop((0, top, layer.width, min(top + _ROWS, layer.height)))
        part = Image.alpha_composite(Image.new("RGBA", part.size, background), part)
        result.paste(part.convert("RGB"), (0, top))
    return result


def to_8_bits(values: Values, path: str, white_level: int = 0) -> np.ndarray:
    """Scales the values of an image to uint8, [H, W, 1] or [H, W, 3]; see `to_rgb`.

    Raises:
      UserError: if floating-point values are outside 0 to 1.
    """
    white = round(values.white or white_level or FULL_16_BITS)
    if values.white is None and white == FULL_16_BITS:
        _warn_of_few_levels(values.stored, path)
    elif values.white is None:
        _warn_of_clipping(values, path, white)
    pixels = values.shown(white)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels[..., :3]
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == np.bool_:
        return pixels.astype(np.uint8) * np.uint8(255)
    if pixels.dtype == np.uint16:
        # Rounded to the nearest.
        scaled = (pixels.astype(np.uint32) * 510 + white) // (2 * white)
        return np.minimum(scaled, 255).astype(np.uint8)
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= -1e-3 and high <= 1 + 1e-3):  # also True for NaN
        raise UserError(
            f"image '{path}' has floating-point values from {low:g} to {high:g},"
            " outside 0 to 1: rescale it"
        )
    return np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8)


def highest_value(opened: Opened) -> int | None:
    """Returns the highest value of an image of 16 bits whose white is not known, else `None`."""
    content = opened.content
    if isinstance(content, Values) and content.white is None:
        return content.highest()
    return None


def _warn_of_clipping(values: Values, path: str, white: int) -> None:
    """Warns, once in a process, of 16-bit values above the white level of other images."""
    if _has_warned_of_clipping.is_set() or int(values.stored.max()) <= white:
        return
    highest = values.highest()
    if highest > white:
        _has_warned_of_clipping.set()
        logger.warning(
            "image '%s' has values up to %d, above the white level %d that the training images"
            " or config.dataset.white_level have set: they are taken as white, in this and all"
            " such images",
            path,
            highest,
            white,
        )


def _warn_of_few_levels(pixels: np.ndarray, path: str) -> None:
    """Warns, once in a process, of 16-bit values of which hardly anything is left in 8 bits."""
    if _has_warned.is_set() or not 0 < (highest := int(pixels.max())) < FULL_16_BITS // 4:
        return
    _has_warned.set()
    logger.warning(
        "image '%s' uses %d of 65536 levels, up to %d, and looks dark: if its camera has fewer than"
        " 16 bits, set config.dataset.white_level, for example to 1023 for 10 bits",
        path,
        len(np.unique(pixels)),
        highest,
    )
