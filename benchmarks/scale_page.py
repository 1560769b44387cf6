"""The page of `scale.py`: what was measured, what follows by arithmetic, and what to launch."""

from __future__ import annotations

import dataclasses
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from scale_arithmetic import (
    CHIPS,
    EFFICIENCY,
    HOP_SECONDS,
    REACH,
    RUN_SECONDS,
    START_SECONDS,
    Chip,
    Work,
    quickest,
    run_seconds,
    scoring_rate,
    sent_bytes,
    speedup,
    step_time,
    sweep_seconds,
)
from scale_tables import (
    BATCH_SIZE,
    PER_DEVICE,
    POD,
    SHARED_BY,
    STEPS,
    SWEEPS,
    chips_table,
    decoding_table,
    duration,
    growing_batch_table,
    megabytes,
    milliseconds,
    processes_table,
    scoring_table,
    shared_batch_table,
    step_table,
    sweep_table,
    traffic_table,
)

if TYPE_CHECKING:
    from scale import Measured

GPU = CHIPS[0]
N_ANOMALY = 10

SOURCES = """\
1. Google Cloud, *TPU v4*, *TPU v5e*, *TPU v6e* (docs.cloud.google.com/tpu/docs/v4, /v5e, /v6e): the
peaks; bandwidth of all links of a v5e or v6e, both ways (400 and 800 GB/s, halved here).

2. *How to Scale Your Model* (jax-ml.github.io/scaling-book, on TPUs, sharding and GPUs): H100 and
H200 990 TFLOP/s dense, 450 GB/s out of a GPU over NVLink, 400 GB/s out of a node; TPU v4 45 GB/s a
link one way, six links; about 1 µs a hop, and 8 µs seen over three hops, from which the start.
NVIDIA's data sheets themselves (1,979 TFLOP/s with sparsity; NVLink 900 GB/s both ways) are from
memory, to be checked.

3. NVIDIA, *DGX BasePOD reference architecture, core components* (docs.nvidia.com/dgx-basepod): DGX
H100 and H200 have eight GPUs, 112 cores, eight adapters of up to 400 Gb/s (InfiniBand NDR).

4. NVIDIA, NCCL, `src/graph/tuning.cc` at commit 01afd20: what NCCL expects of a small all-reduce
(tree, LL). For two GPUs that is 5.4 µs; a user measured 6 on H100 (NVIDIA/nccl, issue 1259).

5. NVIDIA, *Deep learning performance, training* (developer.nvidia.com): MLPerf Training 3.0,
ResNet-50 on eight H100 in 13.466 minutes. If that took 37 epochs of 1.28 million images (from
memory), at 24.6 GFLOP an image, it reached 18% of the peak, tuned by the vendor, in half precision.

6. Google's machine type ct5lp-hightpu-8t: 224 virtual CPUs for eight v5e (as listed in
Cyclenerd/google-cloud-pricing-cost-calculator, issue 89); two of them are taken for a core."""


def pays_up_to(chip: Chip, work: Work) -> int:
    """The most devices that share the paper's batch and halve nothing by waiting: of n, at least
    n/2 times as quick as one."""
    counts = [n for n in SHARED_BY if chip.has(n)]
    return max(n for n in counts if speedup(chip, n, BATCH_SIZE, work) >= n / 2)


def ratio_words(values: Mapping[str, Sequence[float]]) -> str:
    middle, best = (f(values["2"]) / f(values["1"]) for f in (statistics.median, max))
    return f"{middle:.2f} times (the quickest readings: {best:.2f})"


def filled(page: str) -> str:
    """The page with its paragraphs and lists filled up to the width of the others."""

    def block(lines: str) -> str:
        first = lines[:2]
        if first in ("# ", "##", "| ", "``", "  "):
            return lines
        items = lines.split("\n- ") if first == "- " else [lines]
        start, indent = ("- ", "  ") if first == "- " else ("", "")
        return "\n".join(
            textwrap.fill(
                " ".join(item.removeprefix("- ").split()),
                width=100,
                initial_indent=start,
                subsequent_indent=indent,
                break_on_hyphens=False,
                break_long_words=False,
            )
            for item in items
        )

    return "\n\n".join(block(lines) for lines in page.strip().split("\n\n")) + "\n"


