"""Runs jobs in parallel, one process per device slot, and restarts those that are killed."""

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

# Files in the folder of a job.
LOG = "job.log"  # output of the job's process
RECORD = "job.json"  # date of the start, devices and software versions

MAX_RESTARTS = 3  # of one job
POLL_SECONDS = 0.2
GRACE_SECONDS = 10.0  # between SIGTERM and SIGKILL


@dataclasses.dataclass
class _Running:
    job: Job
    slot: EnvVars
    process: subprocess.Popen[bytes]


def wait_for_running(jobs: Sequence[Job], folder: Path) -> None:
    """Waits for jobs of an earlier sweep that was killed while its jobs kept running."""
    is_logged = False
    while n_running := sum(is_running(job, folder) for job in jobs):
        if not is_logged:
            logger.info("waiting for runs of an earlier sweep: %d still running", n_running)
        is_logged = True
        time.sleep(POLL_SECONDS)


def is_running(job: Job, folder: Path) -> bool:
    """True if a process of the job is alive, also one that another sweep started."""
    try:
        with (folder / job.name / LOG).open("rb") as log:
            fcntl.flock(log, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


class Scheduler:
    """Starts each job when a slot is free, and restarts killed jobs.

    Jobs with the same `compile_key` wait until the first of them has trained: an epoch of the
    deviation network, or DevCore. The others then find the compiled functions in JAX's persistent
    compilation cache.
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

    def run(self, on_finish: Callable[[Job, str | None], None]) -> None:
        """Runs all jobs; stops all processes before it returns or raises.

        Args:
          on_finish: function that is called after each job, with the reason if the job failed and
            None otherwise.
        """
        try:
            while self._pending or self._running:
                while self._start_next():
                    pass
                time.sleep(POLL_SECONDS)
                for running in [r for r in self._running if r.process.poll() is not None]:
                    self._handle_exit(running, on_finish)
        finally:
            _stop([running.process for running in self._running])

    def _start_next(self) -> bool:
        """Starts the first pending job that may start; returns False if there is none."""
        for job in self._pending if self._free else ():
            if self._may_start(job):
                self._pending.remove(job)
                self._start(job, self._free.pop(0))
                return True
        return False

    def _may_start(self, job: Job) -> bool:
        key = job.compile_key
        if key in self._compiled:
            return True
        compiling = [running.job for running in self._running if running.job.compile_key == key]
        if any(_has_compiled(Workdir(self._folder / other.name)) for other in compiling):
            self._compiled.add(key)
        return not compiling or key in self._compiled

    def _start(self, job: Job, slot: EnvVars) -> None:
        workdir = self._folder / job.name
        workdir.mkdir(parents=True, exist_ok=True)
        write_json(epath.Path(workdir / RECORD), self._record)
        with (workdir / LOG).open("ab") as log:
            # The process inherits the file and holds the lock until it ends: see `is_running`.
            fcntl.flock(log, fcntl.LOCK_EX)
            process = subprocess.Popen(
                job.command(workdir),
                env={**os.environ, **slot},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C reaches only the scheduler, which stops the jobs
            )
        logger.debug("%s: started as process %d", job.name, process.pid)
        self._running.append(_Running(job, slot, process))

    def _handle_exit(self, running: _Running, on_finish: Callable[[Job, str | None], None]) -> None:
        self._running.remove(running)
        self._free.append(running.slot)
        job, status = running.job, running.process.returncode
        if status == 0:
            self._compiled.add(job.compile_key)
            on_finish(job, None)
            return
        restarts = self._restarts.get(job.name, 0)
        how = f"killed by {_signal_name(-status)}" if status < 0 else f"exit status {status}"
        if (status < 0 or status == RESUME) and restarts < MAX_RESTARTS:
            self._restarts[job.name] = restarts + 1
            self._pending.insert(0, job)
            logger.warning("%s: %s; resuming it", job.name, how)
            return
        log = self._folder / job.name / LOG
        lines = log.read_text(errors="replace").strip().splitlines()
        on_finish(job, f"{how}; last line of {log}: {lines[-1] if lines else '(empty)'}")


def _has_compiled(workdir: Workdir) -> bool:
    """Returns True if a run has written a file of its training: an epoch, or a fitted head."""
    return workdir.metrics.exists() or workdir.learned.exists()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Stops processes with SIGTERM; kills them after `GRACE_SECONDS`, or if interrupted again."""
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
