"""The workdir: paths of the files in a run's folder, and its lock."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

import filelock
from etils import epath

from devnet_jax.config import Config
from devnet_jax.errors import UserError
from devnet_jax.runtime.accounts import expand_home
from devnet_jax.runtime.io import read_json, write_json


class Workdir:
    """Paths of the files in a run's folder, on a local disk or in a bucket."""

    def __init__(self, path: epath.PathLike, flag: str = "--workdir") -> None:
        """Sets the paths; writes nothing.

        Args:
          path: path of the folder, which may not exist.
          flag: name of the flag that has set it, for messages.
        """
        text = os.fspath(path)
        # Orbax requires absolute paths; that of a bucket (gs://…) already is one.
        self.is_local = "://" not in text
        self._flag = flag
        self.path = epath.Path(expand_home(text).resolve() if self.is_local else text)
        self.config = self.path / "config.json"
        self.split = self.path / "split.json"
        self.checkpoints = self.path / "checkpoints"
        self.learned = self.path / "learned.json"
        self.ordinary = self.path / "ordinary.json"
        self.metrics = self.path / "metrics.jsonl"
        self.interrupted_epoch = (
            self.path / "interrupted_epoch.json"
        )  # exists until the epoch is complete
        self.tensorboard = self.path / "tensorboard"
        self.calibration = self.path / "calibration.json"
        self.calibration_before = self.path / "calibration-before.json"
        self.evaluation = self.path / "eval"
        self.explanations = self.path / "explain"
        self.report = self.path / "report.html"
        self.seeds = self.path / "seeds.json"  # of a folder that holds a run of each seed

    @property
    def is_file(self) -> bool:
        """True if the path is that of a file, such as an exported detector."""
        return self.path.is_file()

    def require_run(self) -> None:
        """Raises `UserError` unless the folder has the settings of a run."""
        if self.seeds.exists():
            raise UserError(
                f"{self._flag}={self.path}: holds runs of several seeds; give one of them, "
                f"{self._flag}={self.path}/seed-…; {self.seeds.name} says which is for use"
            )
        if not self.config.exists():
            raise UserError(
                f"{self._flag}={self.path}: no run is there (no config.json); "
                "train first, or give the folder of a trained run"
            )

    @contextlib.contextmanager
    def lock(self, shown: epath.PathLike | None = None) -> Iterator[None]:
        """Locks the folder against other processes of this host; a bucket is not locked.

        Creates the folder; at the end removes the lock file, and the folder if it is empty.

        Args:
          shown: folder that the error message names instead of this one.

        Raises:
          UserError: if another process has locked the folder.
        """
        if not self.is_local:
            yield
            return
        path = Path(self.path)
        created = [folder for folder in (path, *path.parents) if not folder.exists()]
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
            # Removed before its release: filelock does not lock a file that was deleted.
            (path / ".lock").unlink(missing_ok=True)
            lock.release()
            for folder in created:
                with contextlib.suppress(OSError):  # not empty
                    folder.rmdir()

    def require_writable(self) -> None:
        """Raises `UserError` if the folder cannot be written or created; creates nothing."""
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

    def require_results_folder(self) -> None:
        """Raises `UserError` if it is not local, cannot be written, or is the folder of a run."""
        if not self.is_local:
            raise UserError(f"{self._flag}={self.path}: must be a folder on a local disk")
        self.require_writable()
        if self.config.exists():
            raise UserError(f"{self._flag}={self.path}: is the folder of a run; choose another")


def keep_evaluation_settings(workdir: Workdir, config: Config) -> bool:
    """Makes the evaluation settings of a run those of `config`; True if they were others.

    So predictions and exports use the threshold that the last evaluation has measured.
    """
    old = read_config(workdir)
    if old.evaluation == config.evaluation:
        return False
    write_json(workdir.config, dataclasses.replace(old, evaluation=config.evaluation).to_dict())
    return True


def read_config(workdir: Workdir) -> Config:
    """Returns the settings of a workdir's run; raises `UserError` if they are missing or wrong."""
    workdir.require_run()
    return Config.from_dict(read_json(workdir.config), source=workdir.config)
