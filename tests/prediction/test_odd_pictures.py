"""Tests that predict, the exported file and the service name pictures unlike the training ones."""

from __future__ import annotations

import csv
import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from devnet_jax import Detector
from devnet_jax.export.read import ExportedDetector
from devnet_jax.export.write import export_detector
from devnet_jax.prediction import predict
from devnet_jax.runtime.workdir import Workdir
from tests.conftest import Main
from tests.drawn import SIZE, blurred, good, noise, save_good, stripes

WIDE = "another size (640×480; the training pictures are 96×96)"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Odd pictures, named by the beginning of their reason, and good ones."""
    folder = tmp_path_factory.mktemp("pictures")
    save_good(folder / "good", range(1000, 1006))
    square = Image.fromarray(good(1100)).resize((480, 480))
    wide = Image.new("RGB", (640, 480), (99, 90, 72))
    wide.paste(square, (80, 0))
    odd = {
        "noise": noise(SIZE, SIZE, 3),
        "nearly black": np.zeros((SIZE, SIZE, 3)),
        "blurred": blurred(good(1101), 3),
        "unlike the training pictures": stripes(),
        WIDE: np.asarray(wide),
    }
    for i, (reason, pixels) in enumerate(odd.items()):
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(reason)
    return folder


def expected(pictures: Path) -> dict[str, str]:
    return {
        str(path): (path.with_suffix(".txt").read_text() if path.parent == pictures else "")
        for path in sorted(pictures.rglob("*.png"))
    }


def assert_named(found: dict[str, str], pictures: Path) -> None:
    wanted = expected(pictures)
    assert found.keys() == wanted.keys()
    for path, reason in wanted.items():
        if reason == WIDE:
            assert found[path].endswith(WIDE)
        else:
            assert found[path] == reason, path


def test_predict_names_them(drawn_run: Path, pictures: Path, tmp_path: Path) -> None:
    detector = Detector.restore(drawn_run)
    prediction = predict(detector, [str(pictures)], str(tmp_path))
    with (tmp_path / "predictions.csv").open(encoding="utf-8") as table:
        assert_named({row["path"]: row["odd"] for row in csv.DictReader(table)}, pictures)
    (line,) = [line for line in str(prediction).splitlines() if "unlike the training" in line]
    for part in ("5 (", "noise 1", "nearly black 1", "blurred 1", "another size 1", "column odd"):
        assert part in line
    page = (tmp_path / "report.html").read_text()
    assert page.count("data-odd>") == 5
    assert '<option value="odd">' in page


def test_the_exported_file_names_them_alike(
    drawn_run: Path, pictures: Path, tmp_path: Path
) -> None:
    detector = Detector.restore(drawn_run)
    export_detector(detector, Workdir(drawn_run), tmp_path / "model.devnet")
    exported, paths = ExportedDetector.load(tmp_path / "model.devnet"), list(expected(pictures))
    found = exported.score(paths).odd
    assert_named(dict(zip(paths, found, strict=True)), pictures)
    assert found == detector.score(paths).odd
    # Of an array of the network's input, the picture's own size is not known.
    batch = detector.prepare(paths)
    assert not any("size" in reason for reason in exported.score(batch.pixels).odd)


def test_the_service_names_them(drawn_run: Path, pictures: Path, tmp_path: Path) -> None:
    pytest.importorskip("starlette")
    pytest.importorskip("uvicorn")
    from tests.served import started

    detector = Detector.restore(drawn_run)
    export_detector(detector, Workdir(drawn_run), tmp_path / "model.devnet")
    with started(tmp_path / "model.devnet") as service:
        answers = {
            path: service.ask("POST", "/score", Path(path).read_bytes())[1]["odd"]
            for path in expected(pictures)
        }
        assert service.ask("GET", "/health")[1]["drift"] is None
    assert_named(answers, pictures)


def test_an_older_run_and_file_name_nothing(drawn_run: Path, tmp_path: Path) -> None:
    detector = Detector.restore(drawn_run)
    older = Detector(detector.config, detector.variables, detector.step)
    file = io.BytesIO()
    Image.fromarray(noise(SIZE, SIZE, 3)).save(file, "PNG")
    assert older.score(file.getvalue()).odd == [""]


def test_a_damaged_summary_is_one_line(main: Main, drawn_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(drawn_run, tmp_path / "run"))
    (run / "ordinary.json").write_text('{"kept": "?"}')
    result = main(
        *("--mode=predict", f"--workdir={run}", f"--input={run}", f"--output={tmp_path / 'out'}")
    )
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == (
        f"error: {run / 'ordinary.json'}: damaged; restore it, or delete it: odd pictures are then "
        "not told"
    )
