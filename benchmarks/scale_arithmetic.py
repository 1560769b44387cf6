"""What data parallelism costs and saves on chips that were not there: arithmetic, no measurement.

A step is modelled as computing, which the devices share, then sending, which they do not:

    seconds = images a device × FLOPs an image / (peak × efficiency)
            + all-reduces × latency + 2(n - 1)/n × bytes / (link × reach)

Nothing is hidden behind anything else, and one image is taken to fill a chip as well as many do.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

# Assumptions.
EFFICIENCY = 0.1  # of a chip's peak in bfloat16, that training and scoring reach
REACH = 0.5  # of the published bandwidth of its links, that an all-reduce reaches
HOP_SECONDS = 1e-6  # from one TPU to the next
START_SECONDS = 5e-6  # of one all-reduce on TPUs, however small
GPUS_PER_NODE = 8
THREADS_PER_CORE = 2  # a cloud's virtual CPU is a thread
RUN_SECONDS = 90.0  # of a run besides its steps: start, compiling, decoding, evaluation, report


@dataclasses.dataclass(frozen=True)
class Chip:
    """What is published of a chip.

    Attributes:
      name: as it is called.
      peak: FLOP/s in bfloat16, of dense matrices.
      link: bytes a second that it sends to its neighbours, on all links together, one way.
      far_link: the same per chip where a slice is larger than a node; `link` where it has no nodes.
      slices: the shape of a slice of so many chips, and whether its ends are joined; of chips
        without nodes.
      cores: of the host's CPU, for each chip; `None` where that is not known.
    """

    name: str
    peak: float
    link: float
    far_link: float
    slices: Mapping[int, tuple[tuple[int, ...], bool]]
    cores: float | None = None

    def has(self, n: int) -> bool:
        """Whether so many chips can work together as one slice, or as whole nodes."""
        if self.slices:
            return n == 1 or n in self.slices
        return n <= GPUS_PER_NODE or n % GPUS_PER_NODE == 0

    def latency(self, n: int) -> float:
        """Seconds of one all-reduce of a few values over n chips."""
        if n == 1:
            return 0.0
        if self.slices:
            shape, joined = self.slices[n]
            return START_SECONDS + 2 * hops(shape, joined) * HOP_SECONDS
        return nccl_tree_seconds(n)

    def bandwidth(self, n: int) -> float:
        """Bytes a second that each of n chips sends in an all-reduce of many values."""
        far = not self.slices and n > GPUS_PER_NODE
        return REACH * (self.far_link if far else self.link)


def hops(shape: Sequence[int], joined: bool) -> int:
    """The most links between two chips of a grid; of a torus, if its ends are joined."""
    return sum(side // 2 if joined else side - 1 for side in shape)


def nccl_tree_seconds(n: int) -> float:
    """What NCCL's own model expects of a small all-reduce in a tree (LL) over n GPUs.

    4.4 µs, and twice the sum of 0.52 µs for each GPU of a node but one, 1.8 times that if there are
    several nodes, and 5 µs for each level of the tree of nodes.
    """
    n_nodes = -(-n // GPUS_PER_NODE)
    within = 0.52 if n_nodes == 1 else 0.52 * 1.8
    levels = n_nodes.bit_length() - 1  # the whole part of the logarithm, as NCCL takes it
    return 1e-6 * (4.4 + 2 * ((n // n_nodes - 1) * within + 5.0 * levels))


# ICI has no nodes; 2D grids are joined only where they are a whole pod.
_GRID = {8: ((2, 4), False), 16: ((4, 4), False), 64: ((8, 8), False), 256: ((16, 16), True)}
_CUBE = {8: ((2, 2, 2), False), 16: ((2, 2, 4), False), 64: ((4, 4, 4), True)}

CHIPS = (
    # Across nodes a ring runs over all eight adapters of a node, 50 GB/s each.
    Chip("H200", 989e12, 450e9, 400e9, {}, cores=112 / 8),
    Chip("TPU v4", 275e12, 6 * 45e9, 6 * 45e9, {**_CUBE, 256: ((4, 8, 8), True)}),
    Chip("TPU v5e", 197e12, 200e9, 200e9, _GRID, cores=224 / 8 / THREADS_PER_CORE),
    Chip("TPU v6e", 918e12, 400e9, 400e9, _GRID),
)


@dataclasses.dataclass(frozen=True)
class Work:
    """What a step does, whatever it runs on.

    Attributes:
      flops: of one image, forward and backward.
      reduced_bytes: that a device gives to all-reduces in a step.
      reductions: all-reduces in a step, each of which waits for the one before.
    """

    flops: float
    reduced_bytes: float
    reductions: int


@dataclasses.dataclass(frozen=True)
class StepTime:
    """Seconds of a step: computing, waiting for small messages, sending bytes."""

    compute: float
    latency: float
    transfer: float

    @property
    def total(self) -> float:
        return self.compute + self.latency + self.transfer


def sent_bytes(n: int, reduced_bytes: float) -> float:
    """What each of n devices sends, and receives, in an all-reduce of so many bytes in a ring."""
    return 2 * (n - 1) / n * reduced_bytes


def step_time(chip: Chip, n: int, per_device: float, work: Work) -> StepTime:
    """Of a step on n chips, with so many images on each."""
    return StepTime(
        compute=per_device * work.flops / (chip.peak * EFFICIENCY),
        latency=work.reductions * chip.latency(n),
        transfer=sent_bytes(n, work.reduced_bytes) / chip.bandwidth(n),
    )


def speedup(chip: Chip, n: int, batch_size: int, work: Work) -> float:
    """How many times as quick as on one chip a step with this batch is on n."""
    one = step_time(chip, 1, batch_size, work).total
    return one / step_time(chip, n, batch_size / n, work).total


def quickest(chip: Chip, batch_size: int, work: Work) -> int:
    """The number of chips, of those that divide the batch, on which a step is shortest."""
    candidates = [n for n in range(1, batch_size + 1) if batch_size % n == 0 and chip.has(n)]
    return min(candidates, key=lambda n: step_time(chip, n, batch_size / n, work).total)


def weak_efficiency(chip: Chip, n: int, per_device: float, work: Work) -> float:
    """The share of n chips' time that computes, where the batch grows with n."""
    time = step_time(chip, n, per_device, work)
    return time.compute / time.total


def run_seconds(chip: Chip, steps: int, batch_size: int, work: Work) -> float:
    """Of one run on one chip, all told."""
    return RUN_SECONDS + steps * step_time(chip, 1, batch_size, work).total


def sweep_seconds(runs: int, devices: int, seconds: float) -> float:
    """Of so many runs, one a device at a time."""
    return math.ceil(runs / devices) * seconds


@dataclasses.dataclass(frozen=True)
class ScoringRate:
    """Images a second for each device: what the chip can score, what its host can decode."""

    chip: float
    host: float

    @property
    def least(self) -> float:
        return min(self.chip, self.host)


def scoring_rate(chip: Chip, flops: float, decode_seconds: float) -> ScoringRate:
    """Of images that take so many FLOPs on the chip, and so long on a core of the host."""
    assert chip.cores is not None
    return ScoringRate(chip.peak * EFFICIENCY / flops, chip.cores / decode_seconds)
