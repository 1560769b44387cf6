"""Marks in the report of a prediction: the labels that they make, read as training reads them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Locator, Page

from devnet_jax.data.datasets.label_list import read_list
from devnet_jax.data.tables import read_table
from devnet_jax.report.content import Picture, Report
from devnet_jax.report.page import to_html
from devnet_jax.report.thumbnails import thumbnail
from tests.report.example import CALIBRATED, GREY, make_predictions, make_report

# By descending score; the first six are alarms at the threshold 1.25.
NAMES = (
    "=cmd|' /C calc'!A0.png",
    'quotes "and, commas;".png',
    "two\nlines\r.png",
    "<script>window.hacked = 1</script>.png".replace("/", "\\"),
    "'=marked.png",
    "latin \udce9 日本 \U0001f6a9.png",
    "-quiet.png",
    "__proto__",
    "ok/@1.png",
    "plain.png",
)
FORMULA = "=HYPERLINK(\"http://x\", 'a')"
KIND = "<b>\"dark\" spots, 'deep'"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Returns a folder with the pictures of `NAMES`, whose own name needs quotes in a shell."""
    folder = tmp_path / "it's my $PARTS"
    for name in NAMES:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(GREY).save(path, "PNG")
    return folder


def predictions(pictures_in: Path, **changes) -> Report:
    """Returns a report of `NAMES`; the first alarm is like the labelled `KIND`."""
    scores = np.arange(len(NAMES), 0, -1.0) - 3.5
    assert np.sum(scores >= CALIBRATED.value) == 6
    pictures = [
        Picture(name, float(score), None, "", thumbnail(GREY, 16), kind=KIND if i == 0 else "")
        for i, (name, score) in enumerate(zip(NAMES, scores, strict=True))
    ]
    return make_predictions(
        **{
            "scores": scores,
            "pictures": pictures,
            "folder": str(pictures_in),
            "labelled_kinds": [KIND],
        }
        | changes
    )


def card(page: Page, name: str) -> Locator:
    return page.locator("#gallery .card").nth(NAMES.index(name))


def press(within: Locator, *names: str) -> None:
    for name in names:
        within.get_by_role("button", name=name, exact=True).click()


def pressed(within: Locator) -> list[str]:
    return within.locator("[aria-pressed=true]").evaluate_all(
        "all => all.map(each => each.dataset.mark)"
    )


def download(page: Page, file: Path) -> Path:
    with page.expect_download() as event:
        page.get_by_role("button", name="Download labels.csv").click()
    assert event.value.suggested_filename == "labels.csv"
    event.value.save_as(file)
    return file


def labels(file: Path, folder: Path) -> dict[str, tuple[int, str]]:
    """Returns the label and kind of each picture as training reads them."""
    return {each.path: (each.label, each.defect) for each in read_list(file, folder)}


def test_marks_by_mouse_become_labels_of_files_with_any_name(opened, folder, tmp_path):
    page = opened(predictions(folder))
    for name, button in zip(
        NAMES,
        ("right", "right", "wrong", "defect", "defect", "good", "right", "wrong", "good"),
        strict=False,
    ):
        press(card(page, name), button)
    card(page, NAMES[3]).get_by_label("Kind of defect").fill(FORMULA)
    card(page, NAMES[4]).get_by_label("Kind of defect").fill(" scratch ")
    press(card(page, "plain.png"), "wrong", "wrong")  # marked, and unmarked
    assert page.locator("#marked").inner_text() == "9 of 10 images marked: 4 good, 5 defect"
    file = download(page, tmp_path / "labels.csv")
    assert labels(file, folder) == {
        NAMES[0]: (1, KIND),
        NAMES[1]: (1, "anomaly"),
        NAMES[2]: (0, "good"),
        NAMES[3]: (1, FORMULA),
        NAMES[4]: (1, "scratch"),
        NAMES[5]: (0, "good"),
        NAMES[6]: (0, "good"),
        NAMES[7]: (1, "anomaly"),
        NAMES[8]: (0, "good"),
    }
    table = read_table(file)
    assert table.columns == ["path", "label", "defect"]
    assert {row.cells["label"] for row in table.rows} == {"good", "anomaly"}
    # No cell begins like a formula.
    assert not re.search(rb'^"[=+\-@]|[,;]"[=+\-@]', file.read_bytes(), re.MULTILINE)
    assert page.evaluate("window.hacked") is None


def test_marks_by_keyboard_in_the_viewer(opened, folder, tmp_path):
    page = opened(predictions(folder))
    page.locator("#gallery .views").first.focus()
    keys = page.keyboard
    keys.press("Enter")
    viewer = page.get_by_role("dialog")
    keys.press("r")
    assert pressed(viewer) == ["right", "defect"]
    assert viewer.get_by_label("Kind of defect").input_value() == KIND
    keys.press("ArrowRight")
    assert pressed(viewer) == []
    keys.press("k")
    keys.type("grow dark")  # the letters of all keys
    keys.press("ArrowLeft")  # moves in the text
    keys.type("-")
    keys.press("Enter")
    assert pressed(viewer) == ["right", "defect"]
    keys.press("ArrowRight")
    keys.press("w")
    keys.press("ArrowRight")
    keys.press("d")
    keys.press("d")
    keys.press("ArrowRight")
    keys.press("g")
    keys.press("Control+d")  # the browser's
    for _ in NAMES:
        keys.press("ArrowRight")
    keys.press("g")
    keys.press("ArrowLeft")
    keys.press("w")
    keys.press("Escape")
    keys.press("r")  # of no effect outside the viewer
    assert labels(download(page, tmp_path / "labels.csv"), folder) == {
        NAMES[0]: (1, KIND),
        NAMES[1]: (1, "grow dar-k"),
        NAMES[2]: (0, "good"),
        NAMES[4]: (0, "good"),
        NAMES[8]: (1, "anomaly"),
        NAMES[9]: (0, "good"),
    }
    offered = page.locator("#known-kinds option").evaluate_all("all => all.map(each => each.value)")
    assert sorted(offered) == sorted([KIND, "grow dar-k"])


