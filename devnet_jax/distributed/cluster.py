"""Processes of one run, on one or more hosts: joining, barriers, broadcast, gather.

All functions also work in a run of a single process.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import logging
import os
import socket
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import jax
from flax import serialization

# The client of JAX's key-value store is not in JAX's public interface; Orbax imports it likewise.
from jax._src import distributed
from jax.experimental import multihost_utils

from devnet_jax.distributed.exit_status import ERROR, PEER_LOST
from devnet_jax.distributed.job import PROCESS_COUNT, n_announced_processes
from devnet_jax.distributed.stopping import Stopped, defer_sigterm, stop_on_sigterm
from devnet_jax.distributed.watchdog import PEER_TIMEOUT, STUCK_AFTER, Watchdog
from devnet_jax.errors import UserError
from devnet_jax.runtime.startup import jax_variables

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Kubernetes sets these variables in a pod with TPUs; Compute Engine does not.
_GKE_VARIABLES = ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES")

_CHUNK_BYTES = 1 << 20  # of a value in the key-value store, per message
_NO_TIMEOUT_MS = 7 * 24 * 3600 * 1000  # the watchdog ends processes that wait in vain
_JAX_HEARTBEAT_TIMEOUT = 24 * 3600  # the watchdog's is shorter, and its message says more
_SHUTDOWN_TIMEOUT = 30  # seconds

_round_numbers = itertools.count()  # make the names of barriers and keys unique
_watchdog: Watchdog | None = None


@dataclasses.dataclass(frozen=True)
class ClusterSettings:
    """Settings with which this process joins the other processes of its run.

    Attributes:
      cluster: "slurm", "open_mpi" or "tpu", whose environment has the next three settings; `None`
        if they are given, or for a run of a single process.
      coordinator: "host:port" of process 0.
      num_processes: number of processes of the run.
      process_id: rank of this process, from 0.
      peer_timeout: seconds without a heartbeat after which a process is lost.
      stuck_after: seconds without progress of any process after which the run is stuck.
    """

    cluster: str | None = None
    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    peer_timeout: float = PEER_TIMEOUT
    stuck_after: float = STUCK_AFTER

    def __post_init__(self) -> None:
        """Raises `UserError` if the attributes contradict each other."""
        given = [self.coordinator, self.num_processes, self.process_id]
        if self.cluster is not None:
            if any(value is not None for value in given):
                raise UserError(
                    f"--cluster={self.cluster} sets the coordinator, the number of processes and "
                    "the rank of this one; leave out --coordinator, --num_processes and "
                    "--process_id"
                )
            return
        if all(value is None for value in given):
            return
        if any(value is None for value in given):
            raise UserError(
                "--coordinator, --num_processes and --process_id: must be given together"
            )
        assert self.coordinator is not None
        assert self.num_processes is not None
        assert self.process_id is not None
        host, _, port = self.coordinator.rpartition(":")
        if not host or not port.isdigit():
            raise UserError(
                f"--coordinator={self.coordinator}: must be host:port, such as 10.0.0.1:1234"
            )
        if not 0 <= self.process_id < self.num_processes:
            raise UserError(
                f"--process_id={self.process_id}: must be from 0 to --num_processes - 1 = "
                f"{self.num_processes - 1}"
            )

    @property
    def is_single_process(self) -> bool:
        return self.cluster is None and self.num_processes in (None, 1)

    @property
    def detection_method(self) -> str:
        """The name of the cluster in `jax.distributed.initialize`."""
        if self.cluster == "tpu":
            return "gketpu" if any(name in os.environ for name in _GKE_VARIABLES) else "gcetpu"
        names = {None: "deactivate", "slurm": "slurm", "open_mpi": "ompi"}
        return names[self.cluster]


@contextlib.contextmanager
def join_cluster(settings: ClusterSettings) -> Iterator[None]:
    """Joins the processes of the run; a context that must be entered before JAX is used.

    Its end is a barrier. If an exception leaves the context, the other processes are told the
    reason, and end, too.

    Raises:
      UserError: if the other processes cannot be found, or JAX cannot initialise its devices.
    """
    global _watchdog
    if settings.is_single_process:
        _warn_if_one_of_several()
        _require_devices()
        yield
        return
    _initialise(settings)
    if jax.process_count() == 1:
        stop_on_sigterm()  # JAX has replaced the handler
    _watchdog = Watchdog(
        _kv_client(),
        str(distributed.global_state.coordinator_address),
        jax.process_index(),
        jax.process_count(),
        settings.peer_timeout,
        settings.stuck_after,
    )
    if not is_rank_zero():  # rank 0 logs for all
        logging.getLogger("devnet_jax").setLevel(logging.WARNING)
    else:
        logger.info("%d processes, %d devices", jax.process_count(), jax.device_count())
    try:
        try:
            require_agreement("the number of devices", str(jax.local_device_count()))
            yield
        except jax.errors.JaxRuntimeError:
            # Most likely an XLA collective has failed because another process is gone.
            _watchdog.wait_for_diagnosis()
            raise
        barrier("the end")
        _watchdog.stop()
    except Stopped:
        barrier("the end")
        _watchdog.stop()
        raise
    except (UserError, KeyboardInterrupt) as error:
        _watchdog.announce_end(str(error) or "it was interrupted")
        raise
    except BaseException as error:
        # A normal exit of Python would wait in JAX for the other processes, and abort as they end.
        traceback.print_exc()
        _watchdog.announce_end(str(error).strip().partition("\n")[0] or type(error).__name__)
        os._exit(ERROR)
    jax.distributed.shutdown()
    _watchdog = None


def _require_devices() -> None:
    """Raises `UserError` if JAX finds no devices, or fails to initialise them."""
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().partition("\n")[0] or "it has no support for them"
        raise UserError(
            f"JAX cannot initialise its devices: {reason}; {jax_variables()}"
        ) from error


def _initialise(settings: ClusterSettings) -> None:
    try:
        jax.distributed.initialize(
            coordinator_address=settings.coordinator,
            num_processes=settings.num_processes,
            process_id=settings.process_id,
            cluster_detection_method=settings.detection_method,
            heartbeat_timeout_seconds=_JAX_HEARTBEAT_TIMEOUT,
            shutdown_timeout_seconds=_SHUTDOWN_TIMEOUT,
        )
        jax.process_index()  # the processes exchange their devices
    except (ValueError, KeyError) as error:  # the environment lacks the cluster's variables
        raise UserError(
            f"--cluster={settings.cluster}: the other processes cannot be found ({error}); start "
            "this process on that cluster"
        ) from error
    except RuntimeError as error:
        reason = str(error).strip().partition("\n")[0]
        print(f"error: the other processes cannot be joined: {reason}", file=sys.stderr)
        os._exit(PEER_LOST)


def _warn_if_one_of_several() -> None:
    for cluster, variable in PROCESS_COUNT.items():
        # A batch script of Slurm, which is one process, has only the variable of the job.
        if variable in os.environ and (count := n_announced_processes(cluster)) > 1:
            logger.warning(
                "this is one of %d processes (%s), but runs alone; --cluster=%s runs them together",
                count,
                variable,
                cluster,
            )


def is_rank_zero() -> bool:
    """Returns True in process 0, which writes logs, tables and reports for all processes."""
    return jax.process_index() == 0


def report_progress() -> None:
    """Tells the watchdogs of all processes that this process makes progress."""
    if _watchdog is not None:
        _watchdog.report_progress()


@contextlib.contextmanager
def stop_agreement() -> Iterator[Callable[[int], bool]]:
    """Yields a function that returns True if the run is to stop after this step.

    A SIGTERM to any process stops all of them at the same step. All processes must call the
    function after the same steps.
    """
    if jax.process_count() > 1:  # JAX handles SIGTERM then, and the preemption notices of clouds
        # JAX agrees on one of these numbers, which must be consecutive.
        numbers = itertools.count(1)
        yield lambda step: multihost_utils.reached_preemption_sync_point(next(numbers))
        return
    with defer_sigterm() as was_received:
        yield lambda step: was_received()


def local_share(items: Sequence[T]) -> Sequence[T]:
    """Returns this process's share of the items: a contiguous block.

    The shares of all processes, in the order of their ranks, make up the items.
    """
    n, index = jax.process_count(), jax.process_index()
    return items[len(items) * index // n : len(items) * (index + 1) // n]


def _kv_client() -> Any:
    """Returns the client of JAX's key-value store, which all processes share."""
    return distributed.global_state.client


