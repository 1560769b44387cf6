"""Measures DevCore's training time and peak memory by the number of good pictures.

python benchmarks/growth.py

The pictures are drawn, JPEG files of 256×256; ten with a scratch train with their label.
Each run is a process of its own on the command line, which trains, calibrates, evaluates and writes
the report; the first run of each size also prepares and decodes the pictures. ResNet-18 with random
weights: its speed is that of any weights. Writes growth.md.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from materials import photograph
from results_page import command_line, page_parser, provenance, table

from devnet_jax.runtime.host_devices import n_cores

PIXELS, N_DEFECTS, N_TEST_GOOD = 256, 20, 10


def write_pictures(folder: Path, n_good: int) -> None:
    """Writes good pictures to train and to test with, and pictures with a scratch."""
    kinds = {"train/good": n_good, "test/good": N_TEST_GOOD, "test/scratch": N_DEFECTS}
    jobs = []
    for number, (kind, count) in enumerate(kinds.items()):
        (folder / kind).mkdir(parents=True)
        jobs += [(folder / kind / f"{i:06}.jpg", 1_000_000 * number + i) for i in range(count)]

    def write(job: tuple[Path, int]) -> None:
        path, seed = job
        photograph(PIXELS, seed, "scratch" in path.parts).save(path, quality=90)

    with ThreadPoolExecutor(n_cores()) as pool:
        list(pool.map(write, jobs))


def run(folder: Path, data: Path, workdir: Path) -> tuple[float, float]:
    """Trains and evaluates one run; returns its seconds and its peak memory in MiB."""
    command = [sys.executable, "-m", "devnet_jax.main", "--config=configs/folder.py"]
    command += [f"--config.dataset.manual_dir={folder}", f"--workdir={workdir}"]
    command += ["--config.model.pretrained=none"]
    started = time.perf_counter()
    process = subprocess.Popen(
        command, env={**os.environ, "TFDS_DATA_DIR": str(data)}, stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"{' '.join(command)} failed")
    return time.perf_counter() - started, _mebibytes(usage)


def _mebibytes(usage: resource.struct_rusage) -> float:
    return usage.ru_maxrss / 1024


def main() -> None:
    """Measures all sizes, and writes the page."""
    parser = page_parser("growth.py", __doc__)
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[100, 1000, 10_000], help="numbers of pictures"
    )
    arguments = parser.parse_args()
    rows = []
    for n_good in arguments.sizes:
        with tempfile.TemporaryDirectory() as temporary:
            folder, data = Path(temporary) / "parts", Path(temporary) / "data"
            write_pictures(folder, n_good)
            first = run(folder, data, Path(temporary) / "first")
            again = run(folder, data, Path(temporary) / "again")
            rows.append([f"{n_good:,}", f"{first[0]:.0f}", f"{again[0]:.0f}", f"{again[1]:.0f}"])
            print(rows[-1], flush=True)
    columns = ["good pictures", "first run, s", "again, s", "peak memory, MiB"]
    page = [
        "# DevCore by the number of good pictures\n",
        provenance(command_line(parser, arguments)),
        f"Pictures of {PIXELS}×{PIXELS}, a fifth of which calibrate; ten labelled defects; "
        "224×224. "
        "The first run prepares and decodes the pictures; both have compiled programs, but for the "
        "very first. At most 512 good pictures train the head, all fill the memory.\n",
        table(columns, rows),
        "",
    ]
    (arguments.output / "growth.md").write_text("\n".join(page))


if __name__ == "__main__":
    main()
