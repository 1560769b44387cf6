"""Tests that each module imports only from its own layer or a lower one."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

import devnet_jax

PACKAGE = Path(devnet_jax.__file__).parent

# Lowest first. A name is a module of the package's root or a folder.
LAYERS = (
    ("errors", "rng", "prior", "schema", "notation", "config"),
    ("runtime", "distributed"),
    ("data", "models", "losses"),
    ("training", "checkpoints"),
    ("inference", "export"),
    ("report",),
    ("evaluation", "prediction"),
    ("sweep", "review"),
    ("api", "cli", "launchers", "main", "__main__", "__init__"),
)
LAYER_OF = {name: i for i, names in enumerate(LAYERS) for name in names}
# Leaves import only these modules of the package, so any layer may import them.
LEAVES = (
    "losses",
    "models.backbones",
    "models.heads",
    "data.sampler",
    "evaluation.intervals",
    "evaluation.metrics",
)
ALLOWED_IN_LEAVES = ("errors", "rng", "prior", "models.layers", "evaluation.intervals")


def imports() -> dict[str, set[str]]:
    """Returns the modules that each module imports, at load time or inside functions."""
    modules = {
        ".".join(file.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): file
        for file in PACKAGE.rglob("*.py")
    }
    graph: dict[str, set[str]] = {}
    for module, file in modules.items():
        found = set()
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and not node.level and node.module:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                continue
            for name in names:
                target = name.removeprefix("devnet_jax").removeprefix(".")
                if not name.startswith("devnet_jax"):
                    continue
                if target not in modules:  # an object of a module, or of the package
                    target = target.rpartition(".")[0] or "__init__"
                found.add(target)
        graph[module] = found - {module}
    return graph


GRAPH = imports()


def is_part(module: str, names: tuple[str, ...]) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in names)


def test_every_folder_has_a_layer() -> None:
    assert {module.partition(".")[0] for module in GRAPH} == LAYER_OF.keys()


def test_imports_are_of_the_same_layer_or_a_lower_one() -> None:
    higher = [
        f"{module} imports {target}"
        for module, targets in GRAPH.items()
        for target in targets
        if LAYER_OF[target.partition(".")[0]] > LAYER_OF[module.partition(".")[0]]
        and not is_part(target, LEAVES)
    ]
    assert not higher


@pytest.mark.parametrize("leaf", LEAVES)
def test_leaves_import_nothing_of_ours(leaf: str) -> None:
    inside = {module for module in GRAPH if is_part(module, (leaf,))}
    assert inside
    outside = set().union(*(GRAPH[module] for module in inside)) - inside
    assert not {target for target in outside if not is_part(target, ALLOWED_IN_LEAVES)}


def test_no_cycle() -> None:
    graphlib.TopologicalSorter(GRAPH).prepare()  # raises CycleError


def test_exported_detectors_need_little() -> None:
    """Reading a model file imports none of the libraries that only training needs."""
    unwanted = ("flax", "optax", "orbax", "tensorflow_datasets", "sklearn", "ml_collections")
    program = f"import sys, devnet_jax.export.read; print(set({unwanted!r}) & set(sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "set()"
