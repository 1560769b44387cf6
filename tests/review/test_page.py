"""The review's page in a browser, served by the real server over drawn pictures."""

from __future__ import annotations

import contextlib
import io
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, Request, Route

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from devnet_jax.errors import UserError
from devnet_jax.review.serve import HOST, listen, make_server
from devnet_jax.review.server import Server
from tests.review.fake import HOSTILE_KIND, LARGE, NAMES, FakeSession

TOKEN = "t" * 43
WIDE, PHONE = {"width": 1280, "height": 800}, {"width": 360, "height": 740}


class Review:
    """A server of a session, which can be stopped and started again at the same address."""

    def __init__(self, session: FakeSession) -> None:
        self.session = session
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}/?token={TOKEN}"

    def start(self) -> None:
        listener = listen(self.port)
        self.port = listener.getsockname()[1]
        self._application = Server(self.session, TOKEN, self.port)
        self._server = make_server(self._application)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [listener]})
        self._thread.start()

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join()
        self._application.close()


Opener = Callable[..., Page]


class Opened:
    """Opens pages of reviews, and collects what their consoles say."""

    def __init__(self, browser: Browser, stack: contextlib.ExitStack) -> None:
        self._browser, self._stack = browser, stack
        self.problems: list[str] = []
        self.requests: list[Request] = []
        self.review: Review

    def __call__(self, session: FakeSession | None = None, **options: Any) -> Page:
        self.review = Review(FakeSession(seconds=0.3) if session is None else session)
        self.review.start()
        self._stack.callback(self.review.stop)
        return self.tab(**options)

    def tab(self, **options: Any) -> Page:
        """Opens the review in another browser window."""
        context = self._browser.new_context(**({"viewport": WIDE} | options))
        self._stack.callback(context.close)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("console", lambda message: self.problems.append(message.text))
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("request", lambda request: self.requests.append(request))
        page.goto(self.review.url)
        seen(page)
        return page


@pytest.fixture
def opened(browser: Browser) -> Iterator[Opened]:
    """Opens the page of a session; the test fails if the page logs a problem."""
    with contextlib.ExitStack() as stack:
        result = Opened(browser, stack)
        yield result
        hosts = {request.url.split("/")[2] for request in result.requests if "//" in request.url}
    assert result.problems == []
    assert hosts == {f"{HOST}:{result.review.port}"}


def seen(page: Page, other_than: int | None = None) -> int:
    """Waits until a picture is seen; returns its number."""
    handle = page.wait_for_function(
        """other => {
          const { ready } = document.getElementById('stage').dataset;
          return ready !== other && ready;
        }""",
        arg=f"{other_than}",
    )
    return int(handle.json_value())


def press(page: Page, *keys: str) -> list[int]:
    """Presses keys that lead to another picture; returns the pictures at which each was pressed."""
    numbers = [seen(page)]
    for key in keys:
        page.keyboard.press(key)
        numbers.append(seen(page, numbers[-1]))
    return numbers[:-1]


def soon(condition: Callable[[], Any], page: Page) -> None:
    """Waits until a condition holds."""
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        page.wait_for_timeout(20)


def status(page: Page) -> str:
    return page.locator("#status").inner_text()


def counts(page: Page) -> dict[str, str]:
    rows = page.locator("#counts li").all()
    return {row.locator("span").inner_text(): row.locator("b").inner_text() for row in rows}


def test_each_key_labels_the_picture_that_is_seen(opened: Opened) -> None:
    page = opened()
    session = opened.review.session
    good, skipped, dent = press(page, "g", "s", "2")
    assert len({good, skipped, dent}) == 3
    soon(lambda: session.labels[dent] == ("anomaly", "dent"), page)
    assert session.labels[good] == ("good", "")
    assert session.labels[skipped] == ("skip", "")
    soon(lambda: "3 of 300" in page.locator("#looked").inner_text(), page)
    assert counts(page)["good"] == counts(page)["dent"] == counts(page)["skipped"] == "1"
    assert page.locator("#place").inner_text() == "297 to look at"
    press(page, "ArrowLeft")
    assert seen(page) == dent
    assert "Your label: defect: dent." in page.locator("#why").inner_text()
    press(page, "p", "p")
    assert seen(page) == good
    press(page, "n", "ArrowRight", "n")
    assert session.version == 3


