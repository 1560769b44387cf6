"""SIGTERM during an import."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.conftest import REPOSITORY

PROGRAM = """
import time
from devnet_jax.distributed.stopping import Stopped, stop_on_sigterm

stop_on_sigterm()
try:
    import interrupted
    print("import finished:", interrupted.end, flush=True)
    time.sleep(20)
except Stopped:
    print("stopped")
"""


def test_sigterm_is_handled_after_the_import(tmp_path: Path) -> None:
    # An exception during the import of a native module, such as JAX's, crashes the process.
    (tmp_path / "interrupted.py").write_text(
        f"import os\nos.kill(os.getpid(), {int(signal.SIGTERM)})\nend = sum(range(1000))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{REPOSITORY}"},
        capture_output=True,
        text=True,
        timeout=10,
    )
    assert result.stdout.splitlines() == ["import finished: 499500", "stopped"], result.stderr
