"""Serves a review on this machine until it is told to end, at an address that restarts keep."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import signal
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import uvicorn

from devnet_jax.errors import UserError
from devnet_jax.review.protocol import Session
from devnet_jax.review.server import Server

HOST = "127.0.0.1"
PORT = 8642
_N_PORTS = 100  # ports that are tried
_TOKEN = re.compile(r"[A-Za-z0-9_-]{43}")
_SHUTDOWN_SECONDS = 5


class Address(NamedTuple):
    """The port of a review and the token that its page needs."""

    port: int
    token: str

    @property
    def url(self) -> str:
        """The address to open in a browser."""
        return f"http://{HOST}:{self.port}/?token={self.token}"


def serve(session: Session, address_file: Path, port: int | None = None) -> None:
    """Prints the address of a review and serves it until Ctrl-C or SIGTERM.

    An earlier review with the same file had the same token, and the same port unless it is taken,
    so that its page, still open in a browser, goes on.

    Args:
      session: the review.
      address_file: file of the address, which only this user can read.
      port: port; the next free one is taken instead if it is in use. 0 chooses any, `None` that of
        the last review or `PORT`.

    Raises:
      UserError: if there is no free port.
    """
    saved = read_address(address_file)
    if port is None:
        port = saved.port if saved else PORT
    with contextlib.closing(listen(port)) as listener:
        token = saved.token if saved else secrets.token_urlsafe(32)
        address = Address(listener.getsockname()[1], token)
        listener.listen()  # before the address is known, after which pages may ask
        write_address(address_file, address)
        with contextlib.closing(Server(session, address.token, address.port)) as application:
            server = make_server(application)
            with _ends_on_signals(server):
                pictures = "1 picture" if session.n == 1 else f"{session.n} pictures"
                print(
                    f"reviewing {pictures} at {address.url}  (Ctrl-C ends; labels are kept)",
                    flush=True,
                )
                server.run(sockets=[listener])


def make_server(application: Server) -> uvicorn.Server:
    """Returns the HTTP server of an application."""
    config = uvicorn.Config(
        application.application(),
        http="h11",  # limits the size of headers
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
    )
    return uvicorn.Server(config)


@contextlib.contextmanager
def _ends_on_signals(server: uvicorn.Server) -> Iterator[None]:
    """Lets SIGINT and SIGTERM end the server, and nothing else.

    While it serves, uvicorn handles the signals; it raises them again when it has ended.
    """

    def end(*_: object) -> None:
        server.should_exit = True

    previous = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def listen(port: int) -> socket.socket:
    """Returns a socket that listens on a port of this machine, or on the next free one.

    Args:
      port: number of the port; 0 for any.

    Raises:
      UserError: if none is free, or this user may not use the port.
    """
    for tried in range(port, min(port + _N_PORTS, 2**16)):
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # after a restart
        try:
            listener.bind((HOST, tried))
            listener.listen()
            return listener
        except OSError as error:
            listener.close()
            if error.errno != errno.EADDRINUSE:
                raise UserError(f"--port={port}: {error.strerror}; choose another") from error
    raise UserError(f"--port={port}: this and the next {_N_PORTS - 1} are in use; choose another")


def read_address(file: Path) -> Address | None:
    """Returns the address in a file, or `None` if there is none that others could not read."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as content:
            status = os.fstat(descriptor)
            is_secret = stat.S_ISREG(status.st_mode) and not status.st_mode & 0o077
            if not is_secret or status.st_uid != os.geteuid():
                return None
            address = Address(**json.loads(content.read(1000)))
    except (OSError, ValueError, TypeError):
        return None
    if not isinstance(address.token, str) or not _TOKEN.fullmatch(address.token):
        return None
    return address if type(address.port) is int and 0 < address.port < 2**16 else None


def write_address(file: Path, address: Address) -> None:
    """Writes a file that only this user can read, atomically."""
    temporary = file.with_name(f"{file.name}.tmp")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as content:
        content.write(json.dumps(address._asdict()).encode())
    temporary.replace(file)
