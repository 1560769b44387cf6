"""Being told to stop: by SIGTERM, or by the notice that a cluster gives through JAX."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

logger = logging.getLogger(__name__)

IMPORT_PATIENCE = 0.05  # seconds after which a SIGTERM that met an import is sent again


class Stopped(BaseException):
    """Told to stop, with everything saved; no `Exception`, so that nothing mistakes it for one."""


def stop_on_sigterm() -> None:
    """Lets SIGTERM end this process by `Stopped`: everything is closed on the way out."""
    signal.signal(signal.SIGTERM, _raise_stopped)


def _raise_stopped(number: int, frame: FrameType | None) -> None:
    if _importing(frame):
        # A native module that meets an exception while it is made takes the process with it.
        threading.Timer(IMPORT_PATIENCE, os.kill, (os.getpid(), number)).start()
        return
    raise Stopped("told to stop; what is on disk is whole, and the same command goes on")


def _importing(frame: FrameType | None) -> bool:
    while frame is not None and frame.f_code.co_filename != "<frozen importlib._bootstrap>":
        frame = frame.f_back
    return frame is not None


@contextlib.contextmanager
def defer_sigterm() -> Iterator[Callable[[], bool]]:
    """Within it SIGTERM is noticed rather than obeyed at once; gives what tells whether it was."""
    noticed = threading.Event()

    def notice(number: int, frame: FrameType | None) -> None:
        noticed.set()
        logger.info("told to stop: saving after this step")

    if threading.current_thread() is not threading.main_thread():  # who alone hears signals
        yield noticed.is_set
        return
    before = signal.signal(signal.SIGTERM, notice)
    try:
        yield noticed.is_set
    finally:
        signal.signal(signal.SIGTERM, before)
    if noticed.is_set():  # after the last time that it was asked
        _raise_stopped(signal.SIGTERM, None)
