"""Starts examples/serve.py in a process, and sends requests to it."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from devnet_jax.launchers.local import HOST, free_port
from tests import fork_server
from tests.conftest import environment

Answer = tuple[int, dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Service:
    """A running service, and the path of its model."""

    process: fork_server.Process
    port: int
    model: Path

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        with contextlib.closing(http.client.HTTPConnection(HOST, self.port, timeout=30)) as client:
            return ask(client, method, path, body, **headers)

    def resident_mib(self) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        (line,) = (line for line in status.splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) / 1024


def ask(
    client: http.client.HTTPConnection, method: str, path: str, body: Any = None, **headers: str
) -> Answer:
    client.request(method, path, body, headers)
    response = client.getresponse()
    return response.status, json.loads(response.read())


@contextlib.contextmanager
def started(model: Path, *flags: str) -> Iterator[Service]:
    port = free_port()
    arguments = (f"--model={model}", f"--port={port}", "--max_batch=4", *flags)
    process = fork_server.start(["examples/serve.py", *arguments], environment())
    service = Service(process, port, model)
    try:
        for _ in range(3000):  # it compiles first, on a machine that may be busy
            assert process.poll() is None, process.communicate()
            with contextlib.suppress(ConnectionRefusedError):
                service.ask("GET", "/health")
                break
            time.sleep(0.1)
        yield service
    finally:
        process.kill()
        process.communicate()
