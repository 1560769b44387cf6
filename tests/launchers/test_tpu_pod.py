"""launch/tpu_pod.py with a fake gcloud, whose hosts are folders of this computer."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from devnet_jax.launchers.tpu_slice import INSTALL, TpuSlice, parse_status, to_shell
from tests.conftest import REPOSITORY
from tests.launchers.programs import (
    DUMP,
    NASTY,
    default_signals,
    fake_python,
    launch,
    make_program,
    require_golden,
)

FLAGS = (
    "--name=n",
    "--zone=europe-west4-b",
    "--accelerator_type=v5litepod-16",
    "--version=v2-alpha-tpuv5-lite",
    "--poll_seconds=0.1",
)
SMALL = ("--accelerator_type=v5litepod-8",)  # one host
BUCKET = "--workdir=gs://bucket/run"
# Start of the behaviour on a host: sets the rank, and the number of starts on this host.
HOST = (
    "index = int(os.environ['HOST_INDEX'])\n"
    "count = Path(os.environ['CLOUD'], f'starts-{index}')\n"
    "with count.open('a') as file: file.write('x')\n"
    "starts = len(count.read_text())\n"
)


class Cloud:
    """The fake cloud: runs the launcher, sets the state of the slice, reads the calls of gcloud."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        program = Path(__file__).with_name("fake_gcloud.py").read_text()
        make_program(folder / "bin" / "gcloud", f"#!{sys.executable}\n{program}")
        self.python = fake_python(folder)
        self.work = folder / "work"
        self.work.mkdir()

    def environment(self, behaviour: str, **more: str) -> dict[str, str]:
        return {
            **os.environ,
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "CLOUD": str(self.folder),
            "BEHAVIOUR": f"{HOST}{behaviour}",
            "PYTHONPATH": str(REPOSITORY),
            **more,
        }

    def command(self, *flags: str) -> list[str]:
        install = f"mkdir -p .venv/bin && cp {self.python} .venv/bin/python"
        program = str(REPOSITORY / "launch/tpu_pod.py")
        return [sys.executable, program, *FLAGS, f"--install={install}", *flags]

    def run(
        self, behaviour: str, *flags: str, workdir: str = BUCKET, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*flags, "--", workdir),
            cwd=self.work,
            env=self.environment(behaviour, **environment),
            capture_output=True,
            text=True,
            timeout=60,
        )

    def calls(self) -> list[str]:
        """Returns the calls of gcloud in order, without describe."""
        lines = (self.folder / "calls.jsonl").read_text().splitlines()
        words = [json.loads(line) for line in lines]
        return [" ".join(word[2:4]) for word in words if word[3] != "describe"]

    def set_node(self, state: str, hosts: int = 2) -> None:
        node = {"state": state, "networkEndpoints": [{"ipAddress": "10.0.0.1"}] * hosts}
        (self.folder / "node.json").write_text(json.dumps(node))
        for i in range(hosts):
            (self.folder / f"host-{i}").mkdir()

    def set_faults(self, **faults: list[tuple[int, str]]) -> None:
        named = {name.replace("__", " ").replace("_", "-"): fault for name, fault in faults.items()}
        (self.folder / "faults.json").write_text(json.dumps(named))

    @property
    def has_node(self) -> bool:
        return (self.folder / "node.json").exists()


@pytest.fixture
def cloud(tmp_path: Path) -> Cloud:
    return Cloud(tmp_path)


RUN = ["tpu-vm scp", "tpu-vm ssh", "tpu-vm ssh"]  # copy, install, run
REMINDER = (
    "the slice n costs money until you run: gcloud compute tpus tpu-vm delete n "
    "--zone=europe-west4-b --quiet"
)


def test_the_printed_commands_are_those_of_the_golden_files() -> None:
    tpu = TpuSlice("carpet", "europe-west4-b", "vision", "v5litepod-16", "v2-alpha", spot=True)
    paths = ("/tmp/devnet_jax.tar.gz", "/home/me/devnet_jax")
    setup = ["gcloud storage cp --recursive gs://bucket/data ."]
    text = to_shell(tpu, list(NASTY), "gs://bucket/run", *paths, INSTALL, setup)
    require_golden("tpu_pod.sh", text)
    queued = TpuSlice("carpet", "europe-west4-b", None, "v6e-4", "v2-alpha", queued=True)
    text = to_shell(queued, ["--workdir=runs/carpet"], "runs/carpet", *paths, INSTALL, [])
    require_golden("tpu_pod_queued.sh", text)


