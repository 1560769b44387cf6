"""Programs that take turns on the same cores, and the ratios of their times.

Absolute times are noise on a machine that is shared; what was measured in turn, in one run, can be
compared. No two programs compute at the same time, and none shares a process with another, whose
threads and memory it would disturb.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import select
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, cast

import numpy as np

Seconds = Mapping[str, Sequence[float]]  # of each side, in every round


@dataclasses.dataclass(frozen=True)
class Ratio:
    """Our speed over a peer's, above 1 where ours is quicker, and its least and most."""

    value: float
    least: float
    most: float

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.least:.2f} – {self.most:.2f})"


def median_ratio(seconds: Seconds, ours: str, peer: str) -> Ratio:
    """The median over the rounds, in each of which both sides did the same work."""
    of_rounds = _ratios(seconds, ours, peer)
    return Ratio(statistics.median(of_rounds), min(of_rounds), max(of_rounds))


def total_ratio(seconds: Seconds, ours: str, peer: str) -> Ratio:
    """That of the sums, where the rounds are parts of one work; the spread is that of the parts."""
    of_parts = _ratios(seconds, ours, peer)
    return Ratio(sum(seconds[peer]) / sum(seconds[ours]), min(of_parts), max(of_parts))


def _ratios(seconds: Seconds, ours: str, peer: str) -> list[float]:
    return [theirs / own for theirs, own in zip(seconds[peer], seconds[ours], strict=True)]


class ProgramError(Exception):
    """A program has failed; the message ends with the last that it said."""


@dataclasses.dataclass(frozen=True)
class Line:
    """What a program printed, and how many seconds it had run by then."""

    seconds: float
    text: str


def in_slices(commands: Mapping[str, Sequence[str]], slice_seconds: float) -> dict[str, list[Line]]:
    """Runs programs to their end in slices of time, in which all others, with their workers, stand.

    Args:
      commands: what to run, by name.
      slice_seconds: of each turn.

    Returns:
      For each program its lines, the last of which, without a text, is its end. The clock of a
      program runs only while the program does.

    Raises:
      ProgramError: a program has failed. None is left running then, nor on any other exception.
    """
    with contextlib.ExitStack() as stack:
        waiting = [_Sliced(command, stack) for command in commands.values()]
        programs = dict(zip(commands, waiting, strict=True))
        while waiting:
            waiting = [program for program in waiting if not program.run(slice_seconds)]
        return {name: program.lines for name, program in programs.items()}


class _Sliced:
    """A program that runs when it is told to; started by its first turn."""

    def __init__(self, command: Sequence[str], stack: contextlib.ExitStack) -> None:
        self._command = command
        self._stack = stack
        self._group: _Group | None = None
        self._seconds = 0.0
        self._partial = b""
        self.lines: list[Line] = []

    def run(self, seconds: float) -> bool:
        """Runs it for so long, or to its end; returns whether it has ended."""
        started = time.perf_counter()
        if self._group is None:
            self._group = self._stack.enter_context(_group(self._command, subprocess.DEVNULL))
        else:
            self._group.signal(signal.SIGCONT)
        output = self._group.output.fileno()
        while (left := started + seconds - time.perf_counter()) > 0:
            if not select.select([output], [], [], left)[0]:
                continue
            content = os.read(output, 1 << 16)
            so_far = self._seconds + time.perf_counter() - started
            *whole, self._partial = (self._partial + content).split(b"\n")
            self.lines += [Line(so_far, line.decode()) for line in whole]
            if not content:
                self._group.require_success()
                self.lines.append(Line(so_far, ""))
                return True
        self._group.signal(signal.SIGSTOP)
        self._seconds += time.perf_counter() - started
        return False


def in_rounds(commands: Mapping[str, Sequence[str]], n: int) -> dict[str, list[float]]:
    """Lets programs, which `serve`, do their work n times in turn; the others wait for their input.

    Each is started, and does its work once to warm up, before the next one is started.

    Returns:
      For each program the seconds of every round after the one that warms up.

    Raises:
      ProgramError: a program has failed. None is left running then, nor on any other exception.
    """
    with contextlib.ExitStack() as stack:
        groups = {}
        for name, command in commands.items():
            groups[name] = stack.enter_context(_group(command, subprocess.PIPE))
            groups[name].ask()
        rounds = [{name: group.ask() for name, group in groups.items()} for _ in range(n)]
    return {name: [of_round[name] for of_round in rounds] for name in commands}


def serve(work: Callable[[], np.ndarray], result: Path) -> None:
    """The program's side of `in_rounds`: works once for each line of its input, and prints the
    seconds. What it finds the first time is saved to a file, `.npy`."""
    for n, _ in enumerate(sys.stdin):
        started = time.perf_counter()
        found = work()
        seconds = time.perf_counter() - started
        if not n:
            np.save(result, found)
        print(seconds, flush=True)


@dataclasses.dataclass(frozen=True)
class _Group:
    """A program with whatever it starts, as one group of processes."""

    process: subprocess.Popen[bytes]
    input: IO[bytes] | None
    output: IO[bytes]
    errors: IO[bytes]

    def signal(self, number: int) -> None:
        os.killpg(self.process.pid, number)

    def ask(self) -> float:
        """Has a program that serves work once; the seconds that it took."""
        assert self.input is not None
        with contextlib.suppress(BrokenPipeError):  # it has failed, which the answer tells
            self.input.write(b"\n")
            self.input.flush()
        answer = self.output.readline()
        if not answer:
            self.require_success()
            raise ProgramError(f"{self._command} ended before it was told to")
        return float(answer)

    def require_success(self) -> None:
        """Waits for its end; raises `ProgramError` with what it said if it has failed."""
        if self.process.wait():
            self.errors.seek(0)
            said = self.errors.read().decode(errors="replace").splitlines()[-20:]
            status = f"{self._command} failed with status {self.process.returncode}"
            raise ProgramError("\n".join([status, *said]))

    @property
    def _command(self) -> str:
        return shlex.join(map(str, cast(Sequence[str], self.process.args)))


@contextlib.contextmanager
def _group(command: Sequence[str], stdin: int) -> Iterator[_Group]:
    """Starts a program; neither it nor anything it starts outlives the context."""
    # What it says to people goes to a file: a progress bar takes time.
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            command, stdin=stdin, stdout=subprocess.PIPE, stderr=errors, process_group=0
        )
        assert process.stdout is not None
        group = _Group(process, process.stdin, process.stdout, errors)
        try:
            yield group
        finally:
            if process.returncode is None:  # else its number may be another's by now
                group.signal(signal.SIGKILL)
            with contextlib.suppress(BrokenPipeError), process:
                pass  # closes its pipes, and waits for it
