"""A folder in which the commands of the documentation run as they stand.

Bash runs the commands in a folder that holds what they name, with a PATH of stand-ins only: a
command without a stand-in is not found, and fails. A stand-in sends its arguments to a process
that has imported the package, whose fork runs the function in `RULES`:

- `devnet_jax.main` runs with the flags `TINY` of the other tests after those of a command that
  trains, and with two seeds instead of more. Only the model's are not added: ImageNet's weights are
  random ones, in a cache of the Hub that is made here. `Detector.train` and `DevNet` in blocks of
  Python get the same settings.
- The programs of launch/ run with --dry_run. examples/serve.py serves, on another port and with
  the smallest batch, and `curl` sends requests to it. A review is looked at once, and ends.
- The command of a container of Docker runs here, with the mounted folder.
- For `make` and `pip` the targets, extras and files must exist; commands of other projects do
  nothing.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import tomllib
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.conftest import REPOSITORY, TINY, environment, make_parts
from tests.fork_server import import_package

LINKED = ("configs", "launch", "examples", "devnet_jax", "requirements.txt", "pyproject.toml")
FOREIGN = ("ssh-add",)  # programs of other projects, which are neither checked nor run
LISTENER, LOG, SERVICE = ".listener", ".log", ".service"  # files in the folder

# A stand-in: sends its name and arguments, and exits with the status in the reply.
_STAND_IN = """#!{python} -IS
import json, os, socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.connect({listener!r})
request = [os.path.basename(sys.argv[0]), *sys.argv[1:]]
listener.sendall(json.dumps(dict(words=request, folder=os.getcwd())).encode() + b"\\n")
sys.exit(int(listener.makefile().read() or 1))
"""


class Workplace:
    """The folder and the process behind the stand-ins; a context manager."""

    def __init__(self, folder: Path) -> None:
        """Fills the folder."""
        self.folder = folder
        for name in LINKED:
            (folder / name).symlink_to(REPOSITORY / name)
        (folder / "docs").mkdir()  # a copy: settings_page.py writes to its own folder
        shutil.copy(REPOSITORY / "docs" / "settings_page.py", folder / "docs")
        (folder / ".venv" / "bin").mkdir(parents=True)
        (folder / "bin").mkdir()
        text = _STAND_IN.format(python=sys.executable, listener=str(folder / LISTENER))
        for file in [".venv/bin/python", *(f"bin/{name}" for name in (*RULES, *FOREIGN))]:
            (folder / file).write_text(text)
            (folder / file).chmod(0o755)
        _make_pictures(folder)

    def __enter__(self) -> Workplace:
        with (self.folder / LOG).open("wb") as log:
            variables = {
                **environment(devices=1),
                "HOME": str(self.folder),
                "HF_HOME": str(self.folder / "hub"),
                "HF_HUB_OFFLINE": "1",
                "PYTHONPATH": str(REPOSITORY),
            }
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.documented", str(self.folder)],
                cwd=self.folder, env=variables, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        while not (self.folder / LISTENER).exists():
            assert self._process.poll() is None, self.log()
            time.sleep(0.05)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            os.kill(int((self.folder / SERVICE).read_text()), signal.SIGKILL)

    def log(self) -> str:
        """Returns the end of the output so far."""
        return (self.folder / LOG).read_text(errors="replace")[-4000:]

    def shell(self, commands: str) -> None:
        """Runs commands in Bash; raises `AssertionError` at the first that fails."""
        environment = {"HOME": str(self.folder), "PATH": str(self.folder / "bin")}
        result = subprocess.run(
            [str(shutil.which("bash")), "-euo", "pipefail", "-c", commands],
            cwd=self.folder, env=environment, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert result.returncode == 0, f"{commands}\n{result.stderr}\n{self.log()}"

    def python(self, code: str) -> None:
        """Runs Python code in a new namespace."""
        file = self.folder / ".block.py"
        file.write_text(code)
        self.shell(f".venv/bin/python {file}")


def _make_pictures(folder: Path) -> None:
    """Makes the folders of images and the data sets that the commands name."""
    parts = make_parts(folder / "my_parts")
    shutil.copytree(parts / "test" / "scratch", folder / "new_parts")
    shutil.copytree(parts / "test" / "good", folder / "line3" / "monday")
    _make_good(folder / "new_lamp")
    shutil.copy(parts / "test" / "stain" / "000.png", folder / "part.png")
    pictures = [file.relative_to(folder).as_posix() for file in sorted(parts.rglob("*.png"))]
    rows = [f"{path},{path.split('/')[-2]}" for path in pictures]
    (folder / "labels.csv").write_text("\n".join(["path,defect", *rows]))
    data = folder / "data"
    shutil.copytree(parts, data / "mvtec_anomaly_detection" / "carpet")
    for name in ("mvtec_ad", "brain_mri", "elpv"):  # data sets of sweeps, which are dry runs
        (data / name).mkdir()


def _make_good(folder: Path) -> None:
    """Makes good pictures, enough to calibrate a threshold."""
    rng = np.random.default_rng(8)
    folder.mkdir()
    for i in range(25):
        grey = rng.integers(90, 160, (40, 48, 1), dtype=np.uint8)
        Image.fromarray(np.repeat(grey, 3, axis=2)).save(folder / f"{i:03}.png")


# What follows runs in the process behind the stand-ins.


def serve(folder: Path) -> None:
    """Answers the stand-ins, one after the other, each in a fork, until it is killed."""
    import_package()
    _make_tiny()
    _fork(lambda: _make_weights(folder))
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / LISTENER))
    listener.listen()
    while True:
        connection, _ = listener.accept()
        with connection:
            _fork(functools.partial(_answer, connection))


def _fork(function: Callable[[], object]) -> None:
    """Calls a function in a fork, and waits for its end."""
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
        return
    try:
        function()
        sys.stdout.flush()
    finally:
        os._exit(0)


def _answer(connection: socket.socket) -> None:
    with connection.makefile() as lines:
        request = json.loads(lines.readline())
    print("$", *request["words"], flush=True)
    os.chdir(request["folder"])
    connection.sendall(str(_status_of(request["words"])).encode())


def _status_of(words: Sequence[str]) -> int:
    name, *arguments = words
    try:
        if name not in FOREIGN:
            RULES[name](arguments)
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, flush=True)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


def _make_weights(folder: Path) -> None:
    """Writes random weights of a ResNet-18 into the Hub's cache and into a file."""
    import jax
    import safetensors.numpy

    from devnet_jax.models import DeviationNetwork, to_torch_state_dict
    from devnet_jax.models.backbones import get_backbone

    network = DeviationNetwork("resnet18", n_scales=1)
    shapes = jax.eval_shape(network.init, jax.random.key(0), np.zeros((1, 64, 64, 3), np.float32))
    rng = np.random.default_rng(11)
    variables = jax.tree.map(
        lambda leaf: np.abs(0.05 * rng.standard_normal(leaf.shape, np.float32)) + 0.01, shapes
    )
    state = {k: v for k, v in to_torch_state_dict(variables).items() if not k.startswith("conv.")}
    file = folder / "resnet18.safetensors"
    safetensors.numpy.save_file(
        {name: np.ascontiguousarray(tensor) for name, tensor in state.items()}, file
    )
    repository = str(get_backbone("resnet18").imagenet).replace("/", "--")
    cached = folder / "hub" / "hub" / f"models--{repository}"
    commit = "0" * 40
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text(commit)
    (cached / "snapshots" / commit).mkdir(parents=True)
    (cached / "snapshots" / commit / "model.safetensors").symlink_to(file)


