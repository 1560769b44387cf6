"""What many devices buy: what a step sends and several processes cost here, and what follows.

python benchmarks/scale.py

Measured are a step at the paper's settings, as XLA compiles it for two virtual devices (it is not
run), one process with two devices beside two with one each, and the decoding of images. What chips
that are not here would make of that is arithmetic (`scale_arithmetic.py`). scale.md and
scale.json, all that was measured, go to a folder; --again writes the page anew from the latter.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from results_page import circumstances, command_line, page_parser
from scale_step import IMAGE_SIZE, N_DEVICES, Step

from devnet_jax.data.decode import load_image
from devnet_jax.environment import n_cores

PROCESSES = (1, 2)
PICTURE_SIZE = 1024  # of the files that are decoded and scored


@dataclasses.dataclass(frozen=True)
class Decoding:
    """What decoding files of one kind takes on one core.

    Attributes:
      kind: of the files, in words.
      seconds: of each, decoded and resized from memory.
      file_bytes: the mean of their sizes.
    """

    kind: str
    seconds: list[float]
    file_bytes: int


@dataclasses.dataclass(frozen=True)
class Measured:
    """All that was measured.

    Attributes:
      about: date, machine, versions and command.
      step: at the paper's settings.
      speeds: images a second of every epoch but the first, by the number of processes.
      loopback_bytes: that went over the loopback for each step, by the same; the least of the
        rounds. None where the system does not count them.
      scoring: images a second of each round of `--mode=predict`, by the same.
      decoding: first of files as they are scored, then of smaller ones.
      others: the share of the machine's time that other programs had meanwhile; None where the
        system does not say.
      settings: of what was measured.
    """

    about: str
    step: Step
    speeds: Mapping[str, list[float]]
    loopback_bytes: Mapping[str, float | None]
    scoring: Mapping[str, list[float]]
    decoding: Sequence[Decoding]
    others: float | None
    settings: Mapping[str, int]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Measured:
        """From what `dataclasses.asdict` gives."""
        nested = {
            "step": Step.from_dict(values["step"]),
            "decoding": [Decoding(**one) for one in values["decoding"]],
        }
        return cls(**{**values, **nested})


def compile_step_apart() -> Step:
    """`scale_step.py` in a process of its own: this one starts no JAX."""
    program = Path(__file__).with_name("scale_step.py")
    process = subprocess.run(
        [sys.executable, str(program)], stdout=subprocess.PIPE, check=True, text=True
    )
    step = Step.from_dict(json.loads(process.stdout.splitlines()[-1]))
    assert step.forward.count
    assert step.backward.bytes >= 4 * step.parameters  # every gradient, in float32
    return step


def launch(processes: int, arguments: Sequence[str]) -> None:
    """Runs the package's command line in so many processes that share `N_DEVICES` CPU devices."""
    if processes == 1:  # as everybody starts it: its devices need no network
        command = [sys.executable, "-m", "devnet_jax.main"]
    else:
        program = Path(__file__).parents[1] / "launch" / "local.py"
        command = [sys.executable, str(program), f"--num_processes={processes}", "--platform=cpu"]
        command += [f"--devices_per_process={N_DEVICES // processes}", "--"]
    subprocess.run(
        [*command, *arguments],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(N_DEVICES)},
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def loopback_bytes(table: str) -> int | None:
    """What has gone over the loopback so far, by the kernel's table of network devices."""
    for line in table.splitlines():
        name, _, counts = line.partition(":")
        if name.strip() == "lo":
            return int(counts.split()[0])  # received, which here is what was sent
    return None


def _loopback_now() -> int | None:
    table = Path("/proc/net/dev")
    return loopback_bytes(table.read_text()) if table.exists() else None


def busy_seconds(statistics: str, ticks: int) -> float:
    """The time that all cores together have not idled, by the kernel's statistics."""
    user, nice, system, _, _, *others = map(int, statistics.splitlines()[0].split()[1:9])
    return (user + nice + system + sum(others)) / ticks


