r"""Runs a grid of data sets × protocols × shots × methods × seeds, and writes a table of results.

    python launch/sweep.py --workdir=runs/sweep --data=~/data --datasets=brain_mri,elpv \
        --shots=1,10 --methods=devnet,flos --seeds=0,1,2

Each run is one `python -m devnet_jax.main`, and each device runs one at a time. All runs use the
paper's settings, except those set with --config (--config.dataset.image_size=224). After an
interruption, the same command resumes the sweep. --dry_run lists the runs. The results are written
to results.csv, table.md and table.html.
"""

from __future__ import annotations

import dataclasses
import datetime
import logging
import shlex
import signal
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

from absl import flags
from ml_collections import config_flags
from tqdm import tqdm

from devnet_jax import config as config_module
from devnet_jax.cli.flags import flag_names, run_program, with_absolute_paths
from devnet_jax.config import Config, parse_setting
from devnet_jax.data.datasets import DATASETS
from devnet_jax.errors import UserError
from devnet_jax.runtime.host_devices import find_devices
from devnet_jax.runtime.io import write_text
from devnet_jax.runtime.workdir import Workdir
from devnet_jax.sweep.description import (
    describe_departures,
    describe_detectors,
    describe_environment,
)
from devnet_jax.sweep.grid import ALL, GENERAL, PUBLISHED, Axes, Job, make_grid
from devnet_jax.sweep.methods import METHODS
from devnet_jax.sweep.published import published_known_classes
from devnet_jax.sweep.results import read_result, write_results
from devnet_jax.sweep.scheduler import Scheduler, wait_for_running

logger = logging.getLogger("devnet_jax.sweep")

DEFAULT_CONFIG = f"--config={config_module.__file__}"

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "File of the settings that all runs share; by default the paper's. Single settings are set "
    "with flags such as --config.train.batch_size=16.",
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the sweep; each run has a folder in it.")
_DATA = flags.DEFINE_string(
    "data",
    None,
    "Folder with the raw folder of each data set, named like the data set. Not needed if the data "
    "sets are already prepared or can be downloaded.",
)
_DATASETS = flags.DEFINE_list(
    "datasets", [], "Data sets; mvtec_ad:carpet is one category, mvtec_ad is all categories."
)
_KNOWN_CLASSES = flags.DEFINE_list(
    "known_classes",
    [GENERAL],
    f"{GENERAL}: the general setting; name of a defect class: the hard setting with this known "
    f"class; {ALL}: every class; {PUBLISHED}: every class that published means are over.",
)
_CONTAMINATIONS = flags.DEFINE_list(
    "contaminations", ["0"], "Shares of unlabelled anomalies among the normal training images."
)
_SHOTS = flags.DEFINE_list("shots", ["10"], "Numbers of labelled anomalies.")
_METHODS = flags.DEFINE_list("methods", ["devnet"], f"Methods, of {', '.join(METHODS)}.")
_VARY = flags.DEFINE_multi_string(
    "vary",
    [],
    "Another setting and its values: loss.margin=3,5,7. Can be repeated for further settings.",
)
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds.")
_JOBS_PER_DEVICE = flags.DEFINE_integer(
    "jobs_per_device", 1, "Number of parallel runs per device.", lower_bound=1
)
_DRY_RUN = flags.DEFINE_boolean("dry_run", False, "List the runs and their commands; run nothing.")


def main() -> None:
    """Runs all unfinished runs, then writes the tables."""
    if not _WORKDIR.value:
        raise UserError("--workdir is missing: give the folder of the sweep")
    if not _DATASETS.value:
        raise UserError("--datasets is missing: give names such as brain_mri,mvtec_ad:carpet")
    workdir = Workdir(_WORKDIR.value)
    if not workdir.is_local:
        raise UserError(f"--workdir={workdir.path}: must be a local folder for a sweep")
    folder = Path(workdir.path)
    base = with_absolute_paths(Config.from_dict(_CONFIG.value))
    data = Path(_DATA.value).expanduser().absolute() if _DATA.value else None
    jobs = [
        dataclasses.replace(job, config=with_absolute_paths(job.config))
        for job in make_grid(base, parse_axes(), data)
    ]
    if _DRY_RUN.value:
        for job in jobs:
            state = "finished" if read_result(job, folder) else "to do"
            print(f"{state:8}  {shlex.join(job.command(folder / job.name))}")
        return
    workdir.require_writable()
    with workdir.lock():
        wait_for_running(jobs, folder)
        unfinished = [job for job in jobs if read_result(job, folder) is None]
        try:
            failures = run_jobs(unfinished, len(jobs), folder)
        finally:
            write_tables(jobs, base, folder)
    if failures:
        name, reason = next(iter(failures.items()))
        raise UserError(f"{len(failures)} of {len(jobs)} runs failed, first {name}: {reason}")


