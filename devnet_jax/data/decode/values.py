"""Values of images of more than 8 bits, as they are stored, and the way to what they show."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

FULL_16_BITS = 65535  # white, unless a smaller white level is known
# Depths of cameras that store their values in 16 bits, without scaling them.
_CAMERA_BITS = (8, 10, 12, 14)


class Values(NamedTuple):
    """The values of an image that has more than 8 bits, or that was given as an array.

    Attributes:
      stored: [H, W] or [H, W, C] of bool, uint8, uint16 or floating dtype, as in the file.
      white: value of white; `None` for 16 bits, because cameras often use fewer of them.
      inverted: True for greyscale in which 0 is white, and `white` is black.
      alpha: opacity [H, W] of an image with transparent parts, in the dtype of `stored`, whose
        highest value is opaque.
    """

    stored: np.ndarray
    white: float | None
    inverted: bool = False
    alpha: np.ndarray | None = None

    @property
    def pixels(self) -> np.ndarray:
        """The values with black as 0, over black where they are transparent."""
        white = self.white
        if white is None:
            white = (self.inverted and camera_level(int(self.stored.max()))) or FULL_16_BITS
        return self.shown(white, background=0)

    def shown(self, white: float, background: float = 1) -> np.ndarray:
        """Returns the values with black as 0, over a background where they are transparent.

        Args:
          white: value of white.
          background: grey behind transparent parts, as a share of white.
        """
        pixels = self.stored
        if self.inverted and pixels.dtype.kind == "f":
            pixels = pixels.dtype.type(white) - pixels
        elif self.inverted:
            highest = pixels.dtype.type(white)
            pixels = highest - np.minimum(pixels, highest)
        if self.alpha is not None:
            share = self.alpha / np.float32(np.iinfo(self.alpha.dtype).max)
            share = share[..., None] if pixels.ndim == 3 else share
            blended = share * pixels + (1 - share) * np.float32(background * white)
            pixels = np.rint(blended).astype(pixels.dtype)
        return pixels

    def highest(self) -> int:
        """Returns the highest value of the visible pixels."""
        seen = self.stored if self.alpha is None else self.stored[self.alpha > 0]
        return int(seen.max())


def values_of_array(array: np.ndarray) -> Values:
    """Returns the values of an image array, as `as_image_array` returns it."""
    white = {"b": 1.0, "f": 1.0}.get(array.dtype.kind, 255.0)
    # More channels than three are of no meaning that is known.
    stored = array[..., :3] if array.ndim == 3 else array
    return Values(stored, None if array.dtype == np.uint16 else white)


def with_alpha(values: Values, alpha: np.ndarray) -> Values:
    """Returns values with transparent parts; without, if all of them are transparent or none."""
    lowest, highest = int(alpha.min()), int(alpha.max())
    if highest == 0 or lowest == np.iinfo(alpha.dtype).max:
        return values
    return values._replace(alpha=alpha)


def camera_level(highest: int) -> int:
    """Returns the white of the smallest camera depth that holds a value, or 0 for all 16 bits.

    Cameras of 10, 12 or 14 bits store their values in files of 16 bits, often as they are.
    """
    return next((2**bits - 1 for bits in _CAMERA_BITS if highest < 2**bits), 0)
