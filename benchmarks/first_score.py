"""Measures the time from a new Python process to the first score, of runs and exported files.

python benchmarks/first_score.py --detector runs/my_parts my_parts.devnet --picture part.png \
    --before OLD_CLONE

Each detector is loaded, and scores one picture twice, in two processes that share a compilation
cache which is empty at first. With --before another clone of the package does the same in turn.
Writes first_score.md.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from results_page import command_line, page_parser, provenance, spread, table

_PROGRAM = """
import sys, time
times = [time.perf_counter()]
from devnet_jax import Detector
times.append(time.perf_counter())
detector = Detector.load(sys.argv[1])
times.append(time.perf_counter())
for _ in range(2):
    detector.score(sys.argv[2])
    times.append(time.perf_counter())
print([after - before for before, after in zip(times, times[1:])])
"""
PARTS = ("import", "load", "first score", "second score")


def measure(package: Path, detector: Path, picture: Path, cache: Path) -> list[float]:
    """Returns the seconds of each of `PARTS` in a new process.

    Args:
      package: clone of the project.
      detector: folder of a run, or exported file.
      picture: image file.
      cache: folder that holds the compilation cache.
    """
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_"))
    }
    environment["XDG_CACHE_HOME"] = str(cache)
    command = [sys.executable, "-c", _PROGRAM, detector.absolute(), picture.absolute()]
    done = subprocess.run(  # `python -c` imports from the working directory first
        command, cwd=package, env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return list(json.loads(done.stdout.splitlines()[-1]))


def commit(clone: Path) -> str:
    """Returns the first digits of the commit of a clone."""
    command = ["git", "-C", str(clone), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def times_table(times: Sequence[tuple[str, str, list[list[float]]]]) -> str:
    """Returns a table with a row of each detector, clone and process; of several rounds medians."""
    rows = []
    for detector, name, rounds in times:
        columns = [*zip(*rounds, strict=True), [sum(each) for each in rounds]]
        rows.append((detector, name, *(spread(column) for column in columns)))
    return table(("detector", "", *PARTS, "in all"), rows)


def main() -> None:
    parser = page_parser("first_score.py", __doc__)
    parser.add_argument(
        "--detector", type=Path, nargs="+", required=True, help="runs and exported files"
    )
    parser.add_argument("--picture", type=Path, required=True, help="picture to score")
    parser.add_argument("--before", type=Path, help="other clone of the project")
    parser.add_argument("--rounds", type=int, default=3, help="number of rounds")
    arguments = parser.parse_args()
    clones = {"now": Path(__file__).parents[1]}
    if arguments.before:
        clones = {f"commit {commit(arguments.before)}": arguments.before, **clones}
    times: dict[tuple[str, str], list[list[float]]] = {}
    for _ in range(arguments.rounds):
        for detector in arguments.detector:
            for name, clone in clones.items():
                with tempfile.TemporaryDirectory() as cache:
                    for process in ("first process", "second process"):
                        key = (detector.name, f"{name}, {process}")
                        found = measure(clone, detector, arguments.picture, Path(cache))
                        times.setdefault(key, []).append(found)
                        print(*key, *(f"{seconds:.2f}" for seconds in found), flush=True)
    page = f"""\
# From a new process to the first score

{provenance(command_line(parser, arguments))}
Seconds, medians of {arguments.rounds} rounds (least – most). The first process finds an empty
compilation cache, the second one what the first has compiled.

{times_table([(*key, rounds) for key, rounds in times.items()])}
"""
    (arguments.output / "first_score.md").write_text(page)


if __name__ == "__main__":
    main()
