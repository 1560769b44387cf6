"""Processes of this host that work together: started together, watched, ended together."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import logging
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from devnet_jax.distributed.exit_status import (
    DONE,
    INTERRUPTED,
    RESUME,
    deciding_index,
    describe,
    from_returncode,
    may_restart,
)
from devnet_jax.errors import UserError
from devnet_jax.launchers.local import Command, log_name

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.1
SHORT_GRACE_SECONDS = 10.0  # after a signal that is to end a process at once
TAIL_LINES = 20  # of the log of a worker that has failed
_PR_SET_PDEATHSIG = 1  # of Linux's prctl.h

# Why workers are to end, the more urgent the higher.
_FAILURE, _STOP, _INTERRUPT, _AT_ONCE = 1, 2, 3, 4


@dataclasses.dataclass
class ReceivedSignals:
    """What signals have told this process."""

    stop: bool = False  # SIGTERM or SIGHUP: save, and end
    interrupts: int = 0  # Ctrl-C

    @property
    def given(self) -> bool:
        return self.stop or self.interrupts > 0


@contextlib.contextmanager
def record_signals() -> Iterator[ReceivedSignals]:
    """Within it signals that would end this process are noted instead."""
    signals = ReceivedSignals()

    def note(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            signals.interrupts += 1
        else:
            signals.stop = True

    numbers = [
        number
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) != signal.SIG_IGN  # as under nohup
    ]
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Ended(NamedTuple):
    """A worker that is no more."""

    worker: int
    status: int  # as shells have it
    was_made_to: bool  # it did not end by itself when another had failed


@dataclasses.dataclass
class _Worker:
    index: int
    process: subprocess.Popen[bytes]


def run_workers(
    commands: Sequence[Command], logs: Path, signals: ReceivedSignals, grace: float
) -> list[Ended]:
    """Runs processes side by side until all have ended, and gives them in the order of their end.

    The first of them speaks for all, and writes where this process does. Whatever ends this
    process, none of them lives on: on Linux also where it is killed outright.

    Args:
      commands: of the processes.
      logs: folder of files that the others write to, called by `log_name`.
      signals: they are passed on.
      grace: seconds that the others have to end by themselves when one has failed, and all when
        they are told to stop.

    Raises:
      UserError: a process cannot be started.
    """
    workers: list[_Worker] = []
    try:
        for index, command in enumerate(commands):
            workers.append(
                _Worker(index, _start(command, logs / log_name(index) if index else None))
            )
        return _watch(workers, signals, grace)
    finally:
        for worker in workers:
            _kill(worker.process)


def _start(command: Command, log: Path | None) -> subprocess.Popen[bytes]:
    with contextlib.ExitStack() as files:
        output = files.enter_context(log.open("ab")) if log else None
        try:
            return subprocess.Popen(
                command.arguments,
                env={**os.environ, **command.environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C is ours to pass on
                preexec_fn=_tied_to_this_process(),
            )
        except OSError as error:
            raise UserError(f"--python={command.arguments[0]}: {error.strerror}") from None


def _tied_to_this_process() -> Callable[[], None]:
    parent = os.getpid()
    prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None

    def tie() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # which a shell ignores in the background
        if prctl is not None:
            prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:  # it was killed before it could be tied to
                os._exit(1)

    return tie


def _watch(workers: Sequence[_Worker], signals: ReceivedSignals, grace: float) -> list[Ended]:
    # For each reason, the signals that end a worker and how long each is given to work.
    plans: dict[int, list[tuple[signal.Signals | None, float]]] = {
        _FAILURE: [(None, grace), (signal.SIGTERM, SHORT_GRACE_SECONDS), (signal.SIGKILL, 0.0)],
        _STOP: [(signal.SIGTERM, grace), (signal.SIGKILL, 0.0)],
        _INTERRUPT: [
            (signal.SIGINT, SHORT_GRACE_SECONDS),
            (signal.SIGTERM, SHORT_GRACE_SECONDS),
            (signal.SIGKILL, 0.0),
        ],
        _AT_ONCE: [(signal.SIGKILL, 0.0)],
    }
    alive = list(workers)
    ended: list[Ended] = []
    urgency = 0
    steps: deque[tuple[signal.Signals | None, float]] = deque()
    due = 0.0
    sent: signal.Signals | None = None
    while True:
        for worker in list(alive):
            if (returncode := worker.process.poll()) is not None:
                alive.remove(worker)
                made_to = sent == signal.SIGKILL or (sent is not None and urgency == _FAILURE)
                ended.append(Ended(worker.index, from_returncode(returncode), made_to))
        if not alive:
            return ended
        reason = _reason_to_end(ended, signals)
        now = time.monotonic()
        if reason > urgency:
            urgency, steps, due = reason, deque(plans[reason]), now
        if steps and now >= due:
            sent, seconds = steps.popleft()
            due = now + seconds
            for worker in alive if sent else ():
                logger.debug("worker %d is sent %s", worker.index, sent)
                _send(worker.process, sent)
        time.sleep(POLL_SECONDS)


def _reason_to_end(ended: Sequence[Ended], signals: ReceivedSignals) -> int:
    if signals.interrupts > 1:
        return _AT_ONCE
    if signals.interrupts:
        return _INTERRUPT
    if signals.stop:
        return _STOP
    return _FAILURE if any(one.status != DONE for one in ended) else 0


def _send(process: subprocess.Popen[bytes], number: signal.Signals | None) -> None:
    if number == signal.SIGKILL:
        _kill(process)
    elif number is not None:
        process.send_signal(number)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kills a process, with those that it has started, and waits for its end."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # it leads a session, and so a group
    process.wait()


def run_with_restarts(
    commands: Callable[[], Sequence[Command]],
    logs: Path,
    grace: float,
    max_restarts: int,
) -> int:
    """Runs processes side by side, again if that helps, and returns the status that decides.

    They are started again, all of them, when they were stopped without this process being told to,
    and when one of them was lost or killed; not after an error.

    Args:
      commands: makes them anew for each start.
      logs: as in `run_workers`.
      grace: as in `run_workers`.
      max_restarts: how many times they are started again.

    Raises:
      KeyboardInterrupt: Ctrl-C; all of them have ended.
      UserError: a process cannot be started.
    """
    restarts = 0
    with record_signals() as signals:
        while True:
            ended = run_workers(commands(), logs, signals, grace)
            if signals.interrupts:
                raise KeyboardInterrupt
            status = _status_when_stopped(ended) if signals.stop else _report(ended, logs)
            if signals.given or restarts == max_restarts or not may_restart(status):
                return status
            restarts += 1
            logger.info("all workers start again (%d of %d times)", restarts, max_restarts)


def _report(ended: Sequence[Ended], logs: Path) -> int:
    """Says which worker has failed first, and how; returns its status."""
    by_themselves = [one for one in ended if not one.was_made_to]
    first = by_themselves[deciding_index([one.status for one in by_themselves])]
    if first.status == DONE:
        return DONE
    logger.error("worker %d %s", first.worker, describe(first.status))
    if first.worker:  # what the first one said was seen
        path = logs / log_name(first.worker)
        lines = path.read_text(errors="replace").splitlines()[-TAIL_LINES:]
        logger.error("its log %s ends:" if lines else "its log %s is empty", path)
        for line in lines:
            logger.error("[%d] %s", first.worker, line)
    return first.status


def _status_when_stopped(ended: Sequence[Ended]) -> int:
    """The status of workers that were told to stop: they go on, unless one has met an error."""
    statuses = [one.status for one in ended if not one.was_made_to] or [RESUME]
    status = statuses[deciding_index(statuses)]
    return RESUME if may_restart(status) or status == INTERRUPTED else status
