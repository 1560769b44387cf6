"""Ours beside PyTorch, in turn, in one run: training, scoring and explaining.

Each part is done by several programs: ours, PyTorch as most would write it (plain: NCHW, a
DataLoader whose workers decode each image each time), and PyTorch as one would tune it there
(channels_last; on a GPU autocast to bfloat16 and compiled besides). The ratios are our speed over
theirs.
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
from in_turn import Line, Ratio, Seconds, in_rounds, in_slices, median_ratio, total_ratio
from materials import OURS, OURS_BFLOAT16, Materials, Settings, write_materials

from devnet_jax.runtime.host_devices import cpu_model, n_cores
from devnet_jax.runtime.versions import software_versions

# With what ends the names of the ratios: of ours by the type it computes in, to a peer.
OF_OURS = {OURS: "", OURS_BFLOAT16: "_bfloat16"}
TO_PEER = {"plain": "", "tuned": "_tuned"}
# What a part's times are of, and how far apart what the sides find may be: losses differ in their
# draws from the prior.
PARTS = {
    "train": ("s", None),
    "step": ("s a step", 0.1),
    "score": ("ms an image", 1e-3),
    "score_decoded": ("ms an image", 1e-3),
    "explain": ("ms an image", 5e-3),
}


def sides(settings: Settings) -> list[str]:
    """Who takes part: bfloat16 is for accelerators."""
    ours = OF_OURS if settings.platform == "gpu" else [OURS]
    return [*ours, *TO_PEER]


def commands(task: str, materials: Materials) -> dict[str, list[str]]:
    """The programs of a task, by side."""
    here = Path(__file__).parent

    def command(side: str) -> list[str]:
        program = "our_tasks.py" if side in OF_OURS else "pytorch_tasks.py"
        return [sys.executable, str(here / program), task, str(materials.folder), side]

    return {side: command(side) for side in sides(materials.settings)}


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
    programs = commands(part, materials)
    # Ours in turn find what they have compiled, as any run but the first does; training does not.
    in_rounds({side: program for side, program in programs.items() if side in OF_OURS}, 0)
    seconds = in_rounds(programs, n_rounds)
    require_equal(part, materials)
    per_second = {
        "step": 1 / settings.steps_per_round,
        "score": 1000 / len(materials.paths),
        "score_decoded": 1000 / len(materials.paths),
        "explain": 1000 / settings.n_explained,
    }[part]
    return {side: [per_second * s for s in of_side] for side, of_side in seconds.items()}


def require_equal(part: str, materials: Materials) -> None:
    """Raises `AssertionError` if another side did not find what we have found."""
    ours = np.load(materials.result(part, OURS))
    # Accelerators multiply with fewer bits, each side in a way of its own.
    tolerance = 0.1 if materials.settings.platform == "gpu" else PARTS[part][1]
    for side in sides(materials.settings)[1:]:
        theirs = np.load(materials.result(part, side))
        np.testing.assert_allclose(
            theirs, ours, rtol=tolerance, atol=tolerance, err_msg=f"{part}, {side}"
        )


def ratios(part: str, seconds: Seconds) -> dict[str, Ratio]:
    """Our speed over each peer's, by the names that they have in the results."""
    ratio = total_ratio if part == "train" else median_ratio
    return {
        f"{part}_ratio{of_ours}{to_peer}": ratio(seconds, ours, peer)
        for ours, of_ours in OF_OURS.items()
        if ours in seconds
        for peer, to_peer in TO_PEER.items()
    }


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
        "versions": {**software_versions(), "torch": version("torch")},
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": command,
    }


def print_table(seconds: Mapping[str, Seconds]) -> None:
    print("| part | seconds or milliseconds | our speed over theirs (least – most) |")
    print("|---|---|---|")
    for part, of_part in seconds.items():
        times = [f"{side} {typical(part, of_side):.4g}" for side, of_side in of_part.items()]
        found = [f"{name} {ratio}" for name, ratio in ratios(part, of_part).items()]
        print(f"| {part}, {PARTS[part][0]} | {', '.join(times)} | {', '.join(found)} |")


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


def parse(
    program: str, description: str | None, default: Settings, slice_seconds: float
) -> argparse.Namespace:
    """The command line of a comparison: every setting, the parts, the rounds, the output.

    Args:
      program: its file.
      description: what `--help` says.
      default: the settings where the command line says nothing.
      slice_seconds: of each turn of training, likewise.

    Returns:
      The arguments; `settings` among them, and `command`, which measures the same wherever its
      results go.
    """
    parser = argparse.ArgumentParser(
        prog=program,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    output = Path("benchmarks/results", Path(program).stem).with_suffix(".json")
    parser.add_argument("--output", type=Path, default=output)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--slice-seconds", type=float, default=slice_seconds, help="of training's turns"
    )
    for name, value in dataclasses.asdict(default).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    arguments = parser.parse_args()
    given = vars(arguments)
    words = ["python", program]
    for name, value in given.items():
        if name != "output" and value != parser.get_default(name):
            values = value if isinstance(value, list) else [value]
            words += [f"--{name.replace('_', '-')}", *map(str, values)]
    settings = Settings(**{name: given[name] for name in dataclasses.asdict(default)})
    return argparse.Namespace(**given, settings=settings, command=shlex.join(words))


def run(arguments: argparse.Namespace) -> dict[str, object]:
    """Compares, prints a table, and returns what was found with what it was found with."""
    # So that the programs end with this one also where it is killed in the usual way.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    settings = arguments.settings
    seconds = compare(arguments.parts, settings, arguments.rounds, arguments.slice_seconds)
    print_table(seconds)
    return {**results(seconds), **circumstances(settings, arguments.rounds, arguments.command)}
