"""Measures start-up time: of --help, and of compilation in first and later runs.

python benchmarks/startup.py

Each round starts with an empty compilation cache. Its three runs train and evaluate, each in its
own process: a first run, the same run again, and a run with a data set of another size. Times are
from JAX's monitoring events. Writes startup.md.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from results_page import command_line, page_parser, provenance, spread, table

from devnet_jax.runtime.startup import prepare

COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"
TRACE = "/jax/core/compile/jaxpr_trace_duration"
LOWER = "/jax/core/compile/jaxpr_to_mlir_module_duration"
CACHE_HIT = "/jax/compilation_cache/cache_hits"

RUNS = {
    "first start": (),
    "second start": (),
    "another data set": ("--config.dataset.n_anomaly=5", "--config.dataset.calibration=0.25"),
}


@dataclasses.dataclass(frozen=True)
class Span:
    """A JAX monitoring event with a duration.

    Attributes:
      event: name of the event.
      start: start time in seconds.
      end: end time in seconds.
      function: name of the function that was traced, lowered or compiled.
      cached: True if the program was read from the compilation cache.
    """

    event: str
    start: float
    end: float
    function: str
    cached: bool

    @property
    def seconds(self) -> float:
        return self.end - self.start


def seconds(spans: Iterable[Span]) -> float:
    """Returns the length of the union of the spans; spans may overlap or be nested."""
    total, reached = 0.0, float("-inf")
    for span in sorted(spans, key=lambda span: span.start):
        total += max(0.0, span.end - max(span.start, reached))
        reached = max(reached, span.end)
    return total


@dataclasses.dataclass(frozen=True)
class Start:
    """Compilation events of one run.

    Attributes:
      spans: all events with a duration.
      min_cached_seconds: shortest compile time of programs that are written to the cache.
    """

    spans: Sequence[Span]
    min_cached_seconds: float

    def select(self, *events: str) -> list[Span]:
        """Returns the spans of these events."""
        return [span for span in self.spans if span.event in events]

    @property
    def compiled(self) -> list[Span]:
        """Programs that were compiled, because they were not in the cache."""
        return [span for span in self.select(COMPILE_EVENT) if not span.cached]

    @property
    def figures(self) -> dict[str, float]:
        """The values of the table by column."""
        return {
            "compiling and reading, s": seconds(self.select(COMPILE_EVENT)),
            "of which compiling anew, s": seconds(self.compiled),
            "tracing and lowering, s": seconds(self.select(TRACE, LOWER)),
            "programs": len(self.select(COMPILE_EVENT)),
            "of which compiled anew": len(self.compiled),
            "the longest of these, s": max((span.seconds for span in self.compiled), default=0.0),
        }


def run_recorded(arguments: Sequence[str], record: Path, batch_size: int) -> None:
    """Runs the package's command line in this process, and saves a `Start` as JSON."""
    prepare(batch_size)
    import jax.monitoring

    from devnet_jax.main import console

    hits: set[int] = set()  # threads whose current program was found in the cache
    spans: list[Span] = []

    def note_event(event: str, **_: Any) -> None:
        if event == CACHE_HIT:
            hits.add(threading.get_ident())

    def note_span(event: str, start_time: float, end_time: float, **about: Any) -> None:
        cached = event == COMPILE_EVENT and threading.get_ident() in hits
        if cached:
            hits.discard(threading.get_ident())
        spans.append(Span(event, start_time, end_time, about.get("fun_name", ""), cached))

    jax.monitoring.register_event_listener(note_event)
    jax.monitoring.register_event_time_span_listener(note_span)
    sys.argv = ["devnet_jax.main", *arguments]
    try:
        console()
    finally:
        threshold = jax.config.values["jax_persistent_cache_min_compile_time_secs"]
        record.write_text(json.dumps(dataclasses.asdict(Start(spans, threshold))))


def measure(folder: Path, flags: Sequence[str], prepared: Path) -> dict[str, Start]:
    """Performs the three runs one after another, with a new compilation cache in the folder."""
    starts = {}
    for number, (name, others) in enumerate(RUNS.items()):
        print(f"measuring: {name}", file=sys.stderr, flush=True)
        record = folder / f"{number}.json"
        workdir = [f"--workdir={folder / str(number)}", f"--config.dataset.data_dir={prepared}"]
        subprocess.run(
            [sys.executable, __file__, f"--record={record}", "--", *flags, *workdir, *others],
            env={**os.environ, "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled")},
            stdout=subprocess.DEVNULL,
            check=True,
        )
        values = json.loads(record.read_text())
        spans = [Span(**span) for span in values["spans"]]
        starts[name] = Start(spans, values["min_cached_seconds"])
    return starts