def test_pictures_come_in_the_chosen_order(opened: Opened) -> None:
    page = opened()
    session = opened.review.session
    expected = [each["id"] for each in session.list("teach", "unseen", 0, 3)["pictures"]]
    assert press(page, "n", "n", "n") == expected
    page.get_by_label("Order").select_option(label="name")
    soon(lambda: seen(page) == 0, page)
    page.get_by_label("Order").select_option(label="highest score first")
    best = max(range(session.n), key=lambda i: session.score(i) or 0)
    soon(lambda: seen(page) == best, page)


def test_a_key_held_down_labels_one_picture(opened: Opened) -> None:
    page = opened()
    first = seen(page)
    for _ in range(5):
        page.keyboard.down("g")  # repeats, as it is never let go
    seen(page, first)
    page.wait_for_timeout(200)
    assert opened.review.session.version == 1


def test_a_picture_that_is_not_seen_yet_gets_no_label(opened: Opened) -> None:
    class Slow(FakeSession):
        waits = threading.Event()

        def image(self, i: int, size: int | None) -> tuple[bytes, str]:
            if i != first:
                self.waits.wait(5)
            return super().image(i, size)

    session = Slow()
    first = session.list("teach", "unseen", 0, 1)["pictures"][0]["id"]
    page = opened(session)
    page.keyboard.press("g")
    page.keyboard.press("g")
    assert "Wait until the picture is seen" in status(page)
    session.waits.set()
    seen(page, first)
    assert session.version == 1


def test_the_next_picture_does_not_wait_for_the_server(opened: Opened) -> None:
    class Busy(FakeSession):
        waits = threading.Event()

        def label(self, *arguments: Any) -> None:
            self.waits.wait(10)
            super().label(*arguments)

    session = Busy()
    page = opened(session)
    ids = press(page, *"gsgsg")
    assert session.version == 0
    session.waits.set()
    soon(lambda: session.version == 5, page)
    assert [entry["ids"][0] for entry in session.entries] == ids
    assert [entry["label"] for entry in session.entries] == ["good", "skip", "good", "skip", "good"]


def test_no_key_acts_while_one_types(opened: Opened) -> None:
    page = opened()
    page.locator("#settings summary").click()
    name = page.get_by_label("Your name")
    name.fill("")
    name.press_sequentially("gus g")
    page.locator("#show").focus()
    page.keyboard.press("w")
    page.keyboard.press("Control+g")
    assert opened.review.session.version == 0
    assert page.locator("#stage").is_visible()
    page.locator("#stage").focus()
    page.keyboard.press("g")
    soon(lambda: opened.review.session.entries, page)
    assert opened.review.session.entries[0]["reviewer"] == "gus g"
    page.reload()
    assert name.input_value() == "gus g"


def options(page: Page) -> list[str]:
    return page.locator("#kind-list [role=option]").all_inner_texts()


def test_kinds_are_completed_and_new_ones_typed(opened: Opened) -> None:
    page = opened()
    session = opened.review.session
    first = seen(page)
    page.keyboard.press("d")
    field = page.get_by_role("combobox", name="Kind of defect")
    assert field.evaluate("field => field === document.activeElement")
    assert [option.split()[0] for option in options(page)[:3]] == ["scratch", "dent", "stain"]
    page.keyboard.type("ST")
    assert [option.split()[0] for option in options(page)] == ["stain", "new"]
    active = page.locator(f"#{field.get_attribute('aria-activedescendant')}")
    assert active.get_attribute("aria-selected") == "true"
    page.keyboard.press("Enter")
    second = seen(page, first)
    soon(lambda: session.labels[first] == ("anomaly", "stain"), page)

    page.keyboard.press("d")
    page.keyboard.type("st")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    third = seen(page, second)
    soon(lambda: session.labels[second] == ("anomaly", "st"), page)

    page.keyboard.press("d")
    assert options(page)[0].startswith("st")  # the last kind taken comes first
    assert "new kind" not in " ".join(options(page))
    page.keyboard.press("Escape")
    assert not field.is_visible()
    page.get_by_role("button", name="Defect").click()
    page.get_by_role("option", name="dent").click()
    seen(page, third)
    soon(lambda: session.labels[third] == ("anomaly", "dent"), page)
    soon(lambda: counts(page).get("st") == "1", page)


def test_keys_keep_their_kinds_while_counts_change(opened: Opened) -> None:
    page = opened()
    session = opened.review.session
    press(page, "3", "3", "2")
    soon(lambda: counts(page)["stain"] == "2", page)
    (i,) = press(page, "1")
    soon(lambda: session.labels[i] == ("anomaly", "scratch"), page)
    page.reload()  # now the most used comes first
    (i,) = press(page, "1")
    soon(lambda: session.labels[i] == ("anomaly", "stain"), page)


