"""Runs of several processes, as real processes over loopback."""

from __future__ import annotations

import csv
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from devnet_jax import Detector
from devnet_jax.distributed.cluster import ClusterSettings, stop_agreement
from devnet_jax.distributed.exit_status import PEER_LOST, RESUME
from devnet_jax.errors import UserError
from devnet_jax.launchers.local import free_port
from devnet_jax.models.build import make_variables
from devnet_jax.runtime.workdir import Workdir, read_config
from tests import fork_server
from tests.conftest import REPOSITORY, RESNET18, environment
from tests.fork_server import Process
from tests.saved_runs import newest_whole, parameters

PEER_TIMEOUT = 8  # seconds, short: tests wait for it
SHORT_PEER_TIMEOUT = f"--peer_timeout={PEER_TIMEOUT}"
MAIN = ("-m", "devnet_jax.main")


def start(
    arguments: Sequence[str], processes: int, devices: int, main: Sequence[str] = MAIN
) -> list[Process]:
    """Starts the processes of one run."""
    cluster = [f"--coordinator=127.0.0.1:{free_port()}", f"--num_processes={processes}"]
    return [
        fork_server.start(
            [
                *main,
                *arguments,
                *([*cluster, f"--process_id={i}"] if processes > 1 else []),
            ],
            environment(devices),
        )
        for i in range(processes)
    ]


def finish(processes: Sequence[Process]) -> list[tuple[int, str, str]]:
    """Waits; returns the status, standard output and standard error of each process."""
    ended = []
    try:
        for process in processes:
            out, err = process.communicate(timeout=240)
            ended.append((process.returncode, out, err))
    finally:
        for process in processes:
            process.kill()
    return ended


def run(arguments: Sequence[str], processes: int, devices: int) -> list[tuple[int, str, str]]:
    ended = finish(start(arguments, processes, devices))
    assert [status for status, *_ in ended] == [0] * processes, ended
    return ended


def wait_until_step(workdir: Path, processes: Sequence[Process], step: int) -> None:
    while newest_whole(workdir) < step:
        assert all(process.poll() is None for process in processes), finish(processes)
        time.sleep(0.01)


