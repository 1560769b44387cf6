"""Ours beside PyTorch on a CPU, in turn, in one run: training, scoring and explaining.

pip install -e ".[benchmark]" && python benchmarks/cpu.py

Each part is done by three programs: ours, PyTorch as most would write it (plain: NCHW, a DataLoader
with two workers that decodes each image each time), and the same with channels_last (tuned). The
ratios are our speed over theirs. Training is one run, in slices, and its spread that of the epochs;
of the others it is that of the rounds.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import itertools
import platform
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
from etils import epath
from in_turn import OURS, Line, Ratio, Seconds, in_rounds, in_slices, median_ratio, total_ratio
from materials import Materials, Settings, write_materials

from devnet_jax.environment import cpu_model, n_cores, software
from devnet_jax.workdir import write_json

PEERS = {"plain": "", "tuned": "_tuned"}  # with what ends the names of the ratios to it
# What a part's times are of, and how far apart what the sides find may be: losses differ in their
# draws from the prior.
PARTS = {
    "train": ("s", None),
    "step": ("s a step", 0.1),
    "score": ("ms an image", 1e-3),
    "score_decoded": ("ms an image", 1e-3),
    "explain": ("ms an image", 5e-3),
}


def commands(task: str, materials: Materials) -> dict[str, list[str]]:
    """The programs of a task, by side."""
    here = Path(__file__).parent
    folder = str(materials.folder)
    ours = [sys.executable, str(here / "our_tasks.py"), task, folder]
    theirs = [sys.executable, str(here / "pytorch_tasks.py"), task, folder]
    return {OURS: ours} | {peer: [*theirs, peer] for peer in PEERS}


def train(materials: Materials, slice_seconds: float) -> Seconds:
    """Seconds of each epoch of each side; starting belongs to the first, ending to the last."""
    lines = in_slices(commands("train", materials), slice_seconds)
    return {side: seconds_of_epochs(of_side) for side, of_side in lines.items()}


def seconds_of_epochs(lines: Sequence[Line]) -> list[float]:
    ends = [line.seconds for line in lines if line.text.startswith("epoch ")]
    ends[-1] = lines[-1].seconds
    return [end - start for start, end in itertools.pairwise([0.0, *ends])]


def measure(part: str, materials: Materials, n_rounds: int) -> Seconds:
    """Seconds of each round of each side, in the units of the part."""
    settings = materials.settings
    seconds = in_rounds(commands(part, materials), n_rounds)
    require_equal(part, materials)
    per_second = {
        "step": 1 / settings.steps_per_round,
        "score": 1000 / len(materials.paths),
        "score_decoded": 1000 / len(materials.paths),
        "explain": 1000 / settings.n_explained,
    }[part]
    return {side: [per_second * s for s in of_side] for side, of_side in seconds.items()}


def require_equal(part: str, materials: Materials) -> None:
    """Raises `AssertionError` if the peers did not find what we have found."""
    ours = np.load(materials.result(part, OURS))
    for peer in PEERS:
        theirs = np.load(materials.result(part, peer))
        tolerance = PARTS[part][1]
        np.testing.assert_allclose(
            theirs, ours, rtol=tolerance, atol=tolerance, err_msg=f"{part}, {peer}"
        )


def ratios(part: str, seconds: Seconds) -> dict[str, Ratio]:
    """Our speed over each peer's, by the names that they have in the results."""
    ratio = total_ratio if part == "train" else median_ratio
    return {f"{part}_ratio{ending}": ratio(seconds, peer) for peer, ending in PEERS.items()}


def typical(part: str, seconds: Sequence[float]) -> float:
    return sum(seconds) if part == "train" else float(np.median(seconds))


def results(seconds: Mapping[str, Seconds]) -> dict[str, object]:
    """What was found, by part and side, as plain values: ratios, their spread, absolute times."""
    found: dict[str, Ratio] = {}
    times: dict[str, object] = {}
    for part, of_part in seconds.items():
        found |= ratios(part, of_part)
        times[part] = {
            "unit": PARTS[part][0],
            **{side: round(typical(part, of_side), 4) for side, of_side in of_part.items()},
            "epochs" if part == "train" else "rounds": {
                side: [round(time, 4) for time in of_side] for side, of_side in of_part.items()
            },
        }
    spread = {
        name: {"least": round(ratio.least, 4), "most": round(ratio.most, 4)}
        for name, ratio in found.items()
    }
    values = {name: round(ratio.value, 4) for name, ratio in found.items()}
    return {**values, "spread": spread, "times": times}


def circumstances(settings: Settings, n_rounds: int, command: str) -> dict[str, object]:
    """What the results were found with."""
    return {
        "settings": {**dataclasses.asdict(settings), "rounds": n_rounds},
        "machine": {"cpu": cpu_model(), "cores": n_cores(), "system": platform.system()},
        "versions": {**software(), "torch": version("torch")},
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": command,
    }


def print_table(seconds: Mapping[str, Seconds]) -> None:
    print("| | ours | plain | tuned | over plain (least – most) | over tuned (least – most) |")
    print("|---|---|---|---|---|---|")
    for part, of_part in seconds.items():
        times = [f"{typical(part, times):.4g}" for times in of_part.values()]
        cells = [*times, *map(str, ratios(part, of_part).values())]
        print(f"| {part}, {PARTS[part][0]} | {' | '.join(cells)} |")


def compare(
    parts: Sequence[str], settings: Settings, n_rounds: int, slice_seconds: float
) -> dict[str, Seconds]:
    with tempfile.TemporaryDirectory() as folder:
        materials = write_materials(Path(folder), settings)
        subprocess.run(commands("make", materials)[OURS], check=True)
        seconds: dict[str, Seconds] = {}
        for part in parts:
            print(f"measuring: {part}", file=sys.stderr, flush=True)
            if part == "train":
                seconds[part] = train(materials, slice_seconds)
            else:
                seconds[part] = measure(part, materials, n_rounds)
        return seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/cpu.json"))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--slice-seconds", type=float, default=15, help="of training's turns")
    for field in dataclasses.fields(Settings):
        name = f"--{field.name.replace('_', '-')}"
        parser.add_argument(name, type=int, default=field.default)
    arguments = parser.parse_args()
    # So that the programs end with this one also where it is killed in the usual way.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    settings = Settings(
        **{field.name: getattr(arguments, field.name) for field in dataclasses.fields(Settings)}
    )
    seconds = compare(arguments.parts, settings, arguments.rounds, arguments.slice_seconds)
    print_table(seconds)
    about = circumstances(settings, arguments.rounds, command_line(parser, arguments))
    write_json(epath.Path(arguments.output), {**results(seconds), **about})


def command_line(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> str:
    """The command that measures the same, wherever its results go."""
    words = ["python", "benchmarks/cpu.py"]
    for name, value in vars(arguments).items():
        if name != "output" and value != parser.get_default(name):
            values = value if isinstance(value, list) else [value]
            words += [f"--{name.replace('_', '-')}", *map(str, values)]
    return shlex.join(words)


if __name__ == "__main__":
    main()
