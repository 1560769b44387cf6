"""The folder of one run: what lies where, and files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock
import numpy as np
from etils import epath
from PIL import Image

from devnet_jax.config import Config
from devnet_jax.errors import UserError


class Workdir:
    """Names of the files in a run's folder, on a local disk or in a bucket."""

    def __init__(self, path: epath.PathLike, flag: str = "--workdir") -> None:
        """Names them; writes nothing.

        Args:
          path: the folder, which need not be there.
          flag: what its user calls it, for messages.
        """
        text = os.fspath(path)
        # Orbax wants absolute paths; a bucket's (gs://…) already is one.
        self.is_local = "://" not in text
        self._flag = flag
        self.path = epath.Path(Path(text).expanduser().resolve() if self.is_local else text)
        self.config = self.path / "config.json"
        self.split = self.path / "split.json"
        self.checkpoints = self.path / "checkpoints"
        self.metrics = self.path / "metrics.jsonl"
        self.interrupted_epoch = self.path / "interrupted_epoch.json"  # until it is completed
        self.tensorboard = self.path / "tensorboard"
        self.calibration = self.path / "calibration.json"
        self.evaluation = self.path / "eval"
        self.explanations = self.path / "explain"
        self.report = self.path / "report.html"

    def require_run(self) -> None:
        """Raises `UserError` unless a run has left its settings here."""
        if not self.config.exists():
            raise UserError(
                f"--workdir={self.path}: no run is there (no config.json); "
                "train first, or give the folder of a trained run"
            )

    @contextlib.contextmanager
    def lock(self, shown: epath.PathLike | None = None) -> Iterator[None]:
        """Keeps other processes of this host from working here at the same time.

        Makes the folder, removes it again if nothing was written to it, and leaves nothing of its
        own. A bucket is not locked.

        Args:
          shown: the folder that the message names, where its user has given another.

        Raises:
          UserError: another process works here.
        """
        if not self.is_local:
            yield
            return
        path = Path(self.path)
        made = [folder for folder in (path, *path.parents) if not folder.exists()]
        path.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(path / ".lock")
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            raise UserError(
                f"{self._flag}={shown or path}: another process is at work there; wait for it, or "
                "choose another folder"
            ) from None
        try:
            yield
        finally:
            # Before it is released: filelock takes no lock on a file that is gone.
            (path / ".lock").unlink(missing_ok=True)
            lock.release()
            for folder in made:
                with contextlib.suppress(OSError):  # it holds what the run has written
                    folder.rmdir()

    def require_writable(self) -> None:
        """Raises `UserError` if the folder can neither be written nor be made. Makes nothing."""
        if not self.is_local:
            return
        existing = Path(self.path)
        while not os.path.lexists(existing):
            existing = existing.parent
        if not existing.is_dir():
            raise UserError(
                f"{self._flag}={self.path}: {existing} is a file, not a folder; choose another"
            )
        if not os.access(existing, os.W_OK | os.X_OK):
            raise UserError(
                f"{self._flag}={self.path}: {existing} cannot be written; choose another"
            )


def read_config(workdir: Workdir) -> Config:
    """The settings of the run in a workdir; raises `UserError` where they are absent or wrong."""
    workdir.require_run()
    return Config.from_dict(read_json(workdir.config), source=workdir.config)


def write_text(path: epath.Path, text: str) -> None:
    """Writes a text file, whole or not at all."""
    write_bytes(path, text.encode())


def write_bytes(path: epath.Path, content: bytes) -> None:
    """Writes a file, whole or not at all."""
    with written_whole(path) as temporary:
        temporary.write_bytes(content)


@contextlib.contextmanager
def written_whole(path: epath.Path) -> Iterator[epath.Path]:
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