def conclusions(work: Work) -> str:
    run = run_seconds(GPU, STEPS, BATCH_SIZE, work)
    one, eight = (STEPS * step_time(GPU, n, BATCH_SIZE / n, work).total for n in (1, 8))
    runs = next(iter(SWEEPS.values()))
    on = [duration(sweep_seconds(runs, n, run)) for n in POD]
    pays = ", ".join(f"{chip.name} {pays_up_to(chip, work)}" for chip in CHIPS)
    return f"""\
- **One training does not fill a pod.** A step of {BATCH_SIZE} images can be shared by {BATCH_SIZE}
  devices at most. By the arithmetic, devices are worth adding (n of them at least n/2 times as
  quick as one) up to: {pays}; of numbers that divide the batch and make whole nodes or slices. And
  there is little to win: all steps of a run are {duration(one)} on one H200, {duration(eight)} on
  eight, of a run of {duration(run)}.
- **A sweep does.** Its runs share nothing: {runs} of them are {on[0]} on 8 H200, {on[1]} on 64
  and {on[2]} on 256, of which {POD[-1] - runs} have nothing to do.
- **Scoring does, and the hosts' cores bound it:** chips wait while their host decodes."""


def measured_section(measured: Measured) -> str:
    step, settings = measured.step, measured.settings
    loopback = measured.loopback_bytes["2"]
    ring = 2 * sent_bytes(2, step.forward.bytes + step.backward.bytes)
    of_one, of_two = (settings["batch"] / statistics.median(measured.speeds[n]) for n in "12")
    longer = of_two - of_one
    others = ""
    if measured.others is not None:
        others = (
            f"Other programs had {measured.others:.0%} of the cores' time, as the kernel counts."
        )
    sent = ""
    if loopback is not None:
        sent = (
            "What went over the loopback, everything from start to end divided by the steps, is "
            f"{loopback / ring:.2f} times what two devices send each other by the formula below."
        )
    return f"""\
## Measured here

{step_table(measured)}

ResNet-18, two scales, {settings["image"]}×{settings["image"]}, batch {BATCH_SIZE} on
{settings["devices"]} virtual devices, compiled and not run; FLOPs as XLA counts them. The two
scales do not wait for each other: XLA reduces for both at once. The compilers of GPUs and TPUs
decide anew what goes together.

{processes_table(measured)}

The quickstart's data, {settings["size"]}×{settings["size"]}, batch {settings["batch"]}, one scale;
{settings["rounds"]} rounds in turn of {settings["epochs"]} epochs of {settings["steps"]} steps, the
first epoch left out: median (slowest – quickest). Scoring: files of
{settings["picture"]}×{settings["picture"]}, without maps; {settings["many"]} files less
{settings["few"]}, so that starting is not in it. Both have the same two cores: the ratio is what
several processes cost (Gloo over the loopback), not what they bring. Two processes train
{ratio_words(measured.speeds)} and score {ratio_words(measured.scoring)} as quick as one. A step is
{milliseconds(longer)} longer, for bytes that are the same with any batch and any size of images:
where a step takes many seconds, as the paper's does on such cores, that is little. {others} {sent}

{decoding_table(measured)}"""


