"""Runs jobs side by side, one process a device, and goes on after whatever is killed."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import fcntl
import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from etils import epath

from devnet_jax.distributed.exit_status import RESUME
from devnet_jax.runtime.host_devices import EnvVars, HostDevices
from devnet_jax.runtime.io import write_json
from devnet_jax.runtime.versions import software_versions
from devnet_jax.runtime.workdir import Workdir
from devnet_jax.sweep.grid import Job

logger = logging.getLogger(__name__)

LOG = "job.log"  # what a job's process says, in its folder
RECORD = "job.json"  # when, on what and with what it was started
MAX_RESTARTS = 3  # of a job whose process was killed
POLL_SECONDS = 0.2
GRACE_SECONDS = 10.0


@dataclasses.dataclass
class _Running:
    job: Job
    slot: EnvVars
    process: subprocess.Popen[bytes]


def wait_for_earlier(jobs: Sequence[Job], folder: Path) -> None:
    """Waits for the jobs of a sweep that was killed outright: each goes on, on some device."""
    said = False
    while left := sum(is_running(job, folder) for job in jobs):
        if not said:
            logger.info("waiting for the runs of an earlier sweep that still go on: %d", left)
        said = True
        time.sleep(POLL_SECONDS)


def is_running(job: Job, folder: Path) -> bool:
    """Whether a process of the job is alive, whoever has started it."""
    try:
        with (folder / job.name / LOG).open("rb") as log:
            fcntl.flock(log, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


class Scheduler:
    """Starts each job when a place is free, and watches over the processes.

    The jobs of one compiled shape wait until the first of them has trained an epoch: what it
    compiled is found by the others in JAX's persistent cache.
    """

    def __init__(self, jobs: Sequence[Job], devices: HostDevices, folder: Path) -> None:
        self._pending = list(jobs)
        self._free = list(devices.slots)
        self._record = {
            "started": str(datetime.date.today()),
            "device": devices.name,
            "software": ", ".join(
                f"{name} {version}" for name, version in software_versions().items()
            ),
        }
        self._folder = folder
        self._running: list[_Running] = []
        self._restarts: dict[str, int] = {}
        self._compiled: set[object] = set()

    def run(self, finished: Callable[[Job, str | None], None]) -> None:
        """Runs all jobs; `finished` is told of each, with the reason if it has failed.

        However this ends, no process is left running.
        """
        try:
            while self._pending or self._running:
                while self._start_one():
                    pass
                time.sleep(POLL_SECONDS)
                for running in [r for r in self._running if r.process.poll() is not None]:
                    self._end(running, finished)
        finally:
            _stop([running.process for running in self._running])

    def _start_one(self) -> bool:
        for job in self._pending if self._free else ():
            if self._may_start(job):
                self._pending.remove(job)
                self._start(job, self._free.pop(0))
                return True
        return False

    def _may_start(self, job: Job) -> bool:
        if job.shape in self._compiled:
            return True
        alike = [running.job for running in self._running if running.job.shape == job.shape]
        if any(Workdir(self._folder / other.name).metrics.exists() for other in alike):
            self._compiled.add(job.shape)
        return not alike or job.shape in self._compiled

    def _start(self, job: Job, slot: EnvVars) -> None:
        workdir = self._folder / job.name
        workdir.mkdir(parents=True, exist_ok=True)
        write_json(epath.Path(workdir / RECORD), self._record)
        with (workdir / LOG).open("ab") as log:
            # The lock lives as long as the process that inherits the file: see `is_running`.
            fcntl.flock(log, fcntl.LOCK_EX)
            process = subprocess.Popen(
                job.command(workdir),
                env={**os.environ, **slot},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is ours to pass on
            )
        logger.debug("%s: started as process %d", job.name, process.pid)
        self._running.append(_Running(job, slot, process))

    def _end(self, running: _Running, finished: Callable[[Job, str | None], None]) -> None:
        self._running.remove(running)
        self._free.append(running.slot)
        job, status = running.job, running.process.returncode
        if status == 0:
            self._compiled.add(job.shape)
            finished(job, None)
            return
        restarts = self._restarts.get(job.name, 0)
        how = f"killed by {_signal_name(-status)}" if status < 0 else f"status {status}"
        if (status < 0 or status == RESUME) and restarts < MAX_RESTARTS:
            self._restarts[job.name] = restarts + 1
            self._pending.insert(0, job)
            logger.warning("%s: %s; it goes on", job.name, how)
            return
        log = self._folder / job.name / LOG
        lines = log.read_text(errors="replace").strip().splitlines()
        finished(job, f"{how}; {log} ends: {lines[-1] if lines else '(empty)'}")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ends processes: asks first, then, or when interrupted again, kills."""
    deadline = time.monotonic() + GRACE_SECONDS
    try:
        for process in processes:
            process.terminate()
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
    finally:
        for process in processes:
            process.kill()
            process.wait()
