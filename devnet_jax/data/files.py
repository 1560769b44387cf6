"""Raw files on disk."""

from __future__ import annotations

import os
from pathlib import Path

from devnet_jax.errors import UserError


def list_files(folder: Path) -> list[Path]:
    """All files below a folder, sorted by their posix path; hidden ones and folders left out."""
    found = []
    for directory, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(directory, name) for name in files if not name.startswith(".")]
    return sorted(found, key=Path.as_posix)


def read_file(file: Path) -> bytes:
    """The content of a file; raises `UserError` if it cannot be read."""
    try:
        return file.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read '{file}': {error.strerror}") from error


def unnested(folder: Path, name: str) -> Path:
    """The folder of that name in it, as in copies unpacked one level deeper; or the folder."""
    return folder / name if (folder / name).is_dir() else folder
