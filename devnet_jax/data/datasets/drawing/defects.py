"""Draws defects onto surfaces, with their masks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import ndimage

from devnet_jax.data.datasets.drawing.surfaces import SIZE, Array, noise

# Ranges of the defects' sizes, in pixels, and strengths, relative to the full value range.
SCRATCH_LENGTH, SCRATCH_WIDTH, SCRATCH_STRENGTH = (130, 220), (3.6, 5.4), (0.55, 0.80)
STAIN_RADIUS, STAIN_STRENGTH = (24, 44), (0.28, 0.48)
HOLE_RADIUS = (13, 24)
DISTORTION_RADIUS, DISTORTION_TWIST = (44, 66), (1.2, 2.0)
THREAD_COLOURS = ((0.75, 0.16, 0.13), (0.88, 0.87, 0.82), (0.12, 0.33, 0.60))
THREAD_LENGTH, THREAD_WIDTH, THREAD_STRENGTH = (160, 290), (3.0, 4.2), (0.75, 0.95)
WEAR_RADIUS, WEAR_STRENGTH, WEAR_TONE = (30, 50), (0.75, 0.95), (0.04, 0.1)


def draw_defect(kind: str, surface: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Draws a defect onto a surface.

    Args:
      kind: one of DEFECTS.
      surface: float32 [SIZE, SIZE, 3] in [0, 1].
      rng: random generator.

    Returns:
      The surface with the defect, and the defect mask, bool [SIZE, SIZE].
    """
    image, strength = DEFECTS[kind](surface, rng)
    return np.clip(image, 0, 1).astype(np.float32), strength > 0.25


# The functions of DEFECTS return the image and the defect's strength, 0 outside the defect.


