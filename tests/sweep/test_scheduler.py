"""The scheduler with real processes: parallel, killed, failing and orphaned jobs."""

import dataclasses
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from devnet_jax.config import Config
from devnet_jax.runtime.host_devices import HostDevices, device_slots
from devnet_jax.sweep.grid import Job
from devnet_jax.sweep.scheduler import MAX_RESTARTS, Scheduler, is_running, wait_for_running
from tests.conftest import REPOSITORY


@dataclasses.dataclass(frozen=True)
class Script(Job):
    """A job that runs a line of shell in the folder of the sweep."""

    line: str = "true"

    def command(self, workdir: Path) -> list[str]:
        folder = str(workdir).removesuffix(self.name)
        return ["sh", "-c", f"cd {shlex.quote(folder)}; {self.line}"]


def scripts(*lines: str, shape: int | None = None) -> list[Script]:
    """Returns a job for each line.

    Args:
      lines: lines of shell.
      shape: number of epochs, for jobs that share a compile key; by default no jobs share one.
    """
    jobs = []
    for seed, line in enumerate(lines):
        values = Config().to_dict()
        values["seed"] = seed
        values["train"]["epochs"] = shape or seed + 1
        jobs.append(Script(Config.from_dict(values), "devnet", line=line))
    return jobs


def run(jobs: list[Script], folder: Path, slots: int = 1) -> dict[int, str | None]:
    """Runs jobs; returns the failure, or None, by the job's seed, in the order of their ends."""
    ended: dict[int, str | None] = {}
    environments = [{"SLOT": str(i)} for i in range(slots)]
    Scheduler(jobs, HostDevices("test devices", environments), folder).run(
        lambda job, failure: ended.update({job.config.seed: failure})
    )
    return ended


def test_jobs_run_in_parallel_in_different_slots(tmp_path: Path) -> None:
    # Each of two jobs waits for the other, so they must run at the same time.
    meet = "touch $SLOT; while [ ! -e {} ]; do sleep 0.05; done; echo $SLOT >> slots"
    jobs = scripts(meet.format(1), meet.format(0), "echo $SLOT >> third")
    assert run(jobs, tmp_path, slots=2) == {0: None, 1: None, 2: None}
    assert sorted((tmp_path / "slots").read_text().split()) == ["0", "1"]
    assert (tmp_path / "third").read_text().strip() in ("0", "1")


@pytest.mark.parametrize("file", ["metrics.jsonl", "learned.json"])
def test_jobs_with_one_compile_key_wait_for_the_first_to_compile(tmp_path: Path, file: str) -> None:
    jobs = scripts("", "", "", shape=5)
    trained = tmp_path / jobs[0].name / file
    lines = [
        # The others must not start before this job has trained, and must then start.
        f"sleep 0.7; [ ! -e other ] || exit 3; echo {{}} > {trained};"
        " while [ ! -e other ]; do sleep 0.05; done",
        "touch other",
        "touch other",
    ]
    jobs = [dataclasses.replace(job, line=line) for job, line in zip(jobs, lines, strict=True)]
    assert set(run(jobs, tmp_path, slots=3).values()) == {None}


def test_a_killed_job_is_restarted(tmp_path: Path) -> None:
    (job,) = scripts('echo x >> starts; [ "$(wc -l < starts)" -ge 3 ] || kill -9 $$')
    assert run([job], tmp_path) == {0: None}
    assert len((tmp_path / "starts").read_text().split()) == 3


def test_a_job_that_is_killed_too_often_fails_and_the_others_run(tmp_path: Path) -> None:
    ended = run(scripts("echo x >> starts; kill -9 $$", "touch other"), tmp_path)
    assert ended[1] is None
    assert str(ended[0]).startswith("killed by SIGKILL")
    assert len((tmp_path / "starts").read_text().split()) == 1 + MAX_RESTARTS


def test_a_failed_job_is_not_restarted(tmp_path: Path) -> None:
    ended = run(scripts("echo x >> starts; echo error: no such folder >&2; exit 1"), tmp_path)
    assert "exit status 1" in str(ended[0])
    assert str(ended[0]).endswith("job.log: error: no such folder")
    assert len((tmp_path / "starts").read_text().split()) == 1


def test_no_process_outlives_an_interrupted_sweep(tmp_path: Path) -> None:
    def interrupt() -> None:
        while not (tmp_path / "pid").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    # A process in the background of a shell ignores SIGINT, so the handler is set here.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            run(scripts("echo $$ > pid.part; mv pid.part pid; exec sleep 60"), tmp_path)
    finally:
        signal.signal(signal.SIGINT, before)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_waits_for_the_jobs_of_a_killed_sweep(tmp_path: Path, caplog) -> None:
    """The job of a killed sweep runs until the file may_end exists."""
    (job,) = scripts("touch began; while [ ! -e may_end ]; do sleep 0.05; done; touch ended")
    code = (
        "import sys\nfrom pathlib import Path\nfrom tests.sweep.test_scheduler import *\n"
        "(job,) = scripts(sys.argv[1])\nrun([job], Path(sys.argv[2]))"
    )
    sweep = subprocess.Popen([sys.executable, "-c", code, job.line, str(tmp_path)], cwd=REPOSITORY)
    while not (tmp_path / "began").exists():
        time.sleep(0.05)
    sweep.kill()
    sweep.wait()
    assert is_running(job, tmp_path)
    threading.Timer(0.5, (tmp_path / "may_end").touch).start()
    with caplog.at_level("INFO"):
        wait_for_running([job], tmp_path)
    assert (tmp_path / "ended").exists()
    assert "runs of an earlier sweep: 1 still running" in caplog.text
    assert not is_running(job, tmp_path)


def test_device_slots() -> None:
    gpus = device_slots("gpu", 2, 1, {})
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in gpus] == ["0", "1"]
    chosen = device_slots("gpu", 2, 2, {"CUDA_VISIBLE_DEVICES": "3,5"})
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in chosen] == ["3", "3", "5", "5"]
    assert {slot["XLA_PYTHON_CLIENT_MEM_FRACTION"] for slot in chosen} == {"0.45"}
    assert [slot["TPU_VISIBLE_CHIPS"] for slot in device_slots("tpu", 4, 1, {})] == list("0123")
    assert device_slots("cpu", 8, 1, {}) == [{}]
    assert device_slots("cpu", 1, 2, {}) == [{}, {}]
