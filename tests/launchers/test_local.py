"""launch/local.py with a fake devnet_jax.main in real processes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from devnet_jax.errors import UserError
from devnet_jax.launchers.local import cpu_slots, gpu_slots, to_shell, worker_commands
from tests.conftest import REPOSITORY
from tests.launchers.programs import (
    DUMP,
    NASTY,
    default_signals,
    fake_python,
    launch,
    require_golden,
)

# Behaviours: write a pid file; save on SIGTERM; wait for a signal.
WAIT = (
    "Path(f'{index}.part').write_text(str(os.getpid()))\n"
    "os.rename(f'{index}.part', f'{index}.pid')\n"
)
SAVE = (
    "def save(*_):\n    print('saved', index, flush=True); sys.exit(75)\n"
    "signal.signal(signal.SIGTERM, save)\n"
)
SLEEP = "time.sleep(60)\n"


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "tmp").mkdir()
    return {"TMPDIR": str(tmp_path / "tmp")}


def arguments(folder: Path, *flags: str, processes: int = 2) -> list[str]:
    python = folder / "python"
    if not python.exists():
        fake_python(folder)
    return [f"--num_processes={processes}", "--platform=cpu", f"--python={python}", *flags]


def local(
    folder: Path, environment: dict[str, str], behaviour: str, *flags: str, processes: int = 2
) -> subprocess.CompletedProcess[str]:
    return launch(
        "local",
        *arguments(folder, *flags, processes=processes),
        "--",
        f"--workdir={folder}",
        environment={**environment, "BEHAVIOUR": f"os.chdir({str(folder)!r})\n{behaviour}"},
    )


class Launched:
    """A running launcher with two workers."""

    def __init__(
        self, folder: Path, environment: dict[str, str], behaviour: str, *flags: str
    ) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "launch/local.py", *arguments(folder, *flags), "--", "--workdir=w"],
            cwd=REPOSITORY,
            env={
                **os.environ,
                **environment,
                "BEHAVIOUR": f"os.chdir({str(folder)!r})\n{behaviour}",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=default_signals,
        )
        deadline = time.monotonic() + 30
        while len(self.pid_files()) < 2:
            assert self.process.poll() is None, self.process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def press_ctrl_c(self) -> None:
        """Sends SIGINT to the process group, as a terminal does."""
        os.killpg(self.process.pid, signal.SIGINT)

    def pid_files(self) -> list[Path]:
        return sorted(self.folder.glob("[01].pid"))

    def living_workers(self) -> int:
        return sum(_is_alive(int(path.read_text())) for path in self.pid_files())

    def end(self, timeout: float = 30) -> tuple[int, str, str]:
        output, errors = self.process.communicate(timeout=timeout)
        return self.process.returncode, output, errors


Start = Callable[..., Launched]


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def launched(tmp_path: Path, environment: dict[str, str]) -> Iterator[Start]:
    started: list[Launched] = []

    def start(behaviour: str, *flags: str) -> Launched:
        started.append(Launched(tmp_path, environment, behaviour, *flags))
        return started[-1]

    yield start
    for launcher in started:
        launcher.process.kill()
        launcher.process.wait()


def test_the_printed_commands_are_those_of_the_golden_file() -> None:
    commands = worker_commands(
        "python", ["--config=configs/quickstart.py", "--workdir=my runs"], cpu_slots(2, 4), 4242
    )
    require_golden("local.sh", to_shell(commands))


def test_any_argument_is_preserved(tmp_path: Path, environment: dict[str, str]) -> None:
    ran = local(tmp_path, environment, DUMP, f"--log_dir={tmp_path}")
    assert ran.returncode == 0, ran.stderr
    argv = json.loads(ran.stdout)
    assert argv[:2] == ["-m", "devnet_jax.main"]
    assert argv[-1] == f"--workdir={tmp_path}"

    flags = arguments(tmp_path, "--devices_per_process=3", f"--log_dir={tmp_path}")
    behaviour = "print(json.dumps([sys.argv[1:], os.environ['JAX_NUM_CPU_DEVICES']]))"
    ran = launch("local", *flags, "--", *NASTY, environment={"BEHAVIOUR": behaviour})
    assert ran.returncode == 0, ran.stderr
    printed = launch("local", "--dry_run", *flags, "--", *NASTY)
    assert printed.returncode == 0, printed.stderr
    pasted = subprocess.run(
        ["bash", "-c", printed.stdout],
        cwd=tmp_path,
        env={**os.environ, "BEHAVIOUR": behaviour},
        capture_output=True,
        text=True,
    )
    assert pasted.returncode == 0, pasted.stderr
    log = (tmp_path / "worker-00001.log").read_text().splitlines()
    for index, outputs in enumerate([(ran.stdout, pasted.stdout), (log[-1], log[-1])]):
        for output in outputs:
            argv, devices = json.loads(output)
            assert devices == "3"
            assert argv[:2] == ["-m", "devnet_jax.main"]
            assert argv[2].startswith("--coordinator=127.0.0.1:")
            assert argv[3:5] == ["--num_processes=2", f"--process_id={index}"]
            assert argv[5:] == list(NASTY)


def test_only_process_0_prints_and_no_log_is_kept(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    ran = local(tmp_path, environment, "print('out', index); print('err', index, file=sys.stderr)")
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "out 0\n", "err 0\n")
    assert list((tmp_path / "tmp").iterdir()) == []


def test_the_end_of_a_failed_workers_log_is_shown(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    behaviour = (
        "if index == 1:\n    [print('line', i) for i in range(30)]; sys.exit(3)\n"
        "time.sleep(0.5); sys.exit(76)"
    )
    ran = local(tmp_path, environment, behaviour, "--max_restarts=3")
    assert ran.returncode == 3
    lines = ran.stderr.splitlines()
    assert lines[0] == "worker 1 ended with status 3"
    assert lines[2:-1] == [f"[1] line {i}" for i in range(10, 30)]
    (folder,) = (tmp_path / "tmp").iterdir()
    assert lines[-1] == f"logs of the workers: {folder}"
    assert (folder / "worker-00001.log").read_text().startswith("line 0\n")


def test_the_first_failure_decides(tmp_path: Path, environment: dict[str, str]) -> None:
    behaviour = (
        "time.sleep(0.4 * (2 - index))\nif index == 1: os.kill(os.getpid(), signal.SIGKILL)\n"
        "sys.exit(76 if index == 2 else 1)"
    )
    ran = local(tmp_path, environment, behaviour, processes=3)
    assert ran.returncode == 128 + signal.SIGKILL
    assert ran.stderr.startswith("worker 1 was killed by SIGKILL\n")


def test_after_a_failure_the_others_are_ended_after_the_grace(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    behaviour = f"if index == 1: sys.exit(1)\n{SAVE}{SLEEP}"
    started = time.monotonic()
    ran = local(tmp_path, environment, behaviour, "--grace=1")
    assert ran.returncode == 1
    assert "saved 0" in ran.stdout
    assert 1 < time.monotonic() - started < 15


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_sigterm_makes_all_save(launched: Start, tmp_path: Path, number: int) -> None:
    running = launched(f"{SAVE}{WAIT}{SLEEP}", "--max_restarts=3", f"--log_dir={tmp_path}")
    running.process.send_signal(number)
    status, output, errors = running.end()
    assert status == 75
    assert output == "saved 0\n"
    assert errors == "stopped; run the same command again to resume\n"
    assert (tmp_path / "worker-00001.log").read_text() == "saved 1\n"


def test_a_worker_that_ignores_sigterm_is_killed(launched: Start) -> None:
    running = launched(f"signal.signal(signal.SIGTERM, signal.SIG_IGN)\n{WAIT}{SLEEP}", "--grace=1")
    running.process.terminate()
    assert running.end()[0] == 75
    assert running.living_workers() == 0


def test_an_error_while_stopping_is_an_error(launched: Start) -> None:
    fail = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(1 if index else 75))\n"
    running = launched(f"{fail}{WAIT}{SLEEP}")
    running.process.terminate()
    assert running.end()[0] == 1


def test_ctrl_c_ends_all(launched: Start, tmp_path: Path) -> None:
    note = "except KeyboardInterrupt:\n    print('interrupted', index); sys.exit(130)\n"
    running = launched(f"try:\n    exec({WAIT!r}); time.sleep(60)\n{note}", "--max_restarts=3")
    running.press_ctrl_c()
    status, output, errors = running.end()
    assert status == 130
    assert output == "interrupted 0\n"
    assert "Traceback" not in errors
    assert running.living_workers() == 0
    assert list((tmp_path / "tmp").iterdir()) == []


def test_ctrl_c_twice_ends_all_at_once(launched: Start) -> None:
    ignore = "[signal.signal(n, signal.SIG_IGN) for n in (signal.SIGINT, signal.SIGTERM)]\n"
    running = launched(f"{ignore}{WAIT}{SLEEP}")
    running.press_ctrl_c()
    time.sleep(0.5)
    assert running.process.poll() is None
    running.press_ctrl_c()
    assert running.end(timeout=5)[0] == 130
    assert running.living_workers() == 0


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_no_worker_outlives_a_killed_launcher(launched: Start) -> None:
    running = launched(f"signal.signal(signal.SIGTERM, signal.SIG_IGN)\n{WAIT}{SLEEP}")
    assert running.living_workers() == 2
    running.process.kill()
    running.process.wait()
    deadline = time.monotonic() + 10
    while running.living_workers():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("end", ["sys.exit(75)", "sys.exit(76)", "os.kill(os.getpid(), 9)"])
def test_all_workers_are_restarted_if_the_run_can_resume(
    tmp_path: Path, environment: dict[str, str], end: str
) -> None:
    behaviour = (
        "with open(f'starts-{index}', 'a') as file: print(given['coordinator'], file=file)\n"
        f"if index == 1 and len(Path('starts-1').read_text().split()) < 3: {end}\n"
        "time.sleep(0.3)"
    )
    ran = local(tmp_path, environment, behaviour, "--max_restarts=2")
    assert ran.returncode == 0, ran.stderr
    assert "restarting all workers (2 of 2 times)" in ran.stderr
    starts = [(tmp_path / f"starts-{index}").read_text().split() for index in (0, 1)]
    assert starts[0] == starts[1]  # the same port for both
    assert len(set(starts[0])) == 3  # a new one for each start


@pytest.mark.parametrize(("end", "starts"), [("76", 3), ("1", 1), ("0", 1)])
def test_the_number_of_starts(
    tmp_path: Path, environment: dict[str, str], end: str, starts: int
) -> None:
    behaviour = f"with open(f'starts-{{index}}', 'a') as file: file.write('x')\nsys.exit({end})"
    ran = local(tmp_path, environment, behaviour, "--max_restarts=2")
    assert ran.returncode == int(end)
    assert (tmp_path / "starts-1").read_text() == "x" * starts


def test_gpus_are_divided() -> None:
    slots = gpu_slots(["3", "1", "GPU-a", "0", "2"], 2, 2)
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in slots] == ["3,1", "GPU-a,0"]
    with pytest.raises(UserError, match="needs 6 GPUs, but 5 are visible"):
        gpu_slots(["0", "1", "2", "3", "4"], 3, 2)


def test_without_a_gpu_the_devices_are_cpu_devices() -> None:
    flags = ["--num_processes=1", "--dry_run"]
    printed = launch("local", *flags, "--", "--workdir=w")
    assert printed.stdout.startswith("env JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=1 ")
    wrong = launch("local", *flags, "--platform=gpu", "--", "--workdir=w")
    assert wrong.returncode == 1
    assert "needs 1 GPUs, but 0 are visible" in wrong.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--platform=cpu"], "error: --num_processes is missing: number of processes"),
        (["--num_processes=0"], "error: flag --num_processes=0: 0 is not a positive integer"),
        (
            ["--num_processes=1", "--platform=cpu", "--python=/no/python"],
            "error: --python=/no/python: No such file or directory",
        ),
    ],
)
def test_wrong_flags_are_refused_in_one_line(
    environment: dict[str, str], tmp_path: Path, flags: list[str], message: str
) -> None:
    result = launch("local", *flags, "--", "--workdir=w", environment=environment)
    assert (result.returncode, result.stderr) == (1, f"{message}\n")
    assert list((tmp_path / "tmp").iterdir()) == []
