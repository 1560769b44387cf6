"""Decoding: from the content of image files, masks and arrays to pixels.

`file_types` tells images from other files. `opening` opens them: with `pillow`, with `tiff` and
`deep` where Pillow does not read all that a file says, or with `npy`. `values` are what it finds,
`rgb` and `mask` give them their meaning, and `loading` fits them to the network's input.
"""

from devnet_jax.data.decode.file_types import NotAnImageError, UnreadableTypeError
from devnet_jax.data.decode.loading import (
    Batch,
    EncodedImages,
    ImageCache,
    fit_image,
    load_image,
    load_images,
    load_mask,
    map_in_threads,
    open_picture,
    to_pillow,
)
from devnet_jax.data.decode.mask import decode_mask, read_mask
from devnet_jax.data.decode.opening import count_pages
from devnet_jax.data.decode.rgb import decode_image

__all__ = [
    "Batch",
    "EncodedImages",
    "ImageCache",
    "NotAnImageError",
    "UnreadableTypeError",
    "count_pages",
    "decode_image",
    "decode_mask",
    "fit_image",
    "load_image",
    "load_images",
    "load_mask",
    "map_in_threads",
    "open_picture",
    "read_mask",
    "to_pillow",
]
