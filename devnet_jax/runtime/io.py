"""Atomic writes of files, and reading of JSON."""

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
    """Writes a text file, whole or not at all."""
    write_bytes(path, text.encode())


def write_bytes(path: epath.Path, content: bytes) -> None:
    """Writes a file, whole or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


@contextlib.contextmanager
def atomic_write(path: epath.Path) -> Iterator[epath.Path]:
    """A place to write to, beside a file: it takes the file's place if nothing was raised."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.tmp"  # one name: what a kill left is written over
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_npy(path: epath.Path, array: np.ndarray) -> None:
    """Writes an array as an .npy file, whole or not at all."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    write_bytes(path, file.getvalue())


def write_jpeg(path: epath.Path, image: np.ndarray) -> None:
    """Writes an image, uint8 [H, W, 3], as a JPEG file, whole or not at all."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=90)
    write_bytes(path, file.getvalue())


def write_json(path: epath.Path, value: Mapping[str, Any]) -> None:
    """Writes a JSON file, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_csv(path: epath.Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Writes a CSV file, whole or not at all."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_text(path, text.getvalue())


def read_json(path: epath.Path) -> dict[str, Any]:
    """Reads a JSON object; raises `UserError` where the file is absent or damaged."""
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; is this the folder of a trained run?") from None
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: cannot be read ({error}); restore it or train anew") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds no JSON object; restore it or train anew")
    return value
