"""launch/sweep.py with real processes: killed, resumed, extended, and with failing runs."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import fork_server
from tests.conftest import CORE, REPOSITORY, TINY, make_parts

METHODS = "devnet,flos"


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("sweep")
    make_parts(folder / "data" / "image_folder")
    return [
        sys.executable,
        "launch/sweep.py",
        f"--workdir={folder / 'runs'}",
        f"--data={folder / 'data'}",
        f"--config.dataset.data_dir={folder / 'prepared'}",
        "--datasets=image_folder",
        *(flag for flag in TINY if "n_anomaly" not in flag),
        "--config.evaluation.explanation=none",
    ]


def environment(folder: Path) -> dict[str, str]:
    return {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def rows(runs: Path) -> list[dict[str, str]]:
    with (runs / "results.csv").open(newline="") as lines:
        return list(csv.DictReader(lines))


@pytest.mark.slow
def test_a_sweep_is_killed_resumed_and_extended(arguments: list[str]) -> None:
    runs = Path(arguments[2].removeprefix("--workdir="))
    env = environment(runs.parent)
    first, second = (
        runs / "image_folder/general/2-shot" / method / "seed-0" for method in METHODS.split(",")
    )

    def sweep(*more: str, methods: str = METHODS) -> subprocess.CompletedProcess[str]:
        command = [*arguments, f"--methods={methods}", *more]
        return subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True)

    listed = sweep("--shots=2", "--seeds=0", "--dry_run")
    assert listed.returncode == 0, listed.stderr
    assert [line.split()[:2] for line in listed.stdout.splitlines()] == [["to", "do"]] * 2
    assert str(first) in listed.stdout
    assert not runs.exists()

    process = subprocess.Popen(
        [*arguments, f"--methods={METHODS}", "--shots=2", "--seeds=0"],
        cwd=REPOSITORY,
        env=env,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (second / "config.json").exists():  # then the first run is finished
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    finished = (first / "eval/metrics.json").stat().st_mtime_ns
    assert not (second / "eval/metrics.json").exists()

    resumed = sweep("--shots=2", "--seeds=0")
    assert resumed.returncode == 0, resumed.stderr
    assert "2 results" in resumed.stderr
    assert [(row["method"], row["n_anomaly"], row["seed"]) for row in rows(runs)] == [
        ("devnet", "2", "0"),
        ("flos", "2", "0"),
    ]
    compiled = {path.name for path in (runs.parent / "compiled").glob("*-cache")}
    assert compiled

    # There are eight anomalies: with eight shots all of them train, and none is left to test.
    extended = sweep("--shots=2,8", "--seeds=0,1", methods="devnet")
    assert extended.returncode == 0, extended.stderr
    assert "4 results" in extended.stderr
    measured = [row for row in rows(runs) if row["n_anomaly"] == "2"]
    assert [(row["method"], row["seed"]) for row in measured] == [("devnet", "0"), ("devnet", "1")]
    for row in measured:
        assert 0 <= float(row["image_auroc"]) <= 1
        assert (row["n_test_normal"], row["n_test_anomaly"], row["steps"]) == ("5", "6", "4")
    # The finished run was not repeated, and another seed compiled nothing.
    assert (first / "eval/metrics.json").stat().st_mtime_ns == finished
    assert {path.name for path in (runs.parent / "compiled").glob("*-cache")} == compiled
    assert "| image_folder | general | 2 |" in (runs / "table.md").read_text()
    assert "<table" in (runs / "table.html").read_text()


@pytest.mark.slow
def test_a_sweep_of_both_detectors(arguments: list[str]) -> None:
    runs = Path(arguments[2].removeprefix("--workdir=")).with_name("detectors")
    flags = [flag for flag in CORE if "detector" not in flag]
    command = [*arguments, *flags, f"--workdir={runs}", "--methods=devcore,devnet", "--seeds=0"]

    def sweep(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *more],
            cwd=REPOSITORY,
            env=environment(runs.parent),
            capture_output=True,
            text=True,
        )

    result = sweep("--shots=2", "--jobs_per_device=2")
    assert result.returncode == 0, result.stderr
    assert [(row["method"], row["steps"]) for row in rows(runs)] == [
        ("devcore", "5"),
        ("devnet", "4"),
    ]
    table = (runs / "table.md").read_text()
    assert "; devcore: alexnet from random weights, 64×64, memory of 64 vectors" in table
    result = sweep("--shots=0", "--methods=devcore")
    assert result.returncode == 0, result.stderr
    assert [(row["n_anomaly"], row["steps"]) for row in rows(runs)] == [("0", "1")]
    listed = sweep("--shots=0", "--methods=devcore", "--dry_run").stdout.split()
    assert listed[0] == "finished"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--datasets=elpw"], "error: --datasets=elpw: no such data set; did you mean elpv"),
        (["--shots=ten"], "error: --shots=ten: must be numbers such as 1,5,10"),
        (["--vary=loss.margin=a"], "error: config.loss.margin = 'a': must be float"),
        (
            ["--vary=loss.margn=1"],
            "error: config.loss.margn: no such setting; did you mean loss.ma",
        ),
        (["--config.loss.margn=1"], "error: config.loss.margn: no such setting"),
        (["--workdir="], "error: --workdir is missing"),
        (["elpv"], "error: elpv: not a flag"),
    ],
)
def test_a_wrong_flag_gives_one_line(arguments: list[str], wrong: list[str], message: str) -> None:
    script = arguments[1:]
    result = fork_server.run([*script, *wrong], os.environ, timeout=60)
    assert result.returncode == 1
    assert result.stderr.startswith(message)
    assert len(result.stderr.splitlines()) == 1
