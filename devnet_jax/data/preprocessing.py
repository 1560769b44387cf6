"""The way from a picture of any size to the network's input, and from the network's maps back.

A picture is cut to its region and fitted to the *canvas*, which is the network's input or, with
tiles, a grid of inputs that overlap. `Preprocessing` holds the settings; `Placement` says where the
picture lies on the canvas. All functions are pure and the same in training and in scoring.
"""

from __future__ import annotations

import dataclasses
import sys
from typing import TYPE_CHECKING, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from devnet_jax.errors import UserError
from devnet_jax.notation import parse_region, parse_size

if TYPE_CHECKING:  # exported detectors are used without the package that it needs
    from devnet_jax.config import DatasetConfig

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

PADDING = (124, 116, 104)  # ImageNet's mean colour, which is 0 after normalisation

_LINEAR = Image.Resampling.BILINEAR

Fit = Literal["stretch", "letterbox", "crop"]


class Box(NamedTuple):
    """A rectangle in pixels, from its left upper corner (inclusive) to its right lower one."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def width(self) -> int:
        return self.right - self.left

    @property
    def height(self) -> int:
        return self.bottom - self.top

    @property
    def slices(self) -> tuple[slice, slice]:
        """Rows and columns of an array [H, W, …]."""
        return slice(self.top, self.bottom), slice(self.left, self.right)


class Placement(NamedTuple):
    """The part of a picture that is seen, and the part of the canvas that it fills.

    Attributes:
      seen: part of the picture that the network sees, in pixels of the picture.
      canvas: part of the canvas that it fills; the rest is padding.
    """

    seen: Box
    canvas: Box


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Settings of the way from a picture to the network's input.

    Attributes:
      height: height of the network's input, and of one tile.
      width: its width.
      fit: stretch (the aspect ratio changes), letterbox (it is kept, the rest is padding), or crop
        (it is kept, what does not fit is cut off on both sides).
      region: part of each picture that is used, `parse_region`'s "left,top,right,bottom"; "" for
        all.
      rows: number of rows of tiles.
      columns: number of columns of tiles.
      overlap: share of a tile that the next one overlaps, in [0, 0.5].
      white_level: value that is white in images of 16 bits; 0 means 65535.
    """

    height: int
    width: int
    fit: Fit = "stretch"
    region: str = ""
    rows: int = 1
    columns: int = 1
    overlap: float = 0.0
    white_level: int = 0

    @classmethod
    def from_settings(cls, settings: DatasetConfig) -> Preprocessing:
        """Returns the preprocessing that the settings describe.

        Raises:
          UserError: if the tiles together have more pixels than any image that can be read.
        """
        height, width = parse_size(settings.image_size, "config.dataset.image_size")
        rows, columns = parse_size(settings.tiles, "config.dataset.tiles")
        result = cls(
            height=height,
            width=width,
            fit=settings.fit,
            region=settings.region,
            rows=rows,
            columns=columns,
            overlap=settings.overlap if rows * columns > 1 else 0.0,
            white_level=settings.white_level,
        )
        tall, wide = result.canvas_size
        if tall * wide > max_pixels():
            raise UserError(
                f"config.dataset.tiles = {settings.tiles}, with image_size = {settings.image_size}:"
                f" together {wide}×{tall} pixels, more than any image that can be read"
                f" ({max_pixels()} pixels); give fewer tiles"
            )
        return result

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the network's input."""
        return self.height, self.width

    @property
    def n_tiles(self) -> int:
        """T, the number of tiles of a picture."""
        return self.rows * self.columns

    @property
    def shows_all(self) -> bool:
        """True if the network's input shows the whole picture."""
        return not self.region and self.fit != "crop"

    @property
    def n_channels(self) -> int:
        """C, the number of channels of the network's input: red, green, blue and, with letterbox,
        255 inside the picture and 0 in the padding."""
        return 4 if self.fit == "letterbox" else 3

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the network's input of one picture: [H, W, C] or, with tiles, [T, H, W, C]."""
        tile = (self.height, self.width, self.n_channels)
        return tile if self.n_tiles == 1 else (self.n_tiles, *tile)

    @property
    def n_bytes(self) -> int:
        """Number of bytes of the network's input of one picture."""
        return int(np.prod(self.shape))

    @property
    def tops(self) -> tuple[int, ...]:
        """First row of each row of tiles on the canvas."""
        return _starts(self.rows, self.height, self.overlap)

    @property
    def lefts(self) -> tuple[int, ...]:
        """First column of each column of tiles on the canvas."""
        return _starts(self.columns, self.width, self.overlap)

    @property
    def canvas_size(self) -> tuple[int, int]:
        """Height and width of the canvas."""
        return self.tops[-1] + self.height, self.lefts[-1] + self.width

    def place(self, width: int, height: int, name: str = "") -> Placement:
        """Returns the placement of a picture.

        Args:
          width: width of the upright picture.
          height: its height.
          name: its name, for messages.

        Raises:
          UserError: if the region reaches beyond the picture.
        """
        seen = self._region(width, height, name)
        rows, columns = self.canvas_size
        if self.fit == "crop":
            scale = min(seen.width / columns, seen.height / rows)
            seen = _centred(seen, columns * scale, rows * scale)
        canvas = Box(0, 0, columns, rows)
        if self.fit == "letterbox":
            scale = min(columns / seen.width, rows / seen.height)
            canvas = _centred(canvas, seen.width * scale, seen.height * scale)
        return Placement(seen, canvas)

    def frame_size(self, size: tuple[int, int], original: bool = False) -> tuple[int, int]:
        """Returns height and width of the maps of a picture, which cover all of it.

        Args:
          size: height and width of the picture.
          original: True for maps of the picture's own size. Otherwise they have the scale of the
            network's input; with a region or a crop at most the picture's own size.
        """
        if original:
            return size
        seen, canvas = self.place(*size[::-1])
        if seen == Box(0, 0, size[1], size[0]):
            return canvas.height, canvas.width
        scales = (canvas.height / seen.height, canvas.width / seen.width)
        height, width = (max(round(n * min(s, 1)), 1) for n, s in zip(size, scales, strict=True))
        return height, width

    def frame_box(self, size: tuple[int, int], original: bool = False) -> Box:
        """Returns the part of `frame_size` that the network sees."""
        seen = self.place(*size[::-1]).seen
        frame = self.frame_size(size, original)
        tall, wide = (n / full for n, full in zip(frame, size, strict=True))
        left, top = (round(n) for n in (seen.left * wide, seen.top * tall))
        right = max(round(seen.right * wide), left + 1)
        return Box(left, top, right, max(round(seen.bottom * tall), top + 1))

    def unfit(self, maps: np.ndarray, size: tuple[int, int], original: bool = False) -> np.ndarray:
        """Lays a map of the network's input on its picture: float32 [*frame_size].

        Args:
          maps: float32 [H, W] or [T, H, W], larger is hotter; what is not seen gets 0.
          size: height and width of the picture.
          original: as for `frame_size`.
        """
        canvas = self.join(maps if maps.ndim == 3 else maps[None])
        part = canvas[self.place(*size[::-1]).canvas.slices]
        box = self.frame_box(size, original)
        if part.shape != (box.height, box.width):
            resized = Image.fromarray(part).resize((box.width, box.height), _LINEAR)
            part = np.asarray(resized)
        frame = self.frame_size(size, original)
        if part.shape == frame:
            return part
        result = np.zeros(frame, np.float32)
        result[box.slices] = part
        return result

    def _region(self, width: int, height: int, name: str) -> Box:
        """Returns the region in pixels of a picture."""
        if not self.region:
            return Box(0, 0, width, height)
        edges = []
        for (value, is_share), full in zip(
            parse_region(self.region), (width, height, width, height), strict=True
        ):
            edges.append(round(value * full / 100) if is_share else round(value))
        region = Box(*edges)
        where = f"image '{name}' is {width}×{height} pixels, and config.dataset.region ="
        if min(region.width, region.height) < 1:
            raise UserError(
                f"{where} '{self.region}' is empty there, from {region.left},{region.top} to"
                f" {region.right},{region.bottom}: give left,top,right,bottom, in this order"
            )
        if region.right > width or region.bottom > height:
            raise UserError(
                f"{where} '{self.region}' lies beyond it: give left,top,right,bottom within the"
                " image, or per cent, 10%,0%,90%,100%"
            )
        return region

    def split(self, canvas: np.ndarray) -> np.ndarray:
        """Cuts a canvas [Hc, Wc, C] into the network's input, `shape`."""
        if self.n_tiles == 1:
            return canvas
        return np.stack(
            [
                canvas[top : top + self.height, left : left + self.width]
                for top in self.tops
                for left in self.lefts
            ]
        )

    def join(self, tiles: np.ndarray) -> np.ndarray:
        """Joins maps of tiles, floating [T, H, W], to one of the canvas, [Hc, Wc].

        Where tiles overlap, their weights rise linearly from their edges, so that no seams are
        seen.
        """
        if self.n_tiles == 1:
            return tiles[0]
        total = np.zeros(self.canvas_size, np.float32)
        weights = np.zeros(self.canvas_size, np.float32)
        ramp = np.minimum.outer(_ramp(self.height, self.tops), _ramp(self.width, self.lefts))
        starts = [(top, left) for top in self.tops for left in self.lefts]
        for tile, (top, left) in zip(tiles, starts, strict=True):
            place = np.s_[top : top + self.height, left : left + self.width]
            total[place] += ramp * tile
            weights[place] += ramp
        return total / weights