def barrier(name: str) -> None:
    """Waits until all processes have reached this point."""
    if jax.process_count() > 1:
        _kv_client().wait_at_barrier(f"{name}, {next(_round_numbers)}", _NO_TIMEOUT_MS)


@contextlib.contextmanager
def locked_by_rank_zero(lock: contextlib.AbstractContextManager[None]) -> Iterator[None]:
    """Holds a lock in process 0 until all processes have left the context."""
    with lock if is_rank_zero() else contextlib.nullcontext():
        yield
        barrier("before the lock goes")


def gather(value: Any, *, to_all: bool = True) -> list[Any]:
    """Returns the values of all processes, in the order of their ranks; all must call it.

    Args:
      value: a tree of dictionaries, lists, arrays, numbers, strings and bytes.
      to_all: if True, every process gets the values; else only process 0, and the others get an
        empty list.
    """
    if jax.process_count() == 1:
        return [value]
    prefix = f"devnet_jax/gather/{next(_round_numbers)}"
    own_key = f"{prefix}/{jax.process_index()}"
    _kv_set(own_key, value)
    barrier("given")
    receives = to_all or is_rank_zero()
    values = [_kv_get(f"{prefix}/{i}") for i in range(jax.process_count() if receives else 0)]
    barrier("taken")
    _kv_client().key_value_delete(f"{own_key}/")
    return values


