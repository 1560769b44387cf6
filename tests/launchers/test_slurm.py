"""launch/slurm.py: its batch scripts, run with fake Slurm programs."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from devnet_jax.errors import UserError
from devnet_jax.launchers.slurm import SlurmJob, batch_script
from tests.launchers.programs import (
    DUMP,
    GOLDEN,
    NASTY,
    fake_python,
    launch,
    make_program,
    require_golden,
)

JOB = SlurmJob(
    nodes=2,
    gpus_per_node=4,
    task_per="node",
    cpus_per_task=32,
    time="12:00:00",
    partition="gpu",
    account=None,
    name="devnet_jax",
    log="/shared/runs/carpet/slurm-%j.out",
    directives=["--constraint=a100"],
    setup=["module load cuda"],
    folder="/shared/devnet_jax",
    python="/shared/devnet_jax/.venv/bin/python",
    max_requeues=20,
)
ARGUMENTS = ["--config=configs/mvtec.py:carpet", "--workdir=/shared/runs/carpet"]

# A fake srun: runs the command as two tasks and returns their highest status. As in Slurm, signals
# go to every process of a task.
SRUN = """\
#!{python}
import os, signal, subprocess, sys, time
words = sys.argv[sys.argv.index("bash"):]
tasks = [
    subprocess.Popen(words, start_new_session=True, env={{**os.environ, "SLURM_PROCID": str(i)}})
    for i in range(2)
]
if os.environ.get("TERMINATE"):
    while any(not os.path.exists(f"ready-{{i}}") for i in range(2)):
        time.sleep(0.02)
    for task in tasks:
        os.killpg(task.pid, signal.SIGTERM)
