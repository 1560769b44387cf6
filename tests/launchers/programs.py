"""Fake programs and helpers for the tests of the launchers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.conftest import REPOSITORY

GOLDEN = Path(__file__).parent / "golden"

# Arguments that quoting must preserve.
NASTY = (
    "--workdir=gs://bucket/run",
    "two words",
    "it's",
    'say "so"',
    "$HOME $(id) ${x} `id` $$ $",
    "new\nline\n",
    "\ttab  and  spaces ",
    "größe ✓ 𝛼",
    "",
    "back\\slash\\",
    "*?[a-z]{a,b}~!#",
    "a;b|c&d>e<f(g)%h",
    "--",
    "-",
    "--after=the dashes",
)

# A fake Python interpreter, which executes the Python code in $BEHAVIOUR.
_FAKE_PYTHON = """\
#!{python}
import json, os, signal, sys, time
from pathlib import Path
given = dict(word[2:].split("=", 1) for word in sys.argv if word[:2] == "--" and "=" in word)
index = int(given.get("process_id", os.environ.get("SLURM_PROCID", 0)))
exec(os.environ["BEHAVIOUR"])
"""

# Prints the arguments in one write, because other processes write to the same pipe.
DUMP = r"sys.stdout.write(json.dumps(sys.argv[1:]) + '\n')"


def default_signals() -> None:
    """Restores the signals that shells and `nohup` make background processes ignore."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def make_program(path: Path, text: str) -> Path:
    """Writes an executable file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def fake_python(folder: Path) -> Path:
    """Writes a fake Python interpreter, which executes $BEHAVIOUR; `index` is its rank there."""
    return make_program(folder / "python", _FAKE_PYTHON.format(python=sys.executable))


def launch(
    program: str, *arguments: str, environment: dict[str, str] | None = None, timeout: float = 60
) -> subprocess.CompletedProcess[str]:
    """Runs a program of launch/."""
    return subprocess.run(
        [sys.executable, f"launch/{program}.py", *arguments],
        cwd=REPOSITORY,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def require_golden(name: str, text: str) -> None:
    """Compares with a golden file, which must be reviewed; WRITE_GOLDEN=1 writes it."""
    path = GOLDEN / name
    if os.environ.get("WRITE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text(), f"{path}: differs; review the new text"