def test_a_slice_is_created_and_all_hosts_run(cloud: Cloud) -> None:
    work = rf"{DUMP}; sys.stderr.write(f'on {{index}}\n')"
    ran = cloud.run(work, "--spot", "--setup=touch data", "--create=--network=mine")
    assert ran.returncode == 0, ran.stderr
    assert cloud.calls() == ["tpu-vm create", *RUN]
    calls = (cloud.folder / "calls.jsonl").read_text()
    assert '"--spot", "--network=mine"' in calls
    printed = [json.loads(line) for line in ran.stdout.splitlines() if line.startswith("[")]
    assert printed == [["-m", "devnet_jax.main", "--cluster=tpu", BUCKET]] * 2
    assert ran.stdout.count("on 0") == ran.stdout.count("on 1") == 1
    for host in ("host-0", "host-1"):
        code = cloud.folder / host / "devnet_jax"
        assert (code / "pyproject.toml").exists()
        assert (code / "devnet_jax/main.py").exists()
        assert (code / "configs/quickstart.py").exists()
        assert (code / "data").exists()
        assert not list(code.rglob("*.pyc"))
    assert ran.stderr.splitlines()[-1] == REMINDER


def test_an_existing_slice_is_used(cloud: Cloud) -> None:
    cloud.set_node("READY")
    assert cloud.run("").returncode == 0
    assert cloud.calls() == RUN


def test_a_preempted_slice_is_replaced(cloud: Cloud) -> None:
    cloud.set_node("PREEMPTED")
    assert cloud.run("").returncode == 0
    assert cloud.calls() == ["tpu-vm delete", "tpu-vm create", *RUN]


def test_a_stopped_slice_is_an_error(cloud: Cloud) -> None:
    cloud.set_node("STOPPED")
    ran = cloud.run("")
    assert ran.returncode == 1
    assert "error: --name=n: the slice is STOPPED; start it, or delete it" in ran.stderr
    assert cloud.calls() == []


def test_a_queued_slice_is_waited_for(cloud: Cloud) -> None:
    ran = cloud.run("", "--queued", "--delete=success")
    assert ran.returncode == 0, ran.stderr
    calls = [call for call in cloud.calls() if "queued" in call]
    assert calls == ["queued-resources create", "queued-resources delete"]
    assert "waiting for the slice n: PROVISIONING" in ran.stderr
    assert not cloud.has_node


def test_a_failed_request_is_not_repeated(cloud: Cloud) -> None:
    ran = cloud.run("", "--queued", STATES="FAILED")
    assert ran.returncode == 1
    assert "error: --name=n: its request has failed" in ran.stderr
    assert cloud.calls() == ["queued-resources create"]
    assert "queued-resources delete n --zone=europe-west4-b --quiet --force" in ran.stderr