statuses = [task.wait() for task in tasks]
sys.exit(max(128 - status if status < 0 else status for status in statuses))
"""


@pytest.fixture
def cluster(tmp_path: Path) -> dict[str, str]:
    """Fake Slurm programs; scontrol and sbatch record their calls."""
    programs = tmp_path / "bin"
    make_program(programs / "srun", SRUN.format(python=sys.executable))
    make_program(programs / "squeue", '#!/bin/sh\necho "$STATE"\n')
    for name in ("scontrol", "sbatch"):
        make_program(programs / name, f'#!/bin/sh\necho {name} "$@" >>{tmp_path}/calls\n')
    return {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "17",
        "STATE": "RUNNING",
    }


def run_script(
    folder: Path, cluster: dict[str, str], behaviour: str, arguments: list[str], **changes: Any
) -> subprocess.CompletedProcess[str]:
    job = dataclasses.replace(
        JOB, **{"setup": [], "folder": str(folder), "python": str(fake_python(folder)), **changes}
    )
    return subprocess.run(
        ["bash"],
        input=batch_script(job, arguments),
        env={**cluster, "BEHAVIOUR": behaviour},
        capture_output=True,
        text=True,
        timeout=30,
    )


def calls(folder: Path) -> str:
    return (folder / "calls").read_text() if (folder / "calls").exists() else ""


def test_the_scripts_are_those_of_the_golden_files() -> None:
    require_golden("slurm_node.sbatch", batch_script(JOB, ARGUMENTS))
    changes: dict[str, Any] = {"task_per": "gpu", "cpus_per_task": 8, "account": "vision lab"}
    require_golden("slurm_gpu.sbatch", batch_script(dataclasses.replace(JOB, **changes), ARGUMENTS))
    cpu: dict[str, Any] = {"gpus_per_node": 0, "partition": None, "setup": [], "directives": []}
    require_golden("slurm_cpu.sbatch", batch_script(dataclasses.replace(JOB, **cpu), list(NASTY)))


@pytest.mark.parametrize("name", ["slurm_node.sbatch", "slurm_gpu.sbatch", "slurm_cpu.sbatch"])
def test_shellcheck_accepts_the_scripts(name: str) -> None:
    checker = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if checker is None:
        pytest.skip("needs shellcheck")
    result = subprocess.run([checker, GOLDEN / name], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_any_argument_is_preserved(tmp_path: Path, cluster: dict[str, str]) -> None:
    ran = run_script(tmp_path, cluster, DUMP, list(NASTY))
    assert ran.returncode == 0, ran.stderr
    for line in ran.stdout.splitlines():
        assert json.loads(line) == ["-m", "devnet_jax.main", "--cluster=slurm", *NASTY]
    assert calls(tmp_path) == ""


@pytest.mark.parametrize(
    ("task_per", "gpus", "devices"), [("node", 4, "0,1,2,3"), ("gpu", 4, None), ("node", 0, None)]
)
def test_devices_of_a_task(
    tmp_path: Path, cluster: dict[str, str], task_per: str, gpus: int, devices: str | None
) -> None:
    show = r"sys.stdout.write(json.dumps(os.environ.get('JAX_LOCAL_DEVICE_IDS')) + '\n')"
    changes: dict[str, Any] = {"task_per": task_per, "gpus_per_node": gpus}
    ran = run_script(tmp_path, cluster, show, ARGUMENTS, **changes)
    assert [json.loads(line) for line in ran.stdout.splitlines()] == [devices, devices], ran.stderr


@pytest.mark.parametrize(
    ("ends", "status", "queued_again"),
    [
        (("sys.exit(0)", "sys.exit(0)"), 0, False),
        (("sys.exit(75)", "sys.exit(75)"), 75, True),
        (("sys.exit(76)", "sys.exit(75)"), 76, True),
        (("os.kill(os.getpid(), 9)", "sys.exit(76)"), 137, True),
        (("sys.exit(1)", "sys.exit(76)"), 1, False),
        (("os.kill(os.getpid(), 9)", "sys.exit(1)"), 1, False),
        (("sys.exit(130)", "sys.exit(76)"), 1, False),
    ],
)
def test_statuses_after_which_the_job_is_queued_again(
    tmp_path: Path,
    cluster: dict[str, str],
    ends: tuple[str, str],
    status: int,
    queued_again: bool,
) -> None:
    for behaviour in (f"exec({ends!r}[index])", f"exec({ends!r}[1 - index])"):
        (tmp_path / "calls").unlink(missing_ok=True)
        ran = run_script(tmp_path, cluster, behaviour, ARGUMENTS)
        assert ran.returncode == status, ran.stderr
        assert calls(tmp_path) == ("scontrol requeue 17\n" if queued_again else "")


def test_after_sigterm_the_tasks_save_and_the_job_is_queued_again(
    tmp_path: Path, cluster: dict[str, str]
) -> None:
    save = (
        "def save(*_):\n    sys.stdout.write('saved\\n'); sys.stdout.flush(); sys.exit(75)\n"
        "signal.signal(signal.SIGTERM, save); Path(f'ready-{index}').touch(); time.sleep(20)"
    )
    ran = run_script(tmp_path, {**cluster, "TERMINATE": "yes"}, save, ARGUMENTS)
    assert (ran.returncode, ran.stdout.count("saved")) == (75, 2), ran.stderr
    assert "queued again (1 of 20 times)" in ran.stdout
    assert calls(tmp_path) == "scontrol requeue 17\n"


def test_a_cancelled_job_is_not_queued_again(tmp_path: Path, cluster: dict[str, str]) -> None:
    ran = run_script(tmp_path, {**cluster, "STATE": "COMPLETING"}, "sys.exit(75)", ARGUMENTS)
    assert ran.returncode == 75
    assert "submitted again, it goes on" in ran.stdout
    assert calls(tmp_path) == ""


def test_max_requeues(tmp_path: Path, cluster: dict[str, str]) -> None:
    for count, queued in (("1", "scontrol requeue 17\n"), ("2", "")):
        (tmp_path / "calls").unlink(missing_ok=True)
        environment = {**cluster, "SLURM_RESTART_COUNT": count}
        ran = run_script(tmp_path, environment, "sys.exit(76)", ARGUMENTS, max_requeues=2)
        assert ran.returncode == 76
        assert calls(tmp_path) == queued


def test_the_batch_script_runs_until_its_tasks_have_saved(
    tmp_path: Path, cluster: dict[str, str]
) -> None:
    """Some clusters send SIGTERM to the batch script, too, before the time limit of a job."""
    python = fake_python(tmp_path)
    script = batch_script(
        dataclasses.replace(JOB, setup=[], folder=str(tmp_path), python=str(python)), ARGUMENTS
    )
    save = "Path(f'ready-{index}').touch(); time.sleep(1); sys.exit(75)"
    process = subprocess.Popen(["bash", "-c", script], env={**cluster, "BEHAVIOUR": save})
    while not (tmp_path / "ready-0").exists():
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 75
    assert calls(tmp_path) == "scontrol requeue 17\n"


def test_the_script_is_written_and_submitted(tmp_path: Path, cluster: dict[str, str]) -> None:
    workdir = tmp_path / "run %1"
    flags = ["--gpus_per_node=2", f"--python={fake_python(tmp_path)}", "--setup=export A=1"]
    arguments = ["--", f"--workdir={workdir}", "it's"]
    dry = launch("slurm", *flags, "--dry_run", *arguments, environment=cluster)
    assert dry.returncode == 0, dry.stderr
    assert not workdir.exists()
    ran = launch("slurm", *flags, *arguments, environment=cluster)
    assert ran.returncode == 0, ran.stderr
    script = workdir / "slurm.sbatch"
    assert dry.stdout == f"{script.read_text()}\n# sbatch '{script}'\n"
    assert f'#SBATCH --output="{tmp_path}/run %%1/slurm-%j.out"' in script.read_text()
    assert calls(tmp_path) == f"sbatch {script}\n"
    values = "[sys.argv[-2:], os.environ['A'], os.getcwd()]"
    behaviour = rf"sys.stdout.write(json.dumps({values}) + '\n')"
    pasted = subprocess.run(
        ["bash", "-c", dry.stdout],
        env={**cluster, "BEHAVIOUR": behaviour},
        capture_output=True,
        text=True,
    )
    words, setup, folder = json.loads(pasted.stdout.splitlines()[0])
    assert words == [f"--workdir={workdir}", "it's"]
    assert setup == "1"
    assert Path(folder, "launch/slurm.py").exists()  # the working directory of the launcher


def test_a_rejected_job_is_reported_in_one_line(tmp_path: Path, cluster: dict[str, str]) -> None:
    make_program(tmp_path / "bin" / "sbatch", "#!/bin/sh\necho no such partition >&2; exit 3\n")
    flags = ["--gpus_per_node=2", f"--script={tmp_path / 's'}", "--", "--workdir=gs://b/x"]
    ran = launch("slurm", *flags, environment=cluster)
    assert ran.returncode == 1
    assert ran.stderr.splitlines()[1:] == [
        "no such partition",
        f"error: sbatch {tmp_path / 's'}: ended with status 3",
    ]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "error: --gpus_per_node is missing"),
        (["--gpus_per_node=1"], "error: --workdir=gs://b/x: give a --script="),
        (["--gpus_per_node=0", "--script=s", "--task_per=gpu"], "error: --task_per=gpu --gpus_per"),
        (["--gpus_per_node=1", "--script=s", "--time=1\n2"], "error: --time=1"),
        (["--gpus_per_node=1", "--script=s", "--sbatch=a100"], "error: --sbatch=a100: must be an"),
        (["--gpus_per_node=1", "--script=/nowhere/s"], "error: sbatch: no such program"),
    ],
)
def test_wrong_flags_are_refused(flags: list[str], message: str) -> None:
    result = launch("slurm", *flags, "--", "--workdir=gs://b/x")
    assert result.returncode == 1
    assert result.stderr.startswith(message)
    assert "Traceback" not in result.stderr


def test_a_name_with_quotes_is_refused() -> None:
    with pytest.raises(UserError, match="--job_name"):
        dataclasses.replace(JOB, name='my "job"')
