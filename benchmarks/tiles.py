"""Measures peak memory and time of large pictures in tiles, beside one picture of a tile's size.

python benchmarks/tiles.py

A picture of 8000×6000 is scored and explained by DevCore and by the paper's network, each in a
process of its own, with 1×1, 3×4 and 12×16 tiles. ResNet-18 with random weights. Writes tiles.md.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from materials import photograph
from results_page import command_line, page_parser, provenance, table

from devnet_jax.runtime.startup import prepare

SIZE = 448  # of a tile
LARGE = (8000, 6000)
TILES = ("1x1", "3x4", "12x16")


def write_pictures(folder: Path) -> dict[str, Path]:
    """Writes a large picture and one of a tile's size."""
    tile = photograph(SIZE, 0, False)
    paths = {"large": folder / "large.jpg", "tile": folder / "tile.jpg"}
    tile.save(paths["tile"], quality=90)
    tile.resize(LARGE).save(paths["large"], quality=90)
    return paths


def measure(detector: str, tiles: str, path: str) -> None:
    """Scores and explains one picture in this process; prints seconds and peak memory in MiB."""
    prepare(batch_size=1)
    import time

    from devnet_jax import Detector
    from devnet_jax.config import Config, with_settings
    from devnet_jax.models.build import make_variables

    settings = {
        "dataset.image_size": SIZE,
        "dataset.tiles": tiles,
        "model.detector": detector,
        "model.pretrained": "none",
        "model.n_scales": 1,
        "evaluation.batch_size": 1,
    }
    config = with_settings(Config(), settings)
    scorer = Detector(config, make_variables(config), step=0)

    def work() -> float:
        started = time.perf_counter()
        batch = scorer.prepare(path)
        scored = scorer.score(batch)
        scorer.explain(batch, maps=scored.maps)
        return time.perf_counter() - started

    work()  # compiles
    seconds = work()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps([seconds, peak]))


def run(detector: str, tiles: str, path: Path) -> tuple[float, float]:
    """Measures in a new process; returns seconds and peak memory in MiB."""
    command = [sys.executable, __file__, f"--one={detector},{tiles},{path}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
    seconds, peak = json.loads(done.stdout.splitlines()[-1])
    return seconds, peak


def main() -> None:
    """Measures all rows, and writes the page."""
    parser = page_parser("tiles.py", __doc__)
    parser.add_argument(
        "--one", help="measure one detector, number of tiles and picture, and print"
    )
    arguments = parser.parse_args()
    if arguments.one:
        measure(*arguments.one.split(",", 2))
        return
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        paths = write_pictures(Path(temporary))
        for detector in ("devcore", "devnet"):
            jobs = [("tile", "1x1"), *(("large", tiles) for tiles in TILES)]
            for kind, tiles in jobs:
                seconds, peak = run(detector, tiles, paths[kind])
                size = f"{LARGE[0]}×{LARGE[1]}" if kind == "large" else f"{SIZE}×{SIZE}"
                rows.append([detector, size, tiles, f"{seconds:.1f}", f"{peak:.0f}"])
                print(rows[-1], flush=True)
    arguments.one = None
    page = [
        "# Large pictures in tiles\n",
        provenance(command_line(parser, arguments)),
        f"One picture, decoded, scored and explained; tiles of {SIZE}×{SIZE} that overlap by a "
        "tenth; DevCore explains by its score map, devnet by input gradients, with one scale. Peak "
        "memory is that of the process, JAX and its programs included; the decoded picture alone "
        f"takes {LARGE[0] * LARGE[1] * 4 / 2**20:.0f} MiB in Pillow.\n",
        table(["detector", "picture", "tiles", "seconds", "peak memory, MiB"], rows),
        "",
    ]
    (arguments.output / "tiles.md").write_text("\n".join(page))


if __name__ == "__main__":
    main()
