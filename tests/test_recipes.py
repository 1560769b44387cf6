"""Tests of the recipes in docs/research.md, applied literally: each trains for two steps.

A block of a recipe begins with a comment that says where its code goes: a new file, above a table
or a class, or in it.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, TINY

RECIPES = {
    "A loss": ("--config.loss.name=hinge",),
    "A backbone": ("--config.model.backbone=plain",),
    "A head": ("--config.model.head=logsumexp",),
}
CODE_FILES = 2  # largest number of files that a recipe changes


def blocks(heading: str) -> list[tuple[str, str, str, str]]:
    """Returns (path, "above", "in" or "", name, code) of each block of a recipe."""
    page = (REPOSITORY / "docs/research.md").read_text(encoding="utf-8")
    (section,) = re.findall(rf"^### {heading}$(.*?)^##", page, re.MULTILINE | re.DOTALL)
    found = re.findall(
        r"^```python\n# (devnet_jax/\S+\.py)(?:, (above|in) (\w+))?\n(.*?)^```$",
        section,
        re.MULTILINE | re.DOTALL,
    )
    return [(path, place, name, code) for path, place, name, code in found]


def insert(source: str, place: str, name: str, code: str) -> str:
    """Inserts code above a top-level definition, into a table, or for a class attribute."""
    lines = source.splitlines(keepends=True)
    for node in ast.parse(source).body:
        if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", None) == name:
            if place == "above":
                return "".join([*lines[: node.lineno - 1], code, "\n\n", *lines[node.lineno - 1 :]])
            return "".join([*lines[: node.lineno], code, *lines[node.lineno :]])
        if isinstance(node, ast.ClassDef) and node.name == name:
            attribute = code.strip().partition(":")[0]
            for item in node.body:
                if isinstance(item, ast.AnnAssign) and item.target.id == attribute:  # type: ignore[union-attr]
                    return "".join([*lines[: item.lineno - 1], code, *lines[item.end_lineno :]])
    raise AssertionError(f"nothing called {name} to put code {place}")


@pytest.mark.slow
@pytest.mark.parametrize("heading", RECIPES)
def test_a_recipe_trains(heading: str, parts: Path, tmp_path: Path) -> None:
    for name in ("devnet_jax", "configs"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / name, tmp_path / name, ignore=ignored)
    recipe = blocks(heading)
    assert recipe
    assert len({path for path, *_ in recipe}) <= CODE_FILES
    for path, place, name, code in recipe:
        file = tmp_path / path
        file.write_text(insert(file.read_text(), place, name, code) if place else code)
    result = subprocess.run(
        [
            sys.executable, "-m", "devnet_jax.main", "--config=configs/folder.py:devnet", *TINY,
            *RECIPES[heading],
            "--config.train.epochs=1",
            f"--config.dataset.manual_dir={parts}",
            f"--config.dataset.data_dir={tmp_path / 'data'}",
            f"--workdir={tmp_path / 'run'}",
        ],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "in 2 steps" in result.stdout
    assert (tmp_path / "run/report.html").exists()
