"""The command line of the launchers, and exit statuses."""

import pytest

from devnet_jax.distributed.exit_status import (
    deciding_index,
    describe,
    from_returncode,
    may_restart,
)
from devnet_jax.errors import UserError
from devnet_jax.launchers.arguments import find_workdir, require_arguments, split_argv
from tests.launchers.programs import NASTY, launch


def test_arguments_after_the_first_dashes_are_those_of_main() -> None:
    assert split_argv(["local.py", "--a=1", "--", *NASTY]) == (["local.py", "--a=1"], list(NASTY))
    assert split_argv(["local.py", "--a=1"]) == (["local.py", "--a=1"], [])


@pytest.mark.parametrize(
    ("arguments", "workdir"),
    [
        (["--config=c", "--workdir=a b", "x"], "a b"),
        (["--workdir", "runs/x", "--mode=eval"], "runs/x"),
        (["-workdir=a", "--workdir=b=c"], "b=c"),
        (["--workdirs=a", "workdir=b"], None),
        (["--workdir"], None),
    ],
)
def test_find_workdir(arguments: list[str], workdir: str | None) -> None:
    assert find_workdir(arguments) == workdir


@pytest.mark.parametrize(
    "argument", ["--process_id=0", "--cluster=slurm", "-coordinator", "--num_processes"]
)
def test_flags_that_the_launcher_sets_are_refused(argument: str) -> None:
    with pytest.raises(UserError, match=f"leave out --{argument.strip('-').split('=')[0]}"):
        require_arguments(["--workdir=x", argument, "1"])
    require_arguments(["--workdir=x", "--input", argument.strip("-")])  # a value, not a flag


@pytest.mark.parametrize(
    ("statuses", "status"),
    [
        ([0, 0], 0),
        ([0, 75, 75], 75),
        ([76, 75], 76),
        ([76, 1, 137], 1),
        ([75, 76, 137, 1], 137),
    ],
)
def test_the_first_cause_decides(statuses: list[int], status: int) -> None:
    assert statuses[deciding_index(statuses)] == status


def test_statuses_that_allow_a_restart() -> None:
    assert [s for s in range(256) if may_restart(s)] == [75, 76, 129, *range(131, 193)]


def test_statuses_in_words() -> None:
    assert describe(from_returncode(-9)) == "was killed by SIGKILL"
    assert describe(from_returncode(3)) == "ended with status 3"
    assert describe(255) == "ended with status 255"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=c", "--workdir=w"], "error: --config=c: an argument of devnet_jax.main; give"),
        (["--", "--workdir=w", "--process_id=1"], "error: --process_id=1: after --, leave out"),
        ([], "error: the arguments of devnet_jax.main are missing; they come after --"),
        (["runs", "--", "--workdir=w"], "error: runs: not a flag"),
        (["--wat=1", "--", "--workdir=w"], "error: Unknown command line flag 'wat'"),
    ],
)
@pytest.mark.parametrize("program", ["local", "slurm", "tpu_pod", "gke"])
def test_a_wrong_command_line_is_refused_in_one_line(
    program: str, arguments: list[str], message: str
) -> None:
    result = launch(program, *arguments)
    assert result.returncode == 1
    assert result.stderr.startswith(message)
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""