def others_share(busy: float, ours: float, elapsed: float, cores: int) -> float:
    """The share of the cores' time that programs other than ours had."""
    return max(busy - ours, 0.0) / (elapsed * cores)


class Watch:
    """What else the machine does from now on."""

    def __init__(self) -> None:
        self._start = self._now()

    @staticmethod
    def _now() -> tuple[float, float, float]:
        file = Path("/proc/stat")
        ticks = os.sysconf("SC_CLK_TCK")
        busy = busy_seconds(file.read_text(), ticks) if file.exists() else math.nan
        return busy, sum(os.times()[:4]), time.monotonic()  # our processes, those ended too

    def share(self) -> float | None:
        """The share of the cores' time that others had; None where the system does not say."""
        busy, ours, elapsed = (b - a for a, b in zip(self._start, self._now(), strict=True))
        share = others_share(busy, ours, elapsed, n_cores())
        return None if math.isnan(busy) else share


def train(
    processes: int, workdir: Path, data: Path, settings: argparse.Namespace
) -> tuple[list[float], float | None]:
    """Images a second of the epochs but the first, and bytes over the loopback for each step."""
    before = _loopback_now()
    launch(
        processes,
        [
            "--config=configs/quickstart.py",
            f"--workdir={workdir}",
            f"--config.dataset.data_dir={data}",
            f"--config.dataset.image_size={settings.size}",
            f"--config.train.batch_size={settings.batch}",
            f"--config.train.epochs={settings.epochs}",
            f"--config.train.steps_per_epoch={settings.steps}",
            "--config.evaluation.explanation=none",
        ],
    )
    after = _loopback_now()
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    speeds = [json.loads(line)["images_per_second"] for line in lines[1:]]
    if before is None or after is None:
        return speeds, None
    return speeds, (after - before) / (settings.epochs * settings.steps)


def draw_pictures(folder: Path, n_drawn: int, n: int) -> list[np.ndarray]:
    """PNGs of one of the built-in data set's surfaces, enlarged, each with a camera's noise.

    Args:
      folder: where they go.
      n_drawn: that differ.
      n: of files, which beyond the former repeat them.

    Returns:
      The pixels of those that differ.
    """
    from devnet_jax.data.builders.textures import draw_surface, photograph

    rng = np.random.default_rng(0)
    surface = Image.fromarray(photograph(draw_surface("mesh", rng), rng))
    size = (PICTURE_SIZE, PICTURE_SIZE)
    enlarged = np.asarray(surface.resize(size, Image.Resampling.LANCZOS))
    noise = rng.normal(0, 2, (n_drawn, *enlarged.shape))
    pictures = list(np.rint(enlarged + noise).clip(0, 255).astype(np.uint8))
    names = [folder / f"{i:05}.png" for i in range(n)]
    for i, name in enumerate(names):
        if i < n_drawn:
            Image.fromarray(pictures[i]).save(name)
        else:
            name.hardlink_to(names[i % n_drawn])
    return pictures


def decode_all(pictures: Sequence[np.ndarray]) -> list[Decoding]:
    """Files of these pictures, as PNG, as JPEG, and as PNG of the size that the network sees."""
    side = f"{PICTURE_SIZE}×{PICTURE_SIZE}"
    small = f"{IMAGE_SIZE}×{IMAGE_SIZE}"
    images = [Image.fromarray(pixels) for pixels in pictures]
    resized = [image.resize((IMAGE_SIZE, IMAGE_SIZE)) for image in images]
    return [
        decode(f"{side} PNG", images, {"format": "PNG"}),
        decode(f"{side} JPEG, quality 90", images, {"format": "JPEG", "quality": 90}),
        decode(f"{small} PNG", resized, {"format": "PNG"}),
    ]


