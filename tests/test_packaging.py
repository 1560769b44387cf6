"""Tests of packaging: consistency with pyproject.toml, and content of the distributions."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import setuptools
import yaml

import devnet_jax

REPOSITORY = Path(__file__).parents[1]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
NAME = f"devnet_jax-{PROJECT['version']}"


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
    assert citation()["version"] == PROJECT["version"]
    assert f"— {PROJECT['version']}" in (REPOSITORY / "CHANGELOG.md").read_text()


def citation() -> dict:
    return yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())


def test_the_citation_holds_what_its_schema_requires() -> None:
    software = citation()
    assert software["cff-version"] == "1.2.0"
    assert software["license"] == PROJECT["license"]
    assert {"cff-version", "message", "title", "authors"} <= software.keys()
    paper = software["preferred-citation"]
    assert {"type", "title", "authors"} <= paper.keys()
    assert "2108.00462" in paper["url"]
    for author in (*software["authors"], *paper["authors"]):
        assert "name" in author or {"given-names", "family-names"} <= author.keys()
        assert all(isinstance(value, str) and value for value in author.values())


def test_the_licence_is_the_one_declared() -> None:
    assert PROJECT["license"] == "Apache-2.0"
    text = (REPOSITORY / "LICENSE").read_text()
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text


def succeeds(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Runs a command, asserts that it succeeds, and returns its standard output."""
    result = subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def in_the_repository() -> list[str]:
    """Returns the files that git tracks, and untracked files that it does not ignore."""
    listed = "git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"
    names = succeeds(*listed, cwd=REPOSITORY).split("\0")
    return [name for name in names if name and (REPOSITORY / name).is_file()]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository without build outputs."""
    if not (REPOSITORY / ".git").exists():
        pytest.skip("which files are the project's is told by git, and this is no clone")
    folder = tmp_path_factory.mktemp("source")
    for name in in_the_repository():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / name, folder / name)
    return folder


def files_of_the_package(source: Path) -> set[str]:
    files = (path for path in (source / "devnet_jax").rglob("*") if path.is_file())
    return {path.relative_to(source).as_posix() for path in files}


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip = sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"
    succeeds(*pip, "--no-index", "--wheel-dir", folder, source, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_the_package_and_nothing_else(source: Path, wheel: Path) -> None:
    assert wheel.name == f"{NAME}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
        entry_points = archive.read(f"{NAME}.dist-info/entry_points.txt").decode()
        metadata = archive.read(f"{NAME}.dist-info/METADATA").decode()
    information = {name for name in held if name.startswith(f"{NAME}.dist-info/")}
    package = files_of_the_package(source)
    assert "devnet_jax/py.typed" in package
    assert {".jinja", ".css", ".js", ".json"} <= {Path(name).suffix for name in package}
    assert held - information == package
    assert f"{NAME}.dist-info/licenses/LICENSE" in information
    assert "devnet = devnet_jax.__main__:main" in entry_points.splitlines()
    assert "License-Expression: Apache-2.0" in metadata.splitlines()


def test_the_source_distribution_is_enough_to_build_from(source: Path, tmp_path: Path) -> None:
    program = "import sys, setuptools.build_meta as build; build.build_sdist(sys.argv[1])"
    succeeds(sys.executable, "-c", program, tmp_path, cwd=source)
    with tarfile.open(tmp_path / f"{NAME}.tar.gz") as archive:
        held = {name.removeprefix(f"{NAME}/") for name in archive.getnames()}
    package = files_of_the_package(source)
    assert {"README.md", "LICENSE", "pyproject.toml", *package} <= held


@pytest.mark.slow
def test_a_script_beside_the_clone_imports_the_editable_package(
    source: Path, tmp_path: Path
) -> None:
    """The clone's folder has the package's name, and Python takes it for a namespace package."""
    clone, place, script = tmp_path / "devnet_jax", tmp_path / "venv", tmp_path / "script.py"
    shutil.copytree(source, clone)
    succeeds(sys.executable, "-m", "venv", "--without-pip", place, cwd=tmp_path)
    python = place / "bin" / "python"
    (folder,) = (place / "lib").glob("python*/site-packages")
    # What is installed here but not the package, which may be installed here as well.
    (installed,) = {Path(module.__file__).parents[1] for module in (pytest, setuptools)}
    (folder / "dependencies.pth").write_text(f"{installed}\n")
    pip = python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"
    succeeds(*pip, "--no-build-isolation", "--editable", clone, cwd=tmp_path, PYTHONPATH="")
    script.write_text("import devnet_jax; print(devnet_jax.__version__, devnet_jax.__file__)")
    version, file = succeeds(python, script, cwd=tmp_path, PYTHONPATH="").split()
    assert version == PROJECT["version"]
    assert Path(file) == clone / "devnet_jax" / "__init__.py"


@pytest.mark.slow
def test_the_wheel_works_where_it_is_installed(wheel: Path, tmp_path: Path) -> None:
    place = tmp_path / "installed"
    pip = sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"
    succeeds(*pip, "--no-compile", "--target", place, wheel, cwd=tmp_path)

    def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(place)}
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True
        )

    told = run(
        sys.executable, "-c", "import devnet_jax as d; print(d.__version__); print(d.__file__)"
    )
    version, file = told.stdout.splitlines()
    assert version == PROJECT["version"]
    assert Path(file).is_relative_to(place)

    module = sys.executable, "-m", "devnet_jax.main"
    usage = run(*module, "--help")
    assert "--workdir: Folder of the run" in usage.stdout
    assert not usage.stderr
    refused = run(*module, "--mode=eval")
    assert refused.returncode == 1
    assert refused.stderr.startswith("error: --workdir is missing")
    script = run(place / "bin" / "devnet", "--mode=eval")
    assert (script.returncode, script.stderr) == (1, refused.stderr)
