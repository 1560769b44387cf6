"""What is declared once in pyproject.toml holds elsewhere."""

import re
import tomllib
from pathlib import Path

import devnet_jax

REPOSITORY = Path(__file__).parents[1]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]


def test_requirements_are_the_dependencies_with_cuda12() -> None:
    lines = (REPOSITORY / "requirements.txt").read_text().splitlines()
    required = {line for line in lines if line and not line.startswith("#")}
    assert required == {*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["cuda12"]}


def test_what_the_user_asked_for_is_required() -> None:
    names = {re.match(r"[\w-]+", line)[0] for line in PROJECT["dependencies"]}  # type: ignore[index]
    asked = "jax flax optax orbax-checkpoint tensorflow-datasets numpy scikit-learn absl-py"
    assert set(asked.split()) <= names


def test_one_version() -> None:
    assert devnet_jax.__version__ == PROJECT["version"]
