"""Measures by simulation how often the warning of a drift is wrong, and how often it finds one.

python benchmarks/drift.py

Scores are drawn; no detector takes part. Writes drift.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from results_page import page_parser, provenance, table

from devnet_jax.inference.drift import find_drift, reference_scores
from devnet_jax.inference.thresholds import calibrated_threshold

N_DRAWS = 2_000
N_SERVED = 50  # simulated services
SERVED, WINDOW, EVERY = 10_000, 1_000, 20  # pictures of each, scores kept, comparisons
RATE = 0.05
N_CALIBRATION = (25, 100, 1_000)
N_NOW = (20, 100, 1_000, 10_000)
DISTRIBUTIONS: Mapping[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "normal": lambda rng, n: rng.normal(size=n),
    "lognormal": lambda rng, n: rng.lognormal(size=n),
}
SHIFTS = (0.5, 1.0)  # in standard deviations of the scores


def warns(calibration: np.ndarray, now: np.ndarray) -> bool:
    """Returns True if the warning is given for the later scores that raise no alarm."""
    threshold = calibrated_threshold(calibration, RATE)
    assert threshold is not None
    passed = now[~threshold.alarms(now)]
    return find_drift(reference_scores(calibration), passed, threshold) is not None


def share(draw: Callable[[np.random.Generator, int], np.ndarray], n: int, m: int, by: float) -> str:
    """Returns the per cent of predictions of m pictures with a warning."""
    rng = np.random.default_rng([n, m])
    draws = N_DRAWS if not by else N_DRAWS // 20
    found = 0
    for _ in range(draws):
        calibration, now = draw(rng, n), draw(rng, m)
        found += warns(calibration.astype(np.float32), now + by * calibration.std())
    return f"{100 * found / draws:.2f}" if not by else f"{100 * found / draws:.0f}"


def served(draw: Callable[[np.random.Generator, int], np.ndarray], n: int) -> str:
    """Returns the per cent of services that warn at least once."""
    rng = np.random.default_rng([4, n])
    found = 0
    for _ in range(N_SERVED):
        calibration, now = draw(rng, n).astype(np.float32), draw(rng, SERVED)
        threshold = calibrated_threshold(calibration, RATE)
        assert threshold is not None
        passed, reference = now[~threshold.alarms(now)], reference_scores(calibration)
        found += any(
            find_drift(reference, passed[max(end - WINDOW, 0) : end], threshold) is not None
            for end in range(EVERY, len(passed), EVERY)
        )
    return f"{100 * found / N_SERVED:.1f}"


def main() -> None:
    """Simulates all rows, and writes the page."""
    parser = page_parser("drift.py", __doc__)
    arguments = parser.parse_args()
    rows, services = [], []
    for name, draw in DISTRIBUTIONS.items():
        for n in N_CALIBRATION:
            for by in (0.0, *SHIFTS):
                cells = [share(draw, n, m, by) for m in N_NOW]
                rows.append([name, n, f"{by:g}" if by else "none", *cells])
            services.append([name, n, served(draw, n)])
            print(name, n, flush=True)
    page = [
        "# The warning of a drift\n",
        provenance("python benchmarks/drift.py"),
        "Per cent of predictions with the warning that the scores of pictures that pass have moved "
        "(`devnet_jax/inference/drift.py`), by the number of pictures that calibrated the "
        f"threshold, for {RATE:.0%} of false alarms, and the number of new pictures. Scores are "
        "drawn; with the shift “none” both are of one distribution, and each warning is wrong; "
        "other shifts are in standard deviations of the scores of calibration. Both kinds of "
        "scores are made of the same random numbers. "
        f"{N_DRAWS:,} draws without a shift, {N_DRAWS // 20:,} with one.\n",
        table(
            ["scores", "calibration", "shift", *(f"{m:,} pictures" for m in N_NOW)],
            rows,
        ),
        "",
        f"Per cent of services that warn at least once in {SERVED:,} pictures without a shift; "
        f"each compares its latest {WINDOW:,} scores after every {EVERY} pictures that pass "
        f"({N_SERVED} simulated services).\n",
        table(["scores", "calibration", "wrong warning"], services),
        "",
    ]
    (arguments.output / "drift.md").write_text("\n".join(page))


if __name__ == "__main__":
    main()
