"""Ours beside PyTorch on a GPU, at the paper's settings, and how near it comes to the GPU's limits.

python benchmarks/gpu.py

448×448, 48 images a step, 50 × 20 steps, two scales; ours in float32 and in bfloat16. What the
ratios are of is said in `comparison.py`: training is from files whose decoded images ours has kept
from an earlier run, and compiling is part of it; one side follows the other. PyTorch for a GPU has
to be installed beside jax[cuda12]. What `roofline.py` finds is added for both types.

`--platform=cpu` tries the program itself, with small settings, where there is no GPU.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from comparison import parse, run
from etils import epath
from materials import Settings

from devnet_jax.runtime.host_devices import n_cores
from devnet_jax.runtime.io import write_json

PAPER = Settings(
    platform="gpu",
    image_size=448,
    batch_size=48,
    epochs=50,
    steps_per_round=20,
    score_batch=96,
    n_explained=48,
    n_workers=n_cores(),
)
ALL_AT_ONCE = 1e6  # seconds of a turn: a GPU goes on with what it was given while a program stands


def roofline(dtype: str, settings: Settings) -> dict[str, object]:
    """What `roofline.py` finds, in a program of its own."""
    command = [sys.executable, str(Path(__file__).with_name("roofline.py")), f"--dtype={dtype}"]
    command += [f"--image-size={settings.image_size}", f"--batch-size={settings.batch_size}"]
    if settings.platform == "cpu":
        command += ["--rows=1024", "--mib=64"]
    process = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(process.stdout.splitlines()[-1])


def main() -> None:
    arguments = parse("benchmarks/gpu.py", __doc__, PAPER, slice_seconds=ALL_AT_ONCE)
    found = run(arguments)
    dtypes = ("float32", "bfloat16")
    found["roofline"] = {dtype: roofline(dtype, arguments.settings) for dtype in dtypes}
    write_json(epath.Path(arguments.output), found)


if __name__ == "__main__":
    main()
