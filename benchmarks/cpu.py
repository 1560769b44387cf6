"""Compares this package with PyTorch on a CPU: training, scoring and explaining.

pip install -e ".[benchmark]" && python benchmarks/cpu.py

`comparison.py` defines the ratios. Training is one run in time slices; its spread is over epochs.
The spread of the other parts is over rounds.
"""

from __future__ import annotations

from comparison import parse, run
from etils import epath
from materials import Settings

from devnet_jax.runtime.io import write_json


def main() -> None:
    arguments = parse("benchmarks/cpu.py", __doc__, Settings(), slice_seconds=15)
    write_json(epath.Path(arguments.output), run(arguments))


if __name__ == "__main__":
    main()
