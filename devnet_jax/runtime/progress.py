"""Phases of the work: what is done, how much of it, for how long, and about how long is left.

On a terminal a phase is a bar. Elsewhere it is a few lines: one when the phase has lasted a second,
one with an estimate now and then, and one with its duration at the end. Nothing remains of shorter
phases. The lines go to the package's logger; in a program that has not set up logging, to standard
error.
"""

from __future__ import annotations

import contextlib
import contextvars
import logging
import math
import sys
import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from tqdm import tqdm

logger = logging.getLogger(__name__)

# Note of phases that call a compiled function.
COMPILING = "loading the program, which the first run on a machine compiles"

_SAID_AFTER = 1.0  # seconds; a shorter phase says nothing
_ESTIMATED_AFTER = 5.0  # or said that nothing is done yet
_INTERVAL = 30.0  # between lines, or a tenth of the time so far if that is longer
_TICK = 1.0
_DRAW_INTERVAL = 0.1  # of a bar, which takes time to draw

_shown = contextvars.ContextVar("shown", default=True)


@contextlib.contextmanager
def showing(shown: bool) -> Iterator[None]:
    """A context in which phases are shown, or not."""
    token = _shown.set(_shown.get() and shown)
    try:
        yield
    finally:
        _shown.reset(token)


class Pace:
    """The progress of a phase, and the lines that are due; it neither reads a clock nor writes.

    The rate is measured after the first update, which compiles, loads or opens things, too. Until
    there is one there is no estimate.

    Attributes:
      done: number of units done.
      note: what else is to be said, such as the loss.
    """

    def __init__(
        self, name: str, total: int | None, unit: str, now: float, done: int = 0, first: str = ""
    ) -> None:
        """Starts the phase; the arguments are those of `Phase`, `now` is the time in seconds."""
        self.done = done
        self.note = first
        self._name = name
        self._total = total
        self._unit = unit
        self._started = now
        self._done_earlier = done
        self._measured_from: tuple[float, int] | None = None  # time and units of the first update
        self._updated = now
        self._said: float | None = None  # time of the last line
        self._explained = False  # an estimate was given, or why there is none
        self._estimated = False

    def update(self, n: int, now: float, note: str = "") -> None:
        """Counts n more units, done by now."""
        self.done += n
        self.note = note
        self._updated = now
        if self._measured_from is None:
            self._measured_from = now, self.done

    def left(self, now: float) -> float | None:
        """Returns an estimate of the seconds left.

        `None` before a rate was measured, and when the next units are long overdue.
        """
        if self._total is None or self._measured_from is None:
            return None
        since, done = self._measured_from
        if self.done == done or self._updated <= since:
            return None
        rate = (self.done - done) / (self._updated - since)
        left = (self._total - self.done) / rate - (now - self._updated)
        return left if left > 0 else None

    def line(self, now: float) -> str | None:
        """Returns the line that is due now, if any; none when all is done but the end."""
        passed = now - self._started
        if self.done == self._total:
            return None
        if self._said is None:
            if passed < _SAID_AFTER:
                return None
            self._said = now
            return self._begin()
        left = self.left(now)
        if left is not None:
            is_news = not self._estimated
        else:
            is_news = bool(self.note) and not self._explained
        is_due = now - self._said >= max(_INTERVAL, passed / 10)
        if not is_due and not (is_news and passed >= _ESTIMATED_AFTER):
            return None
        self._said = now
        self._explained = True
        self._estimated = self._estimated or left is not None
        if self._total is None:
            return self._with_note(f"{self._name}: {format_seconds(passed)} so far")
        done = f"{self._count(self.done)} of {self._amount()}"
        text = f"{self._name}: {done} after {format_seconds(passed)}"
        return self._with_note(f"{text}{describe_left(left)}")

    def end(self, now: float) -> str | None:
        """Returns the last line, unless the phase was so short that nothing was said."""
        passed = now - self._started
        if self._said is None and passed < _SAID_AFTER:
            return None
        what = f": {self._amount()}" if self._total is not None else ""
        return f"{self._name}{what} in {format_seconds(passed)}"

    def _begin(self) -> str:
        text = self._name if self._total is None else f"{self._name}: {self._amount()}"
        done = self._done_earlier
        return f"{text}, {self._count(done)} of them done earlier" if done else text

    def _amount(self) -> str:
        """Returns the total with its unit: "83 images", "12.5 MB"."""
        assert self._total is not None
        if self._unit == "B":
            return f"{self._total / 1e6:,.1f} MB"
        return f"{self._total:,} {self._unit}{'' if self._total == 1 else 's'}"

    def _count(self, n: int) -> str:
        return f"{n / 1e6:,.1f}" if self._unit == "B" else f"{n:,}"

    def _with_note(self, text: str) -> str:
        return f"{text}; {self.note}" if self.note else text


