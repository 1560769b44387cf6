"""A fake gcloud: a slice is a folder with a home directory for each host, and SSH is bash.

As in the real gcloud, --command is split at spaces and joined again; the status is that of the
first host, by index, whose command has failed, or 255 if its connection is lost.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

CLOUD = Path(os.environ["CLOUD"])  # folder of the state
NODE, REQUEST, FAULTS = CLOUD / "node.json", CLOUD / "request.json", CLOUD / "faults.json"


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the process at once
    words = sys.argv[1:]
    with (CLOUD / "calls.jsonl").open("a") as calls:
        calls.write(json.dumps(words) + "\n")
    assert words[:2] == ["compute", "tpus"]
    group, verb, *rest = words[2:]
    faults = json.loads(FAULTS.read_text()) if FAULTS.exists() else {}
    fault = faults.get(f"{group} {verb}", [])
    if fault:
        status, message = fault.pop(0)
        FAULTS.write_text(json.dumps(faults))
        print(message, file=sys.stderr)
        sys.exit(status)
    flags = dict(word[2:].split("=", 1) for word in rest if word[:2] == "--" and "=" in word)
    assert flags["zone"]
    globals()[f"{group.replace('-', '_')}_{verb}"](rest, flags)


def show(file: Path, kind: str) -> None:
    if not file.exists():
        print(
            f"ERROR: (gcloud.compute.tpus) NOT_FOUND: Resource 'projects/p/{kind}/n' was not found",
            file=sys.stderr,
        )
        sys.exit(1)
    print(file.read_text())


def make_node() -> None:
    hosts = int(os.environ.get("HOSTS", 2))
    endpoints = [{"ipAddress": f"10.0.0.{i}"} for i in range(hosts)]
    NODE.write_text(json.dumps({"name": "n", "state": "READY", "networkEndpoints": endpoints}))
    for i in range(hosts):
        (CLOUD / f"host-{i}").mkdir(exist_ok=True)


def homes() -> list[Path]:
    assert json.loads(NODE.read_text())["state"] == "READY", "the hosts are not reachable"
    return sorted(CLOUD.glob("host-*"))


def tpu_vm_describe(words: list[str], flags: dict[str, str]) -> None:
    assert flags["format"] == "json"
    show(NODE, "nodes")


def tpu_vm_create(words: list[str], flags: dict[str, str]) -> None:
    assert not NODE.exists(), "ALREADY_EXISTS"
    assert flags["accelerator-type"]
    assert flags["version"]
    make_node()


def tpu_vm_delete(words: list[str], flags: dict[str, str]) -> None:
    assert "--quiet" in words
    NODE.unlink()
    for home in CLOUD.glob("host-*"):
        shutil.rmtree(home)


def tpu_vm_ssh(words: list[str], flags: dict[str, str]) -> None:
    assert flags["worker"] == "all"
    remote = " ".join(flags["command"].split(" "))
    processes = [
        subprocess.Popen(
            ["bash", "-c", remote],
            cwd=home,
            env={**os.environ, "HOME": str(home), "HOST_INDEX": home.name[-1]},
            start_new_session=True,  # stands for another computer
        )
        for home in homes()
    ]
    statuses = [process.wait() for process in processes]
    sys.exit(next((255 if status < 0 else status for status in statuses if status), 0))


def tpu_vm_scp(words: list[str], flags: dict[str, str]) -> None:
    source, destination = words[:2]
    if destination.startswith("n:"):
        for home in homes():
            shutil.copy(source, home / destination[2:])
    else:
        folder = homes()[0] / source[2:]
        shutil.copytree(folder, Path(destination) / folder.name, dirs_exist_ok=True)


def queued_resources_describe(words: list[str], flags: dict[str, str]) -> None:
    show(REQUEST, "queuedResources")
    states = json.loads(REQUEST.read_text())["then"]
    if states:  # each query advances the state
        REQUEST.write_text(json.dumps({"state": {"state": states[0]}, "then": states[1:]}))
        if states[0] == "ACTIVE":
            make_node()


def queued_resources_create(words: list[str], flags: dict[str, str]) -> None:
    assert flags["node-id"] == words[0]
    assert flags["accelerator-type"]
    assert flags["runtime-version"]
    assert not REQUEST.exists(), "ALREADY_EXISTS"
    states = os.environ.get("STATES", "PROVISIONING,ACTIVE").split(",")
    REQUEST.write_text(json.dumps({"state": {"state": "WAITING_FOR_RESOURCES"}, "then": states}))


def queued_resources_delete(words: list[str], flags: dict[str, str]) -> None:
    assert "--force" in words
    REQUEST.unlink()
    NODE.unlink(missing_ok=True)


main()
