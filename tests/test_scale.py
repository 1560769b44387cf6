"""The page on scale: its arithmetic by hand, what is read of compiled programs, and its text."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

# Of each kind one: a reduction of two arrays in the forward pass, one in the backward pass that a
# gradient was put to, one that is started and awaited, and what is no reduction.
HLO = """
ENTRY %main (p: f32[2,2]) -> f32[] {
  %all-reduce.2 = (f32[64]{0}, f32[64]{0}) all-reduce(%a, %b), channel_id=1, \
to_apply=%region_9.10, metadata={op_name="jit(f)/shard_map/jvp(Network)/bn1/psum"}
  %get-tuple-element.9 = f32[64]{0} get-tuple-element(%all-reduce.2), index=0, \
metadata={op_name="jit(f)/shard_map/jvp(Network)/bn1/psum"}
  %all-reduce.3 = (f32[3,3,2,4]{3,2,1,0}, f32[4]{0}, /*index=2*/bf16[5]{0}, f32[]) \
all-reduce(%c, %d, %e, %f), metadata={op_name="jit(f)/(psum:transpose(jvp(Network))/bn1/psum)"}
  %all-gather.1 = f32[128]{0} all-gather(%g), dimensions={0}
  ROOT %all-reduce-start = f32[10]{0} all-reduce-start(%h), metadata={op_name="jit(f)/psum"}
  %all-reduce-done = f32[10]{0} all-reduce-done(%all-reduce-start)
}
""".replace("\\\n", "")

LOOPBACK = """Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs
  eth0: 777 1 0 0 0 0 0 0 888 1 0 0 0 0 0 0
    lo: 12345 6 0 0 0 0 0 0 12345 6 0 0 0 0 0 0