def _tiny_flags() -> list[str]:
    """Returns `TINY` without the model's flags: ImageNet weights are those of ResNet-18."""
    model = ("--config.model.backbone=", "--config.model.pretrained=")
    return [
        *(flag for flag in TINY if not flag.startswith(model)),
        "--config.dataset.image_size=32",
    ]


def _make_tiny() -> None:
    """Makes blocks of Python train runs as small as those of the commands."""
    from devnet_jax import Detector
    from devnet_jax.config import full_name, parse_setting, with_settings
    from devnet_jax.inference.sklearn import DevNet

    pairs = (flag.removeprefix("--config.").split("=") for flag in _tiny_flags())
    tiny = {name: parse_setting(name, value) for name, value in pairs}
    train, config = Detector.train, DevNet._config

    def train_tiny(data: Any, workdir: Any = None, **settings: Any) -> Detector:
        given = {full_name(name): value for name, value in settings.items()}
        return train(data, workdir, **{**given, **tiny})

    def config_tiny(self: DevNet, n_anomaly: int) -> Any:
        return with_settings(config(self, n_anomaly), {**tiny, "dataset.n_anomaly": n_anomaly})

    Detector.train = staticmethod(train_tiny)  # type: ignore[method-assign]
    DevNet._config = config_tiny  # type: ignore[method-assign]


