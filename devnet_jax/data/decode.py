"""Image files' bytes → pixels: by content, every type that Pillow opens, and `.npy` arrays."""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from devnet_jax.errors import UserError
from devnet_jax.runtime.host_devices import n_cores

_NPY_MAGIC = b"\x93NUMPY"
# Content that begins like one of these and yet cannot be opened is a damaged image, not
# some other kind of file.
_KNOWN_BEGINNINGS = (
    b"\x89PNG",
    b"\xff\xd8\xff",
    b"GIF8",
    b"II*\0",
    b"MM\0*",
    b"\0\0\0\x0cjP",
)

T = TypeVar("T")
R = TypeVar("R")


class NotAnImageError(UserError):
    """The content is not empty, and of no image type known to Pillow or NumPy."""


class Images(Protocol):
    """Where image bytes come from: what `load_images` needs of a data source."""

    def image_bytes(self, i: int) -> bytes: ...
    def image_name(self, i: int) -> str: ...


class Cache(Protocol):
    """Where `load_images` finds what was decoded before, and leaves what it decodes."""

    def read(self, i: int, pixels: np.ndarray) -> bool:
        """Fills in image i, uint8 [S, S, 3]; False, and anything in `pixels`, if it is absent."""

    def write(self, i: int, pixels: np.ndarray) -> None:
        """Keeps image i, uint8 [S, S, 3], if that is possible."""


def decode_image(data: bytes, path: str) -> np.ndarray:
    """Decodes an image to the RGB that a viewer shows: uint8 [H, W, 3].

    The type is told by the content. EXIF orientation is applied, transparency is laid over
    white (as most viewers do), an animation gives its first frame, greyscale of 16 bits is
    scaled (not clipped) to 8, floats are read in [0, 1]; colour profiles are not applied.
    An `.npy` array is H×W, H×W×1 or H×W×C with C ≥ 3, of which the first three are taken.

    Args:
      data: the file's bytes.
      path: the file's name, for messages.

    Raises:
      NotAnImageError: the content is of no image type.
      UserError: the file is empty, damaged, too large, or of values that have no meaning here.
    """
    return _array_to_rgb(_pixels(data, path, background="white"), path)


def decode_mask(data: bytes, path: str, *, any_value: bool = False) -> np.ndarray:
    """Decodes a defect mask to bool [H, W], True on the defect.

    Defect is what lies above half of the value range; in a mask that never gets there (classes
    numbered 0, 1, 2, …), or with `any_value`, it is what differs from 0. Transparent pixels are
    no defect.

    Raises:
      UserError: as `decode_image`.
    """
    pixels = _pixels(data, path, background="black")
    if pixels.ndim == 3:
        # Channel by channel: several times faster than max(axis=-1).
        pixels = functools.reduce(np.maximum, np.moveaxis(pixels[..., :3], -1, 0))
    if pixels.dtype == bool:
        return pixels
    if any_value:
        return pixels > 0
    full = np.iinfo(pixels.dtype).max if pixels.dtype.kind in "iu" else 1.0
    return pixels > (full / 2 if pixels.max() > full / 2 else 0)


def load_image(data: bytes, path: str, image_size: int) -> np.ndarray:
    """Decodes and resizes an image: uint8 [S, S, 3], S = image_size.

    Bilinear with antialiasing, as torchvision resizes Pillow images; the aspect ratio is not
    kept.

    Raises:
      UserError: as `decode_image`.
    """
    if data.startswith(_NPY_MAGIC):
        return fit_image(_read_npy(data, path), path, image_size)
    return fit_image(_open(data, path), path, image_size)


