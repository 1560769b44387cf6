"""Texts of scores, measures and rates, with as many digits as they are worth."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from devnet_jax.evaluation.intervals import rate_interval

_SCORE_DIGITS = 4  # significant
_MAX_DECIMALS = 6  # of a score near 0, unless more are needed


def format_score(score: float, threshold: float | None = None) -> str:
    """Returns a score with four significant digits, or more where it would look like the threshold.

    Read as a number, the text is an alarm if the score is one. It is equal to
    `format_score(threshold)` only if the score equals the threshold. A page that shows a threshold
    with `format_threshold` gives that number here.

    Args:
      score: finite score.
      threshold: lowest score that raises an alarm; `None` if there is none.
    """
    decimals = _decimals_of_score(score)
    if threshold is None:
        return _fixed(score, decimals)
    as_shown = format_score(threshold)

    def is_clear(text: str) -> bool:
        differs = text != as_shown and (float(text) == score or float(text) != float(as_shown))
        is_same_side = (float(text) >= threshold) == (score >= threshold)
        return is_same_side and (differs or score == threshold)

    return _first(is_clear, score, decimals)


def format_threshold(threshold: float, scores: np.ndarray) -> str:
    """Returns a threshold with the fewest digits, at least four, that make the same alarms.

    Args:
      threshold: lowest score that raises an alarm.
      scores: float [N], finite scores that are shown beside it.
    """
    values = np.asarray(scores, np.float64)
    alarms = values >= threshold

    def is_equivalent(text: str) -> bool:
        return np.array_equal(values >= float(text), alarms)

    return _first(is_equivalent, threshold, _decimals_of_score(threshold))


def format_severity(severity: float, is_alarm: bool) -> str:
    """Returns a severity with two decimals, or more where it would be on the wrong side of 0.5.

    The text is 0.50 or more for an alarm, and less than 0.50 for other images.

    Args:
      severity: number from 0 to 1.
      is_alarm: True for an alarm, whose severity is at least 0.5.
    """
    severity = max(severity, 0.5) if is_alarm else min(severity, math.nextafter(0.5, 0))
    return _first(lambda text: (float(text) >= 0.5) == is_alarm, severity, 2)


def format_measure(value: float, interval: tuple[float, float] | None = None) -> str:
    """Returns a measure from 0 to 1 with its interval, such as "0.99 (0.94–1.00)".

    There are at least two decimals; the last one is worth at most half the interval's width. Only
    a measure of 1 is shown as 1.

    Args:
      value: measure, such as an AUROC.
      interval: ends of its interval; `None` if it is unknown, for two digits.
    """
    value = round(value, 12)  # sums of shares may be 0.9999999999999999
    decimals = (2 if value >= 0.1 else 3) if interval is None else decimals_within(*interval)
    text = _first(lambda text: float(text) < 1 or value >= 1, value, decimals)
    if interval is None:
        return text
    return f"{text} ({'–'.join(_fixed(end, decimals) for end in interval)})"


class Rate(NamedTuple):
    """Texts of a rate; together, as by `str`, "5.0% (1 of 20; 0.9–24%)".

    Attributes:
      share: the rate in percent; "–" without trials.
      counts: number of cases and of trials.
      interval: 95 % interval of the rate (`rate_interval`); "" without trials.
    """

    share: str
    counts: str
    interval: str

    @property
    def in_brackets(self) -> str:
        return f"({'; '.join(filter(None, (self.counts, self.interval)))})"

    def __str__(self) -> str:
        return f"{self.share} {self.in_brackets}"


def format_rate(count: int, total: int) -> Rate:
    """Returns the texts of a rate, with the digits that its interval supports.

    These are whole percents or finer; the last digit is worth at most half the interval's width.
    A rate within ten of this digit's units of 0 % or 100 % has one digit more, and so has an end of
    the interval within one unit.

    Args:
      count: number of cases.
      total: number of trials.
    """
    counts = f"{count:,} of {total:,}"
    if not total:
        return Rate("–", counts, "")
    low, high = rate_interval(count, total)
    decimals = decimals_within(low, high) - 2
    start, end = (_percent(value, decimals, units=1) for value in (low, high))
    return Rate(f"{_percent(count / total, decimals, units=10)}%", counts, f"{start}–{end}%")


def _percent(value: float, decimals: int, units: int) -> str:
    """Returns a share in percent; nearer than some units to 0 or 100, with one more decimal."""
    is_near = 0 < min(value, 1 - value) < units * 10.0 ** (-2 - decimals)
    return f"{100 * value:.{decimals + is_near}f}"


def decimals_within(low: float, high: float) -> int:
    """Returns the decimals, at least two, whose last is worth at most half an interval's width."""
    half = (high - low) / 2
    return 2 if half <= 0 else max(2, math.ceil(-math.log10(half)))


def _decimals_of_score(score: float) -> int:
    if score == 0:
        return _SCORE_DIGITS - 1
    exponent = math.floor(math.log10(abs(score)))
    return min(max(_SCORE_DIGITS - 1 - exponent, 0), _MAX_DECIMALS)


def _first(is_right: Callable[[str], bool], value: float, decimals: int) -> str:
    """Returns the value with the given decimals or, if that is not right, more; at most exactly."""
    texts = (_fixed(value, more) for more in range(decimals, decimals + 17))
    exact = np.format_float_positional(value, trim="-")
    return next((text for text in texts if is_right(text)), exact)


def _fixed(value: float, decimals: int) -> str:
    return f"{value:z.{decimals}f}"  # z: never -0.00
