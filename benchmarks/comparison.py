"""Compares the speed of this package with PyTorch: training, scoring and explaining.

Several programs do each part alternately in one run: this package ("ours"), plain PyTorch (NCHW, a
DataLoader whose workers decode each image at each access), and tuned PyTorch (channels_last; on a
GPU also autocast to bfloat16 and `compile`). A ratio is our speed divided by PyTorch's.
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

# Suffixes of the names of ratios, by our side and by peer.
OUR_SUFFIXES = {OURS: "", OURS_BFLOAT16: "_bfloat16"}
PEER_SUFFIXES = {"plain": "", "tuned": "_tuned"}
# Unit of a part's times, and tolerance between the results of the sides. Losses differ because each
# side draws its own samples of the prior.
PARTS = {
    "train": ("s", None),
    "step": ("s a step", 0.1),
    "score": ("ms an image", 1e-3),
    "score_decoded": ("ms an image", 1e-3),
    "explain": ("ms an image", 5e-3),
}


def sides(settings: Settings) -> list[str]:
    """Returns the sides of the comparison; bfloat16 is only for accelerators."""
    ours = OUR_SUFFIXES if settings.platform == "gpu" else [OURS]
    return [*ours, *PEER_SUFFIXES]


def commands(task: str, materials: Materials) -> dict[str, list[str]]:
    """Returns the commands of a task by side."""
    here = Path(__file__).parent

    def command(side: str) -> list[str]:
        program = "our_tasks.py" if side in OUR_SUFFIXES else "pytorch_tasks.py"
        return [sys.executable, str(here / program), task, str(materials.folder), side]

    return {side: command(side) for side in sides(materials.settings)}


def train(materials: Materials, slice_seconds: float) -> Seconds:
    """Returns the seconds of each epoch by side; the first includes starting, the last ending."""
    lines = in_slices(commands("train", materials), slice_seconds)
    return {side: seconds_of_epochs(side_lines) for side, side_lines in lines.items()}


def seconds_of_epochs(lines: Sequence[Line]) -> list[float]:
    """Returns the seconds of each epoch from the lines of a training program."""
    ends = [line.seconds for line in lines if line.text.startswith("epoch ")]
    ends[-1] = lines[-1].seconds
    return [end - start for start, end in itertools.pairwise([0.0, *ends])]


def measure(part: str, materials: Materials, n_rounds: int) -> Seconds:
    """Returns the times of each round by side, in the unit of the part."""
    settings = materials.settings
    programs = commands(part, materials)
    # Fills our compilation caches: only training measures compilation.
    in_rounds({side: program for side, program in programs.items() if side in OUR_SUFFIXES}, 0)
    seconds = in_rounds(programs, n_rounds)
    require_equal(part, materials)
    per_second = {
        "step": 1 / settings.steps_per_round,
        "score": 1000 / len(materials.paths),
        "score_decoded": 1000 / len(materials.paths),
        "explain": 1000 / settings.n_explained,
    }[part]
    return {side: [per_second * s for s in rounds] for side, rounds in seconds.items()}


def require_equal(part: str, materials: Materials) -> None:
    """Raises `AssertionError` if the result of another side differs from ours."""
    ours = np.load(materials.result(part, OURS))
    # Accelerators multiply with reduced precision, which differs between the sides.
    tolerance = 0.1 if materials.settings.platform == "gpu" else PARTS[part][1]
    for side in sides(materials.settings)[1:]:
        theirs = np.load(materials.result(part, side))
        np.testing.assert_allclose(
            theirs, ours, rtol=tolerance, atol=tolerance, err_msg=f"{part}, {side}"
        )


def ratios(part: str, seconds: Seconds) -> dict[str, Ratio]:
    """Returns the ratios of our speed to each peer's, by their names in the results."""
    ratio = total_ratio if part == "train" else median_ratio
    return {
        f"{part}_ratio{our_suffix}{peer_suffix}": ratio(seconds, ours, peer)
        for ours, our_suffix in OUR_SUFFIXES.items()
        if ours in seconds
        for peer, peer_suffix in PEER_SUFFIXES.items()
    }


def typical(part: str, seconds: Sequence[float]) -> float:
    """Returns the total time of training, or the median time of another part."""
    return sum(seconds) if part == "train" else float(np.median(seconds))


def results(seconds: Mapping[str, Seconds]) -> dict[str, object]:
    """Returns ratios, their spread, and absolute times by part and side, as plain values."""
    all_ratios: dict[str, Ratio] = {}
    times: dict[str, object] = {}
    for part, by_side in seconds.items():
        all_ratios |= ratios(part, by_side)
        times[part] = {
            "unit": PARTS[part][0],
            **{side: round(typical(part, rounds), 4) for side, rounds in by_side.items()},
            "epochs" if part == "train" else "rounds": {
                side: [round(time, 4) for time in rounds] for side, rounds in by_side.items()
            },
        }
    spread = {
        name: {"least": round(ratio.least, 4), "most": round(ratio.most, 4)}
        for name, ratio in all_ratios.items()
    }
    values = {name: round(ratio.value, 4) for name, ratio in all_ratios.items()}
    return {**values, "spread": spread, "times": times}


def provenance(settings: Settings, n_rounds: int, command: str) -> dict[str, object]:
    """Returns settings, machine, software versions, date and command of the results."""
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
    for part, by_side in seconds.items():
        times = [f"{side} {typical(part, rounds):.4g}" for side, rounds in by_side.items()]
        cells = [f"{name} {ratio}" for name, ratio in ratios(part, by_side).items()]
        print(f"| {part}, {PARTS[part][0]} | {', '.join(times)} | {', '.join(cells)} |")


def compare(
    parts: Sequence[str], settings: Settings, n_rounds: int, slice_seconds: float
) -> dict[str, Seconds]:
    """Measures the parts in a temporary folder; returns their seconds by side."""
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
    """Parses the command line of a comparison.

    Args:
      program: path of the program.
      description: description for `--help`.
      default: default settings.
      slice_seconds: default length of training's time slices.

    Returns:
      The arguments, with `settings`, and with `command`, which repeats the measurement.
    """
    parser = argparse.ArgumentParser(
        prog=program,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    output = Path("benchmarks/results", Path(program).stem).with_suffix(".json")
    parser.add_argument("--output", type=Path, default=output, help="JSON file of the results")
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=list(PARTS), help="parts to measure"
    )
    parser.add_argument("--rounds", type=int, default=5, help="number of rounds")
    parser.add_argument(
        "--slice-seconds", type=float, default=slice_seconds, help="time slice of training"
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
    """Runs a comparison, prints a table, and returns the results with their provenance."""
    # Turns SIGTERM into an exception, so that the programs end with this one.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    settings = arguments.settings
    seconds = compare(arguments.parts, settings, arguments.rounds, arguments.slice_seconds)
    print_table(seconds)
    return {**results(seconds), **provenance(settings, arguments.rounds, arguments.command)}
