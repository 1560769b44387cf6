"""Several processes that work together, as real processes over loopback."""

from __future__ import annotations

import csv
import json
import os
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
from tests.conftest import REPOSITORY
from tests.saved_runs import newest_whole, parameters

PEER_TIMEOUT = 8  # seconds, where a process is to be missed
MISSED_SOON = f"--peer_timeout={PEER_TIMEOUT}"
MAIN = (sys.executable, "-m", "devnet_jax.main")


def start(
    arguments: Sequence[str], processes: int, devices: int, main: Sequence[str] = MAIN
) -> list[subprocess.Popen[str]]:
    """The processes of one run."""
    together = [f"--coordinator=127.0.0.1:{free_port()}", f"--num_processes={processes}"]
    return [
        subprocess.Popen(
            [
                *main,
                *arguments,
                *([*together, f"--process_id={i}"] if processes > 1 else []),
            ],
            cwd=REPOSITORY,
            env={**os.environ, "JAX_NUM_CPU_DEVICES": str(devices)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(processes)
    ]


def finish(processes: Sequence[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """Status, standard output and standard error of each."""
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


def wait_until_step(workdir: Path, processes: Sequence[subprocess.Popen[str]], step: int) -> None:
    while newest_whole(workdir) < step:
        assert all(process.poll() is None for process in processes), finish(processes)
        time.sleep(0.01)


def flat(tree: Any) -> np.ndarray:
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def scores(workdir: Path) -> dict[str, float]:
    with (workdir / "eval" / "scores.csv").open() as file:
        return {row["path"]: float(row["score"]) for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def together(tiny: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of a run of two processes with two devices each; read it only."""
    workdir = tmp_path_factory.mktemp("together") / "run"
    launch = ["launch/local.py", "--platform=cpu", "--num_processes=2", "--devices_per_process=2"]
    result = subprocess.run(
        [sys.executable, *launch, "--", *tiny, f"--workdir={workdir}"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("AUROC") == 1  # the first process speaks for both
    assert "2 processes, 4 devices" in result.stderr
    assert result.stderr.count("epoch 2/2") == 1
    return workdir


@pytest.mark.slow
def test_two_processes_train_the_same_model_as_one(
    together: Path, tiny: tuple[str, ...], tmp_path: Path
) -> None:
    # Of one device: in one process, any number train the same, as test_training.py shows.
    workdir = tmp_path / "run"
    # Their explanations are not compared here.
    unexplained = "--config.evaluation.explanation=none"
    run([*tiny, unexplained, f"--workdir={workdir}"], processes=1, devices=1)
    initial = make_variables(read_config(Workdir(workdir)))
    before = flat(initial["params"])
    ours, theirs = (flat(Detector.restore(of).variables["params"]) for of in (together, workdir))
    # Under Adam a gradient of about 0 may move a weight either way, by a whole step.
    assert np.linalg.norm(ours - theirs) < 0.05 * np.linalg.norm(theirs - before)
    assert scores(together).keys() == scores(workdir).keys()
    for path, score in scores(workdir).items():
        assert scores(together)[path] == pytest.approx(score, rel=0.02, abs=0.02)
    one, two = (
        json.loads((folder / "eval" / "metrics.json").read_text()) for folder in (workdir, together)
    )
    assert one.keys() == two.keys()
    for name in ("n_test_normal", "n_test_anomaly", "n_calibration"):
        assert one[name] == two[name]


def test_evaluating_by_two_processes_is_evaluating_by_one(together: Path, tmp_path: Path) -> None:
    def results(workdir: Path) -> tuple[dict[str, float], dict[str, float]]:
        return json.loads((workdir / "eval" / "metrics.json").read_text()), scores(workdir)

    def n_images(workdir: Path) -> int:
        return (workdir / "report.html").read_text().count("<img")

    workdir = Path(shutil.copytree(together, tmp_path / "copy"))
    (workdir / "eval" / "metrics.json").unlink()
    run(["--mode=eval", f"--workdir={workdir}"], processes=1, devices=2)
    # An image has another place in its batch, which on some CPUs changes how sums are rounded.
    for found, expected in zip(results(workdir), results(together), strict=True):
        assert found == pytest.approx(expected, abs=1e-6)
    assert n_images(workdir) == n_images(together)


def test_two_processes_predict_every_image_once(
    together: Path, parts: Path, tmp_path: Path
) -> None:
    tables = []
    for processes in (1, 2):
        out = tmp_path / str(processes)
        predict = ["--mode=predict", f"--workdir={together}", f"--input={parts}"]
        ended = run([*predict, f"--output={out}"], processes, devices=1)
        assert str(out / "predictions.csv") in ended[0][1]
        with (out / "predictions.csv").open() as file:
            rows = [tuple(row.values()) for row in csv.DictReader(file)]
        assert len(rows) == len({row[0] for row in rows}) == 22
        names = sorted(path.relative_to(out).as_posix() for path in out.rglob("*.*"))
        tables.append((rows, names))
    assert tables[0] == tables[1]


@pytest.mark.faults
def test_sigterm_to_one_process_stops_both_and_they_go_on(
    tiny: tuple[str, ...], tmp_path: Path
) -> None:
    workdir = tmp_path / "run"
    # Longer epochs, so that it is stopped within one, and the same decay after 20 steps: what is
    # compiled stays the same.
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

    straight = tmp_path / "straight"
    run(
        [*tiny, *epochs_of_four, f"--config.train.epochs={epochs}", f"--workdir={straight}"],
        2,
        devices=2,
    )
    for name, value in parameters(straight).items():
        np.testing.assert_array_equal(parameters(workdir)[name], value)
    for a, b in zip(lines, (straight / "metrics.jsonl").read_text().splitlines(), strict=True):
        assert json.loads(a)["loss"] == json.loads(b)["loss"]


def test_processes_count_their_calls_to_agree_where_to_stop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # JAX stops all at the next number after the one that the foremost has asked with.
    asked = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(
        multihost_utils, "reached_preemption_sync_point", lambda n: asked.append(n) or n == 3
    )
    with stop_agreement() as ends_after:
        assert [ends_after(step) for step in (20, 40, 60)] == [False, False, True]
    assert asked == [1, 2, 3]


@pytest.mark.faults
@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_process_is_noticed_and_named(
    tiny: tuple[str, ...], tmp_path: Path, killed: int
) -> None:
    workdir = tmp_path / "run"
    command = [*tiny, "--config.train.epochs=1000", f"--workdir={workdir}", MISSED_SOON]
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
    assert "start all of them again with the same command" in err


@pytest.mark.faults
def test_a_stuck_process_is_noticed_and_named(tiny: tuple[str, ...], tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    command = [*tiny, "--config.train.epochs=1000", f"--workdir={workdir}", MISSED_SOON]
    processes = start(command, processes=2, devices=2)
    wait_until_step(workdir, processes, 4)
    processes[1].send_signal(signal.SIGSTOP)
    status, _, err = finish(processes[:1])[0]
    processes[1].kill()
    assert status == PEER_LOST
    assert re.search(rf"process 1 \(.*process {processes[1].pid}\) is not heard of for", err), err


STUCK = """
import sys, threading, time
from devnet_jax.distributed.watchdog import Watchdog

class Store:
    # What the processes have told one another: the others are alive, and number 2 is behind.
    told = {f"devnet_jax/who/{i}": f"host{i}, process {i}" for i in range(3)}
    def key_value_set(self, key, value, allow_overwrite=False):
        self.told[key] = value
    def key_value_dir_get(self, key):
        tick = int(10 * time.monotonic())
        self.told["devnet_jax/alive/1"] = f"[{tick}, 1]"
        self.told["devnet_jax/alive/2"] = f"[{tick}, 0]"
        return [(k, v) for k, v in self.told.items() if k.startswith(key)]

peers = Watchdog(Store(), "localhost:1", 0, 3, timeout=30, stuck_after=4)
peers.report_progress()
time.sleep(60)
"""


def test_processes_that_get_on_no_more_are_named() -> None:
    started = time.monotonic()
    result = subprocess.run(
        [sys.executable, "-c", STUCK], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert result.returncode == PEER_LOST, result.stderr
    assert "nothing has got on for 4 s: process 2 (host2, process 2) is stuck" in result.stderr
    assert 4 < time.monotonic() - started < 30


FAULTY = """
import sys
from devnet_jax import main
from devnet_jax.training import run
if f"--process_id={FAULTY}" in sys.argv:
    def make_store(*_):
        raise ZeroDivisionError("a fault of ours")
    run.make_store = make_store
main.console()
"""


@pytest.mark.parametrize("faulty", [0, 1])
def test_a_fault_of_one_process_ends_both_and_is_no_reason_to_start_again(
    tiny: tuple[str, ...], tmp_path: Path, faulty: int
) -> None:
    main = (sys.executable, "-c", FAULTY.replace("{FAULTY}", str(faulty)))
    ended = finish(start([*tiny, f"--workdir={tmp_path / 'run'}"], 2, devices=2, main=main))
    assert ended[faulty][0] == 1, ended
    assert "ZeroDivisionError: a fault of ours" in ended[faulty][2]
    assert ended[1 - faulty][0] == PEER_LOST, ended
    assert re.search(rf"process {faulty} .* has ended: a fault of ours", ended[1 - faulty][2])


def test_an_error_of_one_process_is_told_to_the_other(
    tiny: tuple[str, ...], tmp_path: Path
) -> None:
    workdir = Workdir(tmp_path / "run")
    with workdir.lock():  # which the first process takes for both
        ended = finish(start([*tiny, f"--workdir={workdir.path}"], processes=2, devices=2))
    assert [status for status, *_ in ended] == [1, PEER_LOST], ended
    assert "error: --workdir=" in ended[0][2]
    assert re.search(
        r"error: process 0 \(.*\) has ended: --workdir=.*: another process is at work", ended[1][2]
    )


def test_processes_with_other_settings_are_refused(tiny: tuple[str, ...], tmp_path: Path) -> None:
    port = free_port()
    processes = [
        subprocess.Popen(
            [
                *MAIN,
                *tiny,
                f"--workdir={tmp_path / 'run'}",
                f"--coordinator=127.0.0.1:{port}",
                "--num_processes=2",
                f"--process_id={i}",
                f"--config.seed={i}",
            ],
            cwd=REPOSITORY,
            env={**os.environ, "JAX_NUM_CPU_DEVICES": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
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
        ({"coordinator": "host:1"}, "go together"),
        ({"cluster": "slurm", "num_processes": 2}, "--cluster=slurm says"),
        ({"coordinator": "host", "num_processes": 2, "process_id": 0}, "must be host:port"),
        ({"coordinator": "h:1", "num_processes": 2, "process_id": 2}, "--process_id=2: must be"),
    ],
)
def test_flags_that_contradict_one_another(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ClusterSettings(**arguments)  # type: ignore[arg-type]


def test_a_cluster_that_is_not_there(tmp_path: Path, tiny: tuple[str, ...]) -> None:
    (ended,) = finish(start([*tiny, f"--workdir={tmp_path}", "--cluster=slurm"], 1, 1))
    status, _, err = ended
    assert status == 1
    assert "error: --cluster=slurm: the other processes cannot be found" in err
