"""A file lock: one process prepares data, the others wait."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

import filelock

from devnet_jax.errors import UserError

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def exclusive_lock(folder: Path, task: str) -> Iterator[None]:
    """Creates a folder and holds its lock; other processes wait for the lock and log it.

    Args:
      folder: the folder to lock.
      task: the work done under the lock, for the log: "prepares '/data/elpv'".

    Raises:
      UserError: if the folder cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            logger.info("waiting for another process that %s", task)
            lock.acquire()
    except OSError as error:
        raise UserError(
            f"cannot write to '{folder}' ({error.strerror}): set config.dataset.data_dir to a"
            " writable folder"
        ) from error
    try:
        yield
    finally:
        lock.release()
