"""Tests of image-level metrics against values computed by hand."""

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from devnet_jax.evaluation.metrics import alarm_rates, image_metrics, kind_metrics


def test_by_hand() -> None:
    labels = np.array([0, 0, 1, 0, 1])
    scores = np.array([0.1, 0.2, 0.3, 0.4, 0.9])
    result = image_metrics(labels, scores)
    # 5 of the 6 pairs of an anomaly and a normal image are in order.
    assert result["image_auroc"] == pytest.approx(5 / 6)
    # Precision is 1 at the first anomaly, 2/3 at the second.
    assert result["image_ap"] == pytest.approx((1 + 2 / 3) / 2)
    for name in ("image_auroc", "image_ap"):
        assert 0 < result[f"{name}_low"] < result[name] < result[f"{name}_high"] < 1
    # At 0.3: precision 2/3, recall 1, F1 0.8; at 0.9: 1, 1/2, 2/3.
    assert result["image_f1_max"] == pytest.approx(0.8)
    assert result["image_f1_max_threshold"] == pytest.approx(0.3)


def test_alarm_rates_count_the_threshold_itself_as_an_alarm() -> None:
    labels = np.array([0, 0, 0, 1, 1])
    scores = np.array([0.0, 1.0, 2.0, 1.0, 0.5])
    wilson = [stats.binomtest(1, 2).proportion_ci(method="wilson"),
              stats.binomtest(2, 3).proportion_ci(method="wilson")]  # fmt: skip
    assert alarm_rates(labels, scores, 1.0) == {
        "n_false_alarms": 2,
        "false_alarm_rate": pytest.approx(2 / 3),
        "false_alarm_rate_low": pytest.approx(wilson[1].low),
        "false_alarm_rate_high": pytest.approx(wilson[1].high),
        "n_missed": 1,
        "miss_rate": pytest.approx(1 / 2),
        "miss_rate_low": pytest.approx(wilson[0].low),
        "miss_rate_high": pytest.approx(wilson[0].high),
    }


@pytest.mark.parametrize(
    ("labels", "rates"),
    [
        ([0, 0, 0, 0], {"n_false_alarms": 1, "false_alarm_rate": 0.25}),
        ([1, 1, 1, 1], {"n_missed": 3, "miss_rate": 0.75}),
        ([], {}),
    ],
)
def test_measures_without_the_images_they_need_are_left_out(
    labels: list[int], rates: dict[str, float]
) -> None:
    scores = np.array([0.0, 1.0, 2.0, 0.5])[: len(labels)]
    assert image_metrics(np.array(labels), scores) == {}
    found = alarm_rates(np.array(labels), scores, 1.5)
    assert {name: found[name] for name in found if not name.endswith(("low", "high"))} == rates


def test_a_perfect_order_is_exactly_1() -> None:
    """Not 0.9999999999999999, as the sum over 53 steps of the recall is."""
    result = image_metrics(np.repeat([0, 1], [20, 53]), np.arange(73.0))
    assert (result["image_ap"], result["image_ap_high"]) == (1, 1)


def test_average_precision_with_ties_is_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(0, 2, 60), rng.integers(0, 8, 60).astype(np.float32)
    expected = metrics.average_precision_score(labels, scores)
    assert image_metrics(labels, scores)["image_ap"] == pytest.approx(expected, abs=1e-12)


def test_separable_scores_reach_a_perfect_f1() -> None:
    result = image_metrics(np.array([0, 1, 1]), np.array([-1.0, 0.0, 3.0]))
    assert (result["image_f1_max"], result["image_f1_max_threshold"]) == (1.0, 0.0)


def test_kinds_are_counted_and_compared_by_hand() -> None:
    found = [
        ("scratch", "scratch", True),
        ("scratch", "stain", True),
        ("scratch", None, True),
        ("scratch", "scratch", False),  # no alarm: neither right nor wrong
        ("stain", "stain", True),
        ("crack", "scratch", True),  # not labelled: counts in the table alone
        ("crack", None, True),
    ]
    defects, named, alarms = map(list, zip(*found, strict=True))
    assert kind_metrics(defects, named, alarms, ["scratch", "stain"]) == {
        "kinds": {
            "crack": {"scratch": 1, "stain": 0, "no labelled kind": 1, "no alarm": 0},
            "scratch": {"scratch": 1, "stain": 1, "no labelled kind": 1, "no alarm": 1},
            "stain": {"scratch": 0, "stain": 1, "no labelled kind": 0, "no alarm": 0},
        },
        "n_kind_accuracy": 4,
        "kind_accuracy": 0.5,
    }
    assert kind_metrics(["crack"], [None], [True], ["stain"]) == {
        "kinds": {"crack": {"stain": 0, "no labelled kind": 1, "no alarm": 0}},
        "n_kind_accuracy": 0,
    }
