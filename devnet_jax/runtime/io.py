"""Atomic writing of files, and reading of JSON."""

from __future__ import annotations

import contextlib
import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from devnet_jax.errors import UserError


def write_text(path: epath.Path, text: str) -> None:
    """Writes a text file atomically."""
    write_bytes(path, text.encode())


def write_bytes(path: epath.Path, content: bytes) -> None:
    """Writes a file atomically."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


@contextlib.contextmanager
def atomic_write(path: epath.Path) -> Iterator[epath.Path]:
    """Yields a temporary path, which replaces the file unless an exception is raised."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = (
        path.parent / f".{path.name}.tmp"
    )  # a fixed name: overwrites a leftover of a killed process
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_npy(path: epath.Path, array: np.ndarray) -> None:
    """Writes an array as an .npy file, atomically."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    write_bytes(path, file.getvalue())


def write_jpeg(path: epath.Path, image: np.ndarray) -> None:
    """Writes an image, uint8 [H, W, 3], as a JPEG file, atomically."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=90)
    write_bytes(path, file.getvalue())


def write_json(path: epath.Path, value: Mapping[str, Any]) -> None:
    """Writes a JSON file atomically."""
    write_bytes(path, encode_json(value) + b"\n")


def encode_json(value: Mapping[str, Any]) -> bytes:
    """Returns a value as JSON in UTF-8; bytes of file names that are not valid UTF-8 survive."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    # Python's surrogates become \\udc80, which is how JSON writes them, too.
    return text.encode("utf-8", "backslashreplace")


def write_csv(path: epath.Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Writes a CSV file atomically.

    The encoding is UTF-8. File names that are not valid UTF-8 keep their bytes.
    """
    text = io.StringIO()
    rows = list(rows)
    # Without quotes, readers take a carriage return in a file name for the end of the line.
    has_returns = any("\r" in str(cell) for row in rows for cell in row)
    writer = csv.writer(
        text,
        lineterminator="\n",
        quoting=csv.QUOTE_NONNUMERIC if has_returns else csv.QUOTE_MINIMAL,
    )
    writer.writerow(header)
    writer.writerows(rows)
    write_bytes(path, text.getvalue().encode("utf-8", "surrogateescape"))


def read_json(path: epath.Path) -> dict[str, Any]:
    """Returns the JSON object in a file; raises `UserError` if it is missing or damaged."""
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; is this the folder of a trained run?") from None
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: cannot be read ({error}); restore it or train again") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: not a JSON object; restore it or train again")
    return value
