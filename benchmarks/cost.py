"""Measures speed and memory of training on a CPU as the work grows.

python benchmarks/cost.py

Separate processes measure each row. They train like a run: with a store of images, prefetched
batches and the package's step. The images are random pixels in the package's cache of decoded
images, as in a second run. Another process compiles the programs first, so that peak memory does
not include compilation. Writes cost.md and cost.svg.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from results_page import command_line, page_parser, provenance, spread, table

from devnet_jax.config import Config, with_settings
from devnet_jax.data.decode import load_images
from devnet_jax.data.decode_cache import DecodeCache
from devnet_jax.data.preprocessing import Preprocessing
from devnet_jax.data.store import make_store, padded_length
from devnet_jax.runtime.host_devices import n_cores
from devnet_jax.runtime.startup import n_cpu_devices, prepare

# JAX starts only in the process of a row, after `prepare` has set its environment variables.

N_ANOMALY = 10
STORES = ("device", "host", "stream")
MIN_STEPS = 2  # timed steps, after the first step
MIB = 2**20


@dataclasses.dataclass(frozen=True)
class Work:
    """The parameters of a row.

    Attributes:
      image_size: height and width of the images.
      batch_size: training batch size over all devices.
      n_devices: number of virtual CPU devices.
      n_images: number of training images, including the labelled anomalies.
      n_scales: number of pyramid levels.
      store: value of `config.dataset.store`.
      memory_gib: value of `config.dataset.memory_gib`.
    """

    image_size: int
    batch_size: int
    n_devices: int
    n_images: int
    n_scales: int
    store: str
    memory_gib: float = 0.0

    @property
    def preprocessing(self) -> Preprocessing:
        """Preprocessing of the row's images."""
        return Preprocessing(self.image_size, self.image_size)

    @property
    def pixels_mib(self) -> float:
        """Size of all decoded training images in MiB."""
        return self.n_images * self.preprocessing.n_bytes / MIB

    @property
    def program(self) -> Work:
        """A `Work` that is equal for rows that share their compiled programs."""
        if self.store == "device":
            return dataclasses.replace(self, n_images=padded_length(self.n_images))
        return dataclasses.replace(self, n_images=0, store="host", memory_gib=0.0)

    @property
    def config(self) -> Config:
        """Settings of the row."""
        return with_settings(
            Config(),
            {
                "dataset.image_size": self.image_size,
                "dataset.store": self.store,
                "dataset.memory_gib": self.memory_gib,
                "model.n_scales": self.n_scales,
                "model.pretrained": "none",
                "train.batch_size": self.batch_size,
                "train.epochs": 1_000_000,  # more than the measurement needs
            },
        )


@dataclasses.dataclass(frozen=True)
class Cost:
    """The measurement of a row by one process.

    Attributes:
      seconds: duration of each timed step: waiting for its batch, computing, fetching its loss.
      store_seconds: time to make the store.
      started_mib: peak memory of the process after JAX has started.
      peak_mib: peak memory of the process at the end.
      store: class name of the store.
    """

    seconds: list[float]
    store_seconds: float
    started_mib: float
    peak_mib: float
    store: str

    @property
    def growth_mib(self) -> float:
        """Peak memory added by weights, optimiser, store and steps, in MiB."""
        return self.peak_mib - self.started_mib


@dataclasses.dataclass(frozen=True)
class RandomImages:
    """The decoded images of a row, read from a cache on disk as in a run."""

    work: Work
    cache: DecodeCache | None
    is_cached: bool = True

    @property
    def preprocessing(self) -> Preprocessing:
        return self.work.preprocessing

    def __len__(self) -> int:
        return self.work.n_images

    def read(self, indices: np.ndarray, description: str | None = None) -> np.ndarray:
        return load_images(self, list(indices), self.preprocessing, description, self.cache)

    def image_name(self, i: int) -> str:
        return f"image {i}"

    def image_bytes(self, i: int) -> bytes:
        raise LookupError(f"{self.image_name(i)} is not in the cache")


def write_images(file: Path, preprocessing: Preprocessing, n_images: int) -> None:
    """Writes random pixels as a cache of decoded images."""
    cache = DecodeCache(file, preprocessing.n_bytes, writable=True)
    rng = np.random.default_rng(0)
    for i in range(n_images):
        cache.write(i, rng.integers(0, 256, preprocessing.shape, dtype=np.uint8))


