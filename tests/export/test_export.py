"""Tests of --mode=export, and of scoring with only the exported file."""

from __future__ import annotations

import copy
import csv
import dataclasses
import datetime
import io
import json
import multiprocessing
import pickle
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import export as jax_export

from devnet_jax import Detector
from devnet_jax.config import Config, with_settings
from devnet_jax.data.decode import load_image
from devnet_jax.data.preprocessing import Preprocessing
from devnet_jax.errors import UserError
from devnet_jax.export.read import CARD, EXPLAIN, SCORE, ExportedDetector, add_checksum
from devnet_jax.export.write import export_detector
from devnet_jax.models.build import make_variables
from devnet_jax.runtime.workdir import Workdir
from tests.conftest import IMAGE_SIZE, REPOSITORY, TINY_SETTINGS, Main
from tests.served import started

SQUARE = Preprocessing(IMAGE_SIZE, IMAGE_SIZE)

# Packages needed to read the file: jax, its dependencies, and three others.
NEEDED = ("jax", "jaxlib", "ml_dtypes", "opt_einsum", "scipy", "numpy", "PIL", "flatbuffers")

CALLBACK = "xla_ffi_python_cpu_callback"  # the call behind jax.pure_callback

SCORE_ALONE = """
import json, sys
from pathlib import Path
import numpy as np
from devnet_jax.export.read import ExportedDetector

detector = ExportedDetector.load(sys.argv[1])
images = json.loads(sys.argv[2])
scores = detector.score(images)
np.savez(
    sys.argv[3],
    scores=scores.scores,
    score_maps=scores.maps,
    maps=detector.explain(images).maps,
    p_values=scores.p_values,
    alarms=scores.is_anomaly,
    reasons=scores.reasons,
)
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained run and its exported detector."""

    workdir: Path
    file: Path


def export_run(main: Main, workdir: Path, folder: Path) -> Run:
    file = folder / "model.devnet"
    written = main("--mode=export", f"--workdir={workdir}", f"--output={file}")
    assert written.returncode == 0, written.stderr
    assert str(file) in written.stdout
    return Run(workdir, file)


