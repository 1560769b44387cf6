"""Lists and reads raw files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from devnet_jax.errors import UserError


def list_files(folder: Path) -> list[Path]:
    """Returns all files below a folder, sorted by their posix path; hidden ones are skipped.

    The list is empty if the folder does not exist.

    Raises:
      UserError: if a folder cannot be listed.
    """
    files = [parent / name for parent, names in walk(folder) for name in names]
    return sorted(files, key=Path.as_posix)


def walk(top: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yields a folder and all folders below it, each with its file names; hidden ones are skipped.

    Links to folders are followed. Each folder is visited once, so circular links are safe.

    Raises:
      UserError: if a folder cannot be listed.
    """

    def raise_user_error(error: OSError) -> None:
        if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
            raise UserError(
                f"cannot list the folder '{error.filename}': {error.strerror}"
            ) from error

    visited = set()
    for folder, subfolders, names in os.walk(top, followlinks=True, onerror=raise_user_error):
        status = Path(folder).stat()
        inode = (status.st_dev, status.st_ino)
        if inode in visited:
            subfolders.clear()
            continue
        visited.add(inode)
        # Sorted: of several links to one folder, the same one is followed every time.
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        yield Path(folder), sorted(name for name in names if not name.startswith("."))


def read_file(file: Path) -> bytes:
    """Returns the content of a file; raises `UserError` if it cannot be read."""
    try:
        return file.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read '{file}': {error.strerror}") from error


def inner_folder(folder: Path, name: str) -> Path:
    """Returns `folder/name` if it exists, as in copies nested one level deeper, else `folder`."""
    return folder / name if (folder / name).is_dir() else folder
