"""A run that is killed, stopped or out of space goes on to the end that it would have had."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from devnet_jax.distributed.exit_status import RESUME
from tests.conftest import REPOSITORY
from tests.saved_runs import newest_whole, parameters

EPOCHS = 40  # of the run that is killed, and killed
FEW_EPOCHS = 3
KILLS = 20


def command(tiny: Sequence[str], workdir: Path, epochs: int) -> list[str]:
    # Nothing is explained in the end: that is not what these runs are for.
    explanation = "--config.evaluation.explanation=none"
    flags = (f"--config.train.epochs={epochs}", f"--workdir={workdir}", explanation)
    return [sys.executable, "-m", "devnet_jax.main", *tiny, *flags]


def environment(devices: int = 1) -> dict[str, str]:
    return {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices)}


def run(arguments: Sequence[str], devices: int = 1) -> str:
    """Runs it to its end; returns what it said."""
    result = subprocess.run(
        arguments, cwd=REPOSITORY, env=environment(devices), capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return result.stderr


def catches(process: subprocess.Popen[str], number: int) -> bool:
    """Whether it has a handler for that signal, as Linux tells."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    (caught,) = re.findall(r"SigCgt:\s*([0-9a-f]+)", status)
    return bool(int(caught, 16) >> (number - 1) & 1)


def losses(workdir: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (workdir / "metrics.jsonl").open()]


@pytest.fixture(scope="module")
def straight(tiny: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of a run of few epochs that nothing befell; read it only."""
    workdir = tmp_path_factory.mktemp("straight") / "run"
    run(command(tiny, workdir, FEW_EPOCHS))
    return workdir


@pytest.mark.faults
def test_killed_at_random_moments(tiny: tuple[str, ...], tmp_path: Path) -> None:
    straight = tmp_path / "straight"
    run(command(tiny, straight, EPOCHS))
    moments = random.Random(0)
    workdir = tmp_path / "run"
    restored = []
    for _ in range(KILLS):
        before = newest_whole(workdir)
        with (tmp_path / "log").open("w") as log:
            process = subprocess.Popen(
                command(tiny, workdir, EPOCHS), cwd=REPOSITORY, env=environment(), stderr=log
            )
        # Of the first steps on, a checkpoint is saved all the time; some are killed before.
        if moments.random() < 0.8:
            while newest_whole(workdir) == before and process.poll() is None:
                time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.4))
        process.kill()
        process.wait()
        said = (tmp_path / "log").read_text()
        assert "Traceback" not in said
        # Nothing but the time since the last checkpoint is done again.
        for step in re.findall(r"restored checkpoint .*/(\d+)", said):
            assert int(step) == before
            restored.append(before)
    assert len(set(restored)) > KILLS // 3  # or the kills hit nothing
    run(command(tiny, workdir, EPOCHS))
    ours, theirs = parameters(workdir), parameters(straight)
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name)
    assert losses(workdir) == losses(straight)
    files = {path.relative_to(workdir).parts[0] for path in workdir.rglob("*")}
    assert files == {path.relative_to(straight).parts[0] for path in straight.rglob("*")}
    assert not list(workdir.rglob("*tmp*"))


def test_sigterm_saves_within_an_epoch_and_says_resume(
    tiny: tuple[str, ...], tmp_path: Path
) -> None:
    workdir = tmp_path / "run"
    longer = ("--config.train.steps_per_epoch=1000",)
    process = subprocess.Popen(
        [*command(tiny, workdir, 1), *longer],
        cwd=REPOSITORY,
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (workdir / "tensorboard").exists():  # training begins
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(3)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == RESUME, err
    assert "Traceback" not in err
    (step,) = re.findall(r"told to stop: step (\d+) is saved, and the same command goes on", err)
    assert newest_whole(workdir) == int(step) < 1000
    partial = json.loads((workdir / "interrupted_epoch.json").read_text())
    assert partial["step"] == int(step)
    assert len(partial["history"]["loss"]) == int(step)


def test_sigterm_outside_training_says_resume_too(tiny: tuple[str, ...], tmp_path: Path) -> None:
    process = subprocess.Popen(
        command(tiny, tmp_path / "run", 1),
        cwd=REPOSITORY,
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    while not catches(process, signal.SIGTERM):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == RESUME, err
    assert "Traceback" not in err


def test_a_run_goes_on_on_another_number_of_devices(
    straight: Path, tiny: tuple[str, ...], tmp_path: Path
) -> None:
    workdir = Path(shutil.copytree(straight, tmp_path / "run"))
    shutil.rmtree(workdir / "checkpoints" / str(2 * FEW_EPOCHS))
    said = run(command(tiny, workdir, FEW_EPOCHS), devices=2)
    assert f"checkpoints/{2 * FEW_EPOCHS - 2}" in said  # restored
    np.testing.assert_allclose(losses(workdir), losses(straight), rtol=2e-3)


def test_a_disk_without_room_costs_no_checkpoint(
    straight: Path, tiny: tuple[str, ...], tmp_path: Path
) -> None:
    workdir = Path(shutil.copytree(straight, tmp_path / "run"))
    last = newest_whole(workdir)
    files = [path for path in workdir.glob(f"checkpoints/{last}/**/*") if path.is_file()]
    limit = max(path.stat().st_size for path in files) // 2  # bytes that a file may have
    limited = ["bash", "-c", f'ulimit -f {limit // 1024}; exec "$@"', "bash"]
    result = subprocess.run(
        [*limited, *command(tiny, workdir, FEW_EPOCHS + 2)],
        cwd=REPOSITORY,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, result.stderr
    assert "could not be saved" in errors[0]
    assert "File too large" in errors[0]
    assert f"that of step {last} is intact" in errors[0]
    assert newest_whole(workdir) == last
