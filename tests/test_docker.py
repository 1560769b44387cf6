"""Tests of the Dockerfile: what it names exists, and, where Docker runs, the image works."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]


def instructions() -> list[tuple[str, str]]:
    """Returns the instructions of the Dockerfile with their arguments."""
    text = re.sub(r"^#.*\n", "", (REPOSITORY / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [(line.split()[0], line.partition(" ")[2]) for line in lines if line.strip()]


def arguments(name: str) -> list[str]:
    return [argument for instruction, argument in instructions() if instruction == name]


def test_what_is_copied_exists_and_is_sent() -> None:
    copied = [words.split()[:-1] for words in arguments("COPY") if not words.startswith("--from")]
    names = {name for words in copied for name in words}
    assert {"pyproject.toml", "devnet_jax"} <= names
    assert all((REPOSITORY / name).exists() for name in names)
    lines = (REPOSITORY / ".dockerignore").read_text().splitlines()
    assert {line[1:] for line in lines if line.startswith("!")} == names


def test_what_is_installed_and_started_is_of_this_project() -> None:
    (installed,) = (words for words in arguments("RUN") if words.startswith("pip install"))
    extras = re.search(r"\[([\w,]+)\]", installed)
    assert extras is not None
    assert set(extras[1].split(",")) <= set(PROJECT["optional-dependencies"])
    (entrypoint,) = arguments("ENTRYPOINT")
    assert set(json.loads(entrypoint)) == set(PROJECT["scripts"])


def test_python_is_new_enough() -> None:
    least = re.match(r">=(\d+)\.(\d+)", PROJECT["requires-python"])
    assert least is not None
    for image in arguments("FROM"):
        version = re.match(r"python:(\d+)\.(\d+)-slim\b", image)
        assert version is not None, image
        assert tuple(map(int, version.groups())) >= tuple(map(int, least.groups()))


def test_it_is_not_root_who_writes_and_all_is_written_in_the_volume() -> None:
    (user,), (volume,) = arguments("USER"), arguments("VOLUME")
    assert user not in ("root", "0")
    assert arguments("WORKDIR")[-1] == volume
    assert f"HOME={volume}" in arguments("ENV")


@pytest.mark.slow
def test_the_image_runs_the_quickstart(tmp_path: Path) -> None:
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "info"], capture_output=True).returncode:
        pytest.skip("needs Docker and its daemon")
    tag = "devnet_jax:test"
    subprocess.run([docker, "build", f"--tag={tag}", REPOSITORY], check=True)
    tmp_path.chmod(0o777)
    run = docker, "run", "--rm", f"--volume={tmp_path}:/work", tag
    subprocess.run([*run, "--config=/configs/quickstart.py", "--workdir=runs/first"], check=True)
    assert (tmp_path / "runs" / "first" / "report.html").stat().st_size > 0
