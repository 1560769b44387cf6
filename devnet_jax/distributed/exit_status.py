"""Exit statuses of the processes of a run, and decisions made from them."""

from __future__ import annotations

import signal
from collections.abc import Sequence

DONE = 0
ERROR = 1  # the same command would fail again
RESUME = 75  # stopped on request, and saved: the same command resumes (EX_TEMPFAIL of sysexits.h)
PEER_LOST = 76  # another process of the run is gone or stuck: start all processes again
INTERRUPTED = 130  # Ctrl-C, as in shells
SIGNALLED = 128  # plus the signal's number: status of a process that a signal has killed
_LAST_SIGNAL = 64


def from_returncode(returncode: int) -> int:
    """Returns a shell's exit status for a return code of `subprocess`."""
    return SIGNALLED - returncode if returncode < 0 else returncode


def describe(status: int) -> str:
    """Returns a status in words: "ended with status 1", "was killed by SIGKILL"."""
    if status <= SIGNALLED:
        return f"ended with status {status}"
    try:
        return f"was killed by {signal.Signals(status - SIGNALLED).name}"
    except ValueError:
        return f"ended with status {status}"


def deciding_index(statuses: Sequence[int]) -> int:
    """Returns the index of the status that explains the end of a run.

    This is the first failure that is neither `RESUME` nor `PEER_LOST`: with these two, processes
    end after another has failed.

    Args:
      statuses: one or more, in the order in which the processes ended.
    """
    failed = [i for i, status in enumerate(statuses) if status != DONE]
    causes = [i for i in failed if statuses[i] not in (RESUME, PEER_LOST)]
    return (causes or failed or [0])[0]


def may_restart(status: int) -> bool:
    """Returns True if the same command would resume; False after an error or Ctrl-C."""
    if status == INTERRUPTED:
        return False
    return status in (RESUME, PEER_LOST) or SIGNALLED < status <= SIGNALLED + _LAST_SIGNAL
