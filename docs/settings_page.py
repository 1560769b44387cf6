"""Writes docs/settings.md, the page of all settings, from devnet_jax/config.py.

python docs/settings_page.py
"""

from __future__ import annotations

import dataclasses
import types
import typing
from pathlib import Path
from typing import Any, Literal

from devnet_jax.config import Config

PAGE = Path(__file__).parent / "settings.md"
_HEAD = """# Settings

This page lists every setting. Set one on the command line with `--config.NAME=VALUE`, or in a file
like those in `configs/` (`config.NAME = VALUE`). The defaults are the paper's where it has one. A
setting marked ↻ may change when a run resumes; a run refuses to resume if another setting changed.

`python docs/settings_page.py` writes this page from `devnet_jax/config.py`.
"""


def page() -> str:
    """Returns the page as Markdown."""
    hints = typing.get_type_hints(Config)
    parts = [_HEAD]
    top = [field for field in dataclasses.fields(Config) if hints[field.name] is int]
    parts += ["\n## The run\n", *_table("", top, hints)]
    for field in dataclasses.fields(Config):
        section = hints[field.name]
        if dataclasses.is_dataclass(section):
            parts += [f"\n## {field.name}\n\n{section.__doc__}\n"]
            fields = dataclasses.fields(section)
            of_section = typing.get_type_hints(typing.cast(type, section))
            parts += _table(f"{field.name}.", fields, of_section)
    return "\n".join(parts) + "\n"


def _table(prefix: str, fields: typing.Iterable[Any], hints: dict[str, Any]) -> list[str]:
    rows = ["| setting | default | values | meaning |", "|---|---|---|---|"]
    for field in fields:
        mark = " ↻" if field.metadata["may_change"] else ""
        default = "none" if field.default is None else field.default
        values = _values(hints[field.name], field.metadata)
        meaning = field.metadata["meaning"]
        rows.append(f"| `{prefix}{field.name}`{mark} | `{default}` | {values} | {meaning} |")
    return rows


def _values(hint: Any, metadata: typing.Mapping[str, Any]) -> str:
    if typing.get_origin(hint) is Literal:
        return ", ".join(f"`{choice}`" for choice in typing.get_args(hint))
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    names = {int: "whole number", float: "number", bool: "`True`, `False`", str: "text"}
    text = " or ".join(names.get(kind, "none") for kind in kinds)
    low, high = metadata["minimum"], metadata["maximum"]
    if low is not None and high is not None:
        return f"{text}, {low:g} to {high:.10g}"
    return text if low is None else f"{text}, at least {low:g}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
