"""Jinja templates → text of HTML pages that need nothing but themselves."""

from __future__ import annotations

import functools
from typing import Any

import jinja2


def render(template: str, **values: Any) -> str:
    """A page from a template of this package, such as "report/report.html.jinja".

    Values are escaped. What no UTF-8 file can hold, as the surrogates that stand for the odd bytes
    of a file's name, is shown as \\udc80.
    """
    text = _environment().get_template(template).render(values)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


@functools.cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("devnet_jax", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
