"""Tests of runs that are killed or stopped, of full disks, and of unusual environments."""

from __future__ import annotations

import json
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from devnet_jax.distributed.exit_status import RESUME
from tests import fork_server
from tests.conftest import REPOSITORY, environment
from tests.saved_runs import newest_whole, parameters

EPOCHS = 40  # of the run that is killed repeatedly
TINY_EPOCHS = 2  # of the flags `tiny`
KILLS = 20


def command(tiny: Sequence[str], workdir: Path, epochs: int) -> list[str]:
    """Returns the arguments of Python for a run that explains no image."""
    explanation = "--config.evaluation.explanation=none"
    flags = (f"--config.train.epochs={epochs}", f"--workdir={workdir}", explanation)
    return ["-m", "devnet_jax.main", *tiny, *flags]


def run(arguments: Sequence[str], devices: int = 1) -> str:
    """Runs a command to its end; returns its standard error."""
    result = fork_server.run(arguments, environment(devices))
    assert result.returncode == 0, result.stderr
    return result.stderr


def catches(process: fork_server.Process, number: int) -> bool:
    """Returns True if the process has a handler for the signal; Linux only."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    (caught,) = re.findall(r"SigCgt:\s*([0-9a-f]+)", status)
    return bool(int(caught, 16) >> (number - 1) & 1)


def losses(workdir: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (workdir / "metrics.jsonl").open()]


@pytest.mark.slow
def test_killed_at_random_moments(tiny: tuple[str, ...], tmp_path: Path) -> None:
    straight = tmp_path / "straight"
    run(command(tiny, straight, EPOCHS))
    moments = random.Random(0)
    workdir = tmp_path / "run"
    restored = []
    for _ in range(KILLS):
        before = newest_whole(workdir)
        process = fork_server.start(command(tiny, workdir, EPOCHS), environment())
        # After the first steps, checkpoints are saved continually; some runs are killed earlier.
        if moments.random() < 0.8:
            while newest_whole(workdir) == before and process.poll() is None:
                time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.4))
        process.kill()
        _, said = process.communicate()
        assert "Traceback" not in said
        # Only the steps since the last checkpoint are repeated.
        for step in re.findall(r"restored checkpoint .*/(\d+)", said):
            assert int(step) == before
            restored.append(before)
    assert len(set(restored)) > KILLS // 3  # else the kills came too early to test anything
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
    longer = ("--config.train.steps_per_epoch=9999",)
    process = fork_server.start([*command(tiny, workdir, 1), *longer], environment())
    while not (workdir / "tensorboard").exists():  # training begins
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(3)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == RESUME, err
    assert "Traceback" not in err
    (step,) = re.findall(r"told to stop: step (\d+) is saved; run the same command again", err)
    assert newest_whole(workdir) == int(step) < 9999
    partial = json.loads((workdir / "interrupted_epoch.json").read_text())
    assert partial["step"] == int(step)
    assert len(partial["history"]["loss"]) == int(step)


def test_sigterm_outside_training_says_resume_too(tiny: tuple[str, ...], tmp_path: Path) -> None:
    process = fork_server.start(command(tiny, tmp_path / "run", 1), environment())
    while not catches(process, signal.SIGTERM):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == RESUME, err
    assert "Traceback" not in err


def test_a_run_goes_on_on_another_number_of_devices(
    trained: Path, tiny: tuple[str, ...], tmp_path: Path
) -> None:
    workdir = Path(shutil.copytree(trained, tmp_path / "run"))
    shutil.rmtree(workdir / "checkpoints" / str(2 * TINY_EPOCHS))
    said = run(command(tiny, workdir, TINY_EPOCHS), devices=2)
    assert f"checkpoints/{2 * TINY_EPOCHS - 2}" in said  # restored
    np.testing.assert_allclose(losses(workdir), losses(trained), rtol=2e-3)


def test_a_disk_without_room_costs_no_checkpoint(
    trained: Path, tiny: tuple[str, ...], tmp_path: Path
) -> None:
    workdir = Path(shutil.copytree(trained, tmp_path / "run"))
    last = newest_whole(workdir)
    files = [path for path in workdir.glob(f"checkpoints/{last}/**/*") if path.is_file()]
    # In bytes. A checkpoint is divided among files differently each time, but not that evenly.
    limit = max(path.stat().st_size for path in files) // 10
    limited = ["bash", "-c", f'ulimit -f {limit // 1024}; exec "$@"', "bash"]
    result = subprocess.run(
        [*limited, sys.executable, *command(tiny, workdir, TINY_EPOCHS + 2)],
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


def start_in(
    variables: Mapping[str, str | None], shell: str, *arguments: str
) -> subprocess.CompletedProcess[str]:
    """Runs the command line in a process of its own; in `shell`, "$@" stands for the command."""
    changed = {**environment(), **variables}
    return subprocess.run(
        ["bash", "-c", shell, "bash", sys.executable, "-m", "devnet_jax.main", *arguments],
        cwd=REPOSITORY,
        env={name: value for name, value in changed.items() if value is not None},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture
def strange(tmp_path: Path) -> dict[str, str | None]:
    """Variables of a process whose user has no account and no home, and with odd settings."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(NO_ACCOUNTS)
    return {
        "HOME": None,
        "JAX_COMPILATION_CACHE_DIR": None,
        "JAX_DEFAULT_PRNG_IMPL": "rbg",
        "JAX_ENABLE_X64": "1",
        "JAX_NUMPY_DTYPE_PROMOTION": "strict",
        "JAX_NUMPY_RANK_PROMOTION": "raise",
        "JAX_THREEFRY_PARTITIONABLE": "0",
        "JAX_TRANSFER_GUARD": "disallow",
        "LC_ALL": "POSIX",
        "PYTHONCOERCECLOCALE": "0",
        "PYTHONIOENCODING": "ascii",
        "PYTHONOPTIMIZE": "2",
        "PYTHONPATH": f"{tmp_path / 'site'}:{REPOSITORY}",
        "PYTHONUTF8": "0",
        "PYTHONWARNINGS": "error",
        "TMPDIR": "/absent",
        "TZ": "Nowhere/At all",
    }


