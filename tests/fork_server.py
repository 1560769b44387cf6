"""A fork server: starts programs as forks of a process that has imported the package once.

Importing JAX, Orbax and TensorFlow Datasets takes seconds; a fork takes milliseconds. A program in
a fork is a process of its own: with its own flags, signals, devices and exit status.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
_REPLY = 16  # bytes of a reply: a number, padded


@functools.cache
def _control() -> socket.socket:
    """Starts the server of this process; it ends when the socket is closed, thus with us."""
    ours, other = socket.socketpair()
    with other:
        subprocess.Popen(
            [sys.executable, "-m", "tests.fork_server", str(other.fileno())],
            cwd=REPOSITORY, pass_fds=[other.fileno()],
        )  # fmt: skip
    return ours


def start(arguments: Sequence[str | Path], environment: Mapping[str, str]) -> Process:
    """Starts `python ARGUMENTS` in the repository's root.

    Args:
      arguments: `-m MODULE`, `-c PROGRAM` or a script, and the program's arguments.
      environment: environment variables. JAX has been imported: of its own variables only those
        in `_JAX_SETTINGS` have an effect.
    """
    return Process(_control(), list(map(str, arguments)), environment)


def run(
    arguments: Sequence[str | Path], environment: Mapping[str, str], timeout: float | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs `python ARGUMENTS` to its end; see `start`."""
    process = start(arguments, environment)
    try:
        out, err = process.communicate(timeout)
    except BaseException:
        process.kill()
        raise
    return subprocess.CompletedProcess(arguments, process.wait(), out, err)


class Process:
    """A program in a fork, with the methods of `subprocess.Popen`; its output is captured."""

    def __init__(
        self, control: socket.socket, arguments: list[str], environment: Mapping[str, str]
    ) -> None:
        self.args = arguments
        self.returncode: int | None = None
        self._out, self._err = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115
        self._status, other = socket.socketpair()
        with other, Path(os.devnull).open("rb") as null:
            fds = [other.fileno(), null.fileno(), self._out.fileno(), self._err.fileno()]
            socket.send_fds(control, [b"."], fds)
        request = {"arguments": arguments, "environment": dict(environment)}
        self._status.sendall(json.dumps(request).encode() + b"\n")
        self.pid = int(self._status.recv(_REPLY, socket.MSG_WAITALL))

    def wait(self, timeout: float | None = None) -> int:
        """Returns the exit status: -N of a program that signal N has ended."""
        if self.returncode is None:
            self._status.settimeout(timeout)
            try:
                self.returncode = int(self._status.recv(_REPLY))
            except (TimeoutError, BlockingIOError):
                raise subprocess.TimeoutExpired(self.args, timeout or 0) from None
        return self.returncode

    def poll(self) -> int | None:
        """Returns the exit status, or None while the program runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Waits for the end; returns standard output and standard error."""
        self.wait(timeout)
        out, err = (
            os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode()
            for file in (self._out, self._err)
        )
        return out, err

    def send_signal(self, number: int) -> None:
        """Sends a signal to the program, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Sends SIGKILL."""
        self.send_signal(signal.SIGKILL)


# What follows runs in the server.

# Configuration options of JAX that a program's environment sets.
_JAX_SETTINGS: dict[str, Callable[[str], object]] = {
    "jax_compilation_cache_dir": str,
    "jax_disable_most_optimizations": lambda value: value == "1",
    "jax_num_cpu_devices": int,
}


def serve(control: socket.socket) -> list[str]:
    """Forks for each request; returns in the forks only, with the program's arguments."""
    import_package()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no zombies
    while True:
        _, fds, *_ = socket.recv_fds(control, 1, 4)
        if not fds:
            sys.exit()
        # A monitor, which waits for the program and reports its status.
        if os.fork():
            for fd in fds:
                os.close(fd)
            continue
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        control.close()
        client = socket.socket(fileno=fds[0])
        request = json.loads(client.makefile().readline())
        pid = os.fork()
        if pid:
            for fd in fds[1:]:
                os.close(fd)
            client.sendall(f"{pid:{_REPLY}}".encode())
            _, status = os.waitpid(pid, 0)
            with contextlib.suppress(BrokenPipeError):  # the client has ended
                client.sendall(f"{os.waitstatus_to_exitcode(status):{_REPLY}}".encode())
            os._exit(0)
        client.close()
        for standard, fd in enumerate(fds[1:]):
            os.dup2(fd, standard)
            os.close(fd)
        _set_environment(request["environment"])
        return request["arguments"]


def import_package() -> None:
    """Imports what the programs use. No thread may run and no backend exist when it returns."""
    import devnet_jax.distributed.cluster
    import devnet_jax.evaluation.evaluate
    import devnet_jax.export.write
    import devnet_jax.inference.detector
    import devnet_jax.prediction
    import devnet_jax.report.summary
    import devnet_jax.training.run  # noqa: F401


def _set_environment(environment: Mapping[str, str]) -> None:
    import jax

    for name, parse in _JAX_SETTINGS.items():
        value = environment.get(name.upper())
        if value is not None:
            jax.config.update(name, parse(value))
    os.environ.clear()
    os.environ.update(environment)


def run_program(arguments: list[str]) -> None:
    """Runs `python ARGUMENTS` in this process."""
    program, *rest = sys.argv = arguments
    if program == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif program == "-c":
        sys.argv = ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        runpy.run_path(program, run_name="__main__")


if __name__ == "__main__":
    run_program(serve(socket.socket(fileno=int(sys.argv[1]))))
