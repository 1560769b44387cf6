"""A run on a slice of Cloud TPUs, from making the slice to fetching what the run has left."""

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
    archive,
    install_shell,
    run_shell,
    status_on_host,
    stop_shell,
)
from devnet_jax.launchers.workers import ReceivedSignals, record_signals

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.2
READY = "READY"
GONE = ("PREEMPTED", "TERMINATED")  # it never comes back, and must be deleted
PAUSED = ("STOPPED", "STOPPING", "HIDDEN", "HIDING")  # somebody meant it to be so
REFUSED = ("FAILED", "SUSPENDED")  # a request that will not be met, or no longer


class Code(NamedTuple):
    """What the hosts are given to run.

    Attributes:
      repository: folder of the project here.
      install: line of shell that installs it there.
      setup: lines of shell that are run after that.
    """

    repository: str
    install: str
    setup: Sequence[str]


class Outcome(NamedTuple):
    """How a run has ended, and whether what it has left is safe."""

    status: int
    is_fetched: bool


def ask(command: Sequence[str]) -> dict[str, Any] | None:
    """What gcloud describes; nothing if that is not there.

    Raises:
      UserError: gcloud cannot tell.
    """
    result = _popen(command, subprocess.PIPE)
    output, errors = result.communicate()
    if result.returncode == 0:
        answer: dict[str, Any] = json.loads(output)
        return answer
    if re.search(r"not[ _]found", errors, re.IGNORECASE):
        return None
    raise _failed(command, result.returncode, errors.splitlines())


def do(command: Sequence[str]) -> None:
    """Runs a command and shows what it says; raises `UserError` if it fails."""
    logger.debug("%s", shlex.join(command))
    last: deque[str] = deque(maxlen=20)
    process = _popen(command, subprocess.STDOUT)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            last.append(line)
            sys.stderr.write(line)
    except BaseException:
        process.terminate()
        raise
    finally:
        process.stdout.close()
        status = process.wait()
    if status:
        raise _failed(command, status, last)


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
        raise UserError(
            f"{command[0]}: no such program; install the Google Cloud command line"
        ) from None


def _failed(command: Sequence[str], returncode: int, said: Sequence[str]) -> UserError:
    last = [line.strip() for line in said if line.strip()][-1:] or ["(it said nothing)"]
    verb = " ".join(word for word in command[:6] if not word.startswith("-"))
    return UserError(f"{verb} {describe(from_returncode(returncode))}: {last[0]}")


def ready(tpu: TpuSlice, poll_seconds: float) -> int:
    """Makes the slice if it is not there, waits until it is ready, and counts its hosts.

    Raises:
      UserError: it cannot be had.
    """
    is_new = False
    said = None
    while True:
        node = ask(tpu.describe())
        state = node["state"] if node else None
        if node and state == READY:
            return len(node.get("networkEndpoints", [])) or 1
        request = ask(tpu.describe_request()) if tpu.queued else None
        request_state = request["state"]["state"] if request else None
        if state in PAUSED:
            raise UserError(f"--name={tpu.name}: the slice is {state}; start it, or delete it")
        if request_state == "FAILED" and is_new:
            raise UserError(f"--name={tpu.name}: its request has failed: {json.dumps(request)}")
        if state in GONE or request_state in REFUSED:
            logger.info("the slice %s is %s: deleting it", tpu.name, state or request_state)
            do(tpu.delete())
        elif node is None and request is None:
            logger.info("creating the slice %s (%s)", tpu.name, tpu.accelerator_type)
            do(tpu.create())
            is_new = True
        else:
            if (now := request_state or state) != said:
                logger.info("waiting for the slice %s: %s", tpu.name, now)
                said = now
            time.sleep(poll_seconds)


def prepare(tpu: TpuSlice, code: Code) -> None:
    """Brings the code to all hosts and installs it there."""
    logger.info("installing on the hosts of %s", tpu.name)
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / ARCHIVE)
        do(archive(code.repository, file))
        do(tpu.copy_to_all_hosts(file))
    do(tpu.on_all_hosts(install_shell(code.install, code.setup)))


def run_once(tpu: TpuSlice, arguments: Sequence[str], signals: ReceivedSignals) -> int:
    """Runs a process on each host, and returns the status that decides.

    Args:
      tpu: which is ready, and has the code.
      arguments: of `devnet_jax.main`.
      signals: they are passed on: the processes save and end.
    """
    command = tpu.on_all_hosts(run_shell(arguments))
    logger.debug("%s", shlex.join(command))
    # In a session of its own: Ctrl-C would end it, and leave the processes on the hosts running.
    process = _popen(command, subprocess.STDOUT, start_new_session=True)
    statuses: list[int] = []
    reader = threading.Thread(target=_show, args=(process, statuses), daemon=True)
    reader.start()
    told = False
    try:
        while process.poll() is None:
            if signals.given and not told:
                told = True
                logger.info("telling the processes to save and end; Ctrl-C again leaves them")
                with contextlib.suppress(UserError):  # has been shown
                    do(tpu.on_all_hosts(stop_shell()))
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
    if not told and not _is_ready(tpu):
        logger.error("the slice %s was taken away", tpu.name)
        return PEER_LOST
    return status


def _show(process: subprocess.Popen[str], statuses: list[int]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        status = status_on_host(line)
        if status is not None:
            statuses.append(status)
        print(line, end="", flush=True)


def _is_ready(tpu: TpuSlice) -> bool:
    node = ask(tpu.describe())
    return node is not None and node["state"] == READY


def exists(tpu: TpuSlice) -> bool:
    """Whether there is something to delete; also where gcloud cannot tell."""
    try:
        return ask(tpu.describe()) is not None or (
            tpu.queued and ask(tpu.describe_request()) is not None
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
    """Runs on a slice, again if that helps; makes the slice, and makes it anew if it is taken away.

    Args:
      tpu: the slice.
      arguments: of `devnet_jax.main`.
      workdir: the one among them.
      code: what the hosts are given.
      max_restarts: how many times the processes are started again.
      poll_seconds: between two looks at a slice that is not ready.

    Raises:
      KeyboardInterrupt: Ctrl-C; the processes were told to save.
      UserError: a command has failed.
    """
    restarts = 0
    while True:
        hosts = ready(tpu, poll_seconds)
        if hosts > 1 and not is_bucket(workdir):
            raise UserError(
                f"--workdir={workdir}: the {hosts} hosts of {tpu.name} share no disk; give a "
                "folder in a bucket, gs://…"
            )
        prepare(tpu, code)
        logger.info("running on %d hosts", hosts)
        with record_signals() as signals:
            status = run_once(tpu, arguments, signals)
        is_fetched = is_bucket(workdir) or fetch(tpu, workdir)
        if signals.interrupts:
            raise KeyboardInterrupt
        if signals.stop:
            return Outcome(RESUME if may_restart(status) else status, is_fetched)
        if status != DONE:
            logger.error("the run %s", describe(status))
        if restarts == max_restarts or not may_restart(status):
            return Outcome(status, is_fetched)
        restarts += 1
        logger.info("all processes start again (%d of %d times)", restarts, max_restarts)


def fetch(tpu: TpuSlice, workdir: str) -> bool:
    """Copies what a run has left to the same place here; says so if that fails."""
    Path(workdir).parent.mkdir(parents=True, exist_ok=True)
    try:
        do(tpu.fetch(workdir))
    except UserError as error:
        logger.error("--workdir=%s could not be fetched: %s", workdir, error)
        return False
    logger.info("fetched: %s", workdir)
    return True