def test_a_refused_label_is_said_and_not_kept(opened: Opened) -> None:
    page = opened()
    first = seen(page)
    page.keyboard.press("d")
    page.keyboard.type("good")
    page.keyboard.press("Enter")
    alert = page.locator("#problem")
    alert.wait_for()
    assert "good" in alert.inner_text()
    opened.problems[:] = [text for text in opened.problems if "400" not in text]
    press(page, "p")
    assert seen(page) == first
    assert "Your label" not in page.locator("#why").inner_text()
    assert "good" not in [*counts(page)][1:]
    alert.get_by_role("button").click()
    assert not alert.is_visible()


def test_undo_returns_to_the_picture(opened: Opened) -> None:
    page = opened()
    session = opened.review.session
    first, second = press(page, "g", "1")
    press(page, "n", "n")
    page.keyboard.press("u")
    soon(lambda: seen(page) == second, page)
    assert session.labels[second] == ("", "")
    page.keyboard.press("u")
    soon(lambda: seen(page) == first, page)
    assert session.labels[first] == ("", "")
    assert "Taken back" in status(page)
    page.keyboard.press("u")
    soon(lambda: "Nothing is left" in status(page), page)


def thumbs(page: Page) -> Locator:
    return page.locator("#wall .thumb")


def numbers(page: Page, selector: str = ".thumb") -> list[int]:
    return page.locator(f"#wall {selector}").evaluate_all(
        "all => all.map((each) => Number(each.dataset.id))"
    )


def test_many_are_labelled_at_once_with_the_mouse(opened: Opened) -> None:
    page = opened()
    session = opened.review.session
    page.keyboard.press("w")
    thumbs(page).first.wait_for()
    ids = numbers(page)
    assert len(ids) == 60
    thumbs(page).nth(2).click(modifiers=["Control"])
    thumbs(page).nth(5).click(modifiers=["Shift"])
    thumbs(page).nth(4).click(modifiers=["Control"])
    thumbs(page).nth(8).locator(".tick").click()
    chosen = [ids[i] for i in (2, 3, 5, 8)]
    assert numbers(page, "[aria-selected=true]") == chosen
    assert status(page) == "4 pictures selected"
    page.get_by_role("button", name="Good").click()
    soon(lambda: session.version == 1, page)
    assert [i for i, label in enumerate(session.labels) if label[0]] == sorted(chosen)
    assert numbers(page, "[data-label=good]") == chosen
    assert numbers(page, "[aria-selected=true]") == []
    page.get_by_role("button", name="Undo").click()
    soon(lambda: numbers(page, "[data-label=good]") == [], page)
    assert not any(label for label, _ in session.labels)
    thumbs(page).nth(8).locator("img").click()
    assert seen(page) == ids[8]


def test_many_are_labelled_at_once_with_the_keyboard(opened: Opened) -> None:
    page = opened()
    session = opened.review.session
    page.keyboard.press("w")
    thumbs(page).first.wait_for()
    ids = numbers(page)
    page.keyboard.press("g")  # without a selection: the one with the focus
    soon(lambda: session.labels[ids[0]] == ("good", ""), page)
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Shift+ArrowRight")
    page.keyboard.press("Shift+ArrowDown")
    chosen = numbers(page, "[aria-selected=true]")
    assert chosen[0] == ids[1]
    assert len(chosen) > 3
    page.keyboard.press("Shift+ArrowUp")
    assert numbers(page, "[aria-selected=true]") == ids[1:3]
    page.keyboard.press("Escape")
    page.keyboard.press("Space")
    assert len(numbers(page, "[aria-selected=true]")) == 1
    page.keyboard.press("Control+a")
    assert numbers(page, "[aria-selected=true]") == ids
    page.keyboard.press("d")
    page.keyboard.type("burr")
    page.keyboard.press("Enter")
    soon(lambda: session.labels.count(("anomaly", "burr")) == 60, page)
    page.keyboard.press("Escape")
    seen(page)


def test_the_wall_has_pages(opened: Opened) -> None:
    page = opened(FakeSession(20_000))
    page.get_by_label("Order").select_option(label="name")
    assert page.locator("#place").inner_text() == "20,000 to look at"
    page.keyboard.press("w")
    soon(lambda: numbers(page)[:1] == [0], page)
    page.keyboard.press("PageDown")
    soon(lambda: numbers(page) == [*range(60, 120)], page)
    field = page.get_by_label("Page", exact=True)
    field.fill("300")
    field.press("Enter")
    soon(lambda: numbers(page)[:1] == [299 * 60], page)
    assert page.locator("#n-pages").inner_text() == "of 334"
    page.get_by_role("button", name="Previous page").click()
    soon(lambda: numbers(page)[:1] == [298 * 60], page)
    field.fill("334")
    field.press("Enter")
    soon(lambda: numbers(page) == [*range(333 * 60, 20_000)], page)
    assert page.get_by_role("button", name="Next page").is_disabled()
    calls = opened.review.session.calls
    assert sum(name.startswith("image ") for name in calls) < 320  # of the pages seen


