"""An image under a map in colours."""

from __future__ import annotations

import functools

import numpy as np

# ColorBrewer's YlOrRd, from yellow to red; Matplotlib's map of that name interpolates these.
# Not taken from there, as who scores with an exported detector need not have it.
_YLORRD = (
    (255, 255, 204),
    (255, 237, 160),
    (254, 217, 118),
    (254, 178, 76),
    (253, 141, 60),
    (252, 78, 42),
    (227, 26, 28),
    (189, 0, 38),
    (128, 0, 38),
)


def lay_over(image: np.ndarray, heat: np.ndarray, strength: float) -> np.ndarray:
    """An image under a map in colours: the hotter, the redder and the less transparent.

    Args:
      image: uint8 [H, W, 3].
      heat: floating [H, W] in [0, 1].
      strength: in [0, 1], how opaque the hottest pixels are.

    Returns:
      uint8 [H, W, 3].
    """
    heat = heat.astype(np.float32)
    colours = _colours()[np.rint(255 * heat).astype(np.uint8)]
    return np.rint(image + (colours - image) * (strength * heat)[..., None]).astype(np.uint8)


@functools.cache
def _colours() -> np.ndarray:
    """float32 [256, 3]."""
    places, anchors = np.linspace(0, len(_YLORRD) - 1, 256), np.array(_YLORRD, np.float32)
    channels = [np.interp(places, np.arange(len(anchors)), channel) for channel in anchors.T]
    return np.stack(channels, axis=-1).astype(np.float32)