def test_any_argument_is_preserved(cloud: Cloud) -> None:
    ran = subprocess.run(
        cloud.command("--", *NASTY),
        env=cloud.environment(DUMP),
        cwd=cloud.work,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    printed = subprocess.run(
        cloud.command("--dry_run", "--", *NASTY),
        env=cloud.environment(DUMP),
        cwd=cloud.work,
        capture_output=True,
        text=True,
    )
    # Without creation and deletion, because the slice exists and is still needed.
    (before, _, after) = printed.stdout.partition("# Run:\n")
    assert before
    pasted = subprocess.run(
        ["bash", "-c", after.partition("# Delete")[0]],
        env=cloud.environment(DUMP),
        capture_output=True,
        text=True,
    )
    for output in (ran.stdout, pasted.stdout):
        arguments = [json.loads(line) for line in output.splitlines() if line.startswith("[")]
        assert arguments == [["-m", "devnet_jax.main", "--cluster=tpu", *NASTY]] * 2


@pytest.mark.parametrize(
    ("verb", "calls"),
    [("create", ["create"]), ("scp", ["create", "scp"]), ("ssh", ["create", "scp", "ssh"])],
)
def test_a_failed_command_is_reported_in_one_line(
    cloud: Cloud, verb: str, calls: list[str]
) -> None:
    cloud.set_faults(**{f"tpu_vm__{verb}": [(3, "some words\nERROR: no quota\n")]})
    ran = cloud.run("", "--max_restarts=3")
    assert ran.returncode == 1
    message = f"error: gcloud compute tpus tpu-vm {verb}"
    (line,) = [line for line in ran.stderr.splitlines() if line.startswith("error:")]
    assert line.startswith(message)
    assert line.endswith("ended with status 3: ERROR: no quota")
    assert "some words" in ran.stderr
    assert cloud.calls() == [f"tpu-vm {call}" for call in calls]
    assert (REMINDER in ran.stderr) == (verb != "create")


def test_nothing_is_created_if_describe_fails(cloud: Cloud) -> None:
    cloud.set_faults(tpu_vm__describe=[(1, "ERROR: PERMISSION_DENIED: log in")] * 2)
    ran = cloud.run("")
    assert ran.returncode == 1
    assert "ended with status 1: ERROR: PERMISSION_DENIED: log in" in ran.stderr
    assert cloud.calls() == []
    assert REMINDER in ran.stderr


@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_on_one_host_ends_the_run_without_a_restart(cloud: Cloud, failing: int) -> None:
    work = f"sys.exit(1 if index == {failing} else 76)"
    ran = cloud.run(work, "--max_restarts=3", "--delete=success")
    assert ran.returncode == 1
    assert cloud.calls() == ["tpu-vm create", *RUN]
    assert REMINDER in ran.stderr


@pytest.mark.parametrize("end", ["sys.exit(76)", "sys.exit(75)", "os.kill(os.getpid(), 9)"])
def test_all_processes_are_restarted_if_the_run_can_resume(cloud: Cloud, end: str) -> None:
    ran = cloud.run(f"if starts <= 1: {end}", "--max_restarts=1", "--delete=success")
    assert ran.returncode == 0, ran.stderr
    assert cloud.calls() == ["tpu-vm create", *RUN, *RUN, "tpu-vm delete"]
    assert not cloud.has_node


def test_max_restarts(cloud: Cloud) -> None:
    ran = cloud.run("sys.exit(76)", "--max_restarts=1")
    assert ran.returncode == 76
    assert cloud.calls() == ["tpu-vm create", *RUN, *RUN]


def test_a_run_resumes_on_a_new_slice_after_a_preemption(cloud: Cloud) -> None:
    # The connections are lost with the slice, so that no host reports a status.
    preempt = (
        "if starts <= 1:\n"
        f'    Path({str(cloud.folder / "node.json")!r}).write_text(\'{{"state": "PREEMPTED"}}\')\n'
        "    os.kill(os.getppid(), 9)\n"
    )
    ran = cloud.run(preempt, "--spot", "--max_restarts=1")
    assert ran.returncode == 0, ran.stderr
    assert "the slice n was preempted or deleted" in ran.stderr
    assert cloud.calls() == ["tpu-vm create", *RUN, "tpu-vm delete", "tpu-vm create", *RUN]


def test_a_lost_connection_to_a_ready_slice_is_an_error(cloud: Cloud) -> None:
    ran = cloud.run("os.kill(os.getppid(), 9)", "--max_restarts=1")
    assert ran.returncode == 255
    assert cloud.calls() == ["tpu-vm create", *RUN]


def test_a_workdir_on_a_single_host_is_fetched(cloud: Cloud) -> None:
    write = "Path('runs/x').mkdir(parents=True); Path('runs/x/report.html').write_text('it')"
    flags = (*SMALL, "--delete=success", "--spot")
    ran = cloud.run(write, *flags, workdir="--workdir=runs/x", HOSTS="1")
    assert ran.returncode == 0, ran.stderr
    assert (cloud.work / "runs/x/report.html").read_text() == "it"
    assert cloud.calls() == ["tpu-vm create", *RUN, "tpu-vm scp", "tpu-vm delete"]
    assert "lost if the slice is preempted" in ran.stderr


@pytest.mark.parametrize("delete", ["success", "always"])
def test_a_slice_is_kept_if_the_fetch_fails_unless_delete_is_always(
    cloud: Cloud, delete: str
) -> None:
    flags = (*SMALL, f"--delete={delete}")
    ran = cloud.run(
        "", *flags, workdir="--workdir=runs/x", HOSTS="1"
    )  # there is no workdir to fetch
    assert "--workdir=runs/x could not be fetched" in ran.stderr
    assert cloud.has_node == (delete == "success")
    assert (REMINDER in ran.stderr) == (delete == "success")


@pytest.mark.parametrize("end", ["sys.exit(1)", "sys.exit(76)"])
def test_delete_always(cloud: Cloud, end: str) -> None:
    cloud.run(end, "--delete=always")
    assert not cloud.has_node


def test_several_hosts_need_a_bucket(cloud: Cloud) -> None:
    ran = cloud.run("", workdir="--workdir=runs/x")
    assert ran.returncode == 1
    assert ran.stderr.startswith("error: --workdir=runs/x: the hosts of v5litepod-16 share no disk")
    assert not (cloud.folder / "calls.jsonl").exists()
    # The number of hosts of this type is known only after the creation.
    ran = cloud.run("", "--accelerator_type=v9-8", workdir="--workdir=runs/x", HOSTS="2")
    assert ran.returncode == 1
    assert "error: --workdir=runs/x: the 2 hosts of n share no disk" in ran.stderr
    assert cloud.calls() == ["tpu-vm create"]
    assert REMINDER in ran.stderr


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 75), (signal.SIGHUP, 75), (signal.SIGINT, 130)]
)
def test_signals_make_the_hosts_save(cloud: Cloud, number: int, status: int) -> None:
    save = (
        "def save(*_):\n"
        "    sys.stdout.write(f'saved {index}\\n'); sys.stdout.flush(); sys.exit(75)\n"
        "signal.signal(signal.SIGTERM, save); Path('../ready').touch(); time.sleep(30)"
    )
    process = subprocess.Popen(
        cloud.command("--max_restarts=3", "--", BUCKET),
        env=cloud.environment(save),
        cwd=cloud.work,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=default_signals,
    )
    while not all((cloud.folder / f"host-{i}" / "ready").exists() for i in range(2)):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    if number == signal.SIGINT:  # a terminal sends it to the process group
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    output, errors = process.communicate(timeout=30)
    assert process.returncode == status, errors
    assert sorted(line for line in output.splitlines() if "saved" in line) == ["saved 0", "saved 1"]
    assert REMINDER in errors
    assert "run the same command again to resume" in errors
    assert "Traceback" not in errors


