"""Draws surfaces, as seen by an inspection camera, from noise: float32 RGB in [0, 1].

A surface depends on its random generator only. Surfaces of one family differ in phase, scale,
orientation, colour, light and dust, as parts of one production line do.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.fft
from scipy import ndimage, spatial

Array = np.ndarray

SIZE = 256  # height and width in pixels

# Variation among good surfaces. More variation hides the defects from simple statistics.
ROTATION = 12.0  # largest angle, degrees
SCALING = 0.12  # largest relative change of the scale
WARP = 2.0  # standard deviation of the distortion, pixels; smaller for rigid materials
GAIN = 0.18  # largest relative change of the brightness
CONTRAST = 0.18  # largest relative change of the contrast
SHADING = 0.22  # largest relative change of the light towards one edge
TINT = 0.025  # largest relative change of a colour channel
DUST = 12  # largest number of dust specks
GRAIN = 0.012  # standard deviation of the camera's noise


def draw_surface(family: str, rng: np.random.Generator) -> Array:
    """Draws a surface of one of FAMILIES, without light and camera noise: [SIZE, SIZE, 3]."""
    angle = np.deg2rad(rng.uniform(-ROTATION, ROTATION))
    scale = 1 + rng.uniform(-SCALING, SCALING)
    y, x = np.mgrid[:SIZE, :SIZE].astype(np.float32) - SIZE / 2
    phase = rng.uniform(0, 1000, 2).astype(np.float32)
    u = (np.cos(angle) * x + np.sin(angle) * y) * scale + phase[0]
    v = (np.cos(angle) * y - np.sin(angle) * x) * scale + phase[1]
    warp = WARP * (0.12 if family in RIGID else 1)
    u += warp * noise(rng, 40)
    v += warp * noise(rng, 40)
    return np.clip(FAMILIES[family](rng, u, v), 0, 1).astype(np.float32)


def photograph(surface: Array, rng: np.random.Generator) -> Array:
    """Adds light, dust and camera noise to a surface: uint8 [SIZE, SIZE, 3]."""
    y, x = np.mgrid[:SIZE, :SIZE].astype(np.float32) / SIZE - 0.5
    direction = rng.uniform(0, 2 * np.pi)
    light = 1 + rng.uniform(0, SHADING) * 2 * (np.cos(direction) * x + np.sin(direction) * y)
    light *= 1 + rng.uniform(-GAIN, GAIN)
    tint = 1 + rng.uniform(-TINT, TINT, 3).astype(np.float32)
    image = surface * light[..., None].astype(np.float32) * tint
    mean = image.mean()
    image = mean + (image - mean) * (1 + rng.uniform(-CONTRAST, CONTRAST))
    for _ in range(rng.integers(DUST + 1)):
        row, column = rng.integers(2, SIZE - 2, 2)
        speck = rng.uniform(0.25, 0.7) * rng.choice([-1, 1])
        patch = np.exp(-(np.add.outer(*[np.arange(-2, 3) ** 2] * 2)) / rng.uniform(0.7, 2))
        image[row - 2 : row + 3, column - 2 : column + 3] += speck * patch[..., None]
    image = ndimage.gaussian_filter(image, (0.5, 0.5, 0))
    image += GRAIN * rng.standard_normal(image.shape, dtype=np.float32)
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)


def noise(rng: np.random.Generator, sigma: float, sigma_x: float | None = None) -> Array:
    """Draws periodic Gaussian-filtered white noise, [SIZE, SIZE], mean 0, standard deviation 1.

    Args:
      rng: random generator.
      sigma: standard deviation of the filter in pixels, along y and, by default, along x.
      sigma_x: standard deviation of the filter along x.
    """
    sigma_x = sigma if sigma_x is None else sigma_x
    white = scipy.fft.rfft2(rng.standard_normal((SIZE, SIZE), dtype=np.float32))
    for axis, width in ((0, sigma), (1, sigma_x)):
        frequency = scipy.fft.fftfreq(SIZE)[: white.shape[axis]]
        transfer = np.exp(-2 * (np.pi * width * frequency) ** 2).astype(np.float32)
        white *= transfer[:, None] if axis == 0 else transfer
    white[0, 0] = 0
    field = scipy.fft.irfft2(white, s=(SIZE, SIZE))
    return (field / field.std()).astype(np.float32)


def sample(field: Array, v: Array, u: Array) -> Array:
    """Samples a periodic field at rows v and columns u, bilinearly."""
    return ndimage.map_coordinates(field, [v % SIZE, u % SIZE], order=1, mode="grid-wrap")


def _blend(value: Array, dark: tuple[float, ...], bright: tuple[float, ...]) -> Array:
    """Interpolates between the colours dark (0) and bright (1)."""
    value = np.clip(value, 0, 1)[..., None]
    return np.asarray(dark, np.float32) * (1 - value) + np.asarray(bright, np.float32) * value


def _fabric(rng: np.random.Generator, u: Array, v: Array) -> Array:
    """Draws a twill of blue warp and pale weft."""
    pitch = 12
    i, j = np.floor(u / pitch), np.floor(v / pitch)
    fu, fv = u / pitch - i, v / pitch - j
    over = (i + j) % 3 != 0
    ridge_u, ridge_v = np.sin(np.pi * fu), np.sin(np.pi * fv)
    height = np.where(over, ridge_u * (0.7 + 0.3 * ridge_v), ridge_v * (0.7 + 0.3 * ridge_u))
    yarn = rng.normal(0, 0.07, (2, 256)).astype(np.float32)
    tone = np.where(over, yarn[0][i.astype(int) % 256], yarn[1][j.astype(int) % 256])
    fibre = np.where(over, sample(noise(rng, 3, 0.6), v, u), sample(noise(rng, 0.6, 3), v, u))
    value = 0.15 + 0.75 * height + 0.08 * fibre + tone
    blue = _blend(value, (0.05, 0.09, 0.17), (0.33, 0.45, 0.62))
    pale = _blend(value, (0.18, 0.20, 0.22), (0.78, 0.78, 0.74))
    return np.where(over[..., None], blue, pale)


def _metal(rng: np.random.Generator, u: Array, v: Array) -> Array:
    """Draws brushed steel."""
    brush = 0.7 * noise(rng, 0.5, 22) + 0.5 * noise(rng, 0.9, 60) + 0.3 * noise(rng, 3, 90)
    streaks = sample(brush, v, u)
    sheen = np.exp(-(((v - v.mean()) / 90 - rng.uniform(-0.8, 0.8)) ** 2))
    value = 0.42 + 0.11 * streaks + 0.16 * sheen
    return _blend(value, (0.10, 0.11, 0.12), (0.96, 0.96, 0.95))


def _wood(rng: np.random.Generator, u: Array, v: Array) -> Array:
    """Draws sawn pine: growth rings, fibres and pores."""
    bend = 16 * sample(noise(rng, 60, 25), v, u) + 1.2 * sample(noise(rng, 12, 2), v, u)
    # The added sine makes the rings uneven in width.
    ring = (u + bend) / 21 + 0.25 * np.sin((u + bend) / 37)
    early = ring - np.floor(ring)
    late_wood = early**2.2 * np.clip((1 - early) * 9, 0, 1)
    fibre = sample(noise(rng, 18, 0.6), v, u)
    pores = np.clip(sample(noise(rng, 7, 0.7), v, u) - 1.7, 0, 1)
    value = 0.86 - 0.55 * late_wood + 0.055 * fibre - 0.35 * pores
    return _blend(value, (0.30, 0.16, 0.07), (0.87, 0.68, 0.45))


def _granite(rng: np.random.Generator, u: Array, v: Array) -> Array:
    """Draws polished granite: feldspar, quartz and mica."""
    distance, nearest, n_grains = _cells(rng, u, v, spacing=9, jitter=3.5)
    palette = np.array(
        [[0.66, 0.58, 0.53], [0.76, 0.71, 0.67], [0.48, 0.46, 0.46], [0.13, 0.12, 0.13]], np.float32
    )
    mineral = rng.choice(4, n_grains, p=[0.36, 0.28, 0.22, 0.14])
    colour = palette[mineral] + rng.normal(0, 0.035, (n_grains, 1)).astype(np.float32)
    edge = np.clip((distance[1] - distance[0]) / 2.5, 0, 1)[..., None]
    image = colour[nearest] * (0.88 + 0.12 * edge)
    return image + 0.035 * noise(rng, 0.8)[..., None]


def _leather(rng: np.random.Generator, u: Array, v: Array) -> Array:
    """Draws grained leather, lit from the side."""
    distance, _, _ = _cells(rng, u, v, spacing=13, jitter=3)
    height = 1 - np.exp(-np.clip(distance[1] - distance[0], 0, None) / 2.8)
    height = ndimage.gaussian_filter(height, 0.9) + 0.05 * noise(rng, 1.2) + 0.15 * noise(rng, 14)
    slope_y, slope_x = np.gradient(height)
    value = 0.22 + 0.38 * height - 0.95 * slope_x - 0.75 * slope_y
    return _blend(value, (0.13, 0.06, 0.03), (0.74, 0.43, 0.24))


def _mesh(rng: np.random.Generator, u: Array, v: Array) -> Array:
    """Draws a perforated plate with holes in staggered rows."""
    pitch, row_height = 22.0, 22.0 * np.sqrt(0.75)
    row = np.round(v / row_height)
    offset = (row % 2) * pitch / 2
    column = np.round((u - offset) / pitch)
    du, dv = u - offset - column * pitch, v - row * row_height
    radius = np.hypot(du, dv)
    hole = 1 / (1 + np.exp(np.clip((radius - 6.4) * 2.2, -30, 30)))
    bevel = np.exp(-(((radius - 7.6) / 1.3) ** 2)) * (-(du + dv) / (radius + 1e-3))
    plate = 0.60 + 0.05 * sample(noise(rng, 2.2), v, u) + 0.04 * noise(rng, 25) + 0.20 * bevel
    below = 0.07 + 0.03 * noise(rng, 9)
    return _blend(plate * (1 - hole) + below * hole, (0.03, 0.04, 0.05), (0.87, 0.89, 0.92))


def _cells(
    rng: np.random.Generator, u: Array, v: Array, spacing: float, jitter: float
) -> tuple[tuple[Array, Array], Array, int]:
    """Draws irregular cells, as of a Voronoi diagram.

    Args:
      rng: random generator.
      u: [SIZE, SIZE], x coordinates.
      v: [SIZE, SIZE], y coordinates.
      spacing: distance of the cell centres before they are moved, in pixels.
      jitter: standard deviation of the centres' random moves, in pixels.

    Returns:
      The distances to the nearest and second nearest centre and the index of the nearest centre,
      each [SIZE, SIZE], and the number of centres.
    """
    u = u - u.mean() + jitter * 0.6 * noise(rng, 3)
    v = v - v.mean() + jitter * 0.6 * noise(rng, 3)
    steps = np.arange(-SIZE * 0.95, SIZE * 0.95, spacing)
    centres = np.stack(np.meshgrid(steps, steps), -1).reshape(-1, 2)
    centres += rng.normal(0, jitter, centres.shape)
    points = np.stack([u, v], -1).reshape(-1, 2)
    distance, index = spatial.cKDTree(centres).query(points, k=2)
    first, second = distance.astype(np.float32).reshape(SIZE, SIZE, 2).transpose(2, 0, 1)
    return (first, second), index[:, 0].reshape(SIZE, SIZE), len(centres)


FAMILIES: dict[str, Callable[[np.random.Generator, Array, Array], Array]] = {
    "fabric": _fabric,
    "granite": _granite,
    "leather": _leather,
    "mesh": _mesh,
    "metal": _metal,
    "wood": _wood,
}
RIGID = ("mesh", "metal")
