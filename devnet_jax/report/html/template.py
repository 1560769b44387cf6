"""Renders Jinja templates to self-contained HTML pages."""

from __future__ import annotations

import functools
from typing import Any

import jinja2


def render(template: str, **values: Any) -> str:
    """Renders a template of this package, such as "report/report.html.jinja".

    Values are escaped for HTML. Surrogates, which Python uses for bytes in file names that are not
    valid UTF-8, are shown as \\udc80.

    Args:
      template: path of the template, relative to the package.
      **values: variables of the template.
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