def decode(kind: str, images: Sequence[Image.Image], settings: Mapping[str, Any]) -> Decoding:
    """Files of these images, decoded one after the other to the size that the network sees."""
    seconds, sizes = [], []
    for image in images:
        file = io.BytesIO()
        image.save(file, **settings)
        started = time.perf_counter()
        load_image(file.getvalue(), kind, IMAGE_SIZE)
        seconds.append(time.perf_counter() - started)
        sizes.append(len(file.getvalue()))
    return Decoding(kind, seconds, round(statistics.mean(sizes)))


def predict(processes: int, workdir: Path, inputs: Sequence[Path], output: Path) -> float:
    """Seconds from the command to its end."""
    started = time.perf_counter()
    launch(
        processes,
        [
            "--mode=predict",
            f"--workdir={workdir}",
            *(f"--input={path}" for path in inputs),
            f"--output={output}",
            "--config.evaluation.explanation=none",
            "--config.evaluation.overlays=none",
            "--config.evaluation.batch_size=16",
        ],
    )
    return time.perf_counter() - started


def measure(about: str, settings: argparse.Namespace) -> Measured:
    """Everything, the numbers of processes in turn."""
    step = compile_step_apart()
    print(step, flush=True)
    names = [str(n) for n in PROCESSES]
    speeds: dict[str, list[float]] = {name: [] for name in names}
    sent: dict[str, list[float | None]] = {name: [] for name in names}
    scoring: dict[str, list[float]] = {name: [] for name in names}
    few, many = settings.pictures
    watch = Watch()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        pictures = folder / "pictures"
        pictures.mkdir()
        decoding = decode_all(draw_pictures(pictures, few, many))
        print(decoding, flush=True)
        files = sorted(pictures.iterdir())
        for number in range(settings.rounds):
            for n in PROCESSES:
                run = folder / f"{n} {number}"
                of_epochs, each_step = train(n, run, folder / "data", settings)
                speeds[str(n)] += of_epochs
                sent[str(n)].append(each_step)
                print(n, "processes:", of_epochs, "images/s;", each_step, "bytes", flush=True)
        for number in range(settings.rounds):
            for n in PROCESSES:
                # What both spend, such as starting, is not in the difference.
                seconds = [
                    predict(n, folder / "1 0", given, folder / f"of {count} {n} {number}")
                    for count, given in ((few, files[:few]), (many, [pictures]))
                ]
                scoring[str(n)].append((many - few) / (seconds[1] - seconds[0]))
                print(n, "processes:", seconds, "s for the pictures", flush=True)
    others = watch.share()
    least = {
        name: min((value for value in values if value is not None), default=None)
        for name, values in sent.items()
    }
    kept = {name: getattr(settings, name) for name in ("size", "batch", "epochs", "steps")}
    kept |= {"rounds": settings.rounds, "few": few, "many": many}
    kept |= {"image": IMAGE_SIZE, "devices": N_DEVICES, "picture": PICTURE_SIZE}
    return Measured(about, step, speeds, least, scoring, decoding, others, kept)


def main() -> None:
    parser = page_parser("scale.py", __doc__)
    parser.add_argument("--size", type=int, default=128, help="of the images of measured runs")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=4, help="the first is not counted")
    parser.add_argument("--steps", type=int, default=15, help="of an epoch")
    parser.add_argument(
        "--pictures", type=int, nargs=2, default=[32, 224], help="few and many, to score"
    )
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--again", action="store_true", help="write the page from scale.json")
    arguments = parser.parse_args()
    from scale_page import write_page

    record = arguments.output / "scale.json"
    if arguments.again:
        measured = Measured.from_dict(json.loads(record.read_text()))
    else:
        measured = measure(circumstances(command_line(parser, arguments)), arguments)
        record.write_text(json.dumps(dataclasses.asdict(measured), indent=2) + "\n")
    write_page(arguments.output / "scale.md", measured)


if __name__ == "__main__":
    main()
