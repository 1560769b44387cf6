"""Opens reports in a browser."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from devnet_jax.report.content import Report
from devnet_jax.report.page import to_html
from tests.report.example import make_report


@functools.cache
def example_html() -> str:
    return to_html(make_report())


Opener = Callable[..., Page]


@pytest.fixture
def opened(browser: Browser, tmp_path: Path) -> Iterator[Opener]:
    """Returns a function that opens a report from disk.

    The test fails if the page logs an error or requests another address.
    """
    contexts, problems = [], []

    def open_page(report: Report | None = None, **options) -> Page:
        file = tmp_path / "report.html"
        file.write_text(example_html() if report is None else to_html(report), encoding="utf-8")
        contexts.append(
            browser.new_context(**({"viewport": {"width": 1280, "height": 800}} | options))
        )
        page = contexts[-1].new_page()
        page.set_default_timeout(5000)
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))

        def on_request(request) -> None:
            if request.url != file.as_uri() and not request.url.startswith(("data:", "blob:")):
                problems.append(request.url)

        page.on("request", on_request)
        page.goto(file.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert problems == []
