"""What starting costs: the command line's help, and compiling in the first runs and in later ones.

python benchmarks/startup.py

Each round has a compilation cache that is empty at first, and three runs that train and evaluate,
each a process of its own: the first one, the same again, and one with a data set of another size.
JAX's own events tell how long what took. The table goes to a folder.
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

from results_page import circumstances, command_line, page_parser, spread, table

from devnet_jax.runtime.startup import prepare

COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"
TRACE = "/jax/core/compile/jaxpr_trace_duration"
LOWER = "/jax/core/compile/jaxpr_to_mlir_module_duration"
FOUND = "/jax/compilation_cache/cache_hits"

RUNS = {
    "first start": (),
    "second start": (),
    "another data set": ("--config.dataset.n_anomaly=5", "--config.dataset.calibration=0.25"),
}


@dataclasses.dataclass(frozen=True)
class Span:
    """One event: from when to when, of which function, and whether the cache had it."""

    event: str
    start: float
    end: float
    function: str
    found: bool

    @property
    def seconds(self) -> float:
        return self.end - self.start


def seconds(spans: Iterable[Span]) -> float:
    """The time that lies in any of the spans: those of one event may lie in one another."""
    total, reached = 0.0, float("-inf")
    for span in sorted(spans, key=lambda span: span.start):
        total += max(0.0, span.end - max(span.start, reached))
        reached = max(reached, span.end)
    return total


@dataclasses.dataclass(frozen=True)
class Start:
    """What one run has spent on programs, from JAX's events."""

    spans: Sequence[Span]
    cached_from: float  # seconds of compiling from which on a program is kept in the cache

    def of(self, *events: str) -> list[Span]:
        return [span for span in self.spans if span.event in events]

    @property
    def compiled(self) -> list[Span]:
        """Programs that were compiled, as the cache had none like them."""
        return [span for span in self.of(COMPILE_EVENT) if not span.found]

    @property
    def figures(self) -> dict[str, float]:
        """The numbers of the table."""
        return {
            "compiling and reading, s": seconds(self.of(COMPILE_EVENT)),
            "of which compiling anew, s": seconds(self.compiled),
            "tracing and lowering, s": seconds(self.of(TRACE, LOWER)),
            "programs": len(self.of(COMPILE_EVENT)),
            "of which compiled anew": len(self.compiled),
            "the longest of these, s": max((span.seconds for span in self.compiled), default=0.0),
        }


def run_recorded(arguments: Sequence[str], record: Path, batch_size: int) -> None:
    """The package's command line, in this process; leaves a `Start` in a file."""
    prepare(batch_size)
    import jax.monitoring

    from devnet_jax.main import console

    found: set[int] = set()  # threads whose next program was in the cache
    spans: list[Span] = []

    def note_event(event: str, **_: Any) -> None:
        if event == FOUND:
            found.add(threading.get_ident())

    def note_span(event: str, start_time: float, end_time: float, **about: Any) -> None:
        in_cache = event == COMPILE_EVENT and threading.get_ident() in found
        if in_cache:
            found.discard(threading.get_ident())
        spans.append(Span(event, start_time, end_time, about.get("fun_name", ""), in_cache))

    jax.monitoring.register_event_listener(note_event)
    jax.monitoring.register_event_time_span_listener(note_span)
    sys.argv = ["devnet_jax.main", *arguments]
    try:
        console()
    finally:
        cached_from = jax.config.values["jax_persistent_cache_min_compile_time_secs"]
        record.write_text(json.dumps(dataclasses.asdict(Start(spans, cached_from))))


def measure(folder: Path, flags: Sequence[str], prepared: Path) -> dict[str, Start]:
    """The three runs in turn, with a compilation cache in the folder, which is new."""
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
        starts[name] = Start(spans, values["cached_from"])
    return starts


def help_seconds() -> float:
    """From the command to the end of its help."""
    started = time.perf_counter()
    # Its status is not 0, as always with absl's flags.
    text = subprocess.run(
        [sys.executable, "-m", "devnet_jax.main", "--help"], capture_output=True, text=True
    ).stdout
    assert "--workdir" in text
    return time.perf_counter() - started


def runs_table(rounds: Sequence[Mapping[str, Start]]) -> str:
    """A row for each of the runs."""
    columns = ["", *next(iter(rounds[0].values())).figures]
    rows = []
    for name in RUNS:
        figures = [of_round[name].figures for of_round in rounds]
        cells = [spread([of_run[column] for of_run in figures]) for column in columns[1:]]
        rows.append([name, *cells])
    return table(columns, rows)


def largest(start: Start, n: int) -> str:
    """The functions that took longest, compiled or read."""
    by_function: dict[str, float] = collections.defaultdict(float)
    for span in start.of(COMPILE_EVENT):
        by_function[span.function] += span.seconds
    longest = sorted(by_function, key=by_function.__getitem__, reverse=True)[:n]
    return ", ".join(f"{name} {by_function[name]:.2f} s" for name in longest)


def write_page(
    file: Path, about: str, rounds: Sequence[Mapping[str, Start]], helps: Sequence[float]
) -> None:
    last = rounds[-1]
    threshold = last["first start"].cached_from
    compiled = {
        name: collections.Counter(span.function for span in start.compiled)
        for name, start in last.items()
    }
    new = sorted((compiled["another data set"] - compiled["second start"]).elements())
    ratio = statistics.median(
        seconds(of_round["second start"].of(COMPILE_EVENT))
        / seconds(of_round["first start"].of(COMPILE_EVENT))
        for of_round in rounds
    )
    file.write_text(f"""\
# What starting costs

{about}
`--help`: {spread(helps)} s, from the command to its end ({len(helps)} times).

Training and evaluation as on the command line: rounds of three runs ({len(rounds)} of them), each
with a compilation cache that is empty at first. Medians (least – most). Compiling and reading is
the time in which JAX was compiling a program or was reading it from the cache; it keeps programs
there that took {threshold} s or more to compile (JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS).

{runs_table(rounds)}

What was found:

- The second start spends {ratio:.2f} times as long on compiling and reading as the first one.
- Compiled anew with a data set of another size, and not by the second start of the same one:
  {", ".join(new) or "nothing"}.
- What took longest in the last first start: {largest(last["first start"], 6)}.
- What took longest in the last second start: {largest(last["second start"], 6)}.
""")


def main() -> None:
    parser = page_parser("startup.py", __doc__)
    parser.add_argument("--size", type=int, default=224, help="height and width of the images")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--scales", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--helps", type=int, default=7, help="times that the help is asked for")
    parser.add_argument("--record", type=Path, help="run the command line here, and leave this")
    parser.add_argument("arguments", nargs="*", default=[], help="of that command line")
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
    about = circumstances(command_line(parser, arguments))
    write_page(arguments.output / "startup.md", about, rounds, helps)


if __name__ == "__main__":
    main()
