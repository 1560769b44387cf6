"""The masks of defects that reviewers have painted: PNG files in the results folder."""

from __future__ import annotations

import hashlib
import io
import os
import time
from pathlib import Path

import numpy as np
from etils import epath
from PIL import Image, UnidentifiedImageError

from devnet_jax.errors import UserError
from devnet_jax.runtime.io import write_bytes


def write_mask(
    folder: Path, name: str, png: bytes, shown: tuple[int, int], size: tuple[int, int]
) -> str:
    """Writes a painted mask under a new name, so that the journal's earlier masks stay.

    Args:
      folder: folder of the masks.
      name: name of the picture.
      png: the mask as painted: a PNG file in grey, or with transparency; what is not 0 is defect.
      shown: height and width of the picture as it was shown.
      size: height and width of the picture itself, which the written mask has.

    Returns:
      Name of the file.

    Raises:
      UserError: if it is no PNG file, of another size than shown, or empty.
    """
    try:
        with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
            if (image.height, image.width) != shown:
                raise UserError(
                    f"a mask of {image.width}×{image.height} pixels for '{name}', which is shown"
                    f" with {shown[1]}×{shown[0]}: reload the page, and paint it again"
                )
            values = np.asarray(image.convert("RGBA"))
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError):
        raise UserError(f"the mask of '{name}' is no PNG file: paint it again") from None
    painted = (values[..., :3].max(axis=2) > 0) & (values[..., 3] > 0)
    if not painted.any():
        raise UserError(f"the mask of '{name}' is empty: paint the defect, or remove the mask")
    mask = Image.fromarray(np.where(painted, 255, 0).astype(np.uint8))
    if shown != size:
        mask = mask.resize((size[1], size[0]), Image.Resampling.NEAREST)
    file = io.BytesIO()
    mask.save(file, "PNG")
    digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:16]
    written = f"{digest}-{time.time_ns()}.png"
    write_bytes(epath.Path(folder / written), file.getvalue())
    return written


def read_mask(file: Path, shown: tuple[int, int]) -> bytes | None:
    """Returns a mask as a PNG file of the size in which its picture is shown; `None` if it is gone.

    Args:
      file: path of the mask.
      shown: height and width.
    """
    try:
        with Image.open(file) as image:
            mask = image.convert("L")
    except OSError:
        return None
    if (mask.height, mask.width) != shown:
        mask = mask.resize((shown[1], shown[0]), Image.Resampling.NEAREST)
    content = io.BytesIO()
    mask.save(content, "PNG")
    return content.getvalue()
