"""Runs programs alternately on the same cores, and computes the ratios of their times.

On a shared machine, absolute times are noisy; times that were measured alternately in one run are
comparable. Only one program computes at a time. Each program has its own process, so that its
threads and memory do not affect the others.
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

Seconds = Mapping[str, Sequence[float]]  # seconds of each round, by side


@dataclasses.dataclass(frozen=True)
class Ratio:
    """The ratio of our speed to a peer's, above 1 if ours is faster.

    Attributes:
      value: the ratio.
      least: smallest ratio of a round or part.
      most: largest ratio of a round or part.
    """

    value: float
    least: float
    most: float

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.least:.2f} – {self.most:.2f})"


def median_ratio(seconds: Seconds, ours: str, peer: str) -> Ratio:
    """Returns the median ratio over the rounds; in each, both sides do the same work."""
    ratios = _ratios(seconds, ours, peer)
    return Ratio(statistics.median(ratios), min(ratios), max(ratios))


def total_ratio(seconds: Seconds, ours: str, peer: str) -> Ratio:
    """Returns the ratio of the total times, for rounds that are parts of one task."""
    ratios = _ratios(seconds, ours, peer)
    return Ratio(sum(seconds[peer]) / sum(seconds[ours]), min(ratios), max(ratios))


def _ratios(seconds: Seconds, ours: str, peer: str) -> list[float]:
    pairs = zip(seconds[peer], seconds[ours], strict=True)
    return [peer_seconds / our_seconds for peer_seconds, our_seconds in pairs]


class ProgramError(Exception):
    """A program failed; the message ends with the last lines of its stderr."""


@dataclasses.dataclass(frozen=True)
class Line:
    """A line that a program printed, and the seconds that it had run by then."""

    seconds: float
    text: str


def in_slices(commands: Mapping[str, Sequence[str]], slice_seconds: float) -> dict[str, list[Line]]:
    """Runs programs to their end in time slices; all others, with their workers, are stopped.

    Args:
      commands: commands by name.
      slice_seconds: length of a time slice.

    Returns:
      The lines of each program; the last one, without text, marks its end. The clock of a program
      runs only during its slices.

    Raises:
      ProgramError: if a program fails. After any exception, no program is left running.
    """
    with contextlib.ExitStack() as stack:
        waiting = [_SlicedProgram(command, stack) for command in commands.values()]
        programs = dict(zip(commands, waiting, strict=True))
        while waiting:
            waiting = [program for program in waiting if not program.run(slice_seconds)]
        return {name: program.lines for name, program in programs.items()}


class _SlicedProgram:
    """A program that runs in time slices; its first slice starts it."""

    def __init__(self, command: Sequence[str], stack: contextlib.ExitStack) -> None:
        self._command = command
        self._stack = stack
        self._group: _Group | None = None
        self._seconds = 0.0
        self._partial = b""
        self.lines: list[Line] = []

    def run(self, seconds: float) -> bool:
        """Runs it for a time slice or to its end; returns True if it has ended."""
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
    """Runs programs that call `serve` for n rounds; in each round they work one after another.

    Each program is started and works once, as a warm-up, before the next one is started.

    Args:
      commands: commands by name.
      n: number of rounds after the warm-up.

    Returns:
      The seconds of each round by program, without the warm-up.

    Raises:
      ProgramError: if a program fails. After any exception, no program is left running.
    """
    with contextlib.ExitStack() as stack:
        groups = {}
        for name, command in commands.items():
            groups[name] = stack.enter_context(_group(command, subprocess.PIPE))
            groups[name].ask()
        rounds = [{name: group.ask() for name, group in groups.items()} for _ in range(n)]
    return {name: [seconds[name] for seconds in rounds] for name in commands}


def serve(work: Callable[[], np.ndarray], result: Path) -> None:
    """Runs the work once for each line of stdin and prints the seconds, as `in_rounds` expects.

    Args:
      work: function to measure.
      result: `.npy` file for the result of the first call.
    """
    for n, _ in enumerate(sys.stdin):
        started = time.perf_counter()
        value = work()
        seconds = time.perf_counter() - started
        if not n:
            np.save(result, value)
        print(seconds, flush=True)


@dataclasses.dataclass(frozen=True)
class _Group:
    """A program and the processes that it starts, as a process group."""

    process: subprocess.Popen[bytes]
    input: IO[bytes] | None
    output: IO[bytes]
    errors: IO[bytes]

    def signal(self, number: int) -> None:
        os.killpg(self.process.pid, number)

    def ask(self) -> float:
        """Makes a program that calls `serve` work once; returns the seconds."""
        assert self.input is not None
        with contextlib.suppress(BrokenPipeError):  # it has failed; the missing answer shows it
            self.input.write(b"\n")
            self.input.flush()
        answer = self.output.readline()
        if not answer:
            self.require_success()
            raise ProgramError(f"{self._command} ended too early")
        return float(answer)

    def require_success(self) -> None:
        """Waits for its end; raises `ProgramError` with its last lines of stderr if it failed."""
        if self.process.wait():
            self.errors.seek(0)
            last_lines = self.errors.read().decode(errors="replace").splitlines()[-20:]
            status = f"{self._command} failed with status {self.process.returncode}"
            raise ProgramError("\n".join([status, *last_lines]))

    @property
    def _command(self) -> str:
        return shlex.join(map(str, cast(Sequence[str], self.process.args)))


@contextlib.contextmanager
def _group(command: Sequence[str], stdin: int) -> Iterator[_Group]:
    """Starts a program; it and its processes are killed when the context ends."""
    # stderr goes to a file, because drawing a progress bar takes time.
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            command, stdin=stdin, stdout=subprocess.PIPE, stderr=errors, process_group=0
        )
        assert process.stdout is not None
        group = _Group(process, process.stdin, process.stdout, errors)
        try:
            yield group
        finally:
            if process.returncode is None:  # else its process id may be reused
                group.signal(signal.SIGKILL)
            with contextlib.suppress(BrokenPipeError), process:
                pass  # closes its pipes and waits for it
