"""Measures the time to prepare and decode a folder of images, in the first and the second run.

python benchmarks/decoding.py

For each number of cores, a first run starts without prepared data and a second run repeats it. Each
run is a process that may use only these cores. Writes decoding.md.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from materials import Materials, Settings, write_materials
from results_page import command_line, page_parser, provenance, table

from devnet_jax.config import DatasetConfig
from devnet_jax.data.few_shot import FewShotDataset

Figures = Mapping[str, float]


def read_all(settings: DatasetConfig) -> dict[str, float]:
    """Prepares a data set and reads its training and test images.

    Returns:
      Number of images, and for both parts the seconds and the mean number of busy cores.
    """
    marks = [(time.perf_counter(), time.process_time())]
    dataset = FewShotDataset.draw(settings, seed=0)
    marks.append((time.perf_counter(), time.process_time()))
    paths = {*dataset.split.train, *dataset.split.test}
    dataset.images(sorted(paths))
    marks.append((time.perf_counter(), time.process_time()))
    figures: dict[str, float] = {"images": len(paths)}
    for what, start, end in zip(("preparing", "reading"), marks, marks[1:], strict=False):
        wall, cpu = (after - before for before, after in zip(start, end, strict=True))
        figures |= {f"{what}, s": wall, f"cores busy while {what}": cpu / wall}
    return figures


def measure(materials: Materials, cores: Sequence[int], prepared: Path) -> dict[str, Figures]:
    """Runs `read_all` twice, each time in a process that may use only these cores."""
    settings = {
        "name": "image_folder",
        "manual_dir": str(materials.images),
        "data_dir": str(prepared),
        "image_size": materials.settings.image_size,
    }
    figures = {}
    for run in ("first run", "next run"):
        result = subprocess.run(
            [sys.executable, __file__, f"--read={json.dumps([list(cores), settings])}"],
            stdout=subprocess.PIPE,
            check=True,
        )
        figures[run] = json.loads(result.stdout)
    return figures


def runs_table(rows: Mapping[tuple[int, str], Figures]) -> str:
    """Returns a table with a row for each number of cores and run."""
    columns = ["cores", "run", *next(iter(rows.values()))]

    def format_values(figures: Figures) -> list[str]:
        return [f"{v:,}" if isinstance(v, int) else f"{v:.2f}" for v in figures.values()]

    return table(columns, [[*key, *format_values(figures)] for key, figures in rows.items()])


def write_page(file: Path, about: str, pixels: int, size: int, rows_as_table: str) -> None:
    file.write_text(f"""\
# Cost of decoding

{about}
Images: PNG, {pixels}×{pixels}, each decoded and resized to {size}×{size} once. Preparing
means finding the files, decoding each one to detect damaged files, and copying them, which
TensorFlow Datasets does on one core. Reading means decoding them for training and caching the
decoded images for the next run. Files are in the system's page cache.

{rows_as_table}
""")


def main() -> None:
    parser = page_parser("decoding.py", __doc__)
    parser.add_argument("--images", type=int, default=1000, help="number of normal training images")
    parser.add_argument("--pixels", type=int, default=1024, help="height and width of the files")
    parser.add_argument(
        "--size", type=int, default=224, help="height and width of the decoded images"
    )
    parser.add_argument(
        "--read",
        type=json.loads,
        help="internal: read a data set in this process and print the results as JSON",
    )
    arguments = parser.parse_args()
    if arguments.read:
        cores, settings = arguments.read
        os.sched_setaffinity(0, cores)
        print(json.dumps(read_all(DatasetConfig(**settings))))
        return
    settings = Settings(
        n_normal=arguments.images, pixels=arguments.pixels, image_size=arguments.size
    )
    all_cores = sorted(os.sched_getaffinity(0))
    rows = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "materials"
        folder.mkdir()
        materials = write_materials(folder, settings)
        for n in sorted({1, len(all_cores)}):
            prepared = Path(temporary) / str(n)
            for run, figures in measure(materials, all_cores[:n], prepared).items():
                rows[n, run] = figures
    as_table = runs_table(rows)
    print(as_table)
    about = provenance(command_line(parser, arguments))
    write_page(arguments.output / "decoding.md", about, arguments.pixels, arguments.size, as_table)


if __name__ == "__main__":
    main()