def training_section(work: Work, written: int) -> str:
    time = step_time(GPU, 8, BATCH_SIZE / 8, work)
    best = quickest(GPU, BATCH_SIZE, work)
    unmerged = dataclasses.replace(work, reductions=written)
    quicker = dataclasses.replace(work, flops=work.flops / 2)
    on_eight = [speedup(GPU, 8, BATCH_SIZE, given) for given in (unmerged, quicker)]
    batches = [POD[1] * PER_DEVICE[0], POD[2] * PER_DEVICE[1]]
    shown = [batch // 2 // N_ANOMALY for batch in batches]
    return f"""\
## Arithmetic: one training on many chips

`benchmarks/scale_arithmetic.py`: a step is computing, which is shared, plus {work.reductions} small
waits one after the other, plus 2(n − 1)/n times {megabytes(work.reduced_bytes)} over the links;
nothing overlaps. **Assumed:** chips reach {EFFICIENCY:.0%} of their peak (about half of what source
5 comes to), links {REACH:.0%} of theirs; TPUs take {START_SECONDS * 1e6:.0f} µs to start an
all-reduce and {HOP_SECONDS * 1e6:.0f} µs a hop, across the slice and back; GPUs what NCCL expects.
One image is taken to fill a chip as well as six do, which flatters large numbers of devices; and
steps are float32 unless `model.dtype` says otherwise, which a peak in bfloat16 is far from.

{chips_table()}

All but the last column, and what that rests on, is from sources 1 to 4 below.

{shared_batch_table(work)}

In brackets: times as quick as one chip; –: no whole nodes, or no such slice. On eight H200,
computing is {time.compute / time.total:.0%} of the step, waiting for small messages
{time.latency / time.total:.0%}, sending {time.transfer / time.total:.0%}: there, BatchNorm over the
whole batch costs more than the gradients. The step is shortest on {best} H200,
{speedup(GPU, best, BATCH_SIZE, work):.1f} times as quick as on one. Were the {written} all-reduces
of the program not put together, eight would be {on_eight[0]:.1f} times as quick as one; did chips
reach twice as much of their peak, {on_eight[1]:.1f} times.

64 and 256 chips need a larger batch, which is another training: nothing here enlarges it silently,
and `train.batch_size` must be a multiple of the devices. Half of each batch are labelled anomalies:
with {N_ANOMALY} of them, a batch of {batches[0]:,} shows each {shown[0]} times, and one of
{batches[1]:,} each {shown[1]} times.

{traffic_table(work)}

{growing_batch_table(work)}

In brackets: the share of the step that computes. Images a second grow with the batch; what can be
learnt from {N_ANOMALY} anomalies does not."""


def many_section(measured: Measured) -> str:
    size, (files, *smaller) = measured.settings["image"], measured.decoding
    of_png = statistics.median(files.seconds)
    rate = scoring_rate(GPU, measured.step.score_flops, of_png)
    quicker = " and ".join(f"{of_png / statistics.median(o.seconds):.1f}" for o in smaller)
    (few, n_few), (many, n_many) = SWEEPS.items()
    return f"""\
## Arithmetic: many runs, many pictures

{sweep_table(work_of(measured))}

One run a chip, no traffic. A run is {STEPS:,} steps and {RUN_SECONDS:.0f} s for all else, which is
assumed (start, compiling or finding what was compiled, decoding, evaluation, report). {few} are
{n_few} runs; {many}, {n_many:,}. Where the steps are the smaller part of a run, two runs a chip
(`--jobs_per_device=2`) may gain more than more chips; that was not tried.

{scoring_table(measured)}

The first three columns are images a second for each chip at {size}×{size}; the times are of
scoring, by the slower of chip and host, of files like the first of those decoded above, and without
overlays. The hosts' cores are taken to be as quick as those here. At {8 * rate.host:,.0f} pictures
a second the host of eight H200 reads {8 * rate.host * files.file_bytes / 1e9:.1f} GB/s: disks may
be slower still. Of the smaller files above, the same cores decode {quicker} times as many.
Starting, listing the files and writing the table are not in these times. Each process keeps the
names of all pictures, about 1 kB each: 10 GB for ten million."""


def hour_section(work: Work) -> str:
    runs = next(iter(SWEEPS.values())) // 3  # of one seed
    seconds = sweep_seconds(runs, 8, run_seconds(GPU, STEPS, BATCH_SIZE, work))
    return f"""\
## One pod, one hour

The sweep first. It fills the devices of one host, so give each host a part of the grid and a
workdir of its own, such as a seed each ({runs} runs a host, on eight H200 about
{duration(seconds)}):

```sh
srun --nodes=8 --ntasks-per-node=1 --gpus-per-node=8 sh -c 'python launch/sweep.py \\
    --workdir=/shared/runs/seed_$SLURM_PROCID --seeds=$SLURM_PROCID --data=/shared/data \\
    --datasets=mvtec_ad --shots=1,10 --methods=devnet,flos'
```

Then the pictures, one process a host, which decodes on all cores. Input and output lie on a disk
that all hosts share; the hosts of a TPU slice have none by themselves.

```sh
python launch/slurm.py --nodes=8 --gpus_per_node=8 --time=1:00:00 -- --mode=predict \\
    --workdir=/shared/runs/carpet --input='/shared/parts/**/*.png' --output=/shared/predicted \\
    --config.evaluation.overlays=none --config.evaluation.batch_size=256
```

A single training: one host and its chips, and no further one.

```sh
python -m devnet_jax.main --config=configs/mvtec.py:carpet --workdir=runs/carpet \\
    --config.dataset.manual_dir=/shared/data/mvtec_ad
python launch/tpu_pod.py --name=carpet --zone=europe-west4-b --accelerator_type=v5litepod-8 \\
    --version=v2-alpha-tpuv5-lite --delete=success \\
    --setup='gcloud storage cp --recursive gs://my-bucket/mvtec_ad .' -- \\
    --config=configs/mvtec.py:carpet --workdir=runs/carpet --config.dataset.manual_dir=mvtec_ad
```

None of these commands was run on a pod, and no sweep on a TPU slice of several hosts."""


def work_of(measured: Measured) -> Work:
    """What the arithmetic takes from what was measured."""
    forward, backward = measured.step.forward, measured.step.backward
    return Work(
        flops=measured.step.flops,
        reduced_bytes=forward.bytes + backward.bytes,
        reductions=forward.count + backward.count,
    )


def text(measured: Measured) -> str:
    """The page."""
    work = work_of(measured)
    return filled(f"""\
# What a pod buys

{measured.about}
No GPU and no TPU was at hand: the first section is measured on this CPU, the rest is arithmetic.

{conclusions(work)}

{measured_section(measured)}

{training_section(work, measured.step.written)}

{many_section(measured)}

{hour_section(work)}

## Sources

As found on 2026-11-24; newer editions may differ.

{SOURCES}
""")


def write_page(file: Path, measured: Measured) -> None:
    """scale.md."""
    file.write_text(text(measured))