NO_ACCOUNTS = """
import grp, pwd

def look_up(key):
    raise KeyError(f"not found: {key}")

pwd.getpwuid = pwd.getpwnam = grp.getgrgid = grp.getgrnam = look_up
"""
# Without standard streams, and with few open files.
BARE = 'umask 077; ulimit -n 64; exec "$@" <&- >&- 2>&-'


@pytest.mark.slow
@pytest.mark.parametrize("detector", ["devnet", "devcore"])
def test_a_strange_environment_changes_nothing(
    detector: str, strange: dict[str, str | None], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    suffix = "_core" if detector == "devcore" else ""
    flags = request.getfixturevalue(f"tiny{suffix}")
    expected = request.getfixturevalue(f"trained{suffix}")
    workdir = tmp_path / "run"
    data = f"--config.dataset.data_dir={tmp_path / 'data'}"
    ran = start_in(strange, BARE, *flags, data, f"--workdir={workdir}")
    assert ran.returncode == 0
    scores = Path("eval", "scores.csv")
    assert (workdir / scores).read_text() == (expected / scores).read_text()
    model = tmp_path / "model.devnet"
    for mode, *more in (
        ("explain",),
        ("export", f"--output={model}"),
        ("predict", f"--input={request.getfixturevalue('parts')}", f"--output={tmp_path / 'out'}"),
    ):
        ran = start_in(strange, BARE, f"--mode={mode}", f"--workdir={workdir}", *more)
        assert ran.returncode == 0, mode
    assert model.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "out" / "report.html").exists()


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"XLA_FLAGS": "nonsense"}, "XLA_FLAGS=nonsense: neither flags"),
        ({"JAX_ENABLE_X64": "maybe"}, "invalid truth value 'maybe'"),
        ({"JAX_NUM_CPU_DEVICES": "many"}, 'Invalid value "many"'),
        ({"JAX_PLATFORMS": "abacus"}, "Unable to initialize backend 'abacus'"),
        ({"HOME": None}, "~/run: the home folder is not known"),
    ],
)
def test_a_wrong_environment_is_refused_in_one_line(
    variables: dict[str, str | None],
    words: str,
    strange: dict[str, str | None],
    trained: Path,
    tmp_path: Path,
) -> None:
    workdir = trained
    if "HOME" in variables:
        variables = {**variables, "PYTHONPATH": strange["PYTHONPATH"]}
        workdir = Path("~/run")
    flags = ("--mode=predict", f"--workdir={workdir}", f"--input={tmp_path}")
    ran = start_in(variables, 'exec "$@"', *flags, f"--output={tmp_path / 'out'}")
    assert ran.returncode == 1
    (line,) = ran.stderr.splitlines()
    assert line.startswith("error: ")
    assert words in line


def test_a_current_folder_that_is_gone(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    shell = f'cd {tmp_path / "gone"} && rmdir {tmp_path / "gone"} && exec "$@"'
    flags = ("--mode=eval", "--workdir=run")
    ran = start_in({"PYTHONPATH": str(REPOSITORY)}, shell, *flags)
    assert ran.returncode == 1
    assert ran.stderr.splitlines()[-1].startswith("error: the current folder does not exist")
    assert "Traceback" not in ran.stderr


def test_closed_streams_are_replaced(trained: Path, tmp_path: Path) -> None:
    flags = ("--mode=predict", f"--workdir={trained}", f"--input={tmp_path}/absent")
    ran = start_in({}, 'exec "$@" >&-', *flags, f"--output={tmp_path / 'out'}")
    assert ran.returncode == 1
    assert "Traceback" not in ran.stderr
    assert "no such file or folder" in ran.stderr
    ran = start_in({}, 'exec "$@" >/dev/full', "--helpshort")
    assert "Traceback" not in ran.stderr