def peak_mib() -> float:
    """Returns the peak memory of this process so far in MiB (ru_maxrss)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / MIB if sys.platform == "darwin" else peak / 1024


def measure(work: Work, images: Path, seconds: float) -> Cost:
    """Trains for at least `seconds` and `MIN_STEPS` timed steps; with 0, only one untimed step."""
    prepare(work.batch_size)
    import jax

    from devnet_jax.data.prefetch import prefetch
    from devnet_jax.distributed.sharding import n_devices, replicated
    from devnet_jax.models.build import make_variables
    from devnet_jax.training.loop import call_inputs, unrolls_steps
    from devnet_jax.training.step import initial_state, make_train_call

    assert n_devices() == work.n_devices
    started_mib = peak_mib()
    config = work.config
    state = jax.device_put(initial_state(config, make_variables(config)), replicated())
    started = time.perf_counter()
    cache = DecodeCache(images, work.preprocessing.n_bytes, writable=False)
    store = make_store(RandomImages(work, cache), config.dataset, replicated())
    store_seconds = time.perf_counter() - started
    train_call = make_train_call(config, store, scan=not unrolls_steps())

    times: list[float] = []
    inputs = call_inputs(config, store, work.n_images - N_ANOMALY, done=0)
    with contextlib.closing(prefetch(inputs)) as calls:
        state, _ = jax.block_until_ready(train_call(state, store.resident, *next(calls)))
        while seconds and (len(times) < MIN_STEPS or sum(times) < seconds):
            started = time.perf_counter()
            state, metrics = train_call(state, store.resident, *next(calls))
            assert np.isfinite(metrics["loss"]).all()
            times.append(time.perf_counter() - started)
    return Cost(times, store_seconds, started_mib, peak_mib(), type(store).__name__)


def measure_in_process(work: Work, images: Path, compiled: Path, seconds: float) -> Cost:
    """Runs `measure` in a new process that shares a compilation cache with the others."""
    command = [sys.executable, __file__, f"--row={json.dumps(dataclasses.asdict(work))}"]
    settings = {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(work.n_devices),
        "JAX_COMPILATION_CACHE_DIR": str(compiled),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    process = subprocess.run(
        [*command, f"--file={images}", f"--seconds={seconds}"],
        env={**os.environ, **settings},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return Cost(**json.loads(process.stdout.splitlines()[-1]))


def plan(arguments: argparse.Namespace) -> dict[str, list[Work]]:
    """Returns the rows by the parameter that grows; a row may be in several sweeps."""

    def work(
        n_images: int = arguments.images[0],
        size: int = arguments.size,
        batch: int = arguments.batch,
        n_devices: int | None = None,
        n_scales: int = 1,
        store: str = "host",
    ) -> Work:
        # The number of devices that a run on this machine has, unless it is the parameter.
        n_devices = n_devices or n_cpu_devices(batch, n_cores())
        return Work(size, batch, n_devices, n_images, n_scales, store)

    auto = work(n_images=arguments.images[-1], store="auto")
    budget = round(auto.pixels_mib / 1024 / 2, 4)
    return {
        "images": [
            *(work(n_images=n, store=store) for store in STORES for n in arguments.images),
            dataclasses.replace(auto, memory_gib=budget),
        ],
        "batch": [work(batch=batch) for batch in arguments.batches],
        "size": [work(size=size) for size in arguments.sizes],
        "scales": [work(size=arguments.scales_size, n_scales=n) for n in arguments.scales],
        "devices": [work(n_devices=n) for n in arguments.devices],
    }


def measure_all(rows: Sequence[Work], n_rounds: int, seconds: float) -> dict[Work, list[Cost]]:
    """Measures all rows one after another, in several rounds."""
    costs: dict[Work, list[Cost]] = {row: [] for row in rows}
    compiled: set[Work] = set()
    n_images = {
        size: max(row.n_images for row in rows if row.image_size == size)
        for size in {row.image_size for row in rows}
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for size, n in n_images.items():
            write_images(folder / str(size), Preprocessing(size, size), n)
        for row in list(costs) * n_rounds:
            arguments = (row, folder / str(row.image_size), folder / "compiled")
            if row.program not in compiled:
                measure_in_process(*arguments, seconds=0)
                compiled.add(row.program)
            costs[row].append(measure_in_process(*arguments, seconds=seconds))
            print(*cells(row, costs[row]), sep=" | ", flush=True)
    return costs


# The measurements of all processes, by row.
Costs = Mapping[Work, Sequence[Cost]]


def speeds(row: Work, costs: Sequence[Cost]) -> list[float]:
    """Returns the images per second of each step of all processes."""
    return [row.batch_size / seconds for cost in costs for seconds in cost.seconds]


def speed(row: Work, costs: Sequence[Cost]) -> float:
    """Returns the median of the images per second over all steps."""
    return statistics.median(speeds(row, costs))


def growth_mib(costs: Sequence[Cost]) -> float:
    """Returns the median over the processes of the peak memory added, in MiB."""
    return statistics.median(cost.growth_mib for cost in costs)


COLUMNS = (
    "images",
    "store",
    "batch",
    "size",
    "scales",
    "devices",
    "images/s (slowest – quickest step)",
    "decoded images, MiB",
    "peak memory, MiB (least – most)",
    "store made in, s",
)


def cells(row: Work, costs: Sequence[Cost]) -> tuple[object, ...]:
    """Returns the values of `COLUMNS`."""
    store = row.store
    if row.store == "auto":
        store = f"auto, {row.memory_gib:g} GiB: {costs[0].store}"
    return (
        f"{row.n_images:,}",
        store,
        row.batch_size,
        row.image_size,
        row.n_scales,
        row.n_devices,
        spread(speeds(row, costs), digits=1),
        f"{row.pixels_mib:.0f}",
        spread([cost.growth_mib for cost in costs], digits=0),
        f"{statistics.median(cost.store_seconds for cost in costs):.1f}",
    )


def findings(plan: Mapping[str, Sequence[Work]], costs: Costs) -> Iterator[str]:
    """Yields sentences that summarise the rows."""
    for store in STORES:
        rows = [row for row in plan["images"] if row.store == store]
        few, many = rows[0], rows[-1]
        growth = growth_mib(costs[many]) - growth_mib(costs[few])
        ratio = speed(many, costs[many]) / speed(few, costs[few])
        yield (
            f"{store}: from {few.n_images:,} to {many.n_images:,} images, which are "
            f"{many.pixels_mib - few.pixels_mib:.0f} MiB more pixels, peak memory changes by "
            f"{growth:+.0f} MiB; the speed is {ratio:.2f} times as high."
        )
    auto = plan["images"][-1]
    yield (
        f"{auto.n_images:,} images ({auto.pixels_mib:.0f} MiB) with a budget of "
        f"{auto.memory_gib:g} GiB and store=auto: {costs[auto][0].store}, peak memory "
        f"{growth_mib(costs[auto]):.0f} MiB."
    )
    for grows in ("batch", "size", "scales", "devices"):
        rows = list(plan[grows])
        first, last = rows[0], rows[-1]
        ratios = [f"{speed(row, costs[row]) / speed(first, costs[first]):.2f}" for row in rows]
        values = [str(value_of(grows, row)) for row in rows]
        yield (
            f"{grows} {', '.join(values)}: speed {', '.join(ratios)} times the first one's; peak "
            f"memory {growth_mib(costs[first]):.0f} to {growth_mib(costs[last]):.0f} MiB."
        )


def value_of(grows: str, row: Work) -> int:
    """Returns the value of the parameter that grows."""
    return {
        "images": row.n_images,
        "batch": row.batch_size,
        "size": row.image_size,
        "scales": row.n_scales,
        "devices": row.n_devices,
    }[grows]


def draw(plan: Mapping[str, Sequence[Work]], costs: Costs, file: Path) -> None:
    """Plots images per second, and peak memory below, over each parameter that grows."""
    import matplotlib
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "svg.hashsalt": "cost",
        "svg.fonttype": "none",
        "axes.grid": True,
        "grid.alpha": 0.4,
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(14, 5.5), layout="constrained")
        axes = figure.subplots(2, len(plan), sharey="row", sharex="col")
        for column, (grows, rows) in zip(axes.T, plan.items(), strict=True):
            # Only the sweep over the number of images has several stores.
            for store, marker in zip(STORES, "os^", strict=True):
                series = [row for row in rows if row.store == store]
                values = [value_of(grows, row) for row in series]
                colour = f"C{STORES.index(store)}"
                line = {"marker": marker, "color": colour, "label": store if series else None}
                speeds = [speed(row, costs[row]) for row in series]
                column[0].plot(values, speeds, **line)
                column[1].plot(values, [growth_mib(costs[row]) for row in series], **line)
            column[1].set_xscale("log", base=10 if grows == "images" else 2)
            ticks = sorted({value_of(grows, row) for row in rows})
            column[1].set_xticks(ticks, [f"{tick:,}" for tick in ticks])
            column[1].minorticks_off()
            column[1].set_xlabel(LABELS[grows])
        for plot in axes[:, 0]:  # the axis is shared by the row, so this comes last
            plot.set_ylim(bottom=0)
        axes[0, 0].set_ylabel("images a second")
        axes[1, 0].set_ylabel("peak memory, MiB")
        axes[0, 0].legend(title="store")
        figure.savefig(file, format="svg", metadata={"Date": None})


LABELS = {
    "images": "training images",
    "batch": "batch",
    "size": "height and width",
    "scales": "scales",
    "devices": "virtual devices",
}


def write_page(folder: Path, about: str, plan: Mapping[str, Sequence[Work]], costs: Costs) -> None:
    """Writes cost.md and cost.svg."""
    rows = [(grows, *cells(row, costs[row])) for grows, sweep in plan.items() for row in sweep]
    started = statistics.median(c.started_mib for measured in costs.values() for c in measured)
    n_rounds = len(next(iter(costs.values())))
    text = f"""\
