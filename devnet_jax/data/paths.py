"""Raw files on disk."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from devnet_jax.errors import UserError


def list_files(folder: Path) -> list[Path]:
    """All files below a folder, sorted by their posix path; hidden ones and folders left out.

    There are none below what is no folder.

    Raises:
      UserError: a folder cannot be listed.
    """
    found = [inner / name for inner, names in walk(folder) for name in names]
    return sorted(found, key=Path.as_posix)


def walk(top: Path) -> Iterator[tuple[Path, list[str]]]:
    """A folder and all below it, each with the names of its files; nothing hidden.

    Links to folders are followed, but into none twice: they may lead in circles.

    Raises:
      UserError: a folder cannot be listed.
    """

    def refuse(error: OSError) -> None:
        if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
            raise UserError(
                f"cannot list the folder '{error.filename}': {error.strerror}"
            ) from error

    seen = set()
    for folder, inner, names in os.walk(top, followlinks=True, onerror=refuse):
        status = Path(folder).stat()
        place = (status.st_dev, status.st_ino)
        if place in seen:
            inner.clear()
            continue
        seen.add(place)
        # In order: where several links lead to one place, the first is followed each time.
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        yield Path(folder), sorted(name for name in names if not name.startswith("."))


def read_file(file: Path) -> bytes:
    """The content of a file; raises `UserError` if it cannot be read."""
    try:
        return file.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read '{file}': {error.strerror}") from error


def unnested(folder: Path, name: str) -> Path:
    """The folder of that name in it, as in copies unpacked one level deeper; or the folder."""
    return folder / name if (folder / name).is_dir() else folder