def max_pixels() -> int:
    """Returns the number of pixels of the largest image that is decoded: Pillow's limit.

    A caller's program may have lifted it (`PIL.Image.MAX_IMAGE_PIXELS = None`).
    """
    limit = Image.MAX_IMAGE_PIXELS
    return sys.maxsize if limit is None else 2 * limit


def normalise(images: jax.Array) -> jax.Array:
    """Normalises uint8 [..., 3] to float [..., 3] with ImageNet's channel means and deviations."""
    scaled = images / jnp.asarray(255.0)
    return (scaled - jnp.asarray(IMAGENET_MEAN)) / jnp.asarray(IMAGENET_STD)


def network_input(images: jax.Array) -> tuple[jax.Array, jax.Array | None]:
    """Returns the floating input of the network.

    Args:
      images: uint8 [..., C], C = 3 or, with padding, 4 (`Preprocessing.n_channels`).

    Returns:
      Normalised [..., 3], zero in the padding; and [...], 1 inside the image and 0 in its padding,
      or `None` without padding.
    """
    inputs = normalise(images[..., :3])
    if images.shape[-1] == 3:
        return inputs, None
    inside = images[..., 3] / jnp.asarray(255.0)
    return inputs * inside[..., None], inside


def _starts(n: int, size: int, overlap: float) -> tuple[int, ...]:
    """Returns the first pixels of n tiles along one axis."""
    step = size - round(overlap * size)
    return tuple(i * step for i in range(n))


def _centred(outer: Box, width: float, height: float) -> Box:
    """Returns the box of a size, at least one pixel, in the middle of another."""
    width, height = max(round(width), 1), max(round(height), 1)
    left = outer.left + (outer.width - width) // 2
    top = outer.top + (outer.height - height) // 2
    return Box(left, top, left + width, top + height)


def _ramp(size: int, starts: tuple[int, ...]) -> np.ndarray:
    """Returns weights [size] of a tile's pixels along one axis, in (0, 1], smaller at its edges."""
    overlap = size - (starts[1] - starts[0]) if len(starts) > 1 else 0
    distance = np.minimum(np.arange(size), np.arange(size)[::-1]) + 1
    return np.minimum(distance / (overlap + 1), 1).astype(np.float32)
