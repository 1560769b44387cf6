"""Compares this package with PyTorch on a GPU at the paper's settings, and with the GPU's limits.

python benchmarks/gpu.py

Images of 448×448, batches of 48, 50 epochs of 20 steps, two scales; this package in float32 and in
bfloat16. `comparison.py` defines the ratios. Training includes compilation and starts with the
package's cache of decoded images filled; the sides run one after another. The results of
`roofline.py` are added for both dtypes. PyTorch with CUDA must be installed beside jax[cuda12].

`--platform=cpu` tests this program with small settings on a machine without a GPU.
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
# Longer than any training: a stopped process's GPU work continues, so programs cannot be sliced.
NO_SLICES_SECONDS = 1e6


def roofline(dtype: str, settings: Settings) -> dict[str, object]:
    """Returns the results of `roofline.py`, run as a separate program."""
    command = [sys.executable, str(Path(__file__).with_name("roofline.py")), f"--dtype={dtype}"]
    command += [f"--image-size={settings.image_size}", f"--batch-size={settings.batch_size}"]
    if settings.platform == "cpu":
        command += ["--rows=1024", "--mib=64"]
    process = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(process.stdout.splitlines()[-1])


def main() -> None:
    arguments = parse("benchmarks/gpu.py", __doc__, PAPER, slice_seconds=NO_SLICES_SECONDS)
    results = run(arguments)
    dtypes = ("float32", "bfloat16")
    results["roofline"] = {dtype: roofline(dtype, arguments.settings) for dtype in dtypes}
    write_json(epath.Path(arguments.output), results)


if __name__ == "__main__":
    main()