def fit_image(image: Image.Image | np.ndarray, name: str, image_size: int) -> np.ndarray:
    """An image that is decoded already, as `load_image` gives it: uint8 [S, S, 3].

    Args:
      image: of any mode and size, upright; or an array as `decode_image` takes them.
      name: what it is called in messages.
      image_size: S.

    Raises:
      UserError: it is of another shape, or of values that have no meaning here.
    """
    if isinstance(image, np.ndarray):
        _require_image(image, name)
        image = Image.fromarray(_array_to_rgb(image, name))
    elif _is_wide(image):
        image = Image.fromarray(_array_to_rgb(_wide_array(image, name), name))
    elif image.mode not in ("L", "RGB") or image.has_transparency_data:
        image = _to_rgb(image, name, background="white")
    # Greyscale stays so until it is small: all channels are resized alike.
    pixels = np.asarray(image.resize((image_size, image_size), Image.Resampling.BILINEAR))
    return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=-1)


def load_mask(data: bytes, path: str, image_size: int) -> np.ndarray:
    """Decodes and resizes a defect mask to the nearest pixel: bool [S, S], S = image_size.

    Raises:
      UserError: as `decode_image`.
    """
    mask = Image.fromarray(decode_mask(data, path).astype(np.uint8))
    return np.asarray(mask.resize((image_size, image_size), Image.Resampling.NEAREST)) > 0


def load_images(
    source: Images,
    indices: Sequence[int],
    image_size: int,
    description: str | None = None,
    cache: Cache | None = None,
) -> np.ndarray:
    """Loads many images on all cores: uint8 [N, S, S, 3], in the order of `indices`.

    Args:
      source: of the files' bytes.
      indices: of the images in the source.
      image_size: S.
      description: of the progress bar, if there is to be one.
      cache: spares the decoding of what it holds, and is given what it does not.

    Raises:
      UserError: as `decode_image`, for the first image that cannot be decoded.
    """
    images = np.empty((len(indices), image_size, image_size, 3), np.uint8)

    def load(n: int) -> None:
        i, pixels = int(indices[n]), images[n]
        if cache is not None and cache.read(i, pixels):
            return
        pixels[:] = load_image(source.image_bytes(i), source.image_name(i), image_size)
        if cache is not None:
            cache.write(i, pixels)

    for _ in map_in_threads(load, range(len(indices)), description):
        pass
    return images


def map_in_threads(
    function: Callable[[T], R], items: Iterable[T], description: str | None
) -> Iterator[R]:
    """Yields function(item) in order, computed by a thread a core.

    On a terminal, a description comes with a progress bar.

    The first error in the items' order is raised, and what has not begun by then never will.
    """
    items = list(items)
    pool = ThreadPoolExecutor(n_cores())
    try:
        results = pool.map(function, items)
        if description is None:
            yield from results
            return
        from tqdm import tqdm  # who scores with an exported detector need not have it

        # disable=None: shown on a terminal, silent in a log file.
        yield from tqdm(
            results, total=len(items), desc=description, unit=" images", leave=False, disable=None
        )
    finally:
        pool.shutdown(cancel_futures=True)


def _pixels(data: bytes, path: str, background: str) -> np.ndarray:
    """[H, W] or [H, W, C] of bool, uint8, uint16 or floats; colours and 8 bits as uint8 RGB."""
    if data.startswith(_NPY_MAGIC):
        return _read_npy(data, path)
    image = _open(data, path)
    if _is_wide(image):
        return _wide_array(image, path)
    return np.asarray(_to_rgb(image, path, background))


def _to_rgb(image: Image.Image, path: str, background: str) -> Image.Image:
    """An image of colours or 8 bits as one of mode RGB, laid over the background."""
    try:
        if image.has_transparency_data:
            layer = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", layer.size, background), layer)
        return image.convert("RGB")
    except ValueError as error:
        raise UserError(
            f"image '{path}' has the colour mode {image.mode}, which cannot be shown as RGB:"
            " save it as an RGB or greyscale image"
        ) from error


