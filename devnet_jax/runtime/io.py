"""Atomic writing of files, tables without formulas, and reading of JSON and tables."""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from devnet_jax.errors import UserError

# Spreadsheets run a cell that begins so as a formula, which may start programs or send data (OWASP,
# CSV injection). Some take the full-width signs for the others.
_FORMULA = re.compile(r"[=+\-@\t\r\n＝＋－＠]")
# A text that looks as if `as_cell` had marked it is marked, too, so that `from_cell` is exact.
_MARKED = re.compile(rf"'+{_FORMULA.pattern}")


def write_text(path: epath.Path, text: str) -> None:
    """Writes a text file atomically."""
    write_bytes(path, text.encode())


def write_bytes(path: epath.Path, content: bytes) -> None:
    """Writes a file atomically."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


@contextlib.contextmanager
def atomic_write(path: epath.Path) -> Iterator[epath.Path]:
    """Yields a temporary path, which replaces the file unless an exception is raised.

    Raises:
      OSError: if the file cannot be written; it names the file, also where the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = (
        path.parent / f".{path.name}.tmp"
    )  # a fixed name: overwrites a leftover of a killed process
    try:
        yield temporary
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno and error.filename in (None, f"{temporary}"):
            raise OSError(error.errno, error.strerror, f"{path}") from error
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
    """Writes a CSV file atomically, without formulas; see `as_cell`.

    The encoding is UTF-8. File names that are not valid UTF-8 keep their bytes.
    """
    text = io.StringIO()
    # Without quotes, readers take a carriage return in a file name for the end of the line, and
    # those that separate cells by semicolons may find a formula behind one.
    writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    writer.writerow(header)
    writer.writerows(map(as_cell, row) for row in rows)
    write_bytes(path, text.getvalue().encode("utf-8", "surrogateescape"))


def read_csv(path: epath.Path) -> list[dict[str, str]]:
    """Returns the rows of a file written by `write_csv`, by column; paths keep their "./"."""
    text = path.read_bytes().decode("utf-8", "surrogateescape")
    rows = csv.DictReader(io.StringIO(text, newline=""))
    return [{name: from_cell(cell) for name, cell in row.items()} for row in rows]


def full_disk_message(error: BaseException | None) -> str | None:
    """Returns the system's message if a full disk, quota or file limit caused an error, or `None`.

    Libraries in C++ have the message in the text of errors of other types.
    """
    while error is not None:
        for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            if getattr(error, "errno", None) == code or os.strerror(code) in str(error):
                return os.strerror(code)
        error = error.__cause__ or error.__context__
    return None


def as_cell(value: Any) -> Any:
    """Returns the cell of a value in a CSV file; no spreadsheet takes it for a formula.

    A path that begins like a formula, or as if it had been marked, is written as the same path with
    "./" before it, other text with an apostrophe before it. Numbers stay numbers.
    """
    if not isinstance(value, (str, PurePath)):
        return value
    text = str(value)
    if _FORMULA.match(text) or _MARKED.match(text):
        return f"./{text}" if isinstance(value, PurePath) else f"'{text}"
    return text


def from_cell(cell: str) -> str:
    """Returns the text that `as_cell` has written; a path keeps its "./"."""
    return cell[1:] if _MARKED.match(cell) else cell


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
