"""The checksums of a folder's files: written when the folder is whole, and held against it later.

A folder counts as whole only with its checksums beside its files, and they are written last: one
that a killed process has left half-written has none.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from devnet_jax.runtime.io import write_json

FILENAME = "checksums.json"
UNCONFIRMED = f"{FILENAME} is missing, as of one whose saving was cut short"

_CHUNK = 1 << 20  # bytes read at once


@dataclasses.dataclass(frozen=True)
class Checksums:
    """What a folder held when it was whole.

    Attributes:
      files: of each file, by its path in the folder, its size in bytes and its SHA-256.
      metrics: what the folder's content is judged by.
    """

    files: Mapping[str, tuple[int, str]]
    metrics: Mapping[str, float]


def write_checksums(folder: epath.Path, metrics: Mapping[str, float]) -> None:
    """Reads a folder's files and writes their checksums beside them, whole or not at all.

    Args:
      folder: to which nothing is written any more.
      metrics: finite values by their names, to be kept beside the checksums.
    """
    files = {
        name: {"bytes": path.stat().length, "sha256": _sha256(path)}
        for name, path in sorted(_files(folder))
    }
    content = {"metrics": dict(metrics), "files": files}
    write_json(folder / FILENAME, {**content, "sha256": _sha256_of(content)})


def read_checksums(folder: epath.Path) -> Checksums | None:
    """The checksums of a folder; `None` where they are absent or damaged."""
    try:
        content = json.loads((folder / FILENAME).read_bytes())
        if content.pop("sha256") != _sha256_of(content):
            return None
        files = {name: (file["bytes"], file["sha256"]) for name, file in content["files"].items()}
        return Checksums(files, content["metrics"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def find_fault(folder: epath.Path) -> str | None:
    """Says how a folder differs from what it was when it was whole; `None` if it does not.

    Returns:
      `UNCONFIRMED` if it never was; else the first file that is missing, changed or one too many,
      and what is wrong with it.
    """
    try:
        if not (folder / FILENAME).exists():
            return UNCONFIRMED
        checksums = read_checksums(folder)
        if checksums is None:
            return f"{FILENAME} cannot be made out"
        found = dict(_files(folder))
    except OSError as error:
        return f"it cannot be read: {error.strerror or error}"
    for name in sorted(found.keys() | checksums.files.keys()):
        if name not in found:
            return f"{name} is missing"
        if name not in checksums.files:
            return f"{name} does not belong to it"
    for name, path in sorted(found.items()):
        size, sha256 = checksums.files[name]
        try:
            found_size = path.stat().length
            if found_size != size:
                return f"{name} has {found_size} bytes instead of {size}"
            if _sha256(path) != sha256:
                return f"{name} has changed"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror or error}"
    return None


def _files(folder: epath.Path, prefix: str = "") -> Iterator[tuple[str, epath.Path]]:
    """All files under a folder but its checksums, by their paths in it."""
    for path in folder.iterdir():
        if path.is_dir():
            yield from _files(path, f"{prefix}{path.name}/")
        elif prefix or path.name != FILENAME:
            yield f"{prefix}{path.name}", path


def _sha256(path: epath.Path) -> str:
    # Not by hashlib.file_digest: a file in a bucket need not be what it asks for.
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _sha256_of(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