def broadcast(value: Any) -> Any:
    """Returns the value of process 0 in all processes; all must call it."""
    if jax.process_count() == 1:
        return value
    key = f"devnet_jax/from_first/{next(_round_numbers)}"
    if is_rank_zero():
        _kv_set(key, value)
    else:
        value = _kv_get(key)
    barrier("taken")
    if is_rank_zero():
        _kv_client().key_value_delete(f"{key}/")
    return value


def _kv_set(key: str, value: Any) -> None:
    content = serialization.msgpack_serialize(value)
    starts = range(0, len(content), _CHUNK_BYTES)
    for i, start in enumerate(starts):
        _kv_client().key_value_set_bytes(f"{key}/{i}", content[start : start + _CHUNK_BYTES])
    _kv_client().key_value_set(f"{key}/chunks", str(len(starts)))


def _kv_get(key: str) -> Any:
    """Waits until another process has set the key, and returns its value."""
    client = _kv_client()
    n_chunks = int(client.blocking_key_value_get(f"{key}/chunks", _NO_TIMEOUT_MS))
    chunks = (
        client.blocking_key_value_get_bytes(f"{key}/{i}", _NO_TIMEOUT_MS) for i in range(n_chunks)
    )
    return serialization.msgpack_restore(b"".join(chunks))


def require_agreement(what: str, value: str) -> None:
    """Raises `UserError` unless the value is the same in all processes; all must call it."""
    digests = gather(hashlib.sha256(value.encode()).hexdigest())
    for index, digest in enumerate(digests):
        if digest != digests[0]:
            raise UserError(
                f"{what} of process {index} and of process 0 differ: give all processes the same "
                "settings, the same data and the same number of devices"
            )


def n_local_processes() -> int:
    """Returns the number of processes of the run on this host; all must call it."""
    hostname = socket.gethostname()
    return gather(hostname).count(hostname)
