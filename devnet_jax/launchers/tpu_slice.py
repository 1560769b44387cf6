"""A slice of Cloud TPUs: the commands of gcloud that make, use and delete it."""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from devnet_jax.distributed.exit_status import PEER_LOST
from devnet_jax.errors import UserError
from devnet_jax.launchers.arguments import is_bucket, main_command

FOLDER = "devnet_jax"  # of the code, in the home on each host
ARCHIVE = "devnet_jax.tar.gz"  # of the code, there
PYTHON = ".venv/bin/python"  # there
CONTENT = ("pyproject.toml", "README.md", "devnet_jax", "configs")  # what the hosts need of it

# The images of TPU hosts come with an older Python than JAX needs: uv brings its own.
INSTALL = (
    "PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv"
    " && python3 -m uv venv --quiet --allow-existing --python=3.12 .venv"
    f" && python3 -m uv pip install --quiet --python={PYTHON} '.[tpu]'"
)

OLD_PROCESS_SECONDS = 120  # that a process has to end which an earlier connection has left behind

_LARGEST_HOST = 8  # the number at the end of the type of a slice that may be one host


@dataclasses.dataclass(frozen=True)
class TpuSlice:
    """A slice, by the words that gcloud knows it by.

    Attributes:
      name: of the slice, and of its request where it is queued.
      zone: where it is.
      project: gcloud's own if None.
      accelerator_type: kind and size, such as v5litepod-16.
      version: of the software on the hosts, such as v2-alpha-tpuv5-lite.
      spot: whether it is cheaper, and may be taken away at any time.
      queued: whether its creation waits until there is room.
      create_flags: further flags of its creation.
      connect_flags: further flags of ssh and scp.
    """

    name: str
    zone: str
    project: str | None
    accelerator_type: str
    version: str
    spot: bool = False
    queued: bool = False
    create_flags: Sequence[str] = ()
    connect_flags: Sequence[str] = ()

    @property
    def may_be_one_host(self) -> bool:
        """Whether the accelerator type, by its size, may be one host."""
        size = re.search(r"-(\d+)$", self.accelerator_type)
        return size is None or int(size[1]) <= _LARGEST_HOST

    def describe(self) -> list[str]:
        return self._gcloud("tpu-vm", "describe", "--format=json")

    def describe_request(self) -> list[str]:
        return self._gcloud("queued-resources", "describe", "--format=json")

    def create(self) -> list[str]:
        """Creates it, or, where it is queued, its request."""
        spot = ["--spot"] if self.spot else []
        kind = f"--accelerator-type={self.accelerator_type}"
        if self.queued:
            words = [f"--node-id={self.name}", kind, f"--runtime-version={self.version}"]
            return self._gcloud("queued-resources", "create", *words, *spot, *self.create_flags)
        words = [kind, f"--version={self.version}"]
        return self._gcloud("tpu-vm", "create", *words, *spot, *self.create_flags)

    def delete(self) -> list[str]:
        """Deletes it, and its request with it."""
        if self.queued:
            return self._gcloud("queued-resources", "delete", "--force")
        return self._gcloud("tpu-vm", "delete")

    def on_all_hosts(self, shell: str) -> list[str]:
        """Runs a text of shell on every host; its status is that of the first host to fail."""
        return self._gcloud(
            "tpu-vm", "ssh", "--worker=all", f"--command={shell}", *self.connect_flags
        )

    def copy_to_all_hosts(self, archive_file: str) -> list[str]:
        """Copies the packed code of this host into the home on every host."""
        return self._scp(archive_file, f"{self.name}:{ARCHIVE}", "--worker=all")

    def fetch(self, workdir: str) -> list[str]:
        """Copies a workdir of the first host to the same place here; its parent must be there."""
        source = f"{self.name}:{FOLDER}/{workdir}"
        return self._scp(source, str(Path(workdir).parent), "--recurse", "--worker=0")

    def _gcloud(self, group: str, verb: str, *words: str) -> list[str]:
        return ["gcloud", "compute", "tpus", group, verb, self.name, *self._place(), *words]

    def _scp(self, source: str, destination: str, *words: str) -> list[str]:
        command = ["gcloud", "compute", "tpus", "tpu-vm", "scp", source, destination]
        return [*command, *self._place(), *words, *self.connect_flags]

    def _place(self) -> list[str]:
        project = [f"--project={self.project}"] if self.project else []
        return [f"--zone={self.zone}", *project, "--quiet"]