def box(locator: Locator) -> dict[str, float]:
    return locator.evaluate("each => each.getBoundingClientRect().toJSON()")


def test_the_map_lies_on_the_picture_at_every_zoom(opened: Opened) -> None:
    page = opened()
    picture, heat = page.locator("#layers img:not(#map)"), page.locator("#map")
    assert not heat.is_visible()
    page.keyboard.press("m")
    heat.wait_for()
    page.wait_for_function("() => document.getElementById('map').naturalWidth > 0")
    sizes = []
    for key in ("0", "+", "+", "-", "+", "0"):
        page.keyboard.press(key)
        assert box(heat) == pytest.approx(box(picture))
        sizes.append(box(picture)["width"])
    assert sizes[0] == sizes[5] < sizes[3] < sizes[4] == sizes[2]
    natural = picture.evaluate("each => each.naturalWidth / each.naturalHeight")
    assert sizes[0] / box(picture)["height"] == pytest.approx(natural)
    press(page, "n")
    heat.wait_for()  # stays on
    page.keyboard.press("m")
    assert not heat.is_visible()


def test_the_wheel_enlarges_what_is_under_the_pointer(opened: Opened) -> None:
    page = opened()
    picture = page.locator("#layers img:not(#map)")
    before = box(picture)
    x, y = before["x"] + 0.3 * before["width"], before["y"] + 0.6 * before["height"]
    page.mouse.move(x, y)
    page.mouse.wheel(0, -900)
    soon(lambda: box(picture)["width"] > 5 * before["width"], page)
    after = box(picture)
    assert (x - after["x"]) / after["width"] == pytest.approx(0.3, abs=0.01)
    assert (y - after["y"]) / after["height"] == pytest.approx(0.6, abs=0.01)
    page.mouse.down()
    page.mouse.move(x + 40, y + 30)
    page.mouse.up()
    assert box(picture)["x"] - after["x"] == pytest.approx(40)
    assert box(picture)["y"] - after["y"] == pytest.approx(30)
    page.keyboard.press("Shift+ArrowRight")
    assert box(picture)["x"] < after["x"] + 40
    page.keyboard.press("d")  # neither moves nor fits it
    page.keyboard.press("Escape")
    assert box(picture)["width"] == pytest.approx(after["width"])
    page.keyboard.press("0")
    assert box(picture) == pytest.approx(before)


def test_all_pixels_come_with_the_zoom(opened: Opened) -> None:
    page = opened()
    page.get_by_label("Order").select_option(label="name")
    soon(lambda: seen(page) == 0, page)
    page.locator("#stage").focus()
    press(page, *"n" * LARGE)
    picture = page.locator("#layers img:not(#map)")
    assert picture.evaluate("each => each.naturalWidth") == 1600
    before = box(picture)
    for _ in range(2):
        page.keyboard.press("+")
    soon(lambda: picture.evaluate("each => each.naturalWidth") == 2400, page)
    assert box(picture)["width"] == pytest.approx(before["width"] * 1.5**2)


def mask(session: FakeSession, i: int) -> np.ndarray:
    image = Image.open(io.BytesIO(session.masks[i]))
    assert image.mode == "L"
    assert image.size == session.size(i)
    pixels = np.asarray(image)
    assert {*np.unique(pixels)} <= {0, 255}
    return pixels == 255


