"""Tests of the page that compares two detectors."""

from __future__ import annotations

import dataclasses
import html
import re

import numpy as np
import pytest

from devnet_jax.data.example import Example
from devnet_jax.evaluation.compare import changes_of_side, measure_difference
from devnet_jax.report.comparison import (
    CHANGES,
    ChangedPicture,
    Comparison,
    Side,
    format_difference,
    to_html,
    verdict,
)
from devnet_jax.report.thumbnails import thumbnail
from tests.report.example import CALIBRATED, GREY, HOSTILE, PRIOR, draw_scores


def make_comparison() -> Comparison:
    """Makes a comparison whose B adds noise to the scores of A, with names that need escaping."""
    scores, labels, defects = draw_scores()
    noise = np.random.default_rng(8).normal(0, 1.5, len(scores))
    sides = (
        Side(f"devcore {HOSTILE}", scores.astype(float), CALIBRATED),
        Side("devnet", scores + noise, PRIOR),
    )
    examples = [
        Example(f"{defect}/{i}", "test", int(label), defect, "")
        for i, (label, defect) in enumerate(zip(labels, defects, strict=True))
    ]
    changes = changes_of_side(labels, sides)
    image = thumbnail(GREY, 16)
    changed = [
        ChangedPicture(
            example.path,
            example.defect,
            change,
            (float(sides[0].scores[i]), float(sides[1].scores[i])),
            (image, image),
        )
        for i, (example, change) in enumerate(zip(examples, changes, strict=True))
        if change
    ]
    results = measure_difference(examples, sides, changes)
    return Comparison(f"On {HOSTILE}", sides, labels, defects, results, [HOSTILE], changed)


def test_the_page_shows_every_change_and_needs_nothing_else() -> None:
    comparison = make_comparison()
    page = to_html(comparison)
    n_of = {name: sum(one.change == name for one in comparison.changed) for name in CHANGES}
    assert all(n_of.values())
    for name, text in CHANGES.items():
        assert f"<dt>{text}</dt><dd>{n_of[name]}</dd>" in page
    better, worse = page.split('<h2 id="group-2">')
    n_better = n_of["missed_to_found"] + n_of["false_alarm_to_passed"]
    assert (better.count('<li class="card">'), worse.count('<li class="card">')) == (
        n_better,
        len(comparison.changed) - n_better,
    )
    assert "<script" not in page
    assert html.escape("<script>window.hacked", quote=False) in page
    sources = re.findall(r'(?:src|href)="([^"#]*)', page)
    assert all(source.startswith("data:") for source in sources if source)
    page.encode("utf-8")


def test_without_thresholds_and_with_one_side_only_the_page_is_written() -> None:
    comparison = make_comparison()
    sides = tuple(dataclasses.replace(side, threshold=None) for side in comparison.sides)
    normal = comparison.labels == 0
    sides = tuple(dataclasses.replace(side, scores=side.scores[normal]) for side in sides)
    examples = [Example(f"{i}", "test", 0, "good", "") for i in range(int(normal.sum()))]
    results = measure_difference(examples, (sides[0], sides[1]), [""] * len(examples))
    defects = ["good"] * len(examples)
    page = to_html(
        Comparison("", (sides[0], sides[1]), comparison.labels[normal], defects, results, [], [])
    )
    assert "changed sides" not in page.split('id="reading"')[0]
    assert "<dt>AUROC of A</dt>" not in page


@pytest.mark.parametrize(
    ("interval", "words"),
    [
        ((), "Too few pictures"),
        ((-0.1, 0.2), "do not show which"),
        ((0.1, 0.2), "A ranks these pictures better"),
        ((-0.2, -0.1), "B ranks these pictures better"),
        ((0.0, 0.0), "equally well"),
    ],
)
def test_the_verdict_follows_the_interval(interval: tuple[float, ...], words: str) -> None:
    ends = dict(zip(("auroc_difference_low", "auroc_difference_high"), interval, strict=False))
    assert words in verdict({"auroc_difference": sum(interval) / 2, **ends})


def test_differences_have_a_sign_and_the_digits_of_their_interval() -> None:
    assert format_difference(0.0123, -0.0312, 0.0567) == ("+0.01", "−0.03 to +0.06")
    assert format_difference(-0.00312, -0.0061, -0.0002) == ("−0.003", "−0.006 to −0.0002")
    assert format_difference(0.0, 0.0, 0.0) == ("0", "0 to 0")
    assert format_difference(-0.5, None, None) == ("−0.50", "–")