class Phase:
    """A phase of the work, which shows its progress; a context manager.

    Nothing says that it has ended if an exception leaves the context.

    Attributes:
      is_bar: True if it is shown as a bar, False for lines or nothing.
    """

    def __init__(
        self,
        name: str,
        total: int | None = None,
        unit: str = "image",
        *,
        done: int = 0,
        first: str = "",
    ) -> None:
        """Starts the phase; call `update` as units are done.

        Args:
          name: description, such as "reading good parts".
          total: number of units; `None` if it is unknown, or the phase cannot be divided.
          unit: name of one unit.
          done: number of units that were done earlier.
          first: note until the first update, such as `COMPILING`.
        """
        self._pace = Pace(name, total, unit, time.monotonic(), done, first)
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._drawn = -math.inf
        self._is_shown = total != 0 and _is_shown()
        self._bar = _open_bar(name, total, unit, done) if self._is_shown else None
        self.is_bar = self._bar is not None
        if self._is_shown:
            # Says how things stand while the main thread compiles, or waits for a chunk.
            threading.Thread(target=self._tick, daemon=True, name=f"phase {name}").start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close(finished=kind is None)

    @property
    def time_left(self) -> str:
        """Text such as ", about 3 min left"; "" before a rate was measured."""
        return describe_left(self._pace.left(time.monotonic()))

    def update(self, n: int = 1, note: str = "") -> None:
        """Counts n more units.

        Args:
          n: number of units.
          note: what else is to be said, such as the loss.
        """
        with self._lock:
            self._pace.update(n, time.monotonic(), note)
            self._show()

    def close(self, finished: bool = True) -> None:
        """Ends the phase; with `finished`, a line says how long it has taken."""
        if self._ended.is_set():
            return
        self._ended.set()
        with self._lock:
            if self._bar is not None:
                self._draw()
                self._bar.leave = self._pace.end(time.monotonic()) is not None
                self._bar.close()
            elif self._is_shown and finished and (line := self._pace.end(time.monotonic())):
                _say(line)

    def _tick(self) -> None:
        while not self._ended.wait(_TICK):
            with self._lock:
                if not self._ended.is_set():
                    self._show()

    def _show(self) -> None:
        now = time.monotonic()
        if not self._is_shown:
            return
        if self._bar is None:
            if line := self._pace.line(now):
                _say(line)
        elif now - self._drawn >= _DRAW_INTERVAL:
            self._drawn = now
            self._draw()

    def _draw(self) -> None:
        assert self._bar is not None
        left = describe_left(
            self._pace.left(time.monotonic()) if not self._ended.is_set() else None
        )
        texts = [left.removeprefix(", "), self._pace.note]
        self._bar.set_postfix_str(", ".join(filter(None, texts)), refresh=False)
        self._bar.n = self._pace.done
        self._bar.refresh()


def _open_bar(name: str, total: int | None, unit: str, done: int) -> tqdm[Any] | None:
    """Returns a bar if standard error is a terminal."""
    if not sys.stderr.isatty():
        return None
    try:
        from tqdm import tqdm  # not needed, thus not installed, to score with an exported detector
    except ModuleNotFoundError:
        return None
    # The estimate is ours: that of tqdm counts the time to compile.
    layout = "{l_bar}{bar}| {n_fmt}/{total_fmt} {unit}s [{elapsed}{postfix}]"
    if total is None:
        layout = "{desc} [{elapsed}{postfix}]"
    scaled = unit == "B"
    return tqdm(
        desc=name, total=total, initial=done, unit=unit, unit_scale=scaled, bar_format=layout
    )


def _package() -> logging.Logger:
    return logging.getLogger(__name__.partition(".")[0])


def _is_shown() -> bool:
    package = _package()
    is_set_up = bool(package.handlers) or package.level != logging.NOTSET
    return _shown.get() and (logger.isEnabledFor(logging.INFO) or not is_set_up)


def _say(line: str) -> None:
    """Logs a line; writes it to standard error in a program that has not set up logging."""
    if logger.isEnabledFor(logging.INFO) and logger.hasHandlers():
        logger.info("%s", line)
    else:
        print(line, file=sys.stderr, flush=True)


def describe_left(seconds: float | None) -> str:
    """Returns ", about 3 min left"; "" for `None`."""
    return "" if seconds is None else f", about {_roughly(seconds)} left"


def format_seconds(seconds: float) -> str:
    """Formats a duration: "0.8 s", "12 s", "3 min 20 s", "2 h 5 min"."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def _roughly(seconds: float) -> str:
    """Formats an estimate: "8 s", "40 s", "7 min", "2 h 5 min"."""
    if seconds < 9.5:
        return f"{max(round(seconds), 1)} s"
    if seconds < 55:
        return f"{round(seconds, -1):.0f} s"
    if seconds < 3570:
        return f"{round(seconds / 60)} min"
    return format_seconds(60 * round(seconds / 60))
