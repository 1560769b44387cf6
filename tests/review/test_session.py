"""A review at work on real pictures, with the smallest network: labels, learning and its end."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from devnet_jax import Detector
from devnet_jax.config import Config, for_folder, for_list, with_settings
from devnet_jax.errors import UserError
from devnet_jax.evaluation.evaluate import evaluate
from devnet_jax.review.session import ReviewSession, open_session
from devnet_jax.runtime.workdir import Workdir, read_config
from devnet_jax.training.run import train
from tests.conftest import CORE_SETTINGS, TINY_SETTINGS

SETTINGS = {**TINY_SETTINGS, **CORE_SETTINGS}


def wait(session: ReviewSession) -> dict[str, Any]:
    """Waits until everything is scored and nothing is going on; returns the state."""
    quiet = 0
    for _ in range(3000):
        state = session.state()
        n_unreadable = len(session._pictures.errors)
        is_done = state["working"] is None and state["n_scored"] + n_unreadable >= state["n"]
        quiet = quiet + 1 if is_done or state["error"] else 0
        if quiet > 3:
            return state
        time.sleep(0.05)
    raise AssertionError(f"still at work: {session.state()}")


def soon(condition: Callable[[], Any]) -> Any:
    """Waits until a condition holds; returns its value."""
    for _ in range(200):
        if value := condition():
            return value
        time.sleep(0.05)
    raise AssertionError("it does not come")


def finish(session: ReviewSession) -> dict[str, Any]:
    """Finishes a review; returns where the results are."""
    session.finish()
    while (state := session.state())["finished"] is None:
        assert state["error"] is None, state
        time.sleep(0.05)
    return state["finished"]


@pytest.fixture(scope="module")
def unsorted(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty-two pictures in one folder, defects among them, and a damaged file."""
    folder = tmp_path_factory.mktemp("unsorted")
    for path in sorted(parts.rglob("*.png")):
        shutil.copy(path, folder / f"{path.parent.parent.name}-{path.parent.name}-{path.name}")
    (folder / "damaged.png").write_bytes((folder / "train-good-000.png").read_bytes()[:200])
    return folder


def config(tmp_path: Path) -> Config:
    data_dir = str(tmp_path / "prepared")
    settings = {**SETTINGS, "dataset.data_dir": data_dir, "evaluation.false_alarm_rate": 0.2}
    return with_settings(for_list(tmp_path / "work" / "review" / "labels.csv"), settings)


Opener = Callable[[], ReviewSession]


@pytest.fixture
def opened(unsorted: Path, tmp_path: Path) -> Iterator[Opener]:
    """Returns a function that opens, and opens again, a review of the unsorted pictures."""
    sessions: list[ReviewSession] = []

    def open_again() -> ReviewSession:
        if sessions:
            sessions.pop().close()
        workdir = Workdir(tmp_path / "work")
        output = tmp_path / "work" / "review"
        sessions.append(open_session(config(tmp_path), workdir, [str(unsorted)], output))
        return sessions[-1]

    yield open_again
    for session in sessions:
        session.close()


def numbers(session: ReviewSession, *names: str) -> list[int]:
    pictures = session.list("name", "all", 0, 500)["pictures"]
    return [picture["id"] for name in names for picture in pictures if name in picture["name"]]


def table(path: Path) -> dict[str, dict[str, str]]:
    with path.open() as file:
        return {row["path"]: row for row in csv.DictReader(file)}


