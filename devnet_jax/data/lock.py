"""One process prepares what many will read."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

import filelock

from devnet_jax.errors import UserError

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def one_process(place: Path, what: str) -> Iterator[None]:
    """Lets one process at a time work in a folder, which it makes; the others wait and say so.

    Args:
      place: the folder.
      what: the work, for the log: "prepares '/data/elpv'".

    Raises:
      UserError: the folder cannot be written to.
    """
    try:
        place.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(place / ".lock")
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            logger.info("waiting for another process that %s", what)
            lock.acquire()
    except OSError as error:
        raise UserError(
            f"cannot write to '{place}' ({error.strerror}): set config.dataset.data_dir to a"
            " folder that can be written to"
        ) from error
    try:
        yield
    finally:
        lock.release()