def test_a_painted_mask_has_the_pixels_of_the_picture(opened: Opened) -> None:
    page = opened()
    session = opened.review.session
    i = seen(page)
    width, height = session.size(i)
    for _ in range(2):
        page.keyboard.press("+")
    page.keyboard.press("b")
    page.locator("#brush").wait_for()
    size = page.get_by_label("Size")
    size.fill("10")
    layer = box(page.locator("#mask"))

    def at(x: float, y: float) -> tuple[float, float]:
        """Returns the place in the window of a place in the picture."""
        return layer["x"] + layer["width"] * x / width, layer["y"] + layer["height"] * y / height

    middle = (width // 2, height // 2)
    page.mouse.move(*at(middle[0] - 30, middle[1]))
    page.mouse.down()
    page.mouse.move(*at(middle[0] + 30, middle[1]), steps=5)
    page.mouse.up()
    page.keyboard.press("Enter")
    soon(lambda: i in session.masks, page)
    rows, columns = np.nonzero(mask(session, i))
    expected = (middle[1] - 5, middle[1] + 5, middle[0] - 35, middle[0] + 35)
    found = (rows.min(), rows.max(), columns.min(), columns.max())
    assert found == pytest.approx(expected, abs=1.5)
    area = 60 * 10 + np.pi * 5**2
    assert len(rows) == pytest.approx(area, rel=0.05)

    page.keyboard.press("e")
    page.mouse.move(*at(middle[0] + 60, middle[1]))
    page.mouse.down()
    page.mouse.move(*at(middle[0], middle[1]), steps=5)
    page.mouse.up()
    press(page, "n")  # what is not saved is saved
    soon(lambda: mask(session, i).sum() < 0.6 * area, page)
    left = np.flatnonzero(mask(session, i)[middle[1]])
    assert left.max() == pytest.approx(middle[0] - 5, abs=1.5)

    press(page, "p")
    assert "Has a mask" in page.locator("#why").inner_text()
    page.keyboard.press("b")
    page.wait_for_function(
        "() => document.getElementById('mask').getContext('2d').getImageData(0, 0, 999, 999)"
        ".data.some((value) => value)"
    )
    page.get_by_role("button", name="Clear").click()
    page.get_by_role("button", name="Save").click()
    soon(lambda: i not in session.masks, page)


def test_masks_can_be_painted_without_a_pointer(opened: Opened) -> None:
    page = opened()
    session = opened.review.session
    i = seen(page)
    page.keyboard.press("b")
    page.locator("#brush").wait_for()
    page.keyboard.press("]")
    page.keyboard.press("Space")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Space")
    page.keyboard.press("1")
    soon(lambda: i in session.masks, page)
    rows, columns = np.nonzero(mask(session, i))
    width, height = session.size(i)
    assert columns.mean() == pytest.approx(width / 2, abs=1.5)
    assert rows.mean() > height / 2 + 2
    soon(lambda: session.labels[i] == ("anomaly", "scratch"), page)


def test_it_learns_by_itself_and_shows_what_changed(opened: Opened) -> None:
    page = opened()
    session = opened.review.session
    press(page, "g", "s", "1", "g", "2")
    assert session.calls["learn"] == 0  # a skipped picture teaches nothing
    press(page, "g")
    offer = page.locator("#offer")
    offer.wait_for()
    assert session.calls["learn"] == 1
    n = session.state()["n_changed"]
    assert f"{n} changed sides" in offer.inner_text()
    assert f"{n} pictures changed sides" in status(page)
    table = page.locator("#estimate")
    assert table.locator("th:visible").all_inner_texts()[0] == "now"
    words = page.locator("#words").inner_text()
    assert "Of 100 defects about 20 would be missed (from 7 to 50)." in words
    assert "1,180 taken for good" in table.inner_text()

    page.keyboard.press("l")
    cells = table.locator("tbody tr").first.locator("td b")
    soon(lambda: cells.all_inner_texts() == ["about 20", "about 13"], page)

    page.keyboard.press("c")
    changed = [each["id"] for each in session.list("teach", "changed", 0, 500)["pictures"]]
    soon(lambda: page.locator("#show").input_value() == "changed", page)
    soon(lambda: seen(page) == changed[0], page)
    assert "Changed when learning" in page.locator("#why").inner_text()
    assert not offer.is_visible()
    visited = press(page, *"n" * (len(changed) - 1))
    page.keyboard.press("n")
    page.get_by_text("That was the last picture of this list.").wait_for()
    assert [*visited, changed[-1]] == changed
    page.keyboard.press("g")
    assert session.version == 6  # after the last picture there is nothing to label


def test_it_does_not_learn_by_itself_if_told_so(opened: Opened) -> None:
    page = opened()
    page.get_by_label("learn by itself every 5 labels").uncheck()
    page.locator("#stage").focus()
    press(page, *"ggggggg")
    assert opened.review.session.calls["learn"] == 0
    page.get_by_role("button", name="Learn now").click()
    page.locator("#working").wait_for()
    page.locator("#estimate").wait_for()


def test_after_learning_the_picture_at_hand_stays(opened: Opened) -> None:
    page = opened()
    session = opened.review.session
    visited = press(page, "g", "g")
    i = seen(page)
    page.keyboard.press("l")
    page.locator("#offer").wait_for()
    assert seen(page) == i
    assert f"score {session.score(i):.4g}" in page.locator("#verdict").inner_text()
    best = [each["id"] for each in session.list("teach", "unseen", 0, 3)["pictures"]]
    page.keyboard.press("n")
    assert seen(page, i) == next(each for each in best if each not in (*visited, i))
    press(page, "p", "p")
    assert seen(page) == visited[-1]


def test_finish_says_where_the_results_are(opened: Opened) -> None:
    page = opened(permissions=["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Finish").click()
    dialog = page.get_by_role("dialog", name="Finish")
    assert dialog.get_by_role("progressbar", name="Finishing").is_visible()
    dialog.get_by_text("All is written.").wait_for()
    finished = opened.review.session.finished
    assert finished is not None
    texts = [finished["csv"], finished["detector"], finished["report"], *finished["commands"]]
    assert dialog.locator("code").all_inner_texts() == texts
    dialog.get_by_role("button", name="Copy").nth(3).click()
    soon(lambda: page.evaluate("navigator.clipboard.readText()") == texts[3], page)
    page.keyboard.press("g")
    assert opened.review.session.version == 0
    page.keyboard.press("Escape")
    press(page, "g")
    page.get_by_role("button", name="Results").click()
    assert dialog.locator("code").count() == len(texts)


def test_labels_wait_while_the_review_is_stopped(opened: Opened) -> None:
    page = opened()
    review = opened.review
    before = press(page, "g")
    soon(lambda: review.session.version == 1, page)
    review.stop()
    lost = page.locator("#lost")
    lost.wait_for()
    assert "Start the same command again" in lost.inner_text()
    during = press(page, "1", "g", "2")
    during.append(seen(page))
    page.keyboard.press("s")  # no picture that is loaded need follow
    soon(lambda: "4 answers waiting" in page.locator("#looked").inner_text(), page)
    page.keyboard.press("u")  # takes back what has not been sent
    soon(lambda: "3 answers" in lost.inner_text(), page)
    assert page.get_by_role("button", name="Learn now").is_disabled()
    assert review.session.version == 1
    review.start()
    soon(lambda: review.session.version == 4, page)
    soon(lambda: not lost.is_visible(), page)
    ids = [entry["ids"] for entry in review.session.entries]
    assert ids == [[i] for i in [*before, *during[:3]]]
    assert [entry["label"] for entry in review.session.entries[1:]] == [
        "anomaly",
        "good",
        "anomaly",
    ]
    press(page, "n")
    opened.problems[:] = [text for text in opened.problems if "net::ERR_" not in text]


def test_a_label_whose_answer_was_lost_is_kept_once(opened: Opened) -> None:
    page = opened()
    session = opened.review.session
    cut: list[str] = []

    def loses_first(route: Route) -> None:
        if route.request.url in cut:
            route.continue_()
        else:
            cut.append(route.request.url)
            route.fetch()
            route.abort("connectionreset")

    page.route("**/api/*", loses_first)
    press(page, "g", "g")
    soon(lambda: session.version == 2, page)
    soon(lambda: not page.locator("#lost").is_visible(), page)
    assert "2 of 300" in page.locator("#looked").inner_text()
    assert len({entry["ids"][0] for entry in session.entries}) == len(session.entries) == 2
    page.keyboard.press("u")
    page.locator("#problem").get_by_text("could not be taken back").wait_for()
    page.wait_for_timeout(300)
    assert len(session.entries) == 1  # it has arrived, and is not sent again
    opened.problems[:] = [text for text in opened.problems if "net::ERR_" not in text]


def test_no_label_goes_to_another_picture_after_a_restart(opened: Opened) -> None:
    class Renumbered(FakeSession):
        def _picture(self, i: int) -> dict[str, Any]:
            return super()._picture(i) | {"name": f"added/{i}.png"}

    page = opened()
    opened.review.stop()
    press(page, "g", "1")
    opened.review.session = session = Renumbered()
    opened.review.start()
    page.locator("#problem").get_by_text("The pictures have changed").wait_for()
    soon(lambda: page.locator("#name").inner_text().startswith("added/"), page)
    (i,) = press(page, "g")
    soon(lambda: session.version == 1, page)
    assert session.labels[i] == ("good", "")
    opened.problems[:] = [text for text in opened.problems if "net::ERR_" not in text]


def test_hostile_names_and_kinds_are_text(opened: Opened) -> None:
    page = opened(FakeSession(n=40, seconds=0.1))
    page.get_by_label("Order").select_option(label="name")
    soon(lambda: seen(page) == 0, page)
    page.locator("#stage").focus()
    for i in range(7):
        name = NAMES.get(i)
        if name:
            shown = page.locator("#name").evaluate("each => each.textContent")
            assert shown == name.replace("\udc80", shown[7] if i == 6 else "")
        page.keyboard.press("4")
        seen(page, i)
    soon(lambda: counts(page).get(HOSTILE_KIND) == "7", page)
    page.locator("#offer").wait_for()
    page.keyboard.press("d")
    page.keyboard.type("<img src=x onerror=alert(1)>")
    page.keyboard.press("Enter")
    page.get_by_label("Show").select_option(label="all")
    page.keyboard.press("w")
    soon(lambda: len(numbers(page)) == 40, page)
    page.get_by_role("button", name="Finish").click()
    page.get_by_text("All is written.").wait_for()
    assert page.evaluate("window.hacked") is None
    assert page.locator("img[src=x], b[onmouseover], script:not([src])").count() == 0


def test_labels_of_another_window_arrive(opened: Opened) -> None:
    page = opened()
    session = opened.review.session
    other = opened.tab()
    i = seen(page)
    assert seen(other) == i
    press(other, "2", "g")
    soon(lambda: "2 of 300" in page.locator("#looked").inner_text(), page)
    soon(lambda: "Your label: defect: dent" in page.locator("#why").inner_text(), page)
    following = session.list("teach", "unseen", 0, 1)["pictures"][0]["id"]
    page.keyboard.press("n")  # passes over what the other has labelled
    assert seen(page, i) == following
    page.keyboard.press("l")
    other.locator("#offer").wait_for()
    page.keyboard.press("p")
    soon(lambda: seen(page) == i, page)
    page.keyboard.press("g")
    soon(lambda: session.labels[i] == ("good", ""), page)
    assert len([entry for entry in session.entries if i in entry["ids"]]) == 2
    page.keyboard.press("p")
    page.locator("#history").get_by_text("defect: dent").wait_for()


CONTROLS = "button, select, input, summary, [tabindex='0']"


def test_the_keyboard_reaches_everything(opened: Opened) -> None:
    page = opened()
    press(page, "g")
    page.keyboard.press("l")
    page.locator("#offer").wait_for()
    for way in ("", "w"):
        if way:
            page.keyboard.press(way)
            thumbs(page).first.wait_for()
        wanted = page.evaluate(
            """selector => [...document.querySelectorAll(selector)]
              .filter((each) => each.checkVisibility() && !each.disabled)
              .map((each) => each.id || each.className || each.textContent)""",
            CONTROLS,
        )
        page.evaluate("document.activeElement.blur(); document.body.tabIndex = -1")
        page.evaluate("document.body.focus(); document.body.removeAttribute('tabindex')")
        reached = []
        for _ in wanted:
            page.keyboard.press("Tab")
            reached.append(
                page.evaluate(
                    "(({id, className, textContent}) => id || className || textContent)"
                    "(document.activeElement)"
                )
            )
        assert reached == wanted
    page.locator("#finish").focus()
    page.keyboard.press("Enter")
    page.get_by_text("All is written.").wait_for()
    page.keyboard.press("Enter")  # the dialog's button has the focus
    assert page.evaluate("document.activeElement.id") == "finish"


def test_controls_have_names_and_news_are_read_aloud(opened: Opened) -> None:
    page = opened()
    page.keyboard.press("b")
    page.keyboard.press("d")
    for control in page.locator(
        ":is(button, select, input, progress, [role=listbox]):visible"
    ).all():
        name = control.evaluate(
            "each => each.ariaLabel || each.labels?.[0]?.textContent || each.textContent"
        )
        assert name.strip(), control.evaluate("each => each.outerHTML")
    assert page.locator("#status").get_attribute("role") == "status"
    assert page.locator("#looked").get_attribute("aria-live") == "polite"
    assert page.locator("[role=alert]").count() == 2
    for image in page.locator("img").all():
        assert image.get_attribute("alt") == ""  # the name of the picture is a text
    keys = page.locator("[aria-keyshortcuts]").evaluate_all(
        "all => all.map(each => [each.id, each.getAttribute('aria-keyshortcuts')])"
    )
    assert dict(keys) | {"good": "g", "defect": "d", "undo": "u", "learn": "l"} == dict(keys)
    assert page.locator("html").get_attribute("lang") == "en"
    assert page.title() == "Review"
    label = page.locator("#stage").get_attribute("aria-label") or ""
    assert re.fullmatch(r"Picture line \d/\d+\.png", label)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_have_contrast(opened: Opened, scheme: str) -> None:
    page = opened(color_scheme=scheme)
    press(page, "g")
    ratios = page.evaluate(
        """() => {
          const parse = (text) => text.match(/[\\d.]+/g).map(Number);
          const light = (colour) => {
            const [r, g, b] = colour.map((c) => {
              c /= 255;
              return c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
            });
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
          };
          const paper = light(parse(getComputedStyle(document.body).backgroundColor).slice(0, 3));
          const texts = "p, span, button:not(:disabled), li, h1, h2, td, th, label, summary";
          return [...document.querySelectorAll(texts)]
            .filter((each) => each.checkVisibility() && each.textContent.trim())
            .filter((each) => !each.closest("#note"))
            .map((each) => {
              const ink = light(parse(getComputedStyle(each).color).slice(0, 3));
              const [low, high] = [ink, paper].sort((a, b) => a - b);
              return [(high + 0.05) / (low + 0.05), each.outerHTML];
            });
        }"""
    )
    assert len(ratios) > 20
    assert min(ratios)[0] >= 4.5, min(ratios)


def width(page: Page) -> int:
    return page.evaluate("document.documentElement.scrollWidth")


def test_fits_a_phone(opened: Opened) -> None:
    page = opened(viewport=PHONE, has_touch=True, is_mobile=True)
    assert width(page) == 360
    assert page.locator("#good").bounding_box()["y"] < 700
    picture = page.locator("#layers img:not(#map)").bounding_box()
    assert picture["width"] > 200
    i = seen(page)
    page.locator("#good").tap()
    i = seen(page, i)
    page.locator("#defect").tap()
    assert width(page) == 360
    page.get_by_role("option", name="dent").tap()
    i = seen(page, i)
    page.locator("#brush-toggle").tap()
    assert width(page) == 360
    page.locator("#learn").tap()
    page.locator("#offer").wait_for()
    page.locator("#wall-toggle").tap()
    thumbs(page).first.wait_for()
    assert width(page) == 360
    thumbs(page).nth(1).locator(".tick").tap()
    assert len(numbers(page, "[aria-selected=true]")) == 1
    for name in ("#help-open", "#finish"):
        page.locator(name).tap()
        assert width(page) == 360
        page.keyboard.press("Escape")


def test_pictures_are_looked_at_while_scores_come(opened: Opened) -> None:
    session = FakeSession(n=50, scored=0)
    page = opened(session)
    page.keyboard.press("m")
    assert "no score yet" in page.locator("#verdict").inner_text()
    assert not page.locator("#map").is_visible()
    press(page, "g")
    soon(lambda: session.labels.count(("good", "")) == 1, page)
    assert "0 of 50 pictures have a score" in page.locator("#alarms").inner_text()
    i = seen(page)
    session.n_scored = 49
    soon(lambda: "score" in page.locator("#verdict").inner_text().replace("no score", ""), page)
    page.locator("#map").wait_for()
    session.n_scored = 50
    soon(lambda: "an alarm for" in page.locator("#alarms").inner_text(), page)
    assert seen(page) == i
    ids = [each["id"] for each in session.list("teach", "unseen", 0, 3)["pictures"]]
    page.keyboard.press("n")
    soon(lambda: seen(page) == next(each for each in ids if each != i), page)


def test_an_unreadable_picture_is_said_and_can_be_skipped(opened: Opened) -> None:
    class Broken(FakeSession):
        def image(self, i: int, size: int | None) -> tuple[bytes, str]:
            if i == 1:
                raise UserError("line 2/001.png cannot be read")
            return super().image(i, size)

    page = opened(Broken())
    page.get_by_label("Order").select_option(label="name")
    soon(lambda: seen(page) == 0, page)
    press(page, "n")
    page.get_by_text("This picture cannot be read").wait_for()
    press(page, "s")
    soon(lambda: opened.review.session.labels[1] == ("skip", ""), page)
    opened.problems[:] = [text for text in opened.problems if "400" not in text]


def test_help_lists_the_keys(opened: Opened) -> None:
    page = opened()
    page.keyboard.press("?")
    dialog = page.get_by_role("dialog", name="How to review")
    listed = {*dialog.locator("kbd").all_inner_texts()}
    keys = page.locator("#looking kbd, aside kbd").all_inner_texts()
    assert listed >= {key for key in keys if not key.isdigit()} - {"↑", "↓"}
    page.keyboard.press("g")
    assert opened.review.session.version == 0
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
