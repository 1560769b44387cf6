"""The summary on the terminal, from results whose intervals SciPy and a solution by hand give."""

from __future__ import annotations

import re
from typing import Any

from etils import epath

from devnet_jax.report.summary import summarise_labelled

RESULTS = {
    "n_test_normal": 20,
    "n_test_anomaly": 4,
    "image_auroc": 0.98912,
    "image_auroc_low": 0.9412,
    "image_auroc_high": 0.9981,
    "image_ap": 0.9,
    "image_ap_low": 0.5,
    "image_ap_high": 0.99,
    "image_f1_max": 0.8889,
    "image_f1_max_threshold": 0.011712,
}


def rates(kind: str) -> dict[str, Any]:
    """Returns the results of a threshold with one false alarm and no miss."""
    return {
        f"{kind}_threshold": 0.0117,
        f"{kind}_n_false_alarms": 1,
        f"{kind}_false_alarm_rate": 0.05,
        f"{kind}_n_missed": 0,
        f"{kind}_miss_rate": 0.0,
    }


def rows(**results: Any) -> dict[str, str]:
    """Returns the values of the summary by their names."""
    lines = summarise_labelled("devcore", epath.Path("out"), RESULTS | results).splitlines()
    return dict(re.split(" {2,}", line.strip(), maxsplit=1) for line in lines if line)


def test_measures_have_intervals_and_their_digits() -> None:
    shown = rows()
    assert shown["AUROC"] == "0.99 (0.94–1.00)"
    assert shown["average precision"] == "0.90 (0.50–0.99)"
    assert shown["best F1"] == "0.89 at score 0.01171"


def test_rates_have_counts_and_intervals_beside_the_promise() -> None:
    promised = {"calibrated_promised_false_alarm_rate": 0.05}
    assert rows(**rates("calibrated"), **promised)["calibrated threshold (in force)"] == (
        "score 0.01170: 5.0% false alarms (1 of 20; 0.9–24%), at most 5% promised; "
        "0% missed (0 of 4; 0–49%)"
    )


def test_a_given_threshold_promises_nothing() -> None:
    shown = rows(**rates("given"), given_promised_false_alarm_rate=0.02)
    rate = "5.0% false alarms (1 of 20; 0.9–24%)"
    assert (
        shown["given threshold (in force)"] == f"score 0.01170: {rate}; 0% missed (0 of 4; 0–49%)"
    )


def test_more_false_alarms_than_promised_are_remarked_on() -> None:
    promised = {"calibrated_promised_false_alarm_rate": 0.05}
    found = rates("calibrated") | promised | {"calibrated_n_false_alarms": 4}
    shown = rows(**found, calibrated_excess_p_value=0.0338)["more than promised"]
    assert "4 of 20 good test images raise an alarm" in shown
    assert "unlikely with a promise of 5% (p = 0.034)" in shown
    assert "more than promised" not in rows(**found, calibrated_excess_p_value=0.06)
