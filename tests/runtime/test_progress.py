"""Tests what phases say of their progress, and when."""

from __future__ import annotations

import logging
import subprocess
import sys
import time

import pytest

from devnet_jax.runtime import progress
from devnet_jax.runtime.progress import Pace, Phase, format_seconds, showing


def said(pace: Pace, updates: dict[int, int], until: int) -> dict[int, str]:
    """Returns the lines by the second at which they are said; `updates`: units by the second."""
    lines = {}
    for second in range(until + 1):
        if second in updates:
            pace.update(updates[second], second)
        if line := pace.line(second):
            lines[second] = line
    return lines


def test_lines_of_a_phase_that_compiles_first() -> None:
    """The compilation, 20 s of it, does not count to the rate of 2 images a second."""
    pace = Pace("testing", 81, "image", now=0, first="compiles first")
    lines = said(pace, {second: 1 if second == 20 else 2 for second in range(20, 61)}, 60)
    assert lines == {
        1: "testing: 81 images",
        5: "testing: 0 of 81 images after 5.0 s; compiles first",
        21: "testing: 3 of 81 images after 21 s, about 40 s left",
        51: "testing: 63 of 81 images after 51 s, about 9 s left",
    }
    assert pace.end(60.0) == "testing: 81 images in 1 min"


def test_nothing_is_left_when_all_is_done() -> None:
    pace = Pace("seeds", 2, "run", now=0)
    assert said(pace, {8: 1, 15: 1}, 60) == {1: "seeds: 2 runs"}
    assert pace.left(60) is None
    assert pace.end(60) == "seeds: 2 runs in 1 min"


def test_no_estimate_before_a_rate_is_measured() -> None:
    pace = Pace("testing", 100, "image", now=0)
    pace.update(64, now=4)  # a single chunk, whose time may be that of the compilation
    assert pace.left(10) is None
    pace.update(18, now=10)  # 3 images/s
    assert pace.left(10) == pytest.approx(6)
    assert pace.left(12) == pytest.approx(4)
    assert pace.left(30) is None  # overdue: nothing is known


def test_units_done_earlier_do_not_count_to_the_rate() -> None:
    pace = Pace("training", 600, "step", now=0, done=400)
    assert pace.line(1) == "training: 600 steps, 400 of them done earlier"
    pace.update(1, now=10)
    pace.update(9, now=19)
    assert pace.left(19) == pytest.approx(190)


def test_hours_are_not_a_flood() -> None:
    pace = Pace("training", 8 * 3600, "step", now=0)
    lines = said(pace, dict.fromkeys(range(1, 8 * 3600 + 1), 1), 8 * 3600)
    assert len(lines) < 70
    assert max(lines) > 7 * 3600
    gaps = [b - a for a, b in zip(list(lines)[2:], list(lines)[3:], strict=False)]
    assert min(gaps) >= 30


def test_short_phases_say_nothing() -> None:
    pace = Pace("testing", 8, "image", now=0)
    assert pace.line(0.9) is None
    assert pace.end(0.9) is None


def test_a_phase_without_parts() -> None:
    pace = Pace("choosing the memory", None, "image", now=0)
    assert said(pace, {}, 35) == {
        1: "choosing the memory",
        31: "choosing the memory: 31 s so far",
    }
    assert pace.end(200) == "choosing the memory in 3 min 20 s"


def test_bytes() -> None:
    pace = Pace("downloading", 250_000_000, "B", now=0)
    assert pace.line(1) == "downloading: 250.0 MB"
    pace.update(10_000_000, now=2)
    pace.update(40_000_000, now=6)
    assert pace.line(6) == "downloading: 50.0 of 250.0 MB after 6.0 s, about 20 s left"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.84, "0.8 s"),
        (9.97, "10 s"),
        (59.7, "1 min"),
        (200, "3 min 20 s"),
        (3600, "1 h"),
        (7500, "2 h 5 min"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Phases speak after a twentieth of a second."""
    monkeypatch.setattr(progress, "_TICK", 0.01)
    monkeypatch.setattr(progress, "_SAID_AFTER", 0.05)


def test_speaks_while_the_main_thread_waits(
    quick: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a program without logging, to standard error; not to a terminal, so no bar."""
    with Phase("testing", 3) as phase:
        time.sleep(0.3)
        assert capsys.readouterr().err == "testing: 3 images\n"
        phase.update(3)
    assert capsys.readouterr().err.startswith("testing: 3 images in 0.")


def test_a_failed_phase_does_not_end(quick: None, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        with Phase("testing", 3):
            time.sleep(0.3)
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        fail()
    assert capsys.readouterr().err == "testing: 3 images\n"


def test_can_be_silenced(quick: None, capsys: pytest.CaptureFixture[str]) -> None:
    with showing(False), showing(True), Phase("testing", 3):
        time.sleep(0.3)
    package = logging.getLogger("devnet_jax")
    package.setLevel(logging.WARNING)
    try:
        with Phase("testing", 3):
            time.sleep(0.3)
    finally:
        package.setLevel(logging.NOTSET)
    assert capsys.readouterr() == ("", "")


def test_lines_go_to_a_logger_that_is_set_up(quick: None, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), Phase("testing", 3):
        time.sleep(0.3)
    assert caplog.messages[0] == "testing: 3 images"


def test_a_bar_on_a_terminal() -> None:
    """With the estimate of `Pace`: tqdm's own would count the compilation."""
    program = """
import sys, time
from devnet_jax.runtime import progress
from devnet_jax.runtime.progress import Phase
sys.stderr.isatty = lambda: True
with Phase("testing", 40, first="compiles first") as phase:
    time.sleep(1.5)
    for _ in range(10):
        phase.update()
        time.sleep(0.05)
    time.sleep(0.15)
    phase.update()
    time.sleep(0.3)
"""
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    drawn = result.stderr.split("\r")
    assert any("0/40 images" in text and "compiles first" in text for text in drawn)
    assert any("11/40 images" in text and "about 2 s left" in text for text in drawn)