def archive(repository: str, file: str) -> list[str]:
    """The command that packs what the hosts need of the code."""
    options = ["--create", "--gzip", f"--file={file}", "--exclude=__pycache__"]
    return ["tar", *options, f"--directory={repository}", *CONTENT]


def install_shell(install: str, setup: Sequence[str]) -> str:
    """What is run on each host before the run: it unpacks the code and installs it."""
    lines = [
        f"mkdir -p {FOLDER} || exit",
        f"tar --extract --gzip --file={ARCHIVE} --directory={FOLDER} || exit",
        f"cd {FOLDER} || exit",
        *(f"{{ {line}\n}} || exit" for line in (install, *setup)),
    ]
    return "\n".join(lines)


def run_shell(arguments: Sequence[str]) -> str:
    """What is run on each host: one process of the run.

    gcloud runs it once more where it has lost the connection: the lock lets the earlier process
    end first. The last line that it prints is for `status_on_host`.
    """
    command = main_command(PYTHON, ["--cluster=tpu"], arguments)
    return f"""\
cd {FOLDER} || exit 1
exec 9>.lock
flock --wait {OLD_PROCESS_SECONDS} --conflict-exit-code {PEER_LOST} 9 || exit
{shlex.join(command)} &
echo $! >.pid
wait $!
status=$?
rm -f .pid
echo "devnet_jax on $(hostname) ended with status $status"
exit $status"""


def stop_shell() -> str:
    """What tells the process on each host to save and end."""
    return f'kill -TERM "$(cat {FOLDER}/.pid)"'


def status_on_host(line: str) -> int | None:
    """The status that a line of `run_shell` tells, if it is that line.

    What another host was writing may come before it.
    """
    match = re.search(r"devnet_jax on \S* ended with status (\d+)$", line.rstrip("\r\n"))
    return int(match[1]) if match else None


def to_shell(
    tpu: TpuSlice,
    arguments: Sequence[str],
    workdir: str,
    archive_file: str,
    repository: str,
    install: str,
    setup: Sequence[str],
) -> str:
    """All commands, in the order in which they are run if nothing goes wrong."""
    lines = [
        "# Is the slice there?",
        shlex.join(tpu.describe()),
        "# If not:",
        shlex.join(tpu.create()),
        *(["# Until it is ACTIVE:", shlex.join(tpu.describe_request())] if tpu.queued else []),
        "# The code:",
        shlex.join(archive(repository, archive_file)),
        shlex.join(tpu.copy_to_all_hosts(archive_file)),
        shlex.join(tpu.on_all_hosts(install_shell(install, setup))),
        "# The run:",
        shlex.join(tpu.on_all_hosts(run_shell(arguments))),
    ]
    if not is_bucket(workdir):
        parent = shlex.join(["mkdir", "-p", str(Path(workdir).parent)])
        lines += ["# What it has left:", parent, shlex.join(tpu.fetch(workdir))]
    lines += ["# If it is to be deleted:", shlex.join(tpu.delete())]
    return "\n".join(lines) + "\n"


def require_workdir(workdir: str | None, tpu: TpuSlice) -> str:
    """The workdir; raises `UserError` where the hosts could not share it, or it not be fetched."""
    if not workdir:
        raise UserError("--workdir is missing after --: the folder that the run writes to")
    if is_bucket(workdir):
        return workdir
    if not tpu.may_be_one_host:
        raise UserError(
            f"--workdir={workdir}: the hosts of {tpu.accelerator_type} share no disk; give a "
            "folder in a bucket, gs://…"
        )
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)*/?", workdir) or ".." in workdir.split("/"):
        raise UserError(
            f"--workdir={workdir}: it is fetched to the same place here; give a relative path of "
            "letters, digits, dots, dashes and underscores, or a folder in a bucket, gs://…"
        )
    return workdir
