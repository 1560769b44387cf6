"""The notation of sizes and regions in settings: 256x1024 and 10%,0%,90%,100%."""

from __future__ import annotations

import functools
import re

from devnet_jax.errors import UserError


@functools.cache
def parse_region(text: str) -> tuple[tuple[float, bool], ...]:
    """Parses "left,top,right,bottom".

    Returns:
      Four pairs: a number, and True if it is per cent of the width or height.

    Raises:
      UserError: if the text has another form, or the numbers are not in order.
    """
    parts = [re.fullmatch(r"(\d+(?:\.\d*)?)\s*(%?)", part.strip()) for part in text.split(",")]
    values = tuple((float(part[1]), bool(part[2])) for part in parts if part)
    advice = "give left,top,right,bottom in pixels or per cent: 100,0,1700,400 or 10%,0%,90%,100%"
    if len(parts) != 4 or len(values) != 4:
        raise UserError(f"config.dataset.region = {text!r}: {advice}")
    for first, last in ((values[0], values[2]), (values[1], values[3])):
        if first[1] == last[1] and first[0] >= last[0]:
            raise UserError(
                f"config.dataset.region = {text!r}: its edges are not in order; {advice}"
            )
        if any(is_share and value > 100 for value, is_share in (first, last)):
            raise UserError(f"config.dataset.region = {text!r}: an edge is beyond 100 %; {advice}")
    return values


def parse_size(text: int | str, setting: str) -> tuple[int, int]:
    """Parses a number, or two with an x between them: 224 and "256x1024" give (224, 224) and
    (256, 1024).

    Args:
      text: the setting's value.
      setting: the setting's name, for messages.

    Raises:
      UserError: if the text has another form, or a number is 0.
    """
    match = re.fullmatch(r"(\d+)(?:[x×](\d+))?", str(text).strip())
    size = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if min(size) < 1:
        raise UserError(
            f"{setting} = {text!r}: give one number, or HEIGHTxWIDTH, such as 2x3; both at least 1"
        )
    return size


def write_size(size: tuple[int, int]) -> int | str:
    """Returns the one way to write a size: a number if both are equal, else "256x1024"."""
    height, width = size
    return height if height == width else f"{height}x{width}"