def test_marks_survive_a_reload_and_belong_to_one_prediction(opened, folder, tmp_path):
    report = predictions(folder)
    page = opened(report)
    press(card(page, NAMES[0]), "right")
    press(card(page, NAMES[5]), "good")
    before = download(page, tmp_path / "before.csv").read_bytes()
    page.reload()
    assert pressed(card(page, NAMES[0])) == ["right", "defect"]
    assert card(page, NAMES[0]).get_by_label("Kind of defect").input_value() == KIND
    assert pressed(card(page, NAMES[5])) == ["wrong", "good"]
    assert download(page, tmp_path / "after.csv").read_bytes() == before
    other = predictions(folder, folder=str(folder.parent))
    Path(page.evaluate("decodeURI(location.pathname)")).write_text(to_html(other))
    page.reload()
    assert page.locator("#marked").inner_text() == "0 of 10 images marked"
    assert page.get_by_role("button", name="Download labels.csv").is_disabled()


def test_two_tabs_share_their_marks(opened, folder):
    one = opened(predictions(folder))
    other = one.context.new_page()
    other.goto(one.url)
    press(card(one, "plain.png"), "good")
    other.get_by_text("1 of 10 images marked").wait_for()
    press(card(other, NAMES[0]), "good")
    one.get_by_text("2 of 10 images marked").wait_for()
    assert pressed(card(other, "plain.png")) == ["right", "good"]


def test_marks_work_where_the_browser_stores_nothing(opened, folder, tmp_path):
    page = opened(predictions(folder))
    page.add_init_script(
        "Object.defineProperty(window, 'localStorage', {get() { throw new Error('denied'); }})"
    )
    page.reload()
    assert page.get_by_text("This browser keeps no marks").is_visible()
    press(card(page, "plain.png"), "good")
    assert labels(download(page, tmp_path / "labels.csv"), folder) == {"plain.png": (0, "good")}


def test_right_and_wrong_follow_the_threshold_and_labels_do_not(opened, folder):
    page = opened(predictions(folder))
    last = card(page, "plain.png")  # quiet
    press(last, "right")
    assert pressed(last) == ["right", "good"]
    page.locator("#exact").fill("-10")
    assert last.locator(".outcome").inner_text() == "alarm"
    page.wait_for_function("card => card.querySelector('[aria-pressed=true]').textContent"
                           " === 'wrong'", arg=last.element_handle())  # fmt: skip
    assert pressed(last) == ["wrong", "good"]


def test_without_a_threshold_only_labels_can_be_given(opened, folder):
    page = opened(predictions(folder, thresholds=()))
    first = card(page, NAMES[0])
    for name in ("right", "wrong"):
        assert first.get_by_role("button", name=name).is_disabled()
    press(first, "good")
    assert pressed(first) == ["good"]


@pytest.mark.parametrize("word", ["good", "Normal", " ok "])
def test_a_kind_that_means_good_is_refused(opened, folder, tmp_path, word):
    page = opened(predictions(folder))
    press(card(page, "plain.png"), "good")
    first = card(page, NAMES[1])
    press(first, "defect")
    field = first.get_by_label("Kind of defect")
    field.fill(word)
    assert "cannot be named" in field.evaluate("field => field.validationMessage")
    assert labels(download(page, tmp_path / "labels.csv"), folder)[NAMES[1]] == (1, "anomaly")


def test_the_command_names_the_folder_that_the_paths_start_from(opened, folder):
    page = opened(predictions(folder))
    page.get_by_text("Train with the labels").click()
    words = shlex.split(page.locator("#marking pre").inner_text())
    assert f"--config.dataset.manual_dir={folder}" in words
    assert "--config.dataset.labels=labels.csv" in words
    page = opened(predictions(folder, folder=""))  # all paths are absolute
    assert "manual_dir" not in page.locator("#marking pre").text_content()


def test_marks_are_named_for_screen_readers(opened, folder):
    page = opened(predictions(folder))
    group = page.get_by_role("group", name="Marks of plain.png")
    button = group.get_by_role("button", name="good", exact=True)
    assert button.get_attribute("aria-pressed") == "false"
    button.focus()
    page.keyboard.press("Space")
    assert button.get_attribute("aria-pressed") == "true"
    assert page.get_by_role("status").filter(has_text="1 of 10 images marked: 1 good").count() == 1


def test_a_phone_shows_all_marks(opened, folder):
    page = opened(predictions(folder), viewport={"width": 360, "height": 740})
    page.get_by_text("Train with the labels").click()
    press(card(page, NAMES[0]), "defect")
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    page.locator("#gallery .views").first.click()
    dialog = page.get_by_role("dialog")
    width = dialog.evaluate("dialog => dialog.clientWidth")
    assert dialog.evaluate("dialog => dialog.scrollWidth") == width


def test_a_page_without_javascript_has_no_marks(opened, folder):
    page = opened(predictions(folder), java_script_enabled=False)
    assert not page.get_by_text("labels.csv").first.is_visible()
    assert page.locator("#gallery .card").count() == len(NAMES)
    assert page.get_by_role("button", name="good").count() == 0


def test_a_report_with_labels_has_no_marks(opened):
    page = opened(make_report())
    assert page.locator("#marking, .mark").count() == 0
