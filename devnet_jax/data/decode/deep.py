"""Reads colours of 16 bits, of which Pillow keeps 8, and corrects how it decodes TIFF files."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFile

from devnet_jax.data.decode import tiff
from devnet_jax.data.decode.pillow import identify
from devnet_jax.data.decode.values import Values, with_alpha

_COMPRESSION, _PLANAR = 259, 284  # TIFF tags
_SWAPPED = {"16B": "16L", "16L": "16B", "16N": "16B"}


def correct_tiles(image: ImageFile.ImageFile, data: bytes) -> None:
    """Corrects Pillow's choice of a decoder for TIFF files, before it decodes.

    - Floats that libtiff decompresses are in the byte order of the host, not of the file.
    - Colours of 16 bits that are stored band by band have 16 bits, not 8.
    - Colours that are multiplied by their opacity stay so: of pixels that are wholly transparent,
      nothing would be left. `straighten` divides them.
    """
    order = "L" if data[:2] == b"II" else "B"
    bits = tiff.page_of_pillow(image.tag_v2).bits  # type: ignore[attr-defined]
    tiles = []
    for tile in image.tile:
        mode, *rest = tile.args if isinstance(tile.args, tuple) else (tile.args,)
        if tile.codec_name == "libtiff" and mode == "F;32BF":
            mode = "F;32NF"
        if tile.codec_name == "raw" and mode in ("R", "G", "B", "A") and bits == 16:
            mode = f"{mode};16{order}"
        if isinstance(mode, str) and mode.startswith("RGBa"):
            mode = f"RGBA{mode[4:]}"
        tiles.append(tile._replace(args=(mode, *rest)))
    image.tile = tiles


def straighten(image: Image.Image) -> Image.Image:
    """Divides colours of 8 bits by the opacity that they are multiplied by.

    If every pixel is transparent, they stay as they are.

    Args:
      image: premultiplied image of mode La, or of mode RGBA by `correct_tiles`.
    """
    alpha = image.getchannel(image.getbands()[-1]).getextrema()
    if alpha in ((0, 0), (255, 255)):
        grey = image.mode == "La"
        return image.getchannel(0) if grey else image.convert("RGB")
    if image.mode == "La":
        return image.convert("LA")
    return Image.frombytes("RGBa", image.size, image.tobytes()).convert("RGBA")


def read_low_bytes(
    image: Image.Image, data: bytes, number: int, premultiplied: bool = False
) -> Values | None:
    """Reads the colours of 16 bits of which Pillow has kept the high bytes.

    Pillow has no such mode. But it decodes either byte order, and with the wrong one it keeps the
    low bytes. Grey with opacity, of twice 16 bits, it decodes as four channels of 8.

    Args:
      image: the high bytes.
      data: content of the file.
      number: number of the image in the file.
      premultiplied: True for colours that are multiplied by their opacity.

    Returns:
      Values [H, W] or [H, W, 3]; `None` where Pillow cannot do this.
    """
    if image.mode not in ("RGB", "RGBA"):
        return None
    other = identify(data)
    other.seek(number)
    if _has_compressed_bands(other):
        return None
    if other.format == "TIFF":
        correct_tiles(other, data)
    is_grey = False
    tiles = []
    for tile in other.tile or ():
        mode, *rest = tile.args if isinstance(tile.args, tuple) else (str(tile.args),)
        base, _, depth = mode.partition(";")
        if depth not in _SWAPPED:
            return None
        is_grey = base == "LA"  # Pillow makes colours of it
        mode = "RGBA" if is_grey else f"{base};{_SWAPPED[depth]}"
        tiles.append(tile._replace(args=(mode, *rest) if rest else mode))
    other.tile = tiles
    try:
        other.load()
    except ValueError:  # no such mode
        return None
    low = np.asarray(other)
    if is_grey:
        joined = (low[..., 0::2].astype(np.uint16) << 8) | low[..., 1::2]
    else:
        joined = (np.asarray(image).astype(np.uint16) << 8) | low
    if image.mode == "RGB":
        return add_transparent_colour(Values(joined, None), image)
    colours, alpha = joined[..., :-1], joined[..., -1]
    if premultiplied and alpha.any():
        share = np.maximum(alpha, 1)[..., None] / np.float32(65535)
        colours = np.minimum(np.rint(colours / share), 65535).astype(np.uint16)
    return with_alpha(Values(colours[..., 0] if is_grey else colours, None), alpha)


def lacks_low_bytes(image: ImageFile.ImageFile) -> bool:
    """Returns True for a TIFF image of 16 bits whose low bytes are needed, but cannot be read.

    Pillow decodes only the high bytes of colours that are compressed band by band. They are enough
    unless a camera of 14 bits or fewer has stored its values as they are.

    Args:
      image: the decoded image.
    """
    if not _has_compressed_bands(image):
        return False
    return int(np.asarray(image).max()) < 64


def _has_compressed_bands(image: ImageFile.ImageFile) -> bool:
    tags = getattr(image, "tag_v2", {})
    return tags.get(_PLANAR, 1) == 2 and tags.get(_COMPRESSION, 1) != 1


def add_transparent_colour(values: Values, image: Image.Image) -> Values:
    """Returns values of 16 bits in which the colour that a PNG file names is transparent."""
    colour = image.info.get("transparency")
    if image.format != "PNG" or colour is None or values.stored.dtype != np.uint16:
        return values
    matches = values.stored == np.asarray(colour)
    if matches.ndim == 3:
        matches = matches.all(axis=-1)
    return with_alpha(values, np.where(matches, 0, 65535).astype(np.uint16))