def test_a_review_without_a_run(opened: Opener, unsorted: Path, tmp_path: Path) -> None:
    """From an unsorted folder to a detector: the whole way, once."""
    session = opened()
    state = wait(session)
    assert (state["n"], state["n_scored"], state["generation"]) == (23, 22, 2)
    assert "takes all pictures for good" in state["note"]
    assert session.state()["estimate"] is None
    (damaged,) = numbers(session, "damaged")
    assert "damaged" in session.picture(damaged)["reason"]

    # The defects are coloured; the network has random weights, and still sees that.
    first = session.list("teach", "unseen", 0, 1)["pictures"][0]
    assert "good" not in first["name"]

    session.label(numbers(session, "scratch"), "anomaly", "scratch", "ada")
    session.label(numbers(session, "stain"), "anomaly", "stain", "ada")
    session.label(numbers(session, "test-good"), "good", "", "bob")
    session.label([damaged], "anomaly", "stain", "bob")
    session.learn()
    state = wait(session)
    assert (state["n_looked"], state["n_good"], state["error"]) == (14, 5, None)
    assert state["kinds"] == {"scratch": 4, "stain": 5}
    assert state["note"] == ""
    assert state["generation"] == 3
    assert state["estimate"]["n_anomaly"] == 8
    assert 0 <= state["estimate"]["low"] <= state["estimate"]["auroc"] <= 1

    (picture,) = numbers(session, "scratch-000")
    heat = Image.open(io.BytesIO(session.map(picture)))
    assert heat.mode == "RGBA"
    assert heat.width / heat.height == pytest.approx(48 / 40, abs=0.02)
    content, media_type = session.image(picture, 20)
    assert media_type == "image/jpeg"
    assert max(Image.open(io.BytesIO(content)).size) == 20
    assert (session.picture(picture)["width"], session.picture(picture)["height"]) == (48, 40)

    mask = io.BytesIO()
    painted = np.zeros((40, 48), np.uint8)
    painted[10:13, 5:40] = 255
    Image.fromarray(painted).save(mask, "PNG")
    session.set_mask(picture, mask.getvalue(), "ada")
    np.testing.assert_array_equal(Image.open(io.BytesIO(session.mask(picture))), painted)

    before = {path: path.read_bytes() for path in unsorted.iterdir()}
    finish(session)
    state = session.state()
    assert "nothing is learned from 1 labelled pictures" in session.state()["error"]
    assert "'damaged.png'" in session.state()["error"]
    rows = table(Path(state["finished"]["csv"]))
    assert rows["test-scratch-000.png"]["label"] == "anomaly"
    assert rows["test-scratch-000.png"]["defect"] == "scratch"
    assert rows["test-scratch-000.png"]["mask"]
    assert rows["test-good-000.png"]["label"] == "good"
    assert rows["damaged.png"]["label"] == ""
    presumed = [path for path, row in rows.items() if row["label"] == "unlabelled"]
    assert presumed
    assert all(path.startswith("train-good") for path in presumed)
    detector = Detector.load(state["finished"]["detector"])
    assert set(detector.kinds) == {"scratch", "stain"}
    assert detector.name == unsorted.name
    split = json.loads((Path(state["finished"]["detector"]) / "split.json").read_text())
    assert len(split["train_anomaly"]) == 8
    assert Path(state["finished"]["report"]).is_file()
    assert {path: path.read_bytes() for path in unsorted.iterdir()} == before

    # Labels may change later; the detector keeps the table that it has learned from.
    session.label(numbers(session, "scratch-000"), "good", "", "bob")
    session.close()
    folder = Workdir(state["finished"]["detector"])
    assert (
        table(tmp_path / "work" / "review" / "labels.csv")["test-scratch-000.png"]["label"]
        == "good"
    )
    assert evaluate(read_config(folder), folder)["trained_classes"] == {"scratch": 4, "stain": 4}
    session = opened()
    assert "needs 4 normal images held out" in finish(session)["note"]
    split = json.loads((Path(folder.path) / "split.json").read_text())
    assert split["trained_classes"] == {"scratch": 3, "stain": 4}
    assert read_config(folder).dataset.labels == str(tmp_path / "work" / "review" / "learned-2.csv")
    session.close()
    # A process that is killed while it replaces the detector leaves the earlier one.
    replaced = tmp_path / "work" / "review" / ".detector.replaced"
    Path(folder.path).rename(replaced)
    opened().close()
    assert not replaced.exists()
    assert read_config(folder).dataset.name == "image_list"
    # A review of the detector has labels of its own, which stay when the detector is replaced.
    own = Path(folder.path) / "review" / "journal.jsonl"
    shutil.copytree(folder.path, replaced)
    (replaced / "review").mkdir()
    (replaced / "review" / own.name).write_text("labels")
    opened()
    assert not replaced.exists()
    assert own.read_text() == "labels"


def test_labels_outlive_the_review(opened: Opener) -> None:
    session = opened()
    ids = numbers(session, "scratch")
    session.label(ids[:1], "anomaly", "scratch", "ada")
    session.label(ids[1:2], "skip", "", "ada")
    session.label(ids[2:3], "good", "", "ada")
    assert session.undo("ada") == ids[2:3]
    session = opened()
    assert session.state()["n_looked"] == 2
    assert session.picture(ids[0])["defect"] == "scratch"
    assert session.picture(ids[1])["label"] == "skip"
    assert session.picture(ids[2])["label"] == ""
    assert [entry["label"] for entry in session.picture(ids[2])["history"]] == ["good", ""]


def test_a_full_disk_is_said_and_the_table_is_written_later(
    opened: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = opened()
    wait(session)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "labels.csv")

    monkeypatch.setattr("devnet_jax.review.session._TABLE_SECONDS", 0.05)
    with monkeypatch.context() as patch:
        patch.setattr("devnet_jax.review.session.write_labels", full)
        session.label(numbers(session, "scratch-000"), "anomaly", "scratch", "ada")
        assert soon(lambda: session.state()["error"]).startswith("labels.csv: No space left")
    soon(lambda: session.state()["error"] is None)
    rows = table(tmp_path / "work" / "review" / "labels.csv")
    assert rows["test-scratch-000.png"]["defect"] == "scratch"


class LateAtTheLock:
    """A condition at which one thread, once `may_enter` is cleared, waits before it enters."""

    def __init__(self, condition: threading.Condition, thread: threading.Thread) -> None:
        self._condition, self._thread = condition, thread
        self.may_enter, self.is_waiting = threading.Event(), threading.Event()
        self.may_enter.set()

    def __enter__(self) -> None:
        if threading.current_thread() is self._thread and not self.may_enter.is_set():
            self.is_waiting.set()
            assert self.may_enter.wait(10)
        self._condition.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._condition.__exit__(*error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._condition, name)


