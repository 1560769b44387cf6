"""Writes docs/review.jpg, review_wall.jpg and review_phone.jpg, pictures of the review's page.

pip install playwright && python docs/review_picture.py resnet18.safetensors

The pictures to look at are those of the built-in data set leather, unsorted; the reviewer is a
script that knows the truth.
"""

from __future__ import annotations

import io
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from devnet_jax.config import for_list, with_settings
from devnet_jax.data.datasets.builder import LazyBytes
from devnet_jax.data.datasets.synthetic_textures import SyntheticTextures
from devnet_jax.review.serve import listen, make_server
from devnet_jax.review.server import Server
from devnet_jax.review.session import ReviewSession, open_session
from devnet_jax.runtime.startup import prepare
from devnet_jax.runtime.workdir import Workdir

TOKEN = "t" * 43
LOOKS = 20
N_GOOD, N_PER_DEFECT = 150, 8
FOLDER = Path(__file__).parent


def unsorted_pictures() -> Iterator[tuple[str, str, bytes]]:
    """Yields a name, the kind and the content of each picture."""
    counts: dict[str, int] = {}
    examples = SyntheticTextures.raw_examples(FOLDER, "leather")
    for number, example in enumerate(sorted(examples, key=lambda e: hash_of(e.path))):
        counts[example.defect] = counts.get(example.defect, 0) + 1
        if counts[example.defect] <= (N_GOOD if example.label == 0 else N_PER_DEFECT):
            assert isinstance(example.image, LazyBytes)
            yield f"line3/{number:04}.png", example.defect, example.image.make()


def hash_of(path: str) -> int:
    """Returns a number that mixes the pictures, the same at each run."""
    return sum((i + 7) ** 3 * ord(char) for i, char in enumerate(path)) % 1009


def wait(session: ReviewSession) -> None:
    """Waits until everything is scored."""
    quiet = 0
    while quiet < 5:
        state = session.state()
        is_done = state["working"] is None and state["n_scored"] == state["n"]
        quiet = quiet + 1 if is_done else 0
        time.sleep(0.1)


def look(session: ReviewSession, truth: dict[str, str]) -> None:
    """Labels the next picture."""
    picture = session.list("teach", "unseen", 0, 1)["pictures"][0]
    kind = truth[picture["name"]]
    label = "good" if kind == "good" else "anomaly"
    session.label([picture["id"]], label, "" if kind == "good" else kind, "")


def save(page: Page, name: str) -> None:
    """Writes a picture of the page."""
    Image.open(io.BytesIO(page.screenshot())).convert("RGB").save(FOLDER / name, quality=85)


def draw(url: str) -> None:
    """Draws the page: one picture with its map, the wall, and both as on a phone."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.goto(url)
        page.locator("#stage[data-ready]").wait_for()
        page.get_by_label("Show").select_option("all")
        page.get_by_label("Order").select_option("score")
        page.wait_for_timeout(1500)
        page.locator("#stage").focus()
        page.keyboard.press("m")
        page.wait_for_timeout(2500)
        save(page, "review.jpg")
        page.keyboard.press("w")
        page.wait_for_timeout(2500)
        save(page, "review_wall.jpg")
        phone = browser.new_page(
            viewport={"width": 390, "height": 760}, has_touch=True, is_mobile=True
        )
        phone.goto(url)
        phone.locator("#stage[data-ready]").wait_for()
        phone.wait_for_timeout(1500)
        save(phone, "review_phone.jpg")
        browser.close()


def main(weights: str) -> None:
    """Writes the pictures.

    Args:
      weights: path of ResNet-18's ImageNet weights.
    """
    prepare(batch_size=8)
    with tempfile.TemporaryDirectory() as temporary:
        folder, truth = Path(temporary) / "new_parts", {}
        (folder / "line3").mkdir(parents=True)
        for name, kind, content in unsorted_pictures():
            (folder / name).write_bytes(content)
            truth[name.removeprefix("line3/")] = truth[name] = kind
        output = Path(temporary) / "review"
        settings = {"model.pretrained": str(Path(weights).absolute())}
        config = with_settings(for_list(output / "labels.csv"), settings)
        session = open_session(config, Workdir(Path(temporary) / "work"), [str(folder)], output)
        wait(session)
        for looks in range(1, LOOKS + 1):
            look(session, truth)
            if looks % 5 == 0:
                session.learn()
                wait(session)
        listener = listen(0)
        port = listener.getsockname()[1]
        server = Server(session, TOKEN, port)
        uvicorn = make_server(server)
        thread = threading.Thread(target=uvicorn.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            draw(f"http://127.0.0.1:{port}/?token={TOKEN}")
        finally:
            uvicorn.should_exit = True
            thread.join()
            server.close()
            session.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
