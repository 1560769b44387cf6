"""The tables of `scale.py`'s page."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from results_page import spread, table
from scale_arithmetic import (
    CHIPS,
    Chip,
    Work,
    run_seconds,
    scoring_rate,
    sent_bytes,
    speedup,
    step_time,
    sweep_seconds,
    weak_efficiency,
)

if TYPE_CHECKING:
    from scale import Measured

BATCH_SIZE, STEPS = 48, 1000  # the paper's
SHARED_BY = (1, 8, 16, 24, 48)  # devices that divide this batch
POD = (8, 64, 256)
PER_DEVICE = (6, 48)  # images, where the batch grows
SWEEPS = {"15 classes × 2 shots × 2 methods × 3 seeds": 180, "with 25 seeds": 1500}
PICTURES = (1_000_000, 10_000_000)


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms" if seconds < 0.1 else f"{seconds * 1e3:.0f} ms"


def duration(seconds: float) -> str:
    """In the unit that people would say it in."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def megabytes(n_bytes: float) -> str:
    return f"{n_bytes / 1e6:.1f} MB" if n_bytes < 1e9 else f"{n_bytes / 1e9:.1f} GB"


def step_table(measured: Measured) -> str:
    step = measured.step
    rows = [
        ("parameters, float32", f"{step.parameters:,} ({megabytes(4 * step.parameters)})"),
        ("applications of BatchNorm, both scales", step.layers),
        ("all-reduces in the program given to XLA", step.written),
        (
            "all-reduces that XLA makes of them, forward (two a BatchNorm: mean, then variance)",
            f"{step.forward.count}, {step.forward.bytes / 1e3:.0f} kB",
        ),
        (
            "all-reduces backward (BatchNorm's two sums, and the gradients, put together)",
            f"{step.backward.count}, {megabytes(step.backward.bytes)}",
        ),
        ("FLOPs of an image, forward and backward", f"{step.flops / 1e9:.1f} G"),
        ("FLOPs of an image that is scored", f"{step.score_flops / 1e9:.1f} G"),
        ("FLOPs of its map of gradients", f"{step.explain_flops / 1e9:.1f} G"),
    ]
    return table(("of a step at the paper's settings", ""), rows)


def processes_table(measured: Measured) -> str:
    rows = []
    for name in measured.speeds:
        sent = measured.loopback_bytes[name]
        rows.append(
            (
                f"{name} × {2 // int(name)}",
                spread(measured.speeds[name], digits=1),
                "–" if sent is None else megabytes(sent),
                spread(measured.scoring[name], digits=1),
            )
        )
    heads = (
        "processes × devices",
        "training, images/s",
        "over the loopback for a step",
        "scoring files, images/s",
    )
    return table(heads, rows)


def decoding_table(measured: Measured) -> str:
    rows = [
        (
            one.kind,
            megabytes(one.file_bytes),
            f"{statistics.median(one.seconds) * 1e3:.0f}",
            f"{min(one.seconds) * 1e3:.0f} – {max(one.seconds) * 1e3:.0f}",
        )
        for one in measured.decoding
    ]
    heads = ("decoded and resized, on one core", "a file", "median, ms", "least – most, ms")
    return table(heads, rows)


def chips_table() -> str:
    def row(chip: Chip) -> Sequence[object]:
        far = "" if chip.far_link == chip.link else f", {chip.far_link / 1e9:.0f} across nodes"
        latencies = " / ".join(f"{chip.latency(n) * 1e6:.0f}" for n in POD)
        peak, link = f"{chip.peak / 1e12:.0f}", f"{chip.link / 1e9:.0f}{far}"
        return chip.name, peak, link, latencies

    heads = (
        "chip",
        "peak, bfloat16, TFLOP/s",
        "links of a chip, one way, GB/s",
        "a small all-reduce over 8 / 64 / 256, µs",
    )
    return table(heads, map(row, CHIPS))


def shared_batch_table(work: Work) -> str:
    def cell(chip: Chip, n: int) -> str:
        if not chip.has(n):
            return "–"
        time = step_time(chip, n, BATCH_SIZE / n, work)
        faster = speedup(chip, n, BATCH_SIZE, work)
        return f"{milliseconds(time.total)} ({faster:.1f} ×)"

    rows = [(chip.name, *(cell(chip, n) for n in SHARED_BY)) for chip in CHIPS]
    return table(("a step of 48 images on", *SHARED_BY), rows)


def traffic_table(work: Work) -> str:
    each = [sent_bytes(n, work.reduced_bytes) for n in POD]
    rows = [
        ("each device sends, and receives", *map(megabytes, each)),
        ("all together", *(megabytes(n * sent) for n, sent in zip(POD, each, strict=True))),
    ]
    return table(("in a step", *(f"{n} devices" for n in POD)), rows)


def growing_batch_table(work: Work) -> str:
    def cell(chip: Chip, n: int, per_device: int) -> str:
        time = step_time(chip, n, per_device, work).total
        busy = weak_efficiency(chip, n, per_device, work)
        return f"{milliseconds(time)} ({busy:.0%})"

    heads = ["chip"] + [f"{n}: batch {n * b:,}" for b in PER_DEVICE for n in POD]
    rows = [(chip.name, *(cell(chip, n, b) for b in PER_DEVICE for n in POD)) for chip in CHIPS]
    return table(heads, rows)


def sweep_table(work: Work) -> str:
    rows = []
    for chip in CHIPS:
        seconds = run_seconds(chip, STEPS, BATCH_SIZE, work)
        training = STEPS * step_time(chip, 1, BATCH_SIZE, work).total
        cells = [duration(sweep_seconds(runs, n, seconds)) for runs in SWEEPS.values() for n in POD]
        rows.append((chip.name, f"{duration(seconds)}, {duration(training)} in steps", *cells))
    heads = [f"{runs:,} on {n}" for runs in SWEEPS.values() for n in POD]
    return table(("chip", "one run", *heads), rows)


def scoring_table(measured: Measured) -> str:
    step = measured.step
    decoding = statistics.median(measured.decoding[0].seconds)
    rows = []
    for chip in CHIPS:
        if chip.cores is None:
            continue
        scored = scoring_rate(chip, step.score_flops, decoding)
        explained = scoring_rate(chip, step.score_flops + step.explain_flops, decoding)
        cells = [duration(n / (scored.least * devices)) for n in PICTURES for devices in POD]
        rows.append(
            [chip.name, *(f"{r:,.0f}" for r in (scored.chip, explained.chip, scored.host)), *cells]
        )
    heads = ["chip", "scores", "scores and explains", "its cores decode"]
    heads += [f"{n // 10**6} M on {devices}" for n in PICTURES for devices in POD]
    return table(heads, rows)