def test_it_ends_if_it_is_closed_just_before_the_thread_waits(opened: Opener) -> None:
    """Once, the thread missed the notification of the end, and the review never ended."""
    session = opened()
    wait(session)
    late = LateAtTheLock(session._condition, session._thread)
    session._condition = late  # type: ignore[assignment]
    session.learn()  # the thread enters by the new condition after that
    wait(session)
    late.may_enter.clear()
    with session._condition:
        session._condition.notify()
    assert late.is_waiting.wait(10)
    closing = threading.Thread(target=session.close, daemon=True)
    closing.start()
    soon(lambda: session._ends)
    late.may_enter.set()
    closing.join(10)
    assert not closing.is_alive()


def test_masks_that_do_not_fit_are_refused(opened: Opener) -> None:
    session = opened()
    (picture,) = numbers(session, "scratch-000")
    small = io.BytesIO()
    Image.new("L", (24, 20), 255).save(small, "PNG")
    empty = io.BytesIO()
    Image.new("L", (48, 40), 0).save(empty, "PNG")
    for content, message in (
        (small.getvalue(), "24×20 pixels"),
        (empty.getvalue(), "is empty"),
        (b"GIF89a", "no PNG file"),
    ):
        with pytest.raises(UserError, match=message):
            session.set_mask(picture, content, "")
    assert session.mask(picture) is None
    assert not session.picture(picture)["mask"]


@pytest.fixture(scope="module")
def run(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Workdir:
    """A run on the folder of parts."""
    folder = tmp_path_factory.mktemp("run")
    settings = {**SETTINGS, "dataset.data_dir": str(folder / "prepared")}
    trained = with_settings(for_folder(parts), settings | {"evaluation.false_alarm_rate": 0.4})
    workdir = Workdir(folder / "work")
    train(trained, workdir)
    evaluate(trained, workdir)
    return workdir


def test_a_review_of_new_pictures_of_a_run(
    run: Workdir, parts: Path, unsorted: Path, tmp_path: Path
) -> None:
    """The run's detector scores first; its pictures and labels teach beside the new ones."""
    new = tmp_path / "new"
    new.mkdir()
    for path in unsorted.glob("test-*.png"):
        shutil.copy(path, new)
    session = open_session(read_config(run), run, [str(new)], tmp_path / "review")
    try:
        state = wait(session)
        assert (state["has_run"], state["generation"], state["note"]) == (True, 1, "")
        expected = Detector.load(run.path).score(sorted(new.iterdir())).scores
        found = [p["score"] for p in session.list("name", "all", 0, 99)["pictures"]]
        np.testing.assert_allclose(found, expected, rtol=2e-2, atol=2e-2)
        assert set(state["known_kinds"]) <= {"scratch", "stain"}
        session.label(numbers(session, "stain-000"), "anomaly", "smear", "")
        session.learn()
        state = wait(session)
        assert state["error"] is None
        assert state["generation"] == 2
        assert state["estimate"]["n_anomaly"] == 1 + TINY_SETTINGS["dataset.n_anomaly"]
    finally:
        session.close()
    rows = table(tmp_path / "review" / "labels.csv")
    assert rows["test-stain-000.png"]["defect"] == "smear"
    split = json.loads((Path(run.path) / "split.json").read_text())
    # What tested tests; what trained or calibrated trains.
    for part in ("train_normal", "train_anomaly", "calibration", "test"):
        for path in split[part]:
            row = rows[str(parts / path)]
            assert row["split"] == ("test" if part == "test" else "train")


@pytest.mark.slow
def test_a_review_of_a_run_of_the_papers_network(
    parts: Path, unsorted: Path, tmp_path: Path
) -> None:
    """Its scores are shown first, though its input has another size; then DevCore learns."""
    settings = {
        **TINY_SETTINGS,
        "model.detector": "devnet",
        "dataset.image_size": 96,
        "dataset.data_dir": str(tmp_path / "prepared"),
    }
    trained = with_settings(for_folder(parts), settings)
    run = Workdir(tmp_path / "work")
    train(trained, run)
    new = tmp_path / "new"
    new.mkdir()
    for path in [*sorted(unsorted.glob("test-stain-*.png")), unsorted / "damaged.png"]:
        shutil.copy(path, new)
    session = open_session(trained, run, [str(new)], tmp_path / "review")
    try:
        wait(session)
        expected = Detector.load(run.path).score(sorted(new.glob("test-*.png"))).scores
        pictures = session.list("name", "all", 0, 99)["pictures"]
        found = [p["score"] for p in pictures if p["score"] is not None]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
        assert "damaged" in pictures[0]["reason"]
        (picture,) = numbers(session, "stain-000")
        before = session.map(picture)
        session.label([picture], "anomaly", "smear", "")
        session.learn()
        assert wait(session)["error"] is None
        assert session.map(picture) != before
    finally:
        session.close()


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="contains no image"):
        open_session(
            config(tmp_path), Workdir(tmp_path / "w"), [str(tmp_path / "empty")], tmp_path / "r"
        )
