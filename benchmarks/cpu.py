"""Ours beside PyTorch on a CPU: training, scoring and explaining.

pip install -e ".[benchmark]" && python benchmarks/cpu.py

What the ratios are of is said in `comparison.py`. Training is one run, in slices, and its spread
that of the epochs; of the others it is that of the rounds.
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
