"""Image arrays, given by a caller or in the content of an `.npy` file."""

from __future__ import annotations

import io

import numpy as np

from devnet_jax.data.decode.file_types import one_line, too_large_error
from devnet_jax.data.preprocessing import max_pixels
from devnet_jax.errors import UserError

_MAX_COLOURS = 4  # an array [3, H, W] has its channels first
_MAX_CHANNELS = 32  # an array [N, H, W] is N grey images; multispectral cameras have fewer channels


def read_npy(data: bytes, path: str) -> np.ndarray:
    """Reads an image array from the content of an `.npy` file; see `as_image_array`.

    Raises:
      UserError: if the content is damaged, truncated, too large or no image.
    """
    try:
        shape, _, dtype, start = read_header(data)
        complete = len(data) - start >= np.prod(shape, dtype=object) * dtype.itemsize
        n_pixels = np.prod(shape[:2], dtype=object)
        # The size is checked first: a damaged header may demand any amount of memory.
        array = None
        if complete and n_pixels <= max_pixels():
            array = np.load(io.BytesIO(data), allow_pickle=False)
    except Exception as error:  # damaged headers raise errors of many types; so do pickles
        raise UserError(
            f"array '{path}' cannot be read ({one_line(error)}): save it again with numpy.save"
        ) from error
    if not complete:
        raise UserError(f"array '{path}' is truncated: restore or remove it")
    if array is None:
        raise too_large_error(f"array '{path}'")
    return as_image_array(array, path)


def read_header(data: bytes) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """Returns the shape, the Fortran order, the dtype and the position of an `.npy` file's values.

    Raises errors of many types if it is damaged.
    """
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    read = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    return *read(file), file.tell()


def as_image_array(array: np.ndarray, path: str) -> np.ndarray:
    """Returns an array in native byte order if it has the shape and dtype of an image.

    Args:
      array: [H, W], [H, W, 1] or [H, W, C] with 3 ≤ C ≤ 32, whose first three channels are red,
        green and blue; of bool, uint8, uint16 or floating dtype.
      path: name of the array, for messages.

    Raises:
      UserError: if it has another shape or dtype, or its channels come first.
    """
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.ndim == 3 and array.shape[0] <= _MAX_COLOURS < min(array.shape[1:]):
        raise UserError(
            f"array '{path}' has the shape {array.shape}, with its channels first: expected H×W×C;"
            " give array.transpose(1, 2, 0)"
        )
    if channels > _MAX_CHANNELS:
        raise UserError(
            f"array '{path}' has the shape {array.shape}, thus {channels} channels, more than"
            f" {_MAX_CHANNELS}: give grey images one by one, in a list, or as [N, H, W, 1]"
        )
    if array.ndim not in (2, 3) or channels == 2 or array.size == 0:
        raise UserError(
            f"array '{path}' has the shape {array.shape}: expected H×W, H×W×1 or H×W×C, C ≥ 3"
        )
    if array.dtype not in (np.bool_, np.uint8, np.uint16) and array.dtype.kind != "f":
        raise UserError(
            f"array '{path}' is of type {array.dtype}: save it as uint8, uint16 or float in [0, 1]"
        )
    return array