def help_seconds() -> float:
    """Returns the time that --help takes, from start to exit."""
    started = time.perf_counter()
    # absl exits with status 1 after --help.
    text = subprocess.run(
        [sys.executable, "-m", "devnet_jax.main", "--help"], capture_output=True, text=True
    ).stdout
    assert "--workdir" in text
    return time.perf_counter() - started


def runs_table(rounds: Sequence[Mapping[str, Start]]) -> str:
    """Returns a table with a row for each run."""
    columns = ["", *next(iter(rounds[0].values())).figures]
    rows = []
    for name in RUNS:
        figures = [starts[name].figures for starts in rounds]
        cells = [spread([values[column] for values in figures]) for column in columns[1:]]
        rows.append([name, *cells])
    return table(columns, rows)


def largest(start: Start, n: int) -> str:
    """Lists the n functions that took longest to compile or read."""
    by_function: dict[str, float] = collections.defaultdict(float)
    for span in start.select(COMPILE_EVENT):
        by_function[span.function] += span.seconds
    longest = sorted(by_function, key=by_function.__getitem__, reverse=True)[:n]
    return ", ".join(f"{name} {by_function[name]:.2f} s" for name in longest)


def write_page(
    file: Path, about: str, rounds: Sequence[Mapping[str, Start]], helps: Sequence[float]
) -> None:
    last = rounds[-1]
    threshold = last["first start"].min_cached_seconds
    compiled = {
        name: collections.Counter(span.function for span in start.compiled)
        for name, start in last.items()
    }
    new = sorted((compiled["another data set"] - compiled["second start"]).elements())
    ratio = statistics.median(
        seconds(starts["second start"].select(COMPILE_EVENT))
        / seconds(starts["first start"].select(COMPILE_EVENT))
        for starts in rounds
    )
    file.write_text(f"""\
# Cost of starting

{about}
`--help`: {spread(helps)} s, from start to exit ({len(helps)} times).

Training and evaluation as on the command line, in {len(rounds)} round(s) of three runs. Each round
starts with an empty compilation cache. Values are medians (least – most). "Compiling and
reading" is the time in which JAX compiled programs or read them from the cache. The cache keeps
programs that took {threshold} s or more to compile (JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS).

{runs_table(rounds)}

Findings:

- The second start spends {ratio:.2f} times as long on compiling and reading as the first one.
- Programs compiled for a data set of another size, but not by the second start:
  {", ".join(new) or "nothing"}.
- Longest compilations of the last first start: {largest(last["first start"], 6)}.
- Longest reads of the last second start: {largest(last["second start"], 6)}.
""")


def main() -> None:
    parser = page_parser("startup.py", __doc__)
    parser.add_argument("--size", type=int, default=224, help="height and width of the images")
    parser.add_argument("--batch", type=int, default=16, help="training batch size")
    parser.add_argument("--scales", type=int, default=2, help="number of pyramid levels")
    parser.add_argument("--rounds", type=int, default=2, help="number of rounds")
    parser.add_argument("--helps", type=int, default=7, help="number of measurements of --help")
    parser.add_argument(
        "--record",
        type=Path,
        help="internal: run the command line here, and write its events to this file",
    )
    parser.add_argument(
        "arguments", nargs="*", default=[], help="internal: arguments of that command line"
    )
    arguments = parser.parse_args()
    if arguments.record:
        run_recorded(arguments.arguments, arguments.record, arguments.batch)
        return
    flags = [
        "--config=configs/quickstart.py",
        f"--config.dataset.image_size={arguments.size}",
        f"--config.model.n_scales={arguments.scales}",
        f"--config.train.batch_size={arguments.batch}",
        "--config.train.epochs=1",
        "--config.train.steps_per_epoch=2",
        "--config.evaluation.batch_size=16",
        "--config.evaluation.overlays=none",
    ]
    helps = [help_seconds() for _ in range(arguments.helps)]
    print(f"--help: {spread(helps)} s", flush=True)
    rounds = []
    with tempfile.TemporaryDirectory() as temporary:
        for number in range(arguments.rounds):
            folder = Path(temporary) / str(number)
            folder.mkdir()
            rounds.append(measure(folder, flags, Path(temporary) / "prepared"))
            print(runs_table(rounds), flush=True)
    about = provenance(command_line(parser, arguments))
    write_page(arguments.output / "startup.md", about, rounds, helps)


if __name__ == "__main__":
    main()
