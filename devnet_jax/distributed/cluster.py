"""The processes of one run, on one host or many: joining them, and what they do together.

A process that has joined none is one by itself; every function here then does the obvious thing.
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

# What JAX's processes share besides devices is not in its public interface; Orbax uses it likewise.
from jax._src import distributed
from jax.experimental import multihost_utils

from devnet_jax.distributed.exit_status import ERROR, PEER_LOST
from devnet_jax.distributed.job import PROCESS_COUNT, n_announced_processes
from devnet_jax.distributed.stopping import Stopped, defer_sigterm, stop_on_sigterm
from devnet_jax.distributed.watchdog import PEER_TIMEOUT, STUCK_AFTER, Watchdog
from devnet_jax.errors import UserError

logger = logging.getLogger(__name__)

T = TypeVar("T")

# What Kubernetes tells a pod with TPUs, and Compute Engine does not tell a virtual machine.
_SIGNS_OF_GKE = ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES")

_CHUNK = 1 << 20  # bytes of what is gathered, in one message
_FOREVER_MS = 7 * 24 * 3600 * 1000  # the watch over the peers ends what waits in vain
_JAX_TIMEOUT = 24 * 3600  # ours are shorter, and say more
_LEAVING = 30  # seconds that a process which ends by an error waits for others to end

_rounds = itertools.count()  # of barriers: each has a name of its own
_watchdog: Watchdog | None = None


@dataclasses.dataclass(frozen=True)
class ClusterSettings:
    """How this process finds the others of its run.

    Attributes:
      cluster: "slurm", "open_mpi" or "tpu", whose environment says the rest; `None` if the others
        do.
      coordinator: "host:port" of process 0.
      num_processes: of the run.
      process_id: of this one, from 0.
      peer_timeout: seconds after which a process that is not heard of is gone.
      stuck_after: seconds without progress anywhere after which a process is stuck.
    """

    cluster: str | None = None
    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    peer_timeout: float = PEER_TIMEOUT
    stuck_after: float = STUCK_AFTER

    def __post_init__(self) -> None:
        """Raises `UserError` where the attributes contradict one another."""
        given = [self.coordinator, self.num_processes, self.process_id]
        if self.cluster is not None:
            if any(value is not None for value in given):
                raise UserError(
                    f"--cluster={self.cluster} says the coordinator, the number of processes and "
                    "the index of this one; leave out --coordinator, --num_processes and "
                    "--process_id"
                )
            return
        if all(value is None for value in given):
            return
        if any(value is None for value in given):
            raise UserError("--coordinator, --num_processes and --process_id go together")
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
    def is_alone(self) -> bool:
        return self.cluster is None and self.num_processes in (None, 1)

    @property
    def method(self) -> str:
        """JAX's name of the way to find the others."""
        if self.cluster == "tpu":
            return "gketpu" if any(sign in os.environ for sign in _SIGNS_OF_GKE) else "gcetpu"
        names = {None: "deactivate", "slurm": "slurm", "open_mpi": "ompi"}
        return names[self.cluster]


@contextlib.contextmanager
def join_cluster(settings: ClusterSettings) -> Iterator[None]:
    """Joins the processes of the run for as long as it lasts; before anything else of JAX.

    Leaving it waits for the others. One that leaves it by an exception tells them why, and they
    end, too.

    Raises:
      UserError: they cannot be found.
    """
    global _watchdog
    if settings.is_alone:
        _warn_if_one_of_several()
        yield
        return
    _initialise(settings)
    if jax.process_count() == 1:
        stop_on_sigterm()  # which JAX has taken over
    _watchdog = Watchdog(
        _kv_client(),
        str(distributed.global_state.coordinator_address),
        jax.process_index(),
        jax.process_count(),
        settings.peer_timeout,
        settings.stuck_after,
    )
    if not is_rank_zero():  # what all say the first one says
        logging.getLogger("devnet_jax").setLevel(logging.WARNING)
    else:
        logger.info("%d processes, %d devices", jax.process_count(), jax.device_count())
    try:
        try:
            require_agreement("the number of devices", str(jax.local_device_count()))
            yield
        except jax.errors.JaxRuntimeError:
            # Most likely what the collectives of XLA say when another process is gone.
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
        # Not left to Python's own end: JAX waits there for the others, and aborts as they end.
        traceback.print_exc()
        _watchdog.announce_end(str(error).strip().partition("\n")[0] or type(error).__name__)
        os._exit(ERROR)
    jax.distributed.shutdown()
    _watchdog = None


