"""Tests of the comparison with PyTorch: ratios, time slices, and cleanup of processes."""

from __future__ import annotations

import fcntl
import importlib
import itertools
import sys
import time
from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SECONDS = {"ours": [2.0, 1.0, 4.0], "plain": [3.0, 4.0, 4.0], "tuned": [1.0, 1.0, 1.0]}

# The program and a worker, as of a DataLoader, both print ticks.
TICKING = """
import os, subprocess, sys, time
worker = len(sys.argv) > 2
child = None if worker else subprocess.Popen([sys.executable, "-c", sys.argv[1], sys.argv[1], "w"])
for _ in range(60):
    os.write(1, b"%.6f\\n" % time.monotonic())  # a line at once
    time.sleep(0.005)
child and child.wait()
"""
# Holds a lock together with a worker, for an hour.
LASTING = """
import fcntl, subprocess, sys, time
held = open(sys.argv[1], "w")
fcntl.flock(held, fcntl.LOCK_EX)
sleep = [sys.executable, "-c", "import time; time.sleep(3600)"]
worker = subprocess.Popen(sleep, pass_fds=[held.fileno()])
print(1.0, flush=True)
time.sleep(3600)
"""


@pytest.fixture
def in_turn(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("in_turn")


@pytest.fixture
def comparison(in_turn: ModuleType) -> ModuleType:
    return importlib.import_module("comparison")


@pytest.fixture
def materials(in_turn: ModuleType) -> ModuleType:
    return importlib.import_module("materials")


def program(code: str, *arguments: object) -> list[str]:
    return [sys.executable, "-c", code, *map(str, arguments)]


def test_results_hold_our_speed_over_that_of_each_peer(comparison: ModuleType) -> None:
    found = comparison.results({"train": SECONDS, "step": SECONDS})

    # Rounds: plain 3/2, 4/1, 4/4; tuned 1/2, 1/1, 1/4.
    assert found["step_ratio"] == 1.5
    assert found["spread"]["step_ratio"] == {"least": 1.0, "most": 4.0}
    assert found["step_ratio_tuned"] == 0.5
    assert found["times"]["step"]["ours"] == 2.0
    # Training compares total times: 11 s with 7 s, and 3 s with 7 s.
    assert found["train_ratio"] == pytest.approx(11 / 7, abs=1e-4)
    assert found["train_ratio_tuned"] == pytest.approx(3 / 7, abs=1e-4)
    assert found["spread"]["train_ratio"] == {"least": 1.0, "most": 4.0}
    assert found["times"]["train"]["plain"] == 11.0


def test_epochs_add_up_to_the_whole_training(comparison: ModuleType, in_turn: ModuleType) -> None:
    log = [(1.0, "starting"), (5.0, "epoch 1/2: loss 2.1"), (7.0, "epoch 2/2: loss 2.0"), (8.0, "")]
    lines = [in_turn.Line(seconds, text) for seconds, text in log]
    assert comparison.seconds_of_epochs(lines) == [
        5.0,
        3.0,
    ]  # the last checkpoint belongs to the last


def test_results_hold_the_speed_of_each_type_over_that_of_each_peer(comparison: ModuleType) -> None:
    found = comparison.results({"score": SECONDS | {"ours_bfloat16": [1.0, 0.5, 1.0]}})

    # Rounds: plain 3/1, 4/0.5, 4/1; tuned 1/1, 1/0.5, 1/1.
    assert found["score_ratio"] == 1.5
    assert found["score_ratio_bfloat16"] == 4.0
    assert found["score_ratio_bfloat16_tuned"] == 1.0
    assert found["times"]["score"]["ours_bfloat16"] == 1.0


def test_the_command_names_what_was_changed_and_no_place(
    comparison: ModuleType,
    materials: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    given = ["--parts", "step", "score", "--rounds=2", f"--output={tmp_path}/x.json", "--pixels=64"]
    monkeypatch.setattr(sys, "argv", ["cpu.py", *given])

    default = materials.Settings(batch_size=48)
    arguments = comparison.parse("benchmarks/cpu.py", "", default, slice_seconds=15)

    assert arguments.command == (
        "python benchmarks/cpu.py --parts step score --rounds 2 --pixels 64"
    )
    assert arguments.output == tmp_path / "x.json"
    assert arguments.settings == materials.Settings(batch_size=48, pixels=64)
    assert arguments.slice_seconds == 15


def test_sides_that_find_different_things_are_not_compared(
    comparison: ModuleType, materials: ModuleType, tmp_path: Path
) -> None:
    given = materials.write_materials(tmp_path, materials.Settings(pixels=8, n_normal=1))
    for side, score in (("ours", 1.0), ("plain", 1.0005), ("tuned", 1.01)):
        np.save(given.result("score", side), np.array([0.0, score]))
    with pytest.raises(AssertionError, match="score, tuned"):
        comparison.require_equal("score", given)
    np.save(given.result("score", "tuned"), np.array([0.0, 0.9995]))
    comparison.require_equal("score", given)


def test_materials_are_a_data_set_that_can_be_trained_with(
    materials: ModuleType, tmp_path: Path
) -> None:
    settings = materials.Settings(pixels=24, n_normal=3)
    given = materials.write_materials(tmp_path, settings)
    assert given.settings == settings
    assert [path.name for path in given.normal_paths] == ["0000.png", "0001.png", "0002.png"]
    assert len(given.anomaly_paths) == 10
    images = [np.asarray(Image.open(path)) for path in given.paths]
    assert {image.shape for image in images} == {(24, 24, 3)}
    assert len({image.tobytes() for image in images}) == len(images) == 31


def test_in_slices_one_program_runs_at_a_time_with_its_workers(in_turn: ModuleType) -> None:
    names = ("first", "second", "third")
    started = time.monotonic()
    lines = in_turn.in_slices({name: program(TICKING, TICKING) for name in names}, 0.15)
    wall = time.monotonic() - started

    ticks = sorted((float(line.text), name) for name in names for line in lines[name][:-1])
    assert len(ticks) == 3 * 2 * 60
    turns = 1 + sum(before[1] != after[1] for before, after in itertools.pairwise(ticks))
    # A slice ends with its time or its program; concurrent programs would alternate constantly.
    assert turns <= 2 * wall / 0.15 + 3
    # The programs' clocks add up to the wall-clock time.
    assert sum(lines[name][-1].seconds for name in names) == pytest.approx(wall, rel=0.2)
    for name in names:
        seconds = [line.seconds for line in lines[name]]
        assert seconds == sorted(seconds)


@pytest.mark.parametrize("way", ["in_slices", "in_rounds"])
def test_a_failure_is_told_and_leaves_nothing_running(
    in_turn: ModuleType, tmp_path: Path, way: str
) -> None:
    commands = {
        "lasting": program(LASTING, tmp_path / "held"),
        "failing": program("import sys; sys.exit('no memory left')"),
    }
    with pytest.raises(in_turn.ProgramError, match=r"status 1\nno memory left"):
        getattr(in_turn, way)(commands, 1)
    with (tmp_path / "held").open() as held:
        end = time.monotonic() + 10
        while True:
            try:
                return fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)  # no one holds it
            except BlockingIOError:
                assert time.monotonic() < end, "a program was left running"
                time.sleep(0.05)


def test_in_rounds_the_first_round_warms_up(in_turn: ModuleType, tmp_path: Path) -> None:
    serving = """
import sys, time
from pathlib import Path
import numpy as np
sys.path.insert(0, sys.argv[1])
from in_turn import serve
calls = []
def work():
    calls.append(1)
    time.sleep(0.5 if len(calls) == 1 else 0.02)
    return np.array([len(calls)])
serve(work, Path(sys.argv[2]))
"""
    result = tmp_path / "found.npy"
    found = in_turn.in_rounds({"ours": program(serving, BENCHMARKS, result)}, 3)
    assert len(found["ours"]) == 3
    assert all(0.02 <= seconds < 0.5 for seconds in found["ours"])
    assert np.load(result).tolist() == [1]


def test_roofline_finds_the_time_of_each_kind_of_operation(in_turn: ModuleType) -> None:
    roofline = importlib.import_module("roofline")
    x = jnp.ones((512, 512))
    product = jax.jit(lambda x: jnp.tanh(x @ x))
    found = roofline.seconds_by_kind(lambda: product(x))
    others = found.pop("others")
    # The product, under XLA's name, takes longer than the hyperbolic tangents.
    longest, shortest = sorted(found, key=found.__getitem__, reverse=True)
    assert "tanh" in shortest
    assert "tanh" not in longest
    assert found[shortest] > others == 0