@pytest.fixture(scope="module")
def run(main: Main, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return export_run(main, trained, tmp_path_factory.mktemp("exported"))


def images_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.png") if "train" not in path.parts)


def column(table: Path, name: str, parts: Path) -> dict[str, float]:
    """Returns the values of a column of a table of images by path."""
    with table.open() as file:
        return {
            str(parts / row["path"]): float(row[name]) for row in csv.DictReader(file) if row[name]
        }


def test_copies_score_alike_in_other_processes(run: Run, parts: Path) -> None:
    detector, paths = ExportedDetector.load(run.file), images_of(parts)
    expected, maps = detector.score(paths).scores, detector.explain(paths[:2]).maps
    for again in (
        pickle.loads(pickle.dumps(detector)), copy.copy(detector), copy.deepcopy(detector)
    ):  # fmt: skip
        np.testing.assert_array_equal(again.score(paths).scores, expected)
        np.testing.assert_array_equal(again.explain(paths[:2]).maps, maps)
        assert (again.card, again.threshold) == (detector.card, detector.threshold)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        scored = pool.submit(ExportedDetector.score, detector, paths).result()
        explained = pool.submit(ExportedDetector.explain, detector, paths[:2]).result()
    np.testing.assert_allclose(scored.scores, expected, rtol=1e-5)
    np.testing.assert_allclose(explained.maps, maps, atol=1e-5)
    assert len(explained.overlays) == 2


@pytest.mark.parametrize("trained_by", ["trained", "trained_core"])
def test_all_ways_to_score_agree(
    trained_by: str, main: Main, parts: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    # The spread of DevCore's few normal images is small, and scores are in units of it.
    rtol = 1e-4 if trained_by == "trained_core" else 1e-5
    run = export_run(main, request.getfixturevalue(trained_by), tmp_path)
    predicted = main(
        "--mode=predict", f"--workdir={run.workdir}", f"--input={parts}/test",
        f"--output={tmp_path / 'predicted'}",
    )  # fmt: skip
    assert predicted.returncode == 0, predicted.stderr
    paths = images_of(parts)

    # In an environment that contains only the packages that the file needs.
    environment, packages = tmp_path / "environment", Path(np.__file__).parents[1]
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    place = environment / "packages"
    place.mkdir()
    for name in NEEDED:
        (place / name).symlink_to(packages / name)
        for libraries in packages.glob(f"{name.replace('PIL', 'pillow')}.libs"):
            (place / libraries.name).symlink_to(libraries)
    (place / "devnet_jax").symlink_to(REPOSITORY / "devnet_jax")
    alone = subprocess.run(
        [
            environment / "bin" / "python", "-I", "-c",
            f"import sys\nsys.path.insert(0, {str(place)!r})\n{SCORE_ALONE}",
            run.file, json.dumps([str(path) for path in paths]), tmp_path / "alone.npz",
        ],
        capture_output=True, text=True,
    )  # fmt: skip
    assert alone.returncode == 0, alone.stderr
    assert not {"flax", "orbax", "sklearn", "tensorflow_datasets"} & set(alone.stdout.split())

    detector = Detector.restore(run.workdir)
    images = np.stack([load_image(path.read_bytes(), path.name, SQUARE) for path in paths])
    expected = detector.score(images)
    loaded = Detector.load(run.file)
    np.testing.assert_allclose(loaded.score(paths).scores, expected.scores, rtol=rtol)
    np.testing.assert_array_equal(loaded.predict(paths) == -1, expected.is_anomaly)
    with np.load(tmp_path / "alone.npz") as found:
        np.testing.assert_allclose(found["scores"], expected.scores, rtol=rtol)
        np.testing.assert_allclose(found["score_maps"], expected.maps, rtol=1e-4, atol=rtol)
        np.testing.assert_allclose(found["maps"], detector.explain(images).maps, atol=1e-4)
        assert expected.p_values is not None
        np.testing.assert_allclose(found["p_values"], expected.p_values, rtol=1e-4)
        np.testing.assert_array_equal(found["alarms"], expected.is_anomaly)
        np.testing.assert_array_equal(found["reasons"], expected.reasons)
    with started(run.file) as service:
        for path, score in zip(paths, expected.scores, strict=True):
            status, answer = service.ask("POST", "/score", path.read_bytes())
            assert status == 200
            assert answer["score"] == pytest.approx(score, rel=rtol, abs=1e-6)
    by_path = dict(zip(map(str, paths), expected.scores, strict=True))
    tables = (
        column(tmp_path / "predicted" / "predictions.csv", "score", parts),
        column(run.workdir / "eval" / "scores.csv", "score", parts),
    )
    for table in tables:
        assert len(table) >= 10
        for path, score in table.items():
            assert score == pytest.approx(by_path[path], rel=rtol)


def test_card(run: Run) -> None:
    with zipfile.ZipFile(run.file) as archive:  # any zip tool can read it
        card = json.loads(archive.read(CARD))
    metrics = json.loads((run.workdir / "eval" / "metrics.json").read_text())
    assert card["metrics"] == metrics
    assert card["image_size"] == IMAGE_SIZE
    assert sum(card["trained_classes"].values()) == 3
    seen = Counter(card["trained_classes"]) + Counter(card["tested_classes"])
    assert seen == {"good": 5, "scratch": 4, "stain": 4}
    assert set(card["tested_classes"]) <= {"good", "scratch", "stain"}
    assert sum(card["tested_classes"].values()) == 5 + 8 - 3
    values = {one["kind"]: one["value"] for one in card["thresholds"]}
    assert list(values) == ["calibrated", "prior"]
    assert values == {kind: metrics[f"{kind}_threshold"] for kind in values}
    assert str(run.workdir) not in json.dumps(card)


def test_the_card_has_a_name_and_the_day_of_the_training_and_no_path(
    run: Run, main: Main, parts: Path, tmp_path: Path
) -> None:
    card = ExportedDetector.load(run.file).card
    assert card["name"] == parts.name
    newest = max(int(path.name) for path in (run.workdir / "checkpoints").iterdir())
    saved = json.loads((run.workdir / f"checkpoints/{newest}/checksums.json").read_text())
    assert card["date"] == saved["date"]
    assert abs(datetime.date.fromisoformat(card["date"]) - datetime.date.today()).days <= 1
    for folder in (parts.parent, REPOSITORY, Path.home()):
        assert str(folder) not in json.dumps(card)
    named = tmp_path / "named.devnet"
    result = main(
        "--mode=export", f"--workdir={run.workdir}", "--config.run.name=Line 3",
        f"--output={named}",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert ExportedDetector.load(named).card == {**card, "name": "Line 3"}


def test_a_file_of_an_earlier_version_has_the_name_of_its_data_set(
    run: Run, tmp_path: Path
) -> None:
    def forget(entries: dict[str, bytes]) -> None:
        card = json.loads(entries[CARD])
        del card["name"], card["date"]
        entries[CARD] = json.dumps(card).encode()

    path = tmp_path / "model.devnet"
    path.write_bytes(rewritten(run.file, forget))
    detector = ExportedDetector.load(path)
    assert (detector.name, detector.date) == ("image_folder", None)


def test_any_number_of_images_with_few_compilations(run: Run) -> None:
    detector = ExportedDetector.load(run.file)
    images = np.random.default_rng(3).integers(
        0, 255, (64, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8
    )
    all_of_them = detector.score(images).scores
    for n in (1, 7, 64):
        np.testing.assert_allclose(detector.score(images[:n]).scores, all_of_them[:n], rtol=1e-5)
    assert detector._programs[SCORE].compiled._cache_size() == 3  # for batches of 1, 8 and 32


@pytest.mark.parametrize("method", ["gradient", "smoothgrad", "score_map", "none"])
def test_each_explanation(method: str, tmp_path: Path) -> None:
    config = with_settings(
        Config(),
        {
            **TINY_SETTINGS,
            "evaluation.explanation": method,
            "evaluation.smoothgrad_samples": 2,
        },
    )
    detector = Detector(config, make_variables(config), step=7)
    export_detector(detector, Workdir(tmp_path / "run"), tmp_path / "model.devnet")
    exported = ExportedDetector.load(tmp_path / "model.devnet")
    images = np.random.default_rng(3).integers(
        0, 255, (4, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8
    )
    assert exported.card["metrics"] is None
    if method == "none":
        with pytest.raises(UserError, match="explains only by 'none'"):
            exported.explain(images)
    else:
        np.testing.assert_allclose(
            exported.explain(images).maps, detector.explain(images).maps, atol=1e-4
        )


@settings(max_examples=60, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), change=st.integers(1, 255))
def test_any_changed_byte_is_noticed(
    run: Run, tmp_path_factory: pytest.TempPathFactory, place: float, change: int
) -> None:
    content = bytearray(run.file.read_bytes())
    content[int(place * len(content))] ^= change
    path = tmp_path_factory.mktemp("changed") / "model.devnet"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"model\.devnet"):
        ExportedDetector.load(path)
    path.unlink()


@pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.999])
def test_truncated(run: Run, tmp_path: Path, share: float) -> None:
    content = run.file.read_bytes()
    path = tmp_path / "model.devnet"
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match=r"model\.devnet: is (truncated|not an exported detector)"):
        ExportedDetector.load(path)


