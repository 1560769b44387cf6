"""The processes of one run, on one host or many: joining them, and what they do together.

A process that has joined none is one by itself; every function here then does the obvious thing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
from flax import serialization

# What JAX's processes share besides devices is not in its public interface; Orbax uses it likewise.
from jax._src import distributed
from jax.experimental import multihost_utils

from devnet_jax.errors import UserError
from devnet_jax.peers import Peers
from devnet_jax.stopping import Stopped, stop_notice

logger = logging.getLogger(__name__)

T = TypeVar("T")

# JAX's name for each way to find the others in a cluster's environment.
CLUSTERS: Mapping[str, Sequence[str]] = {
    "slurm": ("slurm",),
    "open_mpi": ("ompi",),
    "k8s": ("k8s",),
    "tpu": ("gcetpu", "gketpu"),
}
# How a cluster tells a process that it is one of several.
_SIGNS = {"slurm": "SLURM_STEP_NUM_TASKS", "open_mpi": "OMPI_COMM_WORLD_SIZE"}

_CHUNK = 1 << 20  # bytes of what is gathered, in one message
_FOREVER_MS = 7 * 24 * 3600 * 1000  # the watch over the peers ends what waits in vain
_JAX_TIMEOUT = 24 * 3600  # ours are shorter, and say more

_rounds = itertools.count()  # of barriers: each has a name of its own
_peers: Peers | None = None


@dataclasses.dataclass(frozen=True)
class Membership:
    """How this process finds the others of its run.

    Attributes:
      cluster: a key of `CLUSTERS`, whose environment says the rest; `None` if the others do.
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
    peer_timeout: float = 30.0
    stuck_after: float = 1800.0

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
        return self.cluster is None and self.coordinator is None


@contextlib.contextmanager
def joined(membership: Membership) -> Iterator[None]:
    """Joins the processes of the run for as long as it lasts; before anything else of JAX.

    Leaving it waits for the others. One that leaves it by an exception tells them why, and they
    end, too.

    Raises:
      UserError: they cannot be found.
    """
    global _peers
    if membership.is_alone:
        _say_if_others_are_near()
        yield
        return
    _initialise(membership)
    _peers = Peers(
        _store(),
        str(distributed.global_state.coordinator_address),
        jax.process_index(),
        jax.process_count(),
        membership.peer_timeout,
        membership.stuck_after,
    )
    if not is_first():  # what all say the first one says
        logging.getLogger("devnet_jax").setLevel(logging.WARNING)
    else:
        logger.info("%d processes, %d devices", jax.process_count(), jax.device_count())
    try:
        try:
            yield
        except jax.errors.JaxRuntimeError:
            # Most likely what the collectives of XLA say when another process is gone.
            _peers.wait_for_verdict()
            raise
        barrier("the end")
        _peers.end()
    except Stopped:
        barrier("the end")
        _peers.end()
        raise
    except BaseException as error:
        _peers.announce(str(error).strip().partition("\n")[0] or type(error).__name__)
        raise
    else:
        jax.distributed.shutdown()
    finally:
        _peers = None


def _initialise(membership: Membership) -> None:
    names = CLUSTERS[membership.cluster] if membership.cluster else ("deactivate",)
    failure = ""
    for name in names:
        try:
            jax.distributed.initialize(
                coordinator_address=membership.coordinator,
                num_processes=membership.num_processes,
                process_id=membership.process_id,
                cluster_detection_method=name,
                heartbeat_timeout_seconds=_JAX_TIMEOUT,
            )
            return
        except (ValueError, KeyError) as error:  # not that cluster's environment
            failure = str(error)
        except RuntimeError as error:
            failure = str(error).strip().partition("\n")[0]
            break
    if membership.cluster:
        raise UserError(
            f"--cluster={membership.cluster}: the other processes cannot be found ({failure}); is "
            "this one started by that cluster?"
        )
    raise UserError(
        f"--coordinator={membership.coordinator}: the other processes cannot be joined ({failure})"
    )


def _say_if_others_are_near() -> None:
    for name, sign in _SIGNS.items():
        count = os.environ.get(sign, "1")
        if count != "1":
            logger.warning(
                "this is one of %s processes (%s), and works by itself; --cluster=%s lets them "
                "work together",
                count,
                sign,
                name,
            )


def is_first() -> bool:
    """Whether this is the process that writes logs, tables and reports for all."""
    return jax.process_index() == 0


def beat() -> None:
    """Tells the others that this process has got on with its work."""
    if _peers is not None:
        _peers.beat()


@contextlib.contextmanager
def stopping() -> Iterator[Callable[[int], bool]]:
    """Gives what tells, after a step, whether the run has been told to stop there.

    All processes ask at the same steps and are told the same, whichever of them got the signal.
    """
    if jax.process_count() > 1:  # JAX listens to SIGTERM then, and to clouds' own notices
        yield multihost_utils.reached_preemption_sync_point
        return
    with stop_notice() as is_noticed:
        yield lambda step: is_noticed()


def share(items: Sequence[T]) -> Sequence[T]:
    """This process's part of what all of them have to do: a block of neighbours.

    In the order of the processes the shares make up the whole.
    """
    n, index = jax.process_count(), jax.process_index()
    return items[len(items) * index // n : len(items) * (index + 1) // n]


def _store() -> Any:
    """JAX's connection to what the processes share."""
    return distributed.global_state.client


def barrier(name: str) -> None:
    """Waits until all processes have come to this point."""
    if jax.process_count() > 1:
        _store().wait_at_barrier(f"{name}, {next(_rounds)}", _FOREVER_MS)


def gather(value: Any, *, to_all: bool = True) -> list[Any]:
    """What each process gives, in their order; all must call it.

    Args:
      value: a tree of dictionaries, lists, arrays, numbers, texts and bytes.
      to_all: whether every process is given it; else only the first, the others nothing.
    """
    if jax.process_count() == 1:
        return [value]
    client = _store()
    place = f"devnet_jax/gather/{next(_rounds)}"
    content = serialization.msgpack_serialize(value)
    starts = range(0, len(content), _CHUNK)
    own = f"{place}/{jax.process_index()}"
    for i, start in enumerate(starts):
        client.key_value_set_bytes(f"{own}/{i}", content[start : start + _CHUNK])
    client.key_value_set(f"{own}/chunks", str(len(starts)))
    barrier("given")
    values = []
    for process in range(jax.process_count() if to_all or is_first() else 0):
        theirs = f"{place}/{process}"
        n_chunks = int(client.blocking_key_value_get(f"{theirs}/chunks", _FOREVER_MS))
        chunks = [
            client.blocking_key_value_get_bytes(f"{theirs}/{i}", _FOREVER_MS)
            for i in range(n_chunks)
        ]
        values.append(serialization.msgpack_restore(b"".join(chunks)))
    barrier("taken")
    client.key_value_delete(f"{own}/")
    return values


def require_agreement(what: str, value: str) -> None:
    """Waits for the others, and raises `UserError` unless all have the same value."""
    values = gather(value)
    for index, other in enumerate(values):
        if other != values[0]:
            raise UserError(
                f"{what} of process {index} and of process 0 differ: give all processes the same "
                "settings, the same data and the same workdir"
            )
