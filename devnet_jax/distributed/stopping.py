"""SIGTERM handling: a run ends in order, or saves after the current step."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

logger = logging.getLogger(__name__)

IMPORT_RETRY_SECONDS = 0.05  # a SIGTERM that arrives during an import is sent again after these


class Stopped(BaseException):
    """A request to stop was followed, and everything is saved.

    No `Exception`, so that handlers of errors do not catch it.
    """


def stop_on_sigterm() -> None:
    """Makes SIGTERM raise `Stopped` in the main thread, so that contexts are closed."""
    signal.signal(signal.SIGTERM, _raise_stopped)


def _raise_stopped(number: int, frame: FrameType | None) -> None:
    if _is_importing(frame):
        # An exception during the initialisation of a native module can crash the process.
        threading.Timer(IMPORT_RETRY_SECONDS, os.kill, (os.getpid(), number)).start()
        return
    raise Stopped("told to stop: saved files are complete; run the same command again to resume")


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None and frame.f_code.co_filename != "<frozen importlib._bootstrap>":
        frame = frame.f_back
    return frame is not None


@contextlib.contextmanager
def defer_sigterm() -> Iterator[Callable[[], bool]]:
    """Defers SIGTERM within the context; yields a function that returns True if it was received.

    A SIGTERM that was received raises `Stopped` at the end of the context.
    """
    received = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        received.set()
        logger.info("told to stop: saving after this step")

    if threading.current_thread() is not threading.main_thread():  # it alone can set handlers
        yield received.is_set
        return
    previous = signal.signal(signal.SIGTERM, handle)
    try:
        yield received.is_set
    finally:
        signal.signal(signal.SIGTERM, previous)
    if received.is_set():  # since the function was called last
        _raise_stopped(signal.SIGTERM, None)
