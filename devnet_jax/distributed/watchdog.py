"""A watchdog: ends this process if another process of the run is gone or stuck, and names it."""

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

PEER_TIMEOUT = 30.0  # seconds without a heartbeat after which a process is lost
STUCK_AFTER = 1800.0  # seconds without progress of any process after which the run is stuck
POLL_SECONDS = 1.0
LINGER_SECONDS = 4.0  # process 0, which has the key-value store, lives on for others to read it
_c_callbacks: list[Any] = []  # keeps functions that C code calls from being freed
_ALIVE, _ENDED, _WHO = "devnet_jax/alive/", "devnet_jax/ended/", "devnet_jax/who/"


class Watchdog:
    """Exchanges heartbeats with the other processes, and ends this one if another is gone or stuck.

    Each process writes a heartbeat, a number that it increments, to the key-value store that all
    share, and reads those of the others. A process whose heartbeat does not change for `timeout`
    seconds is gone or suspended. If no process calls `report_progress` for `stuck_after` seconds,
    the processes with the fewest calls are stuck, and the others wait for them; before the first
    call there is no limit, because data may be downloaded. In both cases this process prints a
    line that names those processes, and ends with the status `PEER_LOST`.
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
        """Starts the threads of the watchdog.

        Args:
          client: client of JAX's key-value store.
          coordinator: "host:port" of the store, which process 0 serves.
          index: rank of this process.
          count: number of processes.
          timeout: seconds without a heartbeat after which a process is lost.
          stuck_after: seconds without progress of any process after which the run is stuck.
        """
        self._client = client
        self._coordinator = coordinator
        self._index = index
        self._count = count
        self._timeout = timeout
        self._stuck_after = stuck_after
        self._n_progress = 0
        # Hundreds of processes poll less often, to limit the load on the store.
        self._poll = min(max(POLL_SECONDS, count / 64), timeout / 6)
        self._done = threading.Event()
        now = time.monotonic()
        self._last_answer = now  # of the store
        self._last_progress = now  # of any process
        # By rank: [heartbeat, number of progress reports], and the time of its last change.
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
        # JAX aborts a process that has lost process 0, with a message that does not say why.
        on_sigabrt = ctypes.CFUNCTYPE(None, ctypes.c_int)(self._on_sigabrt)
        _c_callbacks.append(on_sigabrt)
        if index != 0:
            ctypes.CDLL(None).signal(signal.SIGABRT, on_sigabrt)

    def report_progress(self) -> None:
        """Counts a step of this process; the next heartbeat includes the number."""
        self._n_progress += 1

    def stop(self) -> None:
        """Stops the watchdog; call it once all processes have finished their work."""
        self._done.set()
        for thread in self._threads:
            thread.join()

    def announce_end(self, reason: str) -> None:
        """Tells the other processes why this one ends early, and stops the watchdog."""
        self._done.set()
        try:
            self._client.key_value_set(f"{_ENDED}{self._index}", reason, allow_overwrite=True)
        except Exception as error:  # the others will miss the heartbeat
            logger.debug("the end of this process could not be announced: %s", error)
        if self._index == 0:
            time.sleep(max(LINGER_SECONDS, 2 * self._poll))

    def wait_for_diagnosis(self) -> None:
        """Waits until the watchdog would have found a lost process, and so ended this one.

        Call it after an error that a lost process may have caused.
        """
        time.sleep(self._timeout + 3 * self._poll)

    def _on_sigabrt(self, number: int) -> None:
        """Ends this process with a clear message if process 0 is gone; else lets it abort."""
        signal.alarm(int(LINGER_SECONDS) + 1)  # ends the process if this handler hangs
        host, _, port = self._coordinator.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=LINGER_SECONDS).close()
        except OSError:
            self._exit_peer_lost(f"process 0 ({self._name(0)}), which coordinates the run, is gone")

    def _exchange_heartbeats(self) -> None:
        heartbeat = 0
        names_known = False
        while not self._done.wait(self._poll):
            heartbeat += 1
            try:
                self._client.key_value_set(
                    f"{_ALIVE}{self._index}",
                    json.dumps([heartbeat, self._n_progress]),
                    allow_overwrite=True,
                )
                states = _by_rank(self._client.key_value_dir_get(_ALIVE))
                self._ended = _by_rank(self._client.key_value_dir_get(_ENDED))
                if not names_known:
                    self._names = _by_rank(self._client.key_value_dir_get(_WHO))
                    names_known = len(self._names) == self._count
            except Exception as error:
                logger.debug("the key-value store does not answer: %s", error)
                continue
            now = time.monotonic()
            self._last_answer = now
            for i, text in states.items():
                state = json.loads(text)
                before, _ = self._states[i]
                if state[1] != before[1]:
                    self._last_progress = now
                if state != before:
                    self._states[i] = (state, now)

    def _check_peers(self) -> None:
        while not self._done.wait(POLL_SECONDS / 2):
            now = time.monotonic()
            for i, reason in self._ended.items():
                self._exit_peer_lost(f"process {i} ({self._name(i)}) has ended: {reason}")
            if now - self._last_answer > self._timeout:
                self._exit_peer_lost(
                    f"no answer for {self._timeout:.0f} s from process 0 ({self._name(0)}), which "
                    "coordinates the run"
                )
            silent = [i for i, (_, since) in self._states.items() if now - since > self._timeout]
            if silent and silent != [self._index]:
                self._exit_peer_lost(
                    f"no heartbeat for {self._timeout:.0f} s from {self._describe(silent)}"
                )
            progress = {i: state[1] for i, (state, _) in self._states.items()}
            if any(progress.values()) and now - self._last_progress > self._stuck_after:
                stuck = [i for i, n in progress.items() if n == min(progress.values())]
                self._exit_peer_lost(
                    f"no progress for {self._stuck_after:.0f} s; stuck: {self._describe(stuck)}"
                )

    def _exit_peer_lost(self, message: str) -> NoReturn:
        print(
            f"error: {message}; this process ends, too: start all processes again with the same "
            "command, and they resume from the last checkpoint",
            file=sys.stderr,
            flush=True,
        )
        if self._index == 0:
            self.announce_end(message)
        os._exit(PEER_LOST)

    def _name(self, index: int) -> str:
        return self._names.get(index, "unknown")

    def _describe(self, indices: list[int]) -> str:
        return ", ".join(f"process {i} ({self._name(i)})" for i in indices)


def _by_rank(entries: list[tuple[str, str]]) -> dict[int, str]:
    return {int(key.rpartition("/")[2]): value for key, value in entries}