def _python(arguments: list[str]) -> None:
    program, *rest = arguments
    if program == "-m":
        program, *rest = rest
    if program == "-c":
        exec(rest[0], {"__name__": "__main__"})
    elif program == "pip":
        _pip(rest)
    elif program == "devnet_jax.main":
        _devnet(rest)
    elif program == "examples/serve.py":
        _serve(rest)
    elif program == "launch/sweep.py":
        _run_script(program, [*rest, "--dry_run"])
    elif program.startswith("launch/"):
        split = rest.index("--")
        # Without --platform it would start a process that counts the devices.
        here = ["--platform=cpu"] if program == "launch/local.py" else []
        _run_script(program, [*rest[:split], *here, "--dry_run", *rest[split:]])
    elif program in ("docs/settings_page.py", "examples/first_detector.py"):
        _run_script(program, rest)
    elif program.endswith(".block.py"):
        code = compile(Path(program).read_text(), program, "exec")
        exec(code, {"__name__": "__main__"})
    else:
        sys.exit(f"{program}: no rule in {__file__} says how it is run here")


def _run_script(program: str, arguments: Sequence[str]) -> None:
    with _arguments(program, arguments):
        runpy.run_path(program, run_name="__main__")


@contextlib.contextmanager
def _arguments(program: str, arguments: Sequence[str]) -> Iterator[None]:
    before = sys.argv
    sys.argv = [program, *arguments]
    try:
        yield
    finally:
        sys.argv = before


def _devnet(arguments: list[str]) -> None:
    given = dict(a.removeprefix("--").split("=", 1) for a in arguments if "=" in a)
    if given.get("mode") == "review" and "input" in given:
        folder = Path(given["workdir"]) / "review"
        threading.Thread(target=_look, args=(folder / ".address",), daemon=True).start()
    trains = any(argument.startswith("--config=") for argument in arguments)
    fewer = ["--seeds=2"] if "seeds" in given else []
    with _arguments("devnet", [*arguments, *(_tiny_flags() if trains else []), *fewer]):
        runpy.run_module("devnet_jax.main", run_name="__main__", alter_sys=True)


def _look(address_file: Path) -> None:
    """Labels a picture of the review that this process serves, and ends it as Ctrl-C does."""
    from devnet_jax.review.serve import read_address

    for _ in range(2000):
        # An earlier review of the same folder has left the file; this one has the same address.
        with contextlib.suppress(urllib.error.URLError):
            if address_file.exists() and (address := read_address(address_file)):
                request = urllib.request.Request(
                    f"http://127.0.0.1:{address.port}/api/label",
                    json.dumps({"ids": [0], "label": "good"}).encode(),
                    {
                        "Content-Type": "application/json",
                        "Authorization": f"Bearer {address.token}",
                    },
                )
                with urllib.request.urlopen(request) as answer:
                    assert json.load(answer)["n_looked"] == 1
                break
        time.sleep(0.1)
    os.kill(os.getpid(), signal.SIGINT)