def test_a_repeated_command_waits_for_the_earlier_process(cloud: Cloud) -> None:
    """After a lost connection gcloud runs the command again while the first still runs."""
    cloud.set_node("READY", hosts=1)
    note = (
        "with open('../notes', 'a') as file:\n"
        "    file.write('begin '); file.flush(); time.sleep(1); file.write('end ')"
    )
    process = subprocess.Popen(
        cloud.command(*SMALL, "--", BUCKET), env=cloud.environment(note), cwd=cloud.work
    )
    notes = cloud.folder / "host-0" / "notes"
    while not notes.exists():
        assert process.poll() is None
        time.sleep(0.05)
    words = json.loads((cloud.folder / "calls.jsonl").read_text().splitlines()[-1])
    again = subprocess.run([str(cloud.folder / "bin/gcloud"), *words], env=cloud.environment(note))
    assert (again.returncode, process.wait()) == (0, 0)
    assert notes.read_text() == "begin end begin end "


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--name="], "error: --name is missing: Name of the slice"),
        (["--version="], "error: --version is missing"),
        (["--delete=maybe"], "error: flag --delete=maybe: value should be one of"),
    ],
)
def test_wrong_flags_are_refused_in_one_line(flags: list[str], message: str) -> None:
    result = launch("tpu_pod", *FLAGS, *flags, "--", BUCKET)
    assert result.returncode == 1
    assert result.stderr.startswith(message)
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("workdir", ["/abs/x", "../x", "~/x", "a b", "a/../b", "x;y"])
def test_a_workdir_that_could_not_be_fetched_is_refused(workdir: str) -> None:
    result = launch("tpu_pod", *FLAGS, *SMALL, "--dry_run", "--", f"--workdir={workdir}")
    assert result.returncode == 1
    assert result.stderr.startswith(f"error: --workdir={workdir}: it is fetched to the same path")


def test_parse_status() -> None:
    assert parse_status("devnet_jax on t1v-n-0 ended with status 76\n") == 76
    assert parse_status("epoch 3 of devnet_jax on t1v-n-1 ended with status 0\n") == 0
    assert parse_status("epoch 3 ended with status 76\n") is None