def parse_axes() -> Axes:
    """Returns the axes of the grid from the flags."""
    variations: dict[str, list[Any]] = {}
    for text in _VARY.value:
        name, _, values = text.partition("=")
        if name in variations:
            raise UserError(f"--vary={text}: {name} is given twice; give all its values at once")
        variations[name] = [parse_setting(name, value) for value in values.split(",")]
    return Axes(
        datasets=_DATASETS.value,
        known_classes=_KNOWN_CLASSES.value,
        contaminations=_numbers("contaminations", float, "0,0.05,0.1"),
        shots=_numbers("shots", int, "1,5,10"),
        methods=_METHODS.value,
        variations=variations,
        seeds=_numbers("seeds", int, "0,1,2"),
    )


def _numbers(flag: str, kind: type, example: str) -> list[Any]:
    values: list[str] = flags.FLAGS[flag].value or []
    try:
        return [kind(value) for value in values]
    except ValueError:
        raise UserError(f"--{flag}={','.join(values)}: must be numbers such as {example}") from None


def run_jobs(jobs: list[Job], total: int, folder: Path) -> dict[str, str]:
    """Runs jobs and shows the progress.

    Args:
      jobs: unfinished jobs.
      total: number of all jobs, finished or not.
      folder: folder of the sweep.

    Returns:
      The reason of each failed job, by its name.
    """
    if not jobs:
        return {}
    for number in (signal.SIGTERM, signal.SIGHUP):  # stop the runs, too
        if signal.getsignal(number) != signal.SIG_IGN:  # ignored under nohup
            signal.signal(number, _raise_interrupt)
    devices = find_devices(_JOBS_PER_DEVICE.value)
    failures: dict[str, str] = {}
    started = time.monotonic()
    done = total - len(jobs)
    logger.info(
        "%d runs, %d of them finished; %d at a time on %s",
        total,
        done,
        len(devices.slots),
        devices.name,
    )
    with tqdm(total=total, initial=done, unit="run", desc="sweep", disable=None) as bar:

        def on_finish(job: Job, failure: str | None) -> None:
            nonlocal done
            done += 1
            if failure is not None:
                failures[job.name] = failure
                bar.write(f"{job.name}: {failure}", file=sys.stderr)
            bar.update()
            if bar.disable:
                seconds_per_run = (time.monotonic() - started) / (done - total + len(jobs))
                left = datetime.timedelta(seconds=round(seconds_per_run * (total - done)))
                logger.info("%d of %d runs, about %s left: %s", done, total, left, job.name)

        Scheduler(jobs, devices, folder).run(on_finish)
    return failures


def write_tables(jobs: list[Job], base: Config, folder: Path) -> None:
    """Writes results.csv, table.md and table.html from all finished runs."""
    # Imported late: Matplotlib would delay the check of the flags.
    from devnet_jax.sweep.table import Context, to_html, to_markdown

    results = [result for job in jobs if (result := read_result(job, folder))]
    context = Context(
        title="Image-level anomaly detection",
        settings=describe_detectors(base, (job.config.model.detector for job in jobs)),
        departures=describe_departures(base),
        environment=describe_environment(results),
        command=shlex.join(["python", *(a for a in sys.argv if a != DEFAULT_CONFIG)]),
        categories={name: b.CATEGORIES for name, b in DATASETS.items() if b.CATEGORIES},
        known_classes=published_known_classes(),
        seeds={job.config.seed for job in jobs},
    )
    write_results(results, folder / "results.csv")
    for name, to_text in (("table.md", to_markdown), ("table.html", to_html)):
        write_text(Workdir(folder).path / name, to_text(results, context))
    logger.info("%d results: %s", len(results), folder / "table.html")


def _raise_interrupt(*_: Any) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    if "config" not in flag_names(sys.argv):
        # Not the flag's default, with which ml_collections would report a misspelt setting itself.
        sys.argv.insert(1, DEFAULT_CONFIG)
    run_program(main)
