"""Worker processes on this host: starts them together, watches them, ends them together."""

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
SHORT_GRACE_SECONDS = 10.0  # until the next signal, to workers that should end at once
TAIL_LINES = 20  # lines shown of the log of a failed worker
_PR_SET_PDEATHSIG = 1  # from Linux's prctl.h

# Reasons to end the workers, by urgency; 0 is none.
_FAILURE, _STOP, _INTERRUPT, _KILL = 1, 2, 3, 4


@dataclasses.dataclass
class ReceivedSignals:
    """The signals that this process has received."""

    stop: bool = False  # SIGTERM or SIGHUP
    interrupts: int = 0  # number of SIGINT, from Ctrl-C

    @property
    def any_received(self) -> bool:
        return self.stop or self.interrupts > 0


@contextlib.contextmanager
def record_signals() -> Iterator[ReceivedSignals]:
    """Records SIGINT, SIGTERM and SIGHUP within the context, instead of ending this process."""
    signals = ReceivedSignals()

    def record(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            signals.interrupts += 1
        else:
            signals.stop = True

    numbers = [
        number
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) != signal.SIG_IGN  # ignored under nohup
    ]
    before = {number: signal.signal(number, record) for number in numbers}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class WorkerExit(NamedTuple):
    """The end of a worker.

    Attributes:
      worker: rank of the worker.
      status: exit status, as in shells.
      was_forced: True if this process killed the worker, or ended it after another had failed.
    """

    worker: int
    status: int
    was_forced: bool


@dataclasses.dataclass
class _Worker:
    index: int
    process: subprocess.Popen[bytes]


def run_workers(
    commands: Sequence[Command], logs: Path, signals: ReceivedSignals, grace: float
) -> list[WorkerExit]:
    """Runs workers in parallel until all have ended; returns their ends in this order.

    Worker 0 writes to the output of this process, the others to log files. The workers never
    outlive this process; on Linux also if it is killed by SIGKILL.

    Args:
      commands: commands of the workers.
      logs: folder of the log files, named by `log_name`.
      signals: signals that this process receives, to pass on to the workers.
      grace: seconds that workers have to end by themselves after SIGTERM, or after another worker
        has failed.

    Raises:
      UserError: if a worker cannot be started.
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
                start_new_session=True,  # this process passes on Ctrl-C
                preexec_fn=_end_with_parent(),
            )
        except OSError as error:
            raise UserError(f"--python={command.arguments[0]}: {error.strerror}") from None


def _end_with_parent() -> Callable[[], None]:
    """Returns a `preexec_fn` that makes Linux kill the worker when this process ends."""
    parent = os.getpid()
    prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None

    def set_up() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # shells ignore it in background jobs
        if prctl is not None:
            prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:  # the parent has ended before prctl
                os._exit(1)

    return set_up


def _watch(workers: Sequence[_Worker], signals: ReceivedSignals, grace: float) -> list[WorkerExit]:
    # For each reason, the signals to send, and the seconds until the next one.
    escalations: dict[int, list[tuple[signal.Signals | None, float]]] = {
        _FAILURE: [(None, grace), (signal.SIGTERM, SHORT_GRACE_SECONDS), (signal.SIGKILL, 0.0)],
        _STOP: [(signal.SIGTERM, grace), (signal.SIGKILL, 0.0)],
        _INTERRUPT: [
            (signal.SIGINT, SHORT_GRACE_SECONDS),
            (signal.SIGTERM, SHORT_GRACE_SECONDS),
            (signal.SIGKILL, 0.0),
        ],
        _KILL: [(signal.SIGKILL, 0.0)],
    }
    alive = list(workers)
    ended: list[WorkerExit] = []
    urgency = 0
    steps: deque[tuple[signal.Signals | None, float]] = deque()
    due = 0.0
    sent: signal.Signals | None = None
    while True:
        for worker in list(alive):
            if (returncode := worker.process.poll()) is not None:
                alive.remove(worker)
                was_forced = sent == signal.SIGKILL or (sent is not None and urgency == _FAILURE)
                ended.append(WorkerExit(worker.index, from_returncode(returncode), was_forced))
        if not alive:
            return ended
        reason = _reason_to_end(ended, signals)
        now = time.monotonic()
        if reason > urgency:
            urgency, steps, due = reason, deque(escalations[reason]), now
        if steps and now >= due:
            sent, seconds = steps.popleft()
            due = now + seconds
            for worker in alive if sent else ():
                logger.debug("worker %d is sent %s", worker.index, sent)
                _send(worker.process, sent)
        time.sleep(POLL_SECONDS)


def _reason_to_end(ended: Sequence[WorkerExit], signals: ReceivedSignals) -> int:
    if signals.interrupts > 1:
        return _KILL
    if signals.interrupts:
        return _INTERRUPT
    if signals.stop:
        return _STOP
    return _FAILURE if any(end.status != DONE for end in ended) else 0


def _send(process: subprocess.Popen[bytes], number: signal.Signals | None) -> None:
    if number == signal.SIGKILL:
        _kill(process)
    elif number is not None:
        process.send_signal(number)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kills a process and its children, and waits for its end."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # as session leader it has its own process group
    process.wait()


def run_with_restarts(
    commands: Callable[[], Sequence[Command]],
    logs: Path,
    grace: float,
    max_restarts: int,
) -> int:
    """Runs workers in parallel; returns the status that explains the end of the run.

    All workers are restarted if one was lost or killed, or if they were stopped but this process
    was not; never after an error.

    Args:
      commands: function that returns the commands of the workers, called for each start.
      logs: folder of the log files.
      grace: seconds as in `run_workers`.
      max_restarts: maximum number of restarts.

    Raises:
      KeyboardInterrupt: on Ctrl-C, after all workers have ended.
      UserError: if a worker cannot be started.
    """
    restarts = 0
    with record_signals() as signals:
        while True:
            ended = run_workers(commands(), logs, signals, grace)
            if signals.interrupts:
                raise KeyboardInterrupt
            status = _status_when_stopped(ended) if signals.stop else _report(ended, logs)
            if signals.any_received or restarts == max_restarts or not may_restart(status):
                return status
            restarts += 1
            logger.info("restarting all workers (%d of %d times)", restarts, max_restarts)


def _report(ended: Sequence[WorkerExit], logs: Path) -> int:
    """Logs which worker has failed first, and returns its status."""
    unforced = [end for end in ended if not end.was_forced]
    first = unforced[deciding_index([end.status for end in unforced])]
    if first.status == DONE:
        return DONE
    logger.error("worker %d %s", first.worker, describe(first.status))
    if first.worker:  # worker 0 has no log
        path = logs / log_name(first.worker)
        lines = path.read_text(errors="replace").splitlines()[-TAIL_LINES:]
        logger.error("end of its log %s:" if lines else "its log %s is empty", path)
        for line in lines:
            logger.error("[%d] %s", first.worker, line)
    return first.status


def _status_when_stopped(ended: Sequence[WorkerExit]) -> int:
    """Returns `RESUME` for workers that were told to stop, unless one has failed."""
    statuses = [end.status for end in ended if not end.was_forced] or [RESUME]
    status = statuses[deciding_index(statuses)]
    return RESUME if may_restart(status) or status == INTERRUPTED else status