"""


@pytest.fixture
def scale(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("scale")


@pytest.fixture
def arithmetic(monkeypatch: pytest.MonkeyPatch, scale: ModuleType) -> ModuleType:
    module = importlib.import_module("scale_arithmetic")
    for name, value in {"EFFICIENCY": 0.1, "REACH": 0.5, "RUN_SECONDS": 90.0}.items():
        monkeypatch.setattr(module, name, value)
    return module


@pytest.fixture
def toy(arithmetic: ModuleType) -> Any:
    """1 TFLOP/s, 10 GB/s; 5 µs and twice 1 µs for each of the four hops across eight chips."""
    slices = {4: ((2, 2), False), 8: ((2, 4), False)}
    return arithmetic.Chip("toy", 1e12, 10e9, 10e9, slices, cores=14)


def test_a_ring_sends_nearly_twice_what_is_reduced(arithmetic: ModuleType) -> None:
    assert arithmetic.sent_bytes(1, 100) == 0
    assert arithmetic.sent_bytes(2, 100) == 100
    assert arithmetic.sent_bytes(4, 100) == 150


def test_hops_across_grids_and_tori(arithmetic: ModuleType) -> None:
    assert arithmetic.hops((2, 4), joined=False) == 4
    assert arithmetic.hops((16, 16), joined=True) == 16
    assert arithmetic.hops((4, 8, 8), joined=True) == 10


def test_small_reductions_of_gpus_follow_nccl(arithmetic: ModuleType) -> None:
    seconds = {n: arithmetic.nccl_tree_seconds(n) for n in (2, 8, 64, 256)}
    assert seconds == pytest.approx(
        # In µs: 4.4 + 2 · 0.52; 4.4 + 2 · 7 · 0.52; with 2 · 7 · 0.936 and 3 or 5 levels of 2 · 5.
        {2: 5.44e-6, 8: 11.68e-6, 64: 47.504e-6, 256: 67.504e-6}
    )


def test_a_step_computes_waits_and_sends(arithmetic: ModuleType, toy: Any) -> None:
    work = arithmetic.Work(flops=1e9, reduced_bytes=40e6, reductions=100)
    alone = arithmetic.step_time(toy, 1, 48, work)
    assert (alone.compute, alone.latency, alone.transfer) == pytest.approx((0.48, 0, 0))
    time = arithmetic.step_time(toy, 8, 6, work)
    # 6 GFLOP at 0.1 TFLOP/s; 100 times 13 µs; 70 MB at 5 GB/s.
    assert (time.compute, time.latency, time.transfer) == pytest.approx((0.06, 0.0013, 0.014))
    assert arithmetic.speedup(toy, 8, 48, work) == pytest.approx(0.48 / 0.0753)
    assert arithmetic.weak_efficiency(toy, 8, 6, work) == pytest.approx(0.06 / 0.0753)


def test_the_quickest_number_of_chips_is_where_waiting_outgrows_computing(
    arithmetic: ModuleType, toy: Any
) -> None:
    # Computing 0.48 s, 0.12 on four, 0.06 on eight; a reduction 9 µs on four, 13 on eight.
    def quickest(reductions: int) -> int:
        return arithmetic.quickest(toy, 48, arithmetic.Work(1e9, 0, reductions))

    assert quickest(14_000) == 8  # 0.246 s on four, 0.242 on eight
    assert quickest(16_000) == 4  # 0.264, 0.268
    assert quickest(60_000) == 1  # 0.66 on four


def test_chips_work_together_in_whole_nodes_or_slices(arithmetic: ModuleType) -> None:
    gpu, tpu = arithmetic.CHIPS[0], arithmetic.CHIPS[2]
    assert [n for n in (1, 6, 8, 12, 16, 24, 48) if gpu.has(n)] == [1, 6, 8, 16, 24, 48]
    assert [n for n in (1, 6, 8, 12, 16, 24, 48) if tpu.has(n)] == [1, 8, 16]


def test_a_sweep_takes_whole_waves(arithmetic: ModuleType, toy: Any) -> None:
    assert arithmetic.sweep_seconds(180, 64, 100.0) == 300
    assert arithmetic.sweep_seconds(180, 256, 100.0) == 100
    work = arithmetic.Work(flops=1e9, reduced_bytes=0, reductions=0)
    assert arithmetic.run_seconds(toy, 1000, 48, work) == pytest.approx(90 + 480)


def test_scoring_is_as_quick_as_the_slower_of_chip_and_host(
    arithmetic: ModuleType, toy: Any
) -> None:
    rate = arithmetic.scoring_rate(toy, flops=1e8, decode_seconds=0.05)
    assert (rate.chip, rate.host, rate.least) == pytest.approx((1000, 280, 280))


def test_reductions_are_read_from_a_compiled_program(scale: ModuleType) -> None:
    step = importlib.import_module("scale_step")
    forward, backward = step.reductions(HLO)
    assert (forward.count, forward.bytes) == (1, 2 * 64 * 4)
    assert (backward.count, backward.bytes) == (2, (72 + 4) * 4 + 5 * 2 + 4 + 10 * 4)


def test_time_of_others_is_what_the_machine_was_busy_with_besides(scale: ModuleType) -> None:
    # In hundredths of a second: user, nice, system, idle, waiting for disks, interrupts (two
    # kinds), stolen. Of 30 s busy, 24 were ours: of two cores for 20 s others had 6 of 40.
    before = "cpu  100 0 100 5000 0 0 0 0 0 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n"
    after = "cpu  2100 500 500 6000 9 50 50 0 0 0\n"
    assert scale.busy_seconds(after, ticks=100) - scale.busy_seconds(before, ticks=100) == 30
    assert scale.others_share(30.0, ours=24.0, elapsed=20.0, cores=2) == 0.15


def test_the_loopback_is_found_among_the_network_devices(scale: ModuleType) -> None:
    assert scale.loopback_bytes(LOOPBACK) == 12345
    assert scale.loopback_bytes("") is None


def test_the_published_page_is_what_its_measurements_give(scale: ModuleType) -> None:
    page = importlib.import_module("scale_page")
    results = BENCHMARKS / "results"
    measured = scale.Measured.from_dict(json.loads((results / "scale.json").read_text()))
    assert page.text(measured) == (results / "scale.md").read_text()


def test_paragraphs_are_filled_and_all_else_stays(scale: ModuleType) -> None:
    page = importlib.import_module("scale_page")
    kept = "# Head\n\n| a | b |\n| --- | --- |\n\n```sh\na \\\n    b\n```\n\n    command"
    assert page.filled(kept) == kept + "\n"
    assert page.filled("two\nlines\n\n- one\n  item\n- another") == (
        "two lines\n\n- one item\n- another\n"
    )


def test_ratios_are_of_two_processes_over_one(scale: ModuleType) -> None:
    page = importlib.import_module("scale_page")
    words = page.ratio_words({"1": [40.0, 39.0, 20.0], "2": [30.0, 31.2, 36.0]})
    assert words == "0.80 times (the quickest readings: 0.90)"
