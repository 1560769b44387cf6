"""Exit statuses of the processes of a run, and what follows from them."""

from __future__ import annotations

import signal
from collections.abc import Sequence

DONE = 0
ERROR = 1  # a mistake to mend: starting again would meet it again
RESUME = 75  # told to stop, and saved: the same command goes on (EX_TEMPFAIL of sysexits.h)
PEER_LOST = 76  # another process of the run is gone or stuck: start all again, they go on
INTERRUPTED = 130  # Ctrl-C, as shells have it
SIGNALLED = 128  # and the signal's number: the status of a process that a signal has killed
_LAST_SIGNAL = 64


def from_returncode(returncode: int) -> int:
    """A status as shells have it, of a return code of `subprocess`."""
    return SIGNALLED - returncode if returncode < 0 else returncode


def describe(status: int) -> str:
    """A status in words: "ended with status 1", "was killed by SIGKILL"."""
    if status <= SIGNALLED:
        return f"ended with status {status}"
    try:
        return f"was killed by {signal.Signals(status - SIGNALLED).name}"
    except ValueError:
        return f"ended with status {status}"


def deciding_index(statuses: Sequence[int]) -> int:
    """The index of the status that says why a run has ended.

    Processes that were stopped, or have lost another, end in the wake of one that says more.

    Args:
      statuses: one or more, in the order in which the processes ended.
    """
    failed = [i for i, status in enumerate(statuses) if status != DONE]
    causes = [i for i in failed if statuses[i] not in (RESUME, PEER_LOST)]
    return (causes or failed or [0])[0]


def may_restart(status: int) -> bool:
    """Whether the same command would go on; after an error it would meet the error again."""
    if status == INTERRUPTED:
        return False
    return status in (RESUME, PEER_LOST) or SIGNALLED < status <= SIGNALLED + _LAST_SIGNAL
