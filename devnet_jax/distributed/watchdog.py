"""The processes of one run watch over one another: who is gone or stuck is noticed and named."""

from __future__ import annotations

import ctypes
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from typing import Any, NoReturn

from devnet_jax.distributed.exit_status import PEER_LOST

logger = logging.getLogger(__name__)

PEER_TIMEOUT = 30.0  # seconds after which a process that is not heard of is taken for dead
STUCK_AFTER = 1800.0  # seconds without progress after which one is taken for stuck
POLL_SECONDS = 1.0
LINGER_SECONDS = 4.0  # of process 0, through which the others hear why it ends
_called_by_c: list[Any] = []  # functions that must not be freed
_ALIVE, _ENDED, _WHO = "devnet_jax/alive/", "devnet_jax/ended/", "devnet_jax/who/"


class Watchdog:
    """Tells the other processes that this one is alive, and ends it when one of them is not.

    Each process counts up a number of its own in the store that the processes share, and reads
    those of the others. A number that has stood still for `timeout` seconds is that of a process
    which is gone, or stopped. One that lives, but in which nothing gets on, holds up all others:
    after `stuck_after` seconds without a `report_progress` in any of them, those that are furthest
    behind are stuck (before the first no time is too long: data may be fetched). This process then ends
    with the status `PEER_LOST`, and a line that names them.
    """

    def __init__(
        self,
        client: Any,
        coordinator: str,
        index: int,
        count: int,
        timeout: float,
        stuck_after: float,
    ) -> None:
        """Starts to watch.

        Args:
          client: of JAX's coordination service, which keeps what the processes tell one another.
          coordinator: "host:port" of that service, which process 0 runs.
          index: of this process.
          count: of processes.
          timeout: seconds after which a process that is not heard of is gone.
          stuck_after: seconds without progress in any process after which it is stuck.
        """
        self._client = client
        self._coordinator = coordinator
        self._index = index
        self._count = count
        self._timeout = timeout
        self._stuck_after = stuck_after
        self._beats = 0
        # Of hundreds of processes each asks less often, or the store would do little else.
        self._poll = min(max(POLL_SECONDS, count / 64), timeout / 6)
        self._done = threading.Event()
        now = time.monotonic()
        self._heard = now  # when the store has answered last
        self._progress = now  # when a beat of any process was seen last
        self._states: dict[int, tuple[list[int], float]] = {i: ([0, 0], now) for i in range(count)}
        self._ended: dict[int, str] = {}
        self._names: dict[int, str] = {}
        client.key_value_set(f"{_WHO}{index}", f"{socket.gethostname()}, process {os.getpid()}")
        self._threads = [
            threading.Thread(target=target, name=target.__name__, daemon=True)
            for target in (self._exchange_heartbeats, self._check_peers)
        ]
        for thread in self._threads:
            thread.start()
        # JAX aborts a process that has lost process 0, with words of its own.
        on_abort = ctypes.CFUNCTYPE(None, ctypes.c_int)(self._on_sigabrt)
        _called_by_c.append(on_abort)
        if index != 0:
            ctypes.CDLL(None).signal(signal.SIGABRT, on_abort)

    def report_progress(self) -> None:
        """Says that this process has got on with its work."""
        self._beats += 1

    def stop(self) -> None:
        """Ends the watch; to be called when all processes have done their work."""
        self._done.set()
        for thread in self._threads:
            thread.join()

    def announce_end(self, reason: str) -> None:
        """Tells the others why this process ends before its work is done."""
        self._done.set()
        try:
            self._client.key_value_set(f"{_ENDED}{self._index}", reason, allow_overwrite=True)
        except Exception as error:  # they will notice by themselves
            logger.debug("the others could not be told: %s", error)
        if self._index == 0:  # which keeps the store
            time.sleep(max(LINGER_SECONDS, 2 * self._poll))

    def wait_for_diagnosis(self) -> None:
        """Gives the watch the time to find out which process an error came from.

        It ends this process if it does.
        """
        time.sleep(self._timeout + 3 * self._poll)

    def _on_sigabrt(self, number: int) -> None:
        """Called when something aborts this process."""
        signal.alarm(int(LINGER_SECONDS) + 1)  # should this hang, where much may be broken
        host, _, port = self._coordinator.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=LINGER_SECONDS).close()
        except OSError:
            self._exit_peer_lost(f"process 0 ({self._name(0)}), which coordinates the run, is gone")
        # It was something else: aborting goes on as this returns.

    def _exchange_heartbeats(self) -> None:
        tick = 0
        names_known = False
        while not self._done.wait(self._poll):
            tick += 1
            try:
                self._client.key_value_set(
                    f"{_ALIVE}{self._index}", json.dumps([tick, self._beats]), allow_overwrite=True
                )
                alive = _by_index(self._client.key_value_dir_get(_ALIVE))
                self._ended = _by_index(self._client.key_value_dir_get(_ENDED))
                if not names_known:
                    self._names = _by_index(self._client.key_value_dir_get(_WHO))
                    names_known = len(self._names) == self._count
            except Exception as error:
                logger.debug("the coordination service does not answer: %s", error)
                continue
            now = time.monotonic()
            self._heard = now
            for i, text in alive.items():
                state = json.loads(text)
                before, _ = self._states[i]
                if state[1] != before[1]:
                    self._progress = now
                if state != before:
                    self._states[i] = (state, now)

    def _check_peers(self) -> None:
        while not self._done.wait(POLL_SECONDS / 2):
            now = time.monotonic()
            for i, reason in self._ended.items():
                self._exit_peer_lost(f"process {i} ({self._name(i)}) has ended: {reason}")
            if now - self._heard > self._timeout:
                self._exit_peer_lost(
                    f"process 0 ({self._name(0)}), which coordinates the run, has not been heard "
                    f"of for {self._timeout:.0f} s"
                )
            silent = [i for i, (_, since) in self._states.items() if now - since > self._timeout]
            if silent and silent != [self._index]:
                self._exit_peer_lost(
                    f"{self._names_of(silent)} not heard of for {self._timeout:.0f} s"
                )
            beats = {i: state[1] for i, (state, _) in self._states.items()}
            if any(beats.values()) and now - self._progress > self._stuck_after:
                behind = [i for i, n in beats.items() if n == min(beats.values())]
                self._exit_peer_lost(
                    f"nothing has got on for {self._stuck_after:.0f} s: "
                    f"{self._names_of(behind)} stuck"
                )

    def _exit_peer_lost(self, message: str) -> NoReturn:
        print(
            f"error: {message}; this process ends, too: start all of them again with the same "
            "command, and they go on from the last checkpoint",
            file=sys.stderr,
            flush=True,
        )
        if self._index == 0:
            self.announce_end(message)
        os._exit(PEER_LOST)

    def _name(self, index: int) -> str:
        return self._names.get(index, "unknown")

    def _names_of(self, indices: list[int]) -> str:
        named = ", ".join(f"process {i} ({self._name(i)})" for i in indices)
        return f"{named} {'is' if len(indices) == 1 else 'are'}"


def _by_index(entries: list[tuple[str, str]]) -> dict[int, str]:
    return {int(key.rpartition("/")[2]): value for key, value in entries}