# Cost of training as the work grows

{about}
ResNet-18, deviation loss, random weights, float32, {N_ANOMALY} labelled anomalies. Each row was
measured by {n_rounds} processes, one in each round over all rows. The images are random
pixels, decoded beforehand, on disk and in the system's page cache.

- Images/s: median over the steps after the first. A step includes waiting for its batch, computing,
  and fetching the loss.
- Peak memory: median over the processes of the largest resident set (ru_maxrss), minus its value
  after the start of JAX ({started:.0f} MiB). It includes weights, optimiser, store, batches and
  the step, but neither compilation, which another process did, nor the page cache.

{table(("what grows", *COLUMNS), rows)}

![images per second and peak memory over the parameter that grows](cost.svg)

Findings:

{chr(10).join(f"- {sentence}" for sentence in findings(plan, costs))}
"""
    (folder / "cost.md").write_text(text)
    draw(plan, costs, folder / "cost.svg")


def main() -> None:
    parser = page_parser("cost.py", __doc__)
    parser.add_argument(
        "--images", type=int, nargs="+", default=[100, 1_000, 10_000], help="numbers of images"
    )
    parser.add_argument(
        "--batches", type=int, nargs="+", default=[8, 16, 32, 64, 96], help="batch sizes"
    )
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[128, 224, 320, 448], help="image sizes"
    )
    parser.add_argument(
        "--scales", type=int, nargs="+", default=[1, 2, 3], help="numbers of scales"
    )
    parser.add_argument(
        "--devices", type=int, nargs="+", default=[1, 2, 4, 8], help="numbers of devices"
    )
    parser.add_argument("--batch", type=int, default=16, help="batch size of the other sweeps")
    parser.add_argument("--size", type=int, default=128, help="image size of the other sweeps")
    parser.add_argument(
        "--scales-size", type=int, default=320, help="image size of the sweep over scales"
    )
    parser.add_argument("--rounds", type=int, default=3, help="number of measurements of each row")
    parser.add_argument(
        "--seconds", type=float, default=3, help="minimum training time of a process"
    )
    parser.add_argument("--row", help="internal: measure this row in this process, and print JSON")
    parser.add_argument("--file", type=Path, help="internal: images of the row")
    arguments = parser.parse_args()
    if arguments.row:
        cost = measure(Work(**json.loads(arguments.row)), arguments.file, arguments.seconds)
        print(json.dumps(dataclasses.asdict(cost)))
        return
    rows = plan(arguments)
    print(*COLUMNS, sep=" | ")
    costs = measure_all(
        [row for sweep in rows.values() for row in sweep], arguments.rounds, arguments.seconds
    )
    write_page(arguments.output, provenance(command_line(parser, arguments)), rows, costs)


if __name__ == "__main__":
    main()
