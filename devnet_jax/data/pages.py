"""Pages of files: a TIFF file may hold several pictures, which are named stack.tif#1, #2, …"""

from __future__ import annotations

import functools
import mmap
import os
import re
from pathlib import Path

from devnet_jax.data.decode.opening import count_pages
from devnet_jax.data.paths import FileState, UnreadableFileError, file_state, read_file
from devnet_jax.errors import UserError

# Suffixes of files that are opened to count their pages; "" is a file without one.
_SUFFIXES = (".tif", ".tiff", "")


def page_paths(file: Path) -> list[Path]:
    """Returns the paths of the pictures in a file: its own if it has one page, else one a page.

    Only the tags of a TIFF file are read. A file that cannot be read counts as one picture, so that
    reading it tells what is wrong.

    Raises:
      UserError: if a page has the name of another file, as page 1 of stack.tif has beside a file
        stack.tif#1.
    """
    if file.suffix.lower() not in _SUFFIXES:
        return [file]
    try:
        if file_state(file).size == 0:
            return [file]
        with (
            file.open("rb") as content,
            mmap.mmap(content.fileno(), 0, prot=mmap.PROT_READ) as data,
        ):
            n = count_pages(data)
    except (OSError, UnreadableFileError, ValueError):
        return [file]
    if n == 1:
        return [file]
    pages = [Path(f"{file}#{page + 1}") for page in range(n)]
    for number, page in enumerate(pages, start=1):
        if os.path.lexists(page):
            raise same_name_error(str(file), number)
    return pages


def same_name_error(file: str, page: int) -> UserError:
    """Returns the error for a page that has the name of another file.

    Args:
      file: name of the file of several pages.
      page: number of the page, from 1.
    """
    return UserError(
        f"'{file}#{page}' is a file, and also the name of page {page} of '{file}': rename the file"
        f" '{file}#{page}'"
    )


def split_page(path: Path) -> tuple[Path, int | None]:
    """Returns the file of a picture's path, and its page from 0; `None` if the path has none."""
    match = re.fullmatch(r"(.+)#([1-9]\d{0,8})", path.name, re.DOTALL)
    if match is None or os.path.exists(path):  # noqa: PTH110 (Path.exists may raise)
        return path, None
    return path.with_name(match[1]), int(match[2]) - 1


def read_picture(path: Path) -> tuple[bytes, int | None]:
    """Returns the content of the file of a picture, and the picture's page.

    Raises:
      UnreadableFileError: if the file cannot be read.
    """
    file, page = split_page(path)
    if page is None:
        return read_file(file), None
    return _read_file(file, file_state(file)), page


@functools.lru_cache(maxsize=1)
def _read_file(file: Path, state: FileState) -> bytes:
    """Reads a file, once for all of its pages, which follow each other."""
    del state  # a file that has changed is read again
    return read_file(file)