def flat(tree: Any) -> np.ndarray:
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def scores(workdir: Path) -> dict[str, float]:
    with (workdir / "eval" / "scores.csv").open() as file:
        return {row["path"]: float(row["score"]) for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def two_process_run(tiny: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of a run of two processes with two devices each; read-only."""
    workdir = tmp_path_factory.mktemp("two_processes") / "run"
    launch = ["launch/local.py", "--platform=cpu", "--num_processes=2", "--devices_per_process=2"]
    result = subprocess.run(
        [sys.executable, *launch, "--", *tiny, f"--workdir={workdir}"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("AUROC") == 1  # printed by process 0 only
    assert "2 processes, 4 devices" in result.stderr
    assert result.stderr.count("epoch 2/2") == 1
    return workdir


@pytest.mark.slow
def test_two_processes_train_the_same_model_as_one(tiny: tuple[str, ...], tmp_path: Path) -> None:
    # A backbone with BatchNorm, whose statistics are those of the whole batch.
    flags = [*tiny, *RESNET18, "--config.evaluation.explanation=none"]
    workdir, two_process_run = tmp_path / "one", tmp_path / "two"
    # One device: that the number in one process does not matter is tested in test_training.py.
    run([*flags, f"--workdir={workdir}"], processes=1, devices=1)
    run([*flags, f"--workdir={two_process_run}"], processes=2, devices=2)
    initial = make_variables(read_config(Workdir(workdir)))
    before = flat(initial["params"])
    ours, theirs = (
        flat(Detector.restore(path).variables["params"]) for path in (two_process_run, workdir)
    )
    # Adam: a gradient of about 0 may move a weight by a whole step in either direction.
    assert np.linalg.norm(ours - theirs) < 0.05 * np.linalg.norm(theirs - before)
    assert scores(two_process_run).keys() == scores(workdir).keys()
    for path, score in scores(workdir).items():
        assert scores(two_process_run)[path] == pytest.approx(score, rel=0.02, abs=0.02)
    one, two = (
        json.loads((folder / "eval" / "metrics.json").read_text())
        for folder in (workdir, two_process_run)
    )
    assert one.keys() == two.keys()
    for name in ("n_test_normal", "n_test_anomaly", "n_calibration"):
        assert one[name] == two[name]


def test_evaluation_by_two_processes_equals_that_by_one(
    two_process_run: Path, tmp_path: Path
) -> None:
    def results(workdir: Path) -> tuple[dict[str, float], ...]:
        metrics = json.loads((workdir / "eval" / "metrics.json").read_text())
        trained = metrics.pop("trained_classes")
        return metrics, trained, scores(workdir)

    def n_images(workdir: Path) -> int:
        return (workdir / "report.html").read_text().count("<img")

    workdir = Path(shutil.copytree(two_process_run, tmp_path / "copy"))
    (workdir / "eval" / "metrics.json").unlink()
    run(["--mode=eval", f"--workdir={workdir}"], processes=1, devices=2)
    # The position of an image in its batch changes the rounding of sums on some CPUs.
    for found, expected in zip(results(workdir), results(two_process_run), strict=True):
        assert found == pytest.approx(expected, abs=1e-6)
    assert n_images(workdir) == n_images(two_process_run)


def test_two_processes_predict_every_image_once(
    two_process_run: Path, parts: Path, tmp_path: Path
) -> None:
    tables = []
    for processes in (1, 2):
        out = tmp_path / str(processes)
        predict = ["--mode=predict", f"--workdir={two_process_run}", f"--input={parts}"]
        ended = run([*predict, f"--output={out}"], processes, devices=1)
        assert str(out / "predictions.csv") in ended[0][1]
        with (out / "predictions.csv").open() as file:
            rows = [tuple(row.values()) for row in csv.DictReader(file)]
        assert len(rows) == len({row[0] for row in rows}) == 22
        names = sorted(path.relative_to(out).as_posix() for path in out.rglob("*.*"))
        tables.append((rows, names))
    assert tables[0] == tables[1]


@pytest.mark.slow
def test_sigterm_to_one_process_stops_both_and_they_resume(
    tiny: tuple[str, ...], tmp_path: Path
) -> None:
    workdir = tmp_path / "run"
    # Epochs long enough to stop within one; the same decay after 20 steps, for the same compiled
    # program.
    epochs_of_four = ("--config.train.steps_per_epoch=4", "--config.optimizer.decay_epochs=5")
    command = [*tiny, *epochs_of_four, f"--workdir={workdir}"]
    processes = start([*command, "--config.train.epochs=200"], processes=2, devices=2)
    wait_until_step(workdir, processes, 4)
    processes[1].send_signal(signal.SIGTERM)
    ended = finish(processes)
    assert [status for status, *_ in ended] == [RESUME, RESUME], ended
    (step,) = {re.search(r"told to stop: step (\d+) is saved", err)[1] for *_, err in ended}  # type: ignore[index]
    assert (workdir / "checkpoints" / step).exists()
    epochs = -(-int(step) // 4)
    ended = run([*command, f"--config.train.epochs={epochs}"], processes=2, devices=2)
    assert f"checkpoints/{step}" in ended[0][2]  # restored
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == list(range(1, epochs + 1))
    assert not list(workdir.rglob("*tmp*"))
    assert not (workdir / "interrupted_epoch.json").exists()

    uninterrupted = tmp_path / "uninterrupted"
    run(
        [*tiny, *epochs_of_four, f"--config.train.epochs={epochs}", f"--workdir={uninterrupted}"],
        2,
        devices=2,
    )
    for name, value in parameters(uninterrupted).items():
        np.testing.assert_array_equal(parameters(workdir)[name], value)
    for a, b in zip(lines, (uninterrupted / "metrics.jsonl").read_text().splitlines(), strict=True):
        assert json.loads(a)["loss"] == json.loads(b)["loss"]


def test_processes_agree_where_to_stop_by_counting_their_calls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # JAX stops all at the number that follows the highest one of any process.
    numbers = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(
        multihost_utils, "reached_preemption_sync_point", lambda n: numbers.append(n) or n == 3
    )
    with stop_agreement() as should_stop:
        assert [should_stop(step) for step in (20, 40, 60)] == [False, False, True]
    assert numbers == [1, 2, 3]


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_process_is_named(tiny: tuple[str, ...], tmp_path: Path, killed: int) -> None:
    workdir = tmp_path / "run"
    command = [*tiny, "--config.train.epochs=1000", f"--workdir={workdir}", SHORT_PEER_TIMEOUT]
    processes = start(command, processes=2, devices=2)
    wait_until_step(workdir, processes, 4)
    processes[killed].kill()
    killed_at = time.monotonic()
    ended = finish(processes)
    assert time.monotonic() - killed_at < PEER_TIMEOUT + 20
    status, _, err = ended[1 - killed]
    assert status == PEER_LOST, err
    host = re.escape(socket.gethostname())
    pid = processes[killed].pid
    assert re.search(rf"error: .*process {killed} \({host}, process {pid}\)", err), err
    assert "start all processes again with the same command" in err


@pytest.mark.slow
def test_a_suspended_process_is_named(tiny: tuple[str, ...], tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    command = [*tiny, "--config.train.epochs=1000", f"--workdir={workdir}", SHORT_PEER_TIMEOUT]
    processes = start(command, processes=2, devices=2)
    wait_until_step(workdir, processes, 4)
    processes[1].send_signal(signal.SIGSTOP)
    status, _, err = finish(processes[:1])[0]
    processes[1].kill()
    assert status == PEER_LOST
    assert re.search(rf"no heartbeat .* process 1 \(.*process {processes[1].pid}\)", err), err


STUCK = """
import sys, threading, time
from devnet_jax.distributed.watchdog import Watchdog

class Store:
    # All processes are alive, and process 2 makes no progress.
    values = {f"devnet_jax/who/{i}": f"host{i}, process {i}" for i in range(3)}
    def key_value_set(self, key, value, allow_overwrite=False):
        self.values[key] = value
    def key_value_dir_get(self, key):
        heartbeat = int(10 * time.monotonic())
        self.values["devnet_jax/alive/1"] = f"[{heartbeat}, 1]"
        self.values["devnet_jax/alive/2"] = f"[{heartbeat}, 0]"
        return [(k, v) for k, v in self.values.items() if k.startswith(key)]

watchdog = Watchdog(Store(), "localhost:1", 0, 3, timeout=30, stuck_after=4)
watchdog.report_progress()
time.sleep(60)
"""


def test_processes_without_progress_are_named() -> None:
    started = time.monotonic()
    result = subprocess.run(
        [sys.executable, "-c", STUCK], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert result.returncode == PEER_LOST, result.stderr
    assert "no progress for 4 s; stuck: process 2 (host2, process 2)" in result.stderr
    assert 4 < time.monotonic() - started < 30


FAILING_MAIN = """
import sys
from devnet_jax import main
from devnet_jax.training import run
if "--process_id={FAILING}" in sys.argv:
    def make_store(*_):
        raise ZeroDivisionError("a test error")
    run.make_store = make_store
main.console()
"""


@pytest.mark.parametrize("failing", [0, 1])
def test_an_exception_in_one_process_ends_both_without_a_restart(
    tiny: tuple[str, ...], tmp_path: Path, failing: int
) -> None:
    main = ("-c", FAILING_MAIN.replace("{FAILING}", str(failing)))
    ended = finish(start([*tiny, f"--workdir={tmp_path / 'run'}"], 2, devices=2, main=main))
    assert ended[failing][0] == 1, ended
    assert "ZeroDivisionError: a test error" in ended[failing][2]
    assert ended[1 - failing][0] == PEER_LOST, ended
    assert re.search(rf"process {failing} .* has ended: a test error", ended[1 - failing][2])


def test_an_error_in_one_process_is_reported_by_the_other(
    tiny: tuple[str, ...], tmp_path: Path
) -> None:
    workdir = Workdir(tmp_path / "run")
    with workdir.lock():  # so that process 0 cannot lock it
        ended = finish(start([*tiny, f"--workdir={workdir.path}"], processes=2, devices=2))
    assert [status for status, *_ in ended] == [1, PEER_LOST], ended
    assert "error: --workdir=" in ended[0][2]
    assert re.search(
        r"error: process 0 \(.*\) has ended: --workdir=.*: another process is at work", ended[1][2]
    )


def test_processes_with_different_settings_are_refused(
    tiny: tuple[str, ...], tmp_path: Path
) -> None:
    port = free_port()
    processes = [
        fork_server.start(
            [
                *MAIN,
                *tiny,
                f"--workdir={tmp_path / 'run'}",
                f"--coordinator=127.0.0.1:{port}",
                "--num_processes=2",
                f"--process_id={i}",
                f"--config.seed={i}",
            ],
            environment(devices=1),
        )
        for i in range(2)
    ]
    for status, _, err in finish(processes):
        assert status in (1, PEER_LOST)
        assert "the settings of process 1 and of process 0 differ" in err
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"coordinator": "host:1"}, "must be given together"),
        ({"cluster": "slurm", "num_processes": 2}, "--cluster=slurm sets"),
        ({"coordinator": "host", "num_processes": 2, "process_id": 0}, "must be host:port"),
        ({"coordinator": "h:1", "num_processes": 2, "process_id": 2}, "--process_id=2: must be"),
    ],
)
def test_contradictory_settings_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ClusterSettings(**arguments)  # type: ignore[arg-type]


def test_the_environment_of_the_cluster_is_missing(tmp_path: Path, tiny: tuple[str, ...]) -> None:
    (ended,) = finish(start([*tiny, f"--workdir={tmp_path}", "--cluster=slurm"], 1, 1))
    status, _, err = ended
    assert status == 1
    assert "error: --cluster=slurm: the other processes cannot be found" in err