def _initialise(settings: ClusterSettings) -> None:
    try:
        jax.distributed.initialize(
            coordinator_address=settings.coordinator,
            num_processes=settings.num_processes,
            process_id=settings.process_id,
            cluster_detection_method=settings.method,
            heartbeat_timeout_seconds=_JAX_TIMEOUT,
            shutdown_timeout_seconds=_LEAVING,
        )
        jax.process_index()  # the devices of all are made known to all
    except (ValueError, KeyError) as error:  # not that cluster's environment
        raise UserError(
            f"--cluster={settings.cluster}: the other processes cannot be found ({error}); is "
            "this one started by that cluster?"
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
    """Whether this is the process that writes logs, tables and reports for all."""
    return jax.process_index() == 0


def report_progress() -> None:
    """Tells the others that this process has got on with its work."""
    if _watchdog is not None:
        _watchdog.report_progress()


@contextlib.contextmanager
def stop_agreement() -> Iterator[Callable[[int], bool]]:
    """Gives what tells, after a step, whether the run has been told to stop there.

    All processes ask at the same steps and are told the same, whichever of them got the signal.
    """
    if jax.process_count() > 1:  # JAX listens to SIGTERM then, and to clouds' own notices
        # It agrees on one of these numbers, which must follow one another.
        questions = itertools.count(1)
        yield lambda step: multihost_utils.reached_preemption_sync_point(next(questions))
        return
    with defer_sigterm() as is_noticed:
        yield lambda step: is_noticed()


def local_share(items: Sequence[T]) -> Sequence[T]:
    """This process's part of what all of them have to do: a block of neighbours.

    In the order of the processes the shares make up the whole.
    """
    n, index = jax.process_count(), jax.process_index()
    return items[len(items) * index // n : len(items) * (index + 1) // n]


def _kv_client() -> Any:
    """JAX's connection to what the processes share."""
    return distributed.global_state.client


def barrier(name: str) -> None:
    """Waits until all processes have come to this point."""
    if jax.process_count() > 1:
        _kv_client().wait_at_barrier(f"{name}, {next(_rounds)}", _FOREVER_MS)


@contextlib.contextmanager
def locked_by_rank_zero(lock: contextlib.AbstractContextManager[None]) -> Iterator[None]:
    """A lock that the first process holds until all have come to the end."""
    with lock if is_rank_zero() else contextlib.nullcontext():
        yield
        barrier("before the lock goes")


def gather(value: Any, *, to_all: bool = True) -> list[Any]:
    """What each process gives, in their order; all must call it.

    Args:
      value: a tree of dictionaries, lists, arrays, numbers, texts and bytes.
      to_all: whether every process is given it; else only the first, the others nothing.
    """
    if jax.process_count() == 1:
        return [value]
    place = f"devnet_jax/gather/{next(_rounds)}"
    own = f"{place}/{jax.process_index()}"
    _kv_set(own, value)
    barrier("given")
    takes = to_all or is_rank_zero()
    values = [_kv_get(f"{place}/{i}") for i in range(jax.process_count() if takes else 0)]
    barrier("taken")
    _kv_client().key_value_delete(f"{own}/")
    return values


def broadcast(value: Any) -> Any:
    """What the first process gives, in all of them; all must call it."""
    if jax.process_count() == 1:
        return value
    place = f"devnet_jax/from_first/{next(_rounds)}"
    if is_rank_zero():
        _kv_set(place, value)
    else:
        value = _kv_get(place)
    barrier("taken")
    if is_rank_zero():
        _kv_client().key_value_delete(f"{place}/")
    return value


def _kv_set(place: str, value: Any) -> None:
    content = serialization.msgpack_serialize(value)
    starts = range(0, len(content), _CHUNK)
    for i, start in enumerate(starts):
        _kv_client().key_value_set_bytes(f"{place}/{i}", content[start : start + _CHUNK])
    _kv_client().key_value_set(f"{place}/chunks", str(len(starts)))


def _kv_get(place: str) -> Any:
    """What another process puts there; waits for it."""
    n_chunks = int(_kv_client().blocking_key_value_get(f"{place}/chunks", _FOREVER_MS))
    chunks = (
        _kv_client().blocking_key_value_get_bytes(f"{place}/{i}", _FOREVER_MS)
        for i in range(n_chunks)
    )
    return serialization.msgpack_restore(b"".join(chunks))


def require_agreement(what: str, value: str) -> None:
    """Waits for the others, and raises `UserError` unless all have the same value."""
    digests = gather(hashlib.sha256(value.encode()).hexdigest())
    for index, digest in enumerate(digests):
        if digest != digests[0]:
            raise UserError(
                f"{what} of process {index} and of process 0 differ: give all processes the same "
                "settings, the same data and as many devices"
            )


def n_local_processes() -> int:
    """How many processes of the run are on this host, and share its memory."""
    here = socket.gethostname()
    return gather(here).count(here)
