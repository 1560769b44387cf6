"""The folder of one run: what lies where, and files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import filelock
from etils import epath

from devnet_jax.config import Config
from devnet_jax.errors import UserError
from devnet_jax.runtime.io import read_json


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
