"""Compares DevCore with anomalib's PatchCore: time to detector, scoring rate, AUROC, size of file.

python benchmarks/patchcore.py --folder=DATA/mvtec/bottle --weights=resnet18.safetensors

FOLDER is laid out as for configs/folder.py. 200 of its good pictures and all its test pictures are
resized to 900×900. DevCore trains on the command line twice: with empty caches, then again with
the decoded pictures and compiled programs of the first run. DevCore and PatchCore use the same
weights file and 224×224. --peer is the Python that has anomalib; its coreset keeps a hundredth of
the vectors, and with --tenth a tenth as well, its default, which takes an hour. Writes
patchcore.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from results_page import page_parser, provenance, table

COMMAND = "python benchmarks/patchcore.py --folder=DATA/mvtec/bottle --weights=resnet18.safetensors"
PIXELS, N_GOOD, SIZE, BATCH_SIZE, ROUNDS = 900, 200, 224, 32, 3

# Prints how many images a second a run's detector scores, and its ResNet alone.
RATES = f"""
import sys, time
from devnet_jax.runtime.startup import prepare
prepare({BATCH_SIZE})
import jax
import numpy as np
from devnet_jax import Detector
from devnet_jax.config import Config, with_settings
from devnet_jax.data.preprocessing import normalise
from devnet_jax.models import fold_batch_norm
from devnet_jax.models.build import first_variables, make_model

config = with_settings(Config(), {{"model.pretrained": sys.argv[2], "dataset.image_size": {SIZE}}})
model = make_model(config).clone(folded=True)
variables = fold_batch_norm(first_variables(config), backbone="resnet18")

@jax.jit
def forward(images):
    return model.apply(variables, normalise(images), ("layer4",), method="features")

detector = Detector.load(sys.argv[1])
images = np.random.default_rng(0).integers(0, 255, ({BATCH_SIZE}, {SIZE}, {SIZE}, 3), np.uint8)
for function in (detector.score, lambda images: jax.block_until_ready(forward(images))):
    function(images)
    started = time.perf_counter()
    for _ in range({ROUNDS}):
        function(images)
    print({ROUNDS * BATCH_SIZE} / (time.perf_counter() - started))
"""


def write_folder(source: Path, folder: Path) -> None:
    """Writes the pictures of the comparison as PNG files of `PIXELS`²."""
    for kind in [Path("train/good"), *(Path("test") / p.name for p in (source / "test").iterdir())]:
        (folder / kind).mkdir(parents=True)
        limit = N_GOOD if kind.parts[0] == "train" else None
        for path in sorted((source / kind).iterdir())[:limit]:
            with Image.open(path) as image:
                image.convert("RGB").resize((PIXELS, PIXELS)).save(
                    folder / kind / f"{path.stem}.png", compress_level=1
                )


def train(arguments: argparse.Namespace, folder: Path, caches: Path, workdir: Path) -> float:
    """Trains DevCore on the command line; returns seconds from the start to the evaluated run."""
    variables = {"TFDS_DATA_DIR": str(caches / "data"), "XDG_CACHE_HOME": str(caches / "cache")}
    command = [sys.executable, "-m", "devnet_jax.main", "--config=configs/folder.py"]
    command += [f"--config.dataset.manual_dir={folder}", f"--workdir={workdir}"]
    command += [f"--config.model.pretrained={arguments.weights.absolute()}"]
    started = time.perf_counter()
    subprocess.run(command, check=True, env={**os.environ, **variables}, capture_output=True)
    return time.perf_counter() - started


def measure_ours(arguments: argparse.Namespace, folder: Path, caches: Path) -> dict[str, Any]:
    """Returns the measures of DevCore."""
    seconds = [train(arguments, folder, caches, caches / f"run{i}") for i in range(2)]
    run = str(caches / "run1")
    rates = subprocess.run(
        [sys.executable, "-c", RATES, run, str(arguments.weights.absolute())],
        check=True,
        capture_output=True,
        text=True,
    )
    scored, forward = map(float, rates.stdout.split()[-2:])
    file = caches / "parts.devnet"
    export = ["--mode=export", f"--workdir={run}", f"--output={file}"]
    command = [sys.executable, "-m", "devnet_jax.main", *export]
    subprocess.run(command, check=True, capture_output=True)
    results = json.loads((caches / "run1" / "eval" / "metrics.json").read_text())
    return {
        "seconds": seconds[0],
        "seconds_again": seconds[1],
        "images_per_second": scored,
        "forward_per_second": forward,
        "auroc": results["image_auroc"],
        "bytes": file.stat().st_size,
    }


def measure_peer(arguments: argparse.Namespace, folder: Path, share: float) -> dict[str, Any]:
    """Returns the measures of anomalib's PatchCore, whose coreset keeps a share of the vectors."""
    peer = Path(__file__).with_name("anomalib_peer.py")
    weights = arguments.weights.absolute()
    result = subprocess.run(
        [arguments.peer, *map(str, (peer, folder, weights, SIZE, share))],
        check=True,
        capture_output=True,
        text=True,
    )
    measures: dict[str, Any] = json.loads(result.stdout.strip().splitlines()[-1])
    return measures


def main() -> None:
    """Measures both, and writes the page."""
    parser = page_parser("patchcore.py", __doc__)
    parser.add_argument("--folder", type=Path, required=True, help="folder of the pictures")
    parser.add_argument("--weights", type=Path, required=True, help="file of ResNet-18's weights")
    parser.add_argument("--peer", help="Python that has anomalib; by default it is not measured")
    parser.add_argument("--tenth", action="store_true", help="measure its default coreset as well")
    arguments = parser.parse_args()
    command = COMMAND + " --peer=PYTHON" * bool(arguments.peer) + " --tenth" * arguments.tenth
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "parts"
        write_folder(arguments.folder, folder)
        caches = Path(temporary)
        sides = {"DevCore, 10 labels": measure_ours(arguments, folder, caches)}
        print(sides, flush=True)
        if arguments.peer:
            for share in (0.01, 0.1) if arguments.tenth else (0.01,):
                name = f"anomalib's PatchCore, coreset {share:.0%}"
                sides[name] = measure_peer(arguments, folder, share)
                print(sides[name], flush=True)
    rows = [
        [
            name,
            f"{side['seconds']:.1f}",
            f"{side['seconds_again']:.1f}" if "seconds_again" in side else "",
            f"{side['images_per_second']:.1f}",
            f"{side['forward_per_second']:.1f}",
            f"{side['auroc']:.4f}",
            f"{np.ceil(side['bytes'] / 1e5) / 10:.1f}",
        ]
        for name, side in sides.items()
    ]
    columns = [
        "",
        "detector after, s",
        "again, s",
        "scored images/s",
        "ResNet alone",
        "AUROC",
        "file, MB",
    ]
    page = "\n".join(
        [
            "# DevCore beside anomalib's PatchCore\n",
            provenance(command),
            f"{N_GOOD} good pictures of {PIXELS}×{PIXELS}, ResNet-18 at {SIZE}×{SIZE}. Times are "
            "from the start of the process, with imports and compilation; DevCore's include "
            "calibration, the evaluation of all test pictures and the report, PatchCore's end "
            "when the model is fitted. Scoring is of decoded images in batches of "
            f"{BATCH_SIZE}; beside it is the plain forward pass of the whole ResNet-18 on the same "
            "cores, in JAX and in PyTorch. DevCore is tested without the ten defects that it "
            "learns from.\n",
            table(columns, rows),
            "",
        ]
    )
    (arguments.output / "patchcore.md").write_text(page)
    print(page)


if __name__ == "__main__":
    main()
