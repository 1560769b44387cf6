"""Tests of `--mode=review` on the command line, without a detector."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from devnet_jax.cli.flags import with_mode
from devnet_jax.data.datasets.image_folder import read_class_folders
from devnet_jax.review.journal import Journal, Label
from devnet_jax.review.results import Results, Row, write_labels
from tests.conftest import Main, environment
from tests.review.test_results import draw
from tests.review.test_server import ask_at
from tests.test_main import refused

_DEVNET = """
import sys, types
from pathlib import Path
from devnet_jax.review.results import Results, write_labels
from tests.review.fake import FakeSession

def open_session(config, workdir, inputs, folder):
    assert config.dataset.name == "image_list", config.dataset
    assert config.model.detector == "devcore"
    assert config.dataset.labels == str(folder / "labels.csv")
    session = FakeSession(30)
    print("opens", workdir.path, *inputs, folder, flush=True)
    return session

module = types.ModuleType("devnet_jax.review.session")
module.open_session = open_session
sys.modules[module.__name__] = module
from devnet_jax.main import console
console()
"""


def test_review_serves_until_it_is_told_to_end(tmp_path: Path) -> None:
    work = tmp_path / "work"
    arguments = ("review", f"--workdir={work}", f"--input={tmp_path}", "--port=0")
    (work / "review").mkdir(parents=True)
    with subprocess.Popen(
        [sys.executable, "-c", _DEVNET, *arguments],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            opened = process.stdout.readline()
            assert opened == f"opens {work} {tmp_path} {work / 'review'}\n", process.communicate()
            url = process.stdout.readline().removeprefix("reviewing 30 pictures at ").split()[0]
            label = {"ids": [1, 2], "label": "good"}
            assert ask_at(url, "POST", "/api/label", label).status == 200
            process.send_signal(signal.SIGINT)
            out, error = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, error) == (0, "")
    assert out == (
        f"2 pictures looked at; labels: {work / 'review' / 'labels.csv'}\n"
        "to go on with the review, run the same command again\n"
    )


def test_a_first_word_may_be_a_mode() -> None:
    modes = ("train", "predict", "review")
    assert with_mode(["devnet", "predict", "--input=a"], modes) == [
        "devnet",
        "--mode=predict",
        "--input=a",
    ]
    for same in (
        ["devnet"],
        ["devnet", "--mode=eval"],
        ["devnet", "reveiw"],
        ["devnet", "--x", "train"],
    ):
        assert with_mode(same, modes) == same


def test_labels_of_an_earlier_review_are_laid_out_at_once(main: Main, tmp_path: Path) -> None:
    pictures, results = tmp_path / "pictures", Results(tmp_path / "work" / "review")
    for name in ("a.png", "b.png", "c.png"):
        draw(pictures / name)
    write_labels(results, pictures, [Row("a.png", "good"), Row("b.png"), Row("c.png")])
    with Journal(results.journal) as journal:  # after the table was written: it was killed
        journal.append(["b.png"], Label("anomaly", "dent"))
    review = ("review", f"--workdir={tmp_path / 'work'}", f"--export_folders={tmp_path / 'out'}")
    result = main(*review)
    assert result.returncode == 0, result.stderr
    assert "train/dent (1), train/good (1)" in result.stdout
    examples = read_class_folders(tmp_path / "out", needs_test_images=False)
    assert {(e.path, e.label) for e in examples} == {
        ("train/good/a.png", 0),
        ("train/dent/b.png", 1),
    }
    refused(main(*review), "--export_folders=", "not empty")


def test_mistakes_are_one_line(main: Main, tmp_path: Path) -> None:
    work = f"--workdir={tmp_path / 'work'}"
    refused(main("--mode=review", work), "--input is missing: the images to label")
    refused(main("review", work, "--input=.", "--strict"), "--strict goes with --mode=predict")
    train = ("train", work, "--config=configs/quickstart.py")
    refused(main(*train, "--export_folders=x"), "--export_folders goes with --mode=review")
    export = f"--export_folders={tmp_path / 'out'}"
    refused(main("review", work, export), "no labels are there")
    assert not list(tmp_path.iterdir())


def test_without_the_extra_one_line_says_what_to_install(tmp_path: Path) -> None:
    program = textwrap.dedent("""
        import sys
        sys.modules["uvicorn"] = None
        from devnet_jax.main import console
        console()
    """)
    result = subprocess.run(
        [sys.executable, "-c", program, "review", f"--workdir={tmp_path}", f"--input={tmp_path}"],
        env=environment(),
        capture_output=True,
        text=True,
    )
    refused(result, "--mode=review needs uvicorn", "pip install 'devnet-jax[review]'")