def _open(data: bytes, path: str) -> Image.Image:
    """The first frame, fully decoded and upright."""
    if not data:
        raise UserError(f"image '{path}' is empty (0 bytes): restore or remove it")
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=_formats())
        image.load()
    except UnidentifiedImageError as error:
        if data.startswith(_KNOWN_BEGINNINGS):
            raise UserError(f"image '{path}' is damaged: restore or remove it") from error
        raise NotAnImageError(
            f"'{path}' is no image of a known type: convert it to PNG or remove it"
        ) from error
    except Image.DecompressionBombError as error:
        raise _too_large(f"image '{path}'") from error
    except Exception as error:  # decoders raise almost anything on damaged data
        raise UserError(
            f"image '{path}' is truncated or damaged ({_one_line(error)}): restore or remove it"
        ) from error
    # Unreadable EXIF data is no reason to refuse a picture that every viewer shows.
    with contextlib.suppress(Exception):
        ImageOps.exif_transpose(image, in_place=True)
    return image


def _most_pixels() -> int:
    return 2 * (Image.MAX_IMAGE_PIXELS or 0)


def _too_large(what: str) -> UserError:
    return UserError(
        f"{what} has more than the {_most_pixels()} pixels that are read: make it smaller or cut it"
    )


@functools.cache
def _formats() -> tuple[str, ...]:
    Image.init()
    # EPS is a program, not a picture: Pillow would run Ghostscript on it.
    return tuple(name for name in Image.ID if name != "EPS")


def _is_wide(image: Image.Image) -> bool:
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def _wide_array(image: Image.Image, path: str) -> np.ndarray:
    """Greyscale of more than 8 bits: uint16 or float [H, W]."""
    array = np.asarray(image)
    if image.mode != "I":
        return array if image.mode == "F" else array.astype(np.uint16)
    # Pillow's 32-bit integers hold 16-bit data of several file types.
    low, high = int(array.min()), int(array.max())
    if low < 0 or high > 65535:
        raise UserError(
            f"image '{path}' has greyscale values from {low} to {high}, outside 0 to 65535:"
            " save it with 16 bits"
        )
    return array.astype(np.uint16)


def _read_npy(data: bytes, path: str) -> np.ndarray:
    """An image-like array, [H, W] or [H, W, C], not pickled and of the size its header says."""
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        read_header = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        shape, _, dtype = read_header(file)
        complete = len(data) - file.tell() >= np.prod(shape, dtype=object) * dtype.itemsize
        n_pixels = np.prod(shape[:2], dtype=object)
        # Compared before it is read: a damaged header may ask for any amount of memory.
        array = None
        if complete and n_pixels <= _most_pixels():
            array = np.load(io.BytesIO(data), allow_pickle=False)
    except Exception as error:  # a damaged header fails in many ways; a pickle is refused
        raise UserError(
            f"array '{path}' cannot be read ({_one_line(error)}): save it again with numpy.save"
        ) from error
    if not complete:
        raise UserError(f"array '{path}' is truncated: restore or remove it")
    if array is None:
        raise _too_large(f"array '{path}'")
    _require_image(array, path)
    return array


def _require_image(array: np.ndarray, path: str) -> None:
    """Raises `UserError` unless an array has the shape and the type of an image."""
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.ndim not in (2, 3) or channels == 2 or array.size == 0:
        raise UserError(
            f"array '{path}' has the shape {array.shape}; an image is H×W, H×W×1 or H×W×C, C ≥ 3"
        )
    if array.dtype not in (np.bool_, np.uint8, np.uint16) and array.dtype.kind != "f":
        raise UserError(
            f"array '{path}' is of type {array.dtype}: save it as uint8, uint16 or float in [0, 1]"
        )


def _array_to_rgb(array: np.ndarray, path: str) -> np.ndarray:
    """uint8 [H, W, 3] of an array [H, W] or [H, W, C]."""
    if array.ndim == 2:
        array = array[..., None]
    array = array[..., :3]
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * np.uint8(255)
    elif array.dtype == np.uint16:
        # 257 × 255 = 65535; rounded to the nearest.
        array = ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)
    elif array.dtype.kind == "f":
        low, high = float(array.min()), float(array.max())
        if not (low >= -1e-3 and high <= 1 + 1e-3):  # also when there is a NaN
            raise UserError(
                f"image '{path}' has floating-point values from {low:g} to {high:g},"
                " outside 0 to 1: rescale it"
            )
        array = np.rint(np.clip(array, 0, 1) * 255).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(array, (*array.shape[:2], 3)))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
