"""A reviewer at the keyboard of a real browser: from unsorted bottles to a detector.

The review is a process of its own, and is killed in the midst of labelling and of learning.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, Page
from sklearn.metrics import roc_auc_score

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from devnet_jax import Detector
from devnet_jax.launchers.local import free_port
from tests.conftest import REPOSITORY, environment
from tests.review.test_page import seen
from tests.review.test_server import ask_at

LOOKS = 20


@pytest.fixture(scope="module")
def truth(shared: Path) -> dict[Path, str]:
    """The kind of each picture of the category bottle, half of them for the review."""
    paths = sorted((shared / "data" / "mvtec" / "bottle").glob("t*/*/*"))
    random.Random(0).shuffle(paths)
    return {path: path.parent.name for path in paths}


class Process:
    """The command `devnet review`, which can be killed and started again."""

    def __init__(self, arguments: list[str]) -> None:
        self._arguments = arguments
        self.start()

    def start(self) -> None:
        variables = {**environment(), "JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "devnet_jax.main", "review", *self._arguments],
            cwd=REPOSITORY,
            env=variables,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line.startswith("reviewing"), line
        self.url = line.split(" at ")[1].split()[0]

    def state(self) -> dict[str, Any]:
        return json.loads(ask_at(self.url, "GET", "/api/state").body)

    def wait(self) -> dict[str, Any]:
        """Waits until all pictures are scored by the newest detector."""
        end = time.monotonic() + 300
        quiet = 0
        while quiet < 3:
            assert time.monotonic() < end, self.state()
            state = self.state()
            assert state["error"] is None
            is_done = state["working"] is None and state["n_scored"] == state["n"]
            quiet = quiet + 1 if is_done else 0
            time.sleep(0.1)
        return state

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.communicate()


@pytest.fixture
def review(shared: Path, truth: dict[Path, str], tmp_path: Path) -> Iterator[Process]:
    (tmp_path / "unsorted").mkdir()
    for i, path in enumerate(list(truth)[: len(truth) // 2]):
        shutil.copy(path, tmp_path / "unsorted" / f"{i:03}-{path.parent.name}.jpg")
    weights = shared / "weights" / "resnet18_imagenet.safetensors"
    process = Process(
        [
            f"--workdir={tmp_path / 'work'}",
            f"--input={tmp_path / 'unsorted'}",
            f"--port={free_port()}",  # the same when it is started again
            "--config=configs/image_list.py",
            f"--config.model.pretrained={weights}",
            f"--config.dataset.data_dir={tmp_path / 'prepared'}",
        ]
    )
    yield process
    process.kill()


def look(page: Page, shown: int) -> int:
    """Labels the picture that is seen, by its name; returns the number of the next one."""
    kind = page.locator("#name").inner_text().partition("-")[2].removesuffix(".jpg")
    if kind == "good":
        page.keyboard.press("g")
    else:
        page.keyboard.press("d")
        page.keyboard.type(kind)
        page.keyboard.press("Enter")
    return seen(page, shown)


@pytest.mark.slow
def test_twenty_looks_make_a_detector(
    browser: Browser, review: Process, truth: dict[Path, str], tmp_path: Path
) -> None:
    review.wait()
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.goto(review.url)
    page.get_by_label("learn by itself").uncheck()
    page.locator("#stage").focus()
    shown = seen(page)
    for n in range(1, LOOKS + 1):
        shown = look(page, shown)
        if n in (3, 10):  # in the midst of labelling, and of learning
            if n == 10:
                page.keyboard.press("l")
                while review.state()["working"] is None:
                    time.sleep(0.01)
            while review.state()["n_looked"] < n:  # labels that the server has taken
                time.sleep(0.01)
            review.kill()
            review.start()
            assert review.state()["n_looked"] == n
            review.wait()
        elif n % 5 == 0:
            page.keyboard.press("l")
            time.sleep(0.3)
            review.wait()
    state = review.state()
    assert state["n_looked"] == LOOKS
    assert sum(state["kinds"].values()) + state["n_good"] == LOOKS
    assert set(state["kinds"]) <= {"broken_large", "broken_small", "contamination"}
    page.locator("#finish").click()
    end = time.monotonic() + 300
    while (state := review.state())["finished"] is None:
        assert time.monotonic() < end
        assert state["error"] is None
        time.sleep(0.2)
    held_out = list(truth)[len(truth) // 2 :]
    scores = Detector.load(state["finished"]["detector"]).score(held_out).scores
    labels = np.array([truth[path] != "good" for path in held_out])
    assert roc_auc_score(labels, scores) >= 0.98