def _serve(arguments: list[str]) -> None:
    pid_file = Path(SERVICE)
    if not pid_file.exists():
        process = subprocess.Popen(
            [sys.executable, "examples/serve.py", *arguments, "--port=0", "--max_batch=1"],
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            stdout=subprocess.PIPE,
            text=True,
        )
        pid_file.write_text(str(process.pid))
        assert process.stdout is not None
        address = process.stdout.readline().split()[-1]
        Path(f"{SERVICE}.address").write_text(address)


def _curl(arguments: list[str]) -> None:
    address = Path(f"{SERVICE}.address").read_text()
    data = None
    while arguments[0].startswith("-"):
        option, value, *arguments = arguments
        assert option == "--data-binary", f"{option}: no rule"
        data = Path(value.removeprefix("@")).read_bytes()
    for url in arguments:
        asked = re.sub(r"http://127\.0\.0\.1:8000", address, url)
        assert asked != url, f"{url}: no rule"
        with urllib.request.urlopen(urllib.request.Request(asked, data)) as answer:
            found = json.load(answer)
        print({name: str(value)[:60] for name, value in found.items()}, flush=True)


def _make(arguments: list[str]) -> None:
    targets = re.findall(r"^([\w-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    for target in arguments:
        assert target in targets, f"make {target}: no such target"


def _pip(arguments: list[str]) -> None:
    """Checks that `pip install` names this project, its extras or its requirements."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    lists = [*extras.values(), project["project"]["dependencies"]]
    required = [*(line for one in lists for line in one), *project["build-system"]["requires"]]
    names = {re.match(r"[\w.-]+", line)[0] for line in required}  # type: ignore[index]
    command, *words = arguments
    assert command in ("install", "download"), f"pip {command}: no rule"
    while words:
        word = words.pop(0)
        own = re.fullmatch(r"\.(?:\[([\w,]+)\])?", word)
        if word == "-r":
            assert Path(words.pop(0)).is_file()
        elif own:
            assert set((own[1] or "").split(",")) <= {"", *extras}, f"{word}: no such extra"
        elif not word.startswith("-"):
            name = re.match(r"[\w.-]+", word)
            assert name is not None, word
            assert name[0] in names, f"{word}: nothing that this project requires"


def _docker(arguments: list[str]) -> None:
    """Runs the command of a container here: /work is the folder, as if it were mounted."""
    command, *words = arguments
    if command == "build":
        assert words[-1] == ".", f"docker build {words[-1]}: the Dockerfile lies in ."
        assert (REPOSITORY / "Dockerfile").is_file()
        return
    assert command == "run", f"docker {command}: no rule"
    entrypoint = "devnet"
    while words[0].startswith("-"):
        option, _, value = words.pop(0).partition("=")
        if option == "--entrypoint":
            entrypoint = value
        elif option == "--volume":
            assert value == f"{Path.cwd()}:/work", value
    image, *words = words
    assert image == "devnet_jax", f"{image}: not the tag of the image that was built"
    RULES[entrypoint]([re.sub(r"(?<![^=])/(configs|examples)/", r"\1/", word) for word in words])


def _unzip(arguments: list[str]) -> None:
    option, file, member = arguments
    assert option == "-p", f"unzip {option}: no rule"
    with zipfile.ZipFile(file) as archive:
        print(archive.read(member).decode()[:200], flush=True)


def _tensorboard(arguments: list[str]) -> None:
    (logs,) = (a.removeprefix("--logdir=") for a in arguments)
    assert list(Path(logs).rglob("events.out.tfevents.*")), f"{logs}: nothing to show"


RULES: dict[str, Callable[[list[str]], None]] = {
    "python": _python,
    "devnet": _devnet,
    "make": _make,
    "pip": _pip,
    "curl": _curl,
    "docker": _docker,
    "unzip": _unzip,
    "tensorboard": _tensorboard,
}


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
