"""gcloud commands that create, use and delete a Cloud TPU slice."""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from devnet_jax.distributed.exit_status import PEER_LOST
from devnet_jax.errors import UserError
from devnet_jax.launchers.arguments import is_bucket, main_command

FOLDER = "devnet_jax"  # folder of the code, in the home directory of each host
ARCHIVE = "devnet_jax.tar.gz"  # archive of the code, in the home directory
PYTHON = ".venv/bin/python"  # in FOLDER
CONTENT = ("pyproject.toml", "README.md", "devnet_jax", "configs")  # files to archive

# The Python of the TPU images is too old for JAX; uv installs its own.
INSTALL = (
    "PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv"
    " && python3 -m uv venv --quiet --allow-existing --python=3.12 .venv"
    f" && python3 -m uv pip install --quiet --python={PYTHON} '.[tpu]'"
)

OLD_PROCESS_SECONDS = 120  # limit of the wait for a process that a lost connection has left

_LARGEST_HOST = 8  # largest number at the end of an accelerator type that may be one host


@dataclasses.dataclass(frozen=True)
class TpuSlice:
    """A Cloud TPU slice; its methods return gcloud commands.

    Attributes:
      name: name of the slice, and of its queued request.
      zone: zone of the slice.
      project: project of the slice; gcloud's default if `None`.
      accelerator_type: type and size, such as v5litepod-16.
      version: software version of the hosts, such as v2-alpha-tpuv5-lite.
      spot: True for a spot slice, which is cheaper and may be preempted at any time.
      queued: True to create the slice by a queued request, which waits for capacity.
      create_flags: additional flags for the creation.
      connect_flags: additional flags for ssh and scp.
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
        """True if the size of the accelerator type may fit on one host."""
        size = re.search(r"-(\d+)$", self.accelerator_type)
        return size is None or int(size[1]) <= _LARGEST_HOST

    def describe(self) -> list[str]:
        return self._gcloud("tpu-vm", "describe", "--format=json")

    def describe_request(self) -> list[str]:
        return self._gcloud("queued-resources", "describe", "--format=json")

    def create(self) -> list[str]:
        """Creates the slice, or its queued request."""
        spot = ["--spot"] if self.spot else []
        kind = f"--accelerator-type={self.accelerator_type}"
        if self.queued:
            words = [f"--node-id={self.name}", kind, f"--runtime-version={self.version}"]
            return self._gcloud("queued-resources", "create", *words, *spot, *self.create_flags)
        words = [kind, f"--version={self.version}"]
        return self._gcloud("tpu-vm", "create", *words, *spot, *self.create_flags)

    def delete(self) -> list[str]:
        """Deletes the slice and its queued request."""
        if self.queued:
            return self._gcloud("queued-resources", "delete", "--force")
        return self._gcloud("tpu-vm", "delete")

    def on_all_hosts(self, script: str) -> list[str]:
        """Runs a shell script on every host; its status is that of the first host to fail."""
        return self._gcloud(
            "tpu-vm", "ssh", "--worker=all", f"--command={script}", *self.connect_flags
        )

    def copy_to_all_hosts(self, archive_file: str) -> list[str]:
        """Copies the archive of the code to the home directory of every host."""
        return self._scp(archive_file, f"{self.name}:{ARCHIVE}", "--worker=all")

    def fetch(self, workdir: str) -> list[str]:
        """Copies a workdir of host 0 to the same relative path here; its parent must exist."""
        source = f"{self.name}:{FOLDER}/{workdir}"
        return self._scp(source, str(Path(workdir).parent), "--recurse", "--worker=0")

    def _gcloud(self, group: str, verb: str, *words: str) -> list[str]:
        return [
            "gcloud",
            "compute",
            "tpus",
            group,
            verb,
            self.name,
            *self._location_flags(),
            *words,
        ]

    def _scp(self, source: str, destination: str, *words: str) -> list[str]:
        command = ["gcloud", "compute", "tpus", "tpu-vm", "scp", source, destination]
        return [*command, *self._location_flags(), *words, *self.connect_flags]

    def _location_flags(self) -> list[str]:
        project = [f"--project={self.project}"] if self.project else []
        return [f"--zone={self.zone}", *project, "--quiet"]


def archive_command(repository: str, file: str) -> list[str]:
    """Returns the command that archives the code."""
    options = ["--create", "--gzip", f"--file={file}", "--exclude=__pycache__"]
    return ["tar", *options, f"--directory={repository}", *CONTENT]


def install_script(install: str, setup: Sequence[str]) -> str:
    """Returns the shell script that unpacks and installs the code on a host."""
    lines = [
        f"mkdir -p {FOLDER} || exit",
        f"tar --extract --gzip --file={ARCHIVE} --directory={FOLDER} || exit",
        f"cd {FOLDER} || exit",
        *(f"{{ {line}\n}} || exit" for line in (install, *setup)),
    ]
    return "\n".join(lines)


def run_script(arguments: Sequence[str]) -> str:
    """Returns the shell script that runs one process of the run on a host.

    After a lost connection gcloud runs the script again; the lock makes it wait for the earlier
    process. `parse_status` reads the last line of its output.
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


def stop_script() -> str:
    """Returns the shell script that tells the process on a host to save and end."""
    return f'kill -TERM "$(cat {FOLDER}/.pid)"'


def parse_status(line: str) -> int | None:
    """Returns the status in the last line that `run_script` prints; `None` for other lines.

    The line may begin with output of another host.
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
    """Returns a shell script with all commands of a run that succeeds."""
    lines = [
        "# Does the slice exist?",
        shlex.join(tpu.describe()),
        "# If not:",
        shlex.join(tpu.create()),
        *(
            ["# Repeat until it is ACTIVE:", shlex.join(tpu.describe_request())]
            if tpu.queued
            else []
        ),
        "# Install the code:",
        shlex.join(archive_command(repository, archive_file)),
        shlex.join(tpu.copy_to_all_hosts(archive_file)),
        shlex.join(tpu.on_all_hosts(install_script(install, setup))),
        "# Run:",
        shlex.join(tpu.on_all_hosts(run_script(arguments))),
    ]
    if not is_bucket(workdir):
        parent = shlex.join(["mkdir", "-p", str(Path(workdir).parent)])
        lines += ["# Fetch the workdir:", parent, shlex.join(tpu.fetch(workdir))]
    lines += ["# Delete the slice when it is no longer needed:", shlex.join(tpu.delete())]
    return "\n".join(lines) + "\n"


def require_workdir(workdir: str | None, tpu: TpuSlice) -> str:
    """Returns the workdir; raises `UserError` unless all hosts share it or it can be fetched."""
    if not workdir:
        raise UserError("--workdir is missing after --: folder of the run")
    if is_bucket(workdir):
        return workdir
    if not tpu.may_be_one_host:
        raise UserError(
            f"--workdir={workdir}: the hosts of {tpu.accelerator_type} share no disk; give a "
            "folder in a bucket, gs://…"
        )
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)*/?", workdir) or ".." in workdir.split("/"):
        raise UserError(
            f"--workdir={workdir}: it is fetched to the same path here; give a relative path of "
            "letters, digits, dots, dashes and underscores, or a folder in a bucket, gs://…"
        )
    return workdir