def _scratch(surface: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Draws a groove: one side bright, the other dark, deepest in its middle."""
    length = rng.uniform(*SCRATCH_LENGTH)
    depth, strength = _stroke(rng, length, bend=0.6, width=rng.uniform(*SCRATCH_WIDTH))
    sign = rng.choice([-1, 1])
    profile = sign * depth * rng.uniform(*SCRATCH_STRENGTH)
    shadow = ndimage.shift(depth, (1.6, 1.6), order=1) * 0.5
    return surface + (profile - sign * 0.2 * shadow)[..., None], strength


def _stain(surface: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Draws a dried liquid: tinted, darker at its rim."""
    inside = _blob(rng, rng.uniform(*STAIN_RADIUS), softness=3)
    rim = inside * (1 - ndimage.gaussian_filter(inside, 4)) * 1.2
    tint = np.array([[0.75, 0.9, 1.1], [1.1, 0.95, 0.75], [1.0, 1.0, 1.0]])[rng.integers(3)]
    strength = rng.uniform(*STAIN_STRENGTH)
    return surface * (1 - strength * (inside + rim)[..., None] * tint), inside * 2


def _hole(surface: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Draws missing material: dark, with one edge lit."""
    inside = _blob(rng, rng.uniform(*HOLE_RADIUS), softness=1)
    edge = np.clip(ndimage.shift(inside, (-2, -2), order=1) - inside, 0, 1)
    lit = np.clip(ndimage.shift(inside, (2, 2), order=1) - inside, 0, 1)
    ground = surface.mean((0, 1)) * 0.22 + 0.02 * noise(rng, 2)[..., None]
    image = surface * (1 - inside[..., None]) + ground * inside[..., None]
    return image + (0.16 * lit - 0.12 * edge)[..., None], inside * 2


def _distortion(surface: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Twists and stretches the pattern itself."""
    radius = rng.uniform(*DISTORTION_RADIUS)
    row, column = _random_centre(rng, radius)
    y, x = np.mgrid[:SIZE, :SIZE].astype(np.float32)
    y, x = y - row, x - column
    weight = np.clip(1 - np.hypot(y, x) / radius, 0, 1) ** 1.3
    turn = weight * rng.uniform(*DISTORTION_TWIST) * rng.choice([-1, 1])
    stretch = 1 - 0.6 * weight
    source_y = row + stretch * (np.cos(turn) * y + np.sin(turn) * x)
    source_x = column + stretch * (np.cos(turn) * x - np.sin(turn) * y)
    warped = [
        ndimage.map_coordinates(surface[..., c], [source_y, source_x], order=1, mode="reflect")
        for c in range(3)
    ]
    return np.stack(warped, -1), weight * 3


def _thread(surface: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Draws a foreign thread that lies on the surface and casts a shadow."""
    # The colour that differs most from the surface in hue, so that the thread is visible.
    ground = surface.mean((0, 1))
    colour = max(map(np.array, THREAD_COLOURS), key=lambda colour: float(np.ptp(colour - ground)))
    colour = colour + rng.uniform(-0.06, 0.06, 3)
    cover, strength = _stroke(
        rng, rng.uniform(*THREAD_LENGTH), bend=3.0, width=rng.uniform(*THREAD_WIDTH), taper=False
    )
    shadow = ndimage.gaussian_filter(ndimage.shift(cover, (3, 3), order=1), 1.2)
    alpha = (cover * rng.uniform(*THREAD_STRENGTH))[..., None]
    image = surface * (1 - 0.35 * shadow[..., None])
    return image * (1 - alpha) + colour * alpha, strength


def _wear(surface: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Draws a worn area, where the pattern has lost its relief."""
    inside = _blob(rng, rng.uniform(*WEAR_RADIUS), softness=6)
    alpha = (inside * rng.uniform(*WEAR_STRENGTH))[..., None]
    flat = ndimage.gaussian_filter(surface, (12, 12, 0))
    flat += rng.uniform(*WEAR_TONE) * rng.choice([-1, 1])
    return surface * (1 - alpha) + flat * alpha, inside * 2


def _random_centre(rng: np.random.Generator, margin: float) -> tuple[float, float]:
    """Draws the row and column of a defect's centre, so that the defect stays inside the image."""
    reach = max(SIZE * 0.42 - margin, SIZE * 0.12)
    angle, distance = rng.uniform(0, 2 * np.pi), reach * np.sqrt(rng.uniform())
    return SIZE / 2 + distance * np.sin(angle), SIZE / 2 + distance * np.cos(angle)


def _blob(rng: np.random.Generator, radius: float, softness: float) -> Array:
    """Draws an irregular disc, 1 inside and 0 outside, with an edge `softness` pixels wide."""
    row, column = _random_centre(rng, radius)
    y, x = np.mgrid[:SIZE, :SIZE].astype(np.float32)
    squeeze, turn = rng.uniform(0.7, 1.0), rng.uniform(0, np.pi)
    along = np.cos(turn) * (x - column) + np.sin(turn) * (y - row)
    aside = np.cos(turn) * (y - row) - np.sin(turn) * (x - column)
    outline = radius * (1 + 0.16 * noise(rng, radius / 2.5))
    depth = outline - np.hypot(along * squeeze, aside / squeeze)
    return np.clip(depth / softness + 0.5, 0, 1)


def _stroke(
    rng: np.random.Generator, length: float, bend: float, width: float, taper: bool = True
) -> tuple[Array, Array]:
    """Draws a curved line.

    Returns:
      Its coverage, 1 on the line and 0 elsewhere, and its strength, twice the coverage.
    """
    steps = int(length)
    heading = rng.uniform(0, 2 * np.pi) + np.cumsum(
        ndimage.gaussian_filter1d(rng.standard_normal(steps), 14) * bend * 0.11
    )
    path = np.cumsum(np.stack([np.sin(heading), np.cos(heading)]), axis=1)
    path += np.array(_random_centre(rng, length / 3))[:, None] - path.mean(1, keepdims=True)
    rows, columns = np.rint(path).astype(int)
    inside = (rows >= 0) & (rows < SIZE) & (columns >= 0) & (columns < SIZE)
    background = np.ones((SIZE, SIZE), bool)
    background[rows[inside], columns[inside]] = False
    distance, nearest = ndimage.distance_transform_edt(background, return_indices=True)
    cover = np.clip(width - distance, 0, 1)
    if taper:
        along = np.zeros((SIZE, SIZE), np.float32)
        profile = np.sin(np.linspace(0.12, np.pi - 0.12, steps))
        along[rows[inside], columns[inside]] = profile[inside]
        cover = cover * along[tuple(nearest)] ** 0.5
    return cover.astype(np.float32), cover * 2


DEFECTS: dict[str, Callable[[Array, np.random.Generator], tuple[Array, Array]]] = {
    "distortion": _distortion,
    "hole": _hole,
    "scratch": _scratch,
    "stain": _stain,
    "thread": _thread,
    "wear": _wear,
}
