"""Drawing of heat maps over images."""

from __future__ import annotations

import functools

import numpy as np

# ColorBrewer's YlOrRd, from yellow to red, of which Matplotlib's colour map is an interpolation.
# Exported detectors must not depend on Matplotlib.
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
    """Draws a heat map over an image; hotter pixels are redder and more opaque.

    Args:
      image: uint8 [H, W, 3].
      heat: floating [H, W] in [0, 1].
      strength: opacity of the hottest pixels, in [0, 1].

    Returns:
      uint8 [H, W, 3].
    """
    heat = heat.astype(np.float32)
    colours = coloured(heat)
    return np.rint(image + (colours - image) * (strength * heat)[..., None]).astype(np.uint8)


def coloured(heat: np.ndarray) -> np.ndarray:
    """Returns the colours of a heat map in [0, 1]: float32 [H, W, 3], from 0 to 255."""
    return _colours()[np.rint(255 * heat).astype(np.uint8)]


@functools.cache
def _colours() -> np.ndarray:
    """Returns the colour map, float32 [256, 3]."""
    positions, anchors = np.linspace(0, len(_YLORRD) - 1, 256), np.array(_YLORRD, np.float32)
    channels = [np.interp(positions, np.arange(len(anchors)), channel) for channel in anchors.T]
    return np.stack(channels, axis=-1).astype(np.float32)