def test_foreign_files(parts: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "other.zip"
    with zipfile.ZipFile(foreign, "w") as archive:
        archive.writestr("a.txt", "words")
    for path in (images_of(parts)[0], foreign, tmp_path, tmp_path / "absent"):
        with pytest.raises(UserError, match=path.name):
            ExportedDetector.load(path)


def rewritten(file: Path, change: Callable[[dict[str, bytes]], Any], **options: Any) -> bytes:
    """Returns the file with changed entries and a valid checksum."""
    with zipfile.ZipFile(file) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    change(entries)
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", **options) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return add_checksum(content.getvalue())


def with_host_callback(entries: dict[str, bytes]) -> None:
    """Replaces the program by one that would call Python on the machine that scores."""
    shapes = {"w": jax.ShapeDtypeStruct((1,), jnp.float32)}
    shape = (*jax_export.symbolic_shape("n"), IMAGE_SIZE, IMAGE_SIZE, 3)
    images = jax.ShapeDtypeStruct(shape, jnp.uint8)

    def program(weights: dict[str, jax.Array], images: jax.Array) -> jax.Array:
        call = jax.ffi.ffi_call(CALLBACK, jax.ShapeDtypeStruct((1,), jnp.float32))
        return call(weights["w"], index=np.uint64(0))

    checks = [jax_export.DisabledSafetyCheck.custom_call(CALLBACK)]
    artefact = jax_export.export(jax.jit(program), disabled_checks=checks)(shapes, images)
    entries[SCORE] = bytes(artefact.serialize())


def with_card(**values: Any) -> Callable[[dict[str, bytes]], None]:
    def change(entries: dict[str, bytes]) -> None:
        entries[CARD] = json.dumps({**json.loads(entries[CARD]), **values}).encode()

    return change


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        (with_card(format=99), {}, "format 99"),
        (
            with_card(preprocessing_settings={"height": 32, "width": 32}),
            {},
            "does not take uint8 images .*32, 32, 3",
        ),
        (with_card(thresholds=5), {}, "no detector can be read"),
        (lambda entries: entries.pop(CARD), {}, "no detector can be read"),
        (lambda entries: entries.pop(SCORE), {}, "no detector can be read"),
        (lambda entries: entries.update({SCORE: b"junk" * 99}), {}, "no detector can be read"),
        (lambda entries: entries.popitem(), {}, "no detector can be read"),
        (lambda entries: entries.update({list(entries)[-1]: b"12"}), {}, "no detector can be read"),
        (lambda entries: None, {"compression": zipfile.ZIP_DEFLATED}, "compressed"),
        (with_host_callback, {}, "not trusted"),
    ],
    ids=[
        "later", "size", "thresholds", "no card", "no program", "no artefact", "no weight",
        "short weight", "compressed", "callback",
    ],
)  # fmt: skip
def test_untrusted_files_are_rejected(
    run: Run,
    tmp_path: Path,
    change: Callable[[dict[str, bytes]], Any],
    options: dict[str, Any],
    words: str,
) -> None:
    path = tmp_path / "model.devnet"
    path.write_bytes(rewritten(run.file, change, **options))
    with pytest.raises(UserError, match=words):
        ExportedDetector.load(path)


def test_a_file_without_the_explanation_program_is_read(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "model.devnet"
    path.write_bytes(rewritten(run.file, lambda entries: entries.pop(EXPLAIN)))
    assert ExportedDetector.load(path).threshold is not None


def test_wrong_images_and_places(run: Run, main: Main, tmp_path: Path) -> None:
    detector = ExportedDetector.load(run.file)
    for images in ([], np.zeros((0, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)):
        with pytest.raises(UserError, match="no image is given"):
            detector.score(images)
    folder = main("--mode=export", f"--workdir={run.workdir}", f"--output={tmp_path}")
    assert folder.returncode == 1
    assert "is a folder" in folder.stderr
    absent = main("--mode=export", f"--workdir={run.workdir}")
    assert absent.returncode == 1
    assert "--output is missing" in absent.stderr
    assert "Traceback" not in folder.stderr + absent.stderr
