"""Colours of classes: other classes that come and go leave them as they are, where they can."""

from __future__ import annotations

import random

import numpy as np
import pytest

from devnet_jax.report.charts import make_series
from devnet_jax.report.colours import choose_colours
from devnet_jax.report.outcomes import Group

KINDS = [
    "scratch",
    "stain",
    "crack",
    "hole",
    "dent",
    "bent",
    "cut",
    "color",
    "glue",
    "thread",
    "poke",
    "squeeze",
    "print",
    "oil",
    "rough",
    "fold",
    "contamination",
    "metal_contamination",
    "missing_wire",
    "combined",
    "broken_large",
    "broken_small",
]


def test_colours_are_those_of_earlier_versions() -> None:
    """Pages of other versions are compared by eye, so the colours of names do not change."""
    assert choose_colours(["scratch"]) == {"scratch": 1}
    assert choose_colours(["scratch", "stain", "crack"]) == {"scratch": 1, "stain": 6, "crack": 2}


def test_the_colours_depend_on_the_names_alone() -> None:
    drawn = random.Random(3)
    for n in range(8):
        names = drawn.sample(KINDS, n)
        colours = choose_colours(names)
        assert sorted(colours) == sorted(names)
        assert len(set(colours.values())) == n
        assert set(colours.values()) <= set(range(1, 8 if n == 7 else 7))  # grey is the last
        assert choose_colours(names[::-1]) == colours


def test_names_of_any_bytes_have_a_colour() -> None:
    assert len(set(choose_colours(["", "\udc80", "日本", "a\n", '"><script>']).values())) == 5


@pytest.mark.parametrize(("n", "share"), [(1, 0.9), (2, 0.8), (3, 0.65), (4, 0.5)])
def test_one_more_kind_rarely_recolours_the_others(n: int, share: float) -> None:
    """As many colours as can be: of two kinds that want the same one, one must give way."""
    drawn = random.Random(n)
    unchanged = 0
    for _ in range(400):
        *names, new = drawn.sample(KINDS, n + 1)
        before, after = choose_colours(names), choose_colours([*names, new])
        unchanged += all(before[name] == after[name] for name in names)
    assert unchanged >= share * 400


def test_counts_do_not_change_the_colours_but_decide_who_has_one() -> None:
    def series(counts: dict[str, int]) -> dict[str, int]:
        groups = [Group("good", False, np.zeros(3))]
        groups += [Group(name, True, np.zeros(n)) for name, n in sorted(counts.items())]
        return {one.name: one.colour for one, _ in make_series(groups)}

    few = series({"scratch": 2, "stain": 30, "crack": 9})
    assert few == series({"scratch": 40, "stain": 1, "crack": 9})
    assert few["good"] == 0
    many = series({name: 40 - i for i, name in enumerate(KINDS)})
    assert many.keys() == {"good", *KINDS[:6], "16 other classes"}
    assert many["16 other classes"] == 7
    assert sorted(many.values()) == list(range(8))
