"""A run on a Cloud TPU slice: creates the slice, installs the code, runs, fetches the workdir."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from devnet_jax.distributed.exit_status import (
    DONE,
    PEER_LOST,
    RESUME,
    deciding_index,
    describe,
    from_returncode,
    may_restart,
)
from devnet_jax.errors import UserError
from devnet_jax.launchers.arguments import is_bucket
from devnet_jax.launchers.tpu_slice import (
    ARCHIVE,
    TpuSlice,
    archive_command,
    install_script,
    parse_status,
    run_script,
    stop_script,
)
from devnet_jax.launchers.workers import ReceivedSignals, record_signals

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.2
# States of a slice.
READY = "READY"
LOST = ("PREEMPTED", "TERMINATED")  # final: it must be deleted
PAUSED = ("STOPPED", "STOPPING", "HIDDEN", "HIDING")  # by a user
# States of a queued request that gives no slice, or no longer.
REFUSED = ("FAILED", "SUSPENDED")


class Code(NamedTuple):
    """The code to install on the hosts.

    Attributes:
      repository: folder of the project on this host.
      install: shell command that installs the project on a host.
      setup: shell commands to run on a host after the installation.
    """

    repository: str
    install: str
    setup: Sequence[str]


class Outcome(NamedTuple):
    """The outcome of a run.

    Attributes:
      status: exit status that explains its end.
      is_fetched: True if the workdir is in a bucket, or was fetched from the host.
    """

    status: int
    is_fetched: bool


def query(command: Sequence[str]) -> dict[str, Any] | None:
    """Returns gcloud's description of a resource; `None` if the resource does not exist.

    Raises:
      UserError: if gcloud fails for another reason.
    """
    result = _popen(command, subprocess.PIPE)
    output, errors = result.communicate()
    if result.returncode == 0:
        description: dict[str, Any] = json.loads(output)
        return description
    if re.search(r"not[ _]found", errors, re.IGNORECASE):
        return None
    raise _command_error(command, result.returncode, errors.splitlines())


def run_command(command: Sequence[str]) -> None:
    """Runs a command and shows its output; raises `UserError` if it fails."""
    logger.debug("%s", shlex.join(command))
    last_lines: deque[str] = deque(maxlen=20)
    process = _popen(command, subprocess.STDOUT)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            last_lines.append(line)
            sys.stderr.write(line)
    except BaseException:
        process.terminate()
        raise
    finally:
        process.stdout.close()
        status = process.wait()
    if status:
        raise _command_error(command, status, last_lines)


def _popen(command: Sequence[str], stderr: int, **options: Any) -> subprocess.Popen[str]:
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            errors="replace",
            **options,
        )
    except FileNotFoundError:
        raise UserError(f"{command[0]}: no such program; install the Google Cloud CLI") from None


def _command_error(command: Sequence[str], returncode: int, output: Sequence[str]) -> UserError:
    last = [line.strip() for line in output if line.strip()][-1:] or ["(no output)"]
    verb = " ".join(word for word in command[:6] if not word.startswith("-"))
    return UserError(f"{verb} {describe(from_returncode(returncode))}: {last[0]}")


def ensure_ready(tpu: TpuSlice, poll_seconds: float) -> int:
    """Creates the slice if it does not exist, waits until it is ready, returns its number of hosts.

    Args:
      tpu: the slice.
      poll_seconds: seconds between two queries of its state.

    Raises:
      UserError: if the slice is paused, or a command or the queued request fails.
    """
    is_new = False
    logged_state = None
    while True:
        node = query(tpu.describe())
        state = node["state"] if node else None
        if node and state == READY:
            return len(node.get("networkEndpoints", [])) or 1
        request = query(tpu.describe_request()) if tpu.queued else None
        request_state = request["state"]["state"] if request else None
        if state in PAUSED:
            raise UserError(f"--name={tpu.name}: the slice is {state}; start it, or delete it")
        if request_state == "FAILED" and is_new:
            raise UserError(f"--name={tpu.name}: its request has failed: {json.dumps(request)}")
        if state in LOST or request_state in REFUSED:
            logger.info("the slice %s is %s: deleting it", tpu.name, state or request_state)
            run_command(tpu.delete())
        elif node is None and request is None:
            logger.info("creating the slice %s (%s)", tpu.name, tpu.accelerator_type)
            run_command(tpu.create())
            is_new = True
        else:
            if (current := request_state or state) != logged_state:
                logger.info("waiting for the slice %s: %s", tpu.name, current)
                logged_state = current
            time.sleep(poll_seconds)


def install_code(tpu: TpuSlice, code: Code) -> None:
    """Copies the code to all hosts and installs it."""
    logger.info("installing on the hosts of %s", tpu.name)
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / ARCHIVE)
        run_command(archive_command(code.repository, file))
        run_command(tpu.copy_to_all_hosts(file))
    run_command(tpu.on_all_hosts(install_script(code.install, code.setup)))


def run_once(tpu: TpuSlice, arguments: Sequence[str], signals: ReceivedSignals) -> int:
    """Runs a process on each host; returns the status that explains the end of the run.

    Args:
      tpu: the slice, with the code installed.
      arguments: arguments of `devnet_jax.main`.
      signals: signals that this process receives; after one, the processes are told to save.
    """
    command = tpu.on_all_hosts(run_script(arguments))
    logger.debug("%s", shlex.join(command))
    # A new session: Ctrl-C would end gcloud, and leave the processes on the hosts running.
    process = _popen(command, subprocess.STDOUT, start_new_session=True)
    statuses: list[int] = []
    reader = threading.Thread(target=_show_output, args=(process, statuses), daemon=True)
    reader.start()
    is_stopping = False
    try:
        while process.poll() is None:
            if signals.any_received and not is_stopping:
                is_stopping = True
                logger.info("telling the processes to save and end; Ctrl-C again leaves them")
                with contextlib.suppress(UserError):  # its output was shown
                    run_command(tpu.on_all_hosts(stop_script()))
            if signals.interrupts > 1:
                break
            time.sleep(POLL_SECONDS)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    returncode = process.wait()
    reader.join()
    if returncode == 0:
        return DONE
    failed = [status for status in statuses if status != DONE]
    if failed:
        return failed[deciding_index(failed)]
    status = from_returncode(returncode)
    if not is_stopping and not _is_ready(tpu):
        logger.error("the slice %s was preempted or deleted", tpu.name)
        return PEER_LOST
    return status


def _show_output(process: subprocess.Popen[str], statuses: list[int]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        status = parse_status(line)
        if status is not None:
            statuses.append(status)
        print(line, end="", flush=True)


def _is_ready(tpu: TpuSlice) -> bool:
    node = query(tpu.describe())
    return node is not None and node["state"] == READY


def may_exist(tpu: TpuSlice) -> bool:
    """Returns True if the slice or its request exists, or gcloud fails to tell."""
    try:
        return query(tpu.describe()) is not None or (
            tpu.queued and query(tpu.describe_request()) is not None
        )
    except UserError as error:
        logger.error("%s", error)
        return True


def run_on_slice(
    tpu: TpuSlice,
    arguments: Sequence[str],
    workdir: str,
    code: Code,
    max_restarts: int,
    poll_seconds: float,
) -> Outcome:
    """Runs on a slice, which is created if needed; restarts the run if it can resume.

    Args:
      tpu: the slice.
      arguments: arguments of `devnet_jax.main`.
      workdir: the workdir among the arguments.
      code: code to install on the hosts.
      max_restarts: maximum number of restarts; each first replaces a preempted slice.
      poll_seconds: seconds between two queries of the state of a slice that is not ready.

    Raises:
      KeyboardInterrupt: on Ctrl-C, after the processes were told to save.
      UserError: if a command fails.
    """
    restarts = 0
    while True:
        hosts = ensure_ready(tpu, poll_seconds)
        if hosts > 1 and not is_bucket(workdir):
            raise UserError(
                f"--workdir={workdir}: the {hosts} hosts of {tpu.name} share no disk; give a "
                "folder in a bucket, gs://…"
            )
        install_code(tpu, code)
        logger.info("running on %d hosts", hosts)
        with record_signals() as signals:
            status = run_once(tpu, arguments, signals)
        is_fetched = is_bucket(workdir) or fetch_workdir(tpu, workdir)
        if signals.interrupts:
            raise KeyboardInterrupt
        if signals.stop:
            return Outcome(RESUME if may_restart(status) else status, is_fetched)
        if status != DONE:
            logger.error("the run %s", describe(status))
        if restarts == max_restarts or not may_restart(status):
            return Outcome(status, is_fetched)
        restarts += 1
        logger.info("restarting all processes (%d of %d times)", restarts, max_restarts)


def fetch_workdir(tpu: TpuSlice, workdir: str) -> bool:
    """Copies the workdir of a run to the same path here; returns False if that fails."""
    Path(workdir).parent.mkdir(parents=True, exist_ok=True)
    try:
        run_command(tpu.fetch(workdir))
    except UserError as error:
        logger.error("--workdir=%s could not be fetched: %s", workdir, error)
        return False
    logger.info("fetched: %s", workdir)
    return True
