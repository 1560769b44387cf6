"""Checksums of a folder's files: written last, and verified before the folder is read.

A folder is complete only with its checksums. Because they are written last, a folder that an
interrupted process left behind has none.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from devnet_jax.runtime.io import write_json

FILENAME = "checksums.json"
INCOMPLETE = f"{FILENAME} is missing: the save was interrupted"

_CHUNK = 1 << 20  # bytes per read


@dataclasses.dataclass(frozen=True)
class Checksums:
    """Content of a checksums file.

    Attributes:
      files: size in bytes and SHA-256 of each file, by its path relative to the folder.
      metrics: metrics of the checkpoint, by name.
      date: day of the save, as 2026-11-30; `None` in checkpoints of earlier versions.
    """

    files: Mapping[str, tuple[int, str]]
    metrics: Mapping[str, float]
    date: str | None = None


def write_checksums(folder: epath.Path, metrics: Mapping[str, float]) -> None:
    """Writes the checksums of a folder's files, and today's date, atomically.

    Args:
      folder: folder whose files no longer change.
      metrics: finite values by name, stored with the checksums.
    """
    files = {
        name: {"bytes": path.stat().length, "sha256": _sha256_of_file(path)}
        for name, path in sorted(_list_files(folder))
    }
    date = str(datetime.date.today())
    content = {"metrics": dict(metrics), "date": date, "files": files}
    write_json(folder / FILENAME, {**content, "sha256": _sha256_of_json(content)})


def read_checksums(folder: epath.Path) -> Checksums | None:
    """Reads the checksums of a folder; `None` if they are missing or damaged."""
    try:
        content = json.loads((folder / FILENAME).read_bytes())
        if content.pop("sha256") != _sha256_of_json(content):
            return None
        files = {name: (file["bytes"], file["sha256"]) for name, file in content["files"].items()}
        return Checksums(files, content["metrics"], content.get("date"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def find_fault(folder: epath.Path) -> str | None:
    """Verifies a folder's files against its checksums.

    Returns:
      `None` if all files match; `INCOMPLETE` if there are no checksums; otherwise the first file
      that is missing, changed or unexpected, and what is wrong with it.
    """
    try:
        if not (folder / FILENAME).exists():
            return INCOMPLETE
        checksums = read_checksums(folder)
        if checksums is None:
            return f"{FILENAME} cannot be parsed"
        found = dict(_list_files(folder))
    except OSError as error:
        return f"it cannot be read: {error.strerror or error}"
    for name in sorted(found.keys() | checksums.files.keys()):
        if name not in found:
            return f"{name} is missing"
        if name not in checksums.files:
            return f"{name} is not listed in {FILENAME}"
    for name, path in sorted(found.items()):
        size, sha256 = checksums.files[name]
        try:
            found_size = path.stat().length
            if found_size != size:
                return f"{name} has {found_size} bytes instead of {size}"
            if _sha256_of_file(path) != sha256:
                return f"{name} has changed"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror or error}"
    return None


def _list_files(folder: epath.Path, prefix: str = "") -> Iterator[tuple[str, epath.Path]]:
    """Yields the relative and the full path of all files in a folder except its checksums."""
    for path in folder.iterdir():
        if path.is_dir():
            yield from _list_files(path, f"{prefix}{path.name}/")
        elif prefix or path.name != FILENAME:
            yield f"{prefix}{path.name}", path


def _sha256_of_file(path: epath.Path) -> str:
    # hashlib.file_digest does not accept every file object that epath opens in a bucket.
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _sha256_of_json(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
