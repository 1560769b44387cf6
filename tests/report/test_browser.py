"""A report in a browser: the slider, filters, lists and the viewer.

The expected numbers are computed from the scores with NumPy.
"""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pytest
from playwright.sync_api import Locator, Page

from devnet_jax.report.digits import format_measure, format_rate
from tests.report.example import (
    CALIBRATED,
    HOSTILE,
    PRIOR,
    draw_scores,
    make_predictions,
    make_report,
)

SCORES, LABELS, DEFECTS = draw_scores()
VALUES = SCORES.astype(np.float64)


def outcomes(threshold: float) -> np.ndarray:
    """Returns the expected outcome of each image of the example."""
    alarms, anomalous = threshold <= VALUES, LABELS == 1
    return np.select(
        [alarms & anomalous, ~alarms & anomalous, alarms & ~anomalous],
        ["found", "missed", "false-alarm"],
        "passed",
    )


def live(page: Page) -> dict[str, str]:
    """Returns the live numbers by name; asserts that repeated ones are equal."""
    pairs = page.eval_on_selector_all(
        "[data-live]", "all => all.map(each => [each.dataset.live, each.textContent])"
    )
    assert len({*map(tuple, pairs)}) == len(dict(pairs))
    return dict(pairs)


def rate(name: str, count: int, total: int) -> dict[str, str]:
    """Returns the texts of a rate, as the page shows them before any move of the slider."""
    text = format_rate(count, total)
    return {name: text.share, f"{name}_counts": text.in_brackets}


def heading(threshold: float) -> str:
    """Returns the heading: an offered threshold has four digits, others are as they were typed."""
    offered = {CALIBRATED.value: "1.250", PRIOR.value: "1.645"}
    return f"At the threshold {offered.get(threshold, repr(threshold).removesuffix('.0'))}"


def expected(threshold: float) -> dict[str, str]:
    kinds = ("found", "missed", "false-alarm", "passed")
    found, missed, false_alarms, passed = (int(np.sum(outcomes(threshold) == k)) for k in kinds)
    alarms = found + false_alarms
    return {
        "heading": heading(threshold),
        "found": f"{found}",
        "missed": f"{missed}",
        "false_alarms": f"{false_alarms}",
        "false_alarms_in_words": f"{false_alarms} false alarm{'' if false_alarms == 1 else 's'}",
        "passed": f"{passed}",
        **rate("miss_rate", missed, 30),
        **rate("false_alarm_rate", false_alarms, 30),
        **rate("precision", found, alarms),
        "f1": format_measure(2 * found / (30 + alarms)),
    }


def shown(page: Page, within: str = "#gallery") -> list[int]:
    """Returns the numbers of the images whose cards are visible, in order."""
    titles = page.eval_on_selector_all(
        f"{within} .card",
        "all => all.filter(each => each.checkVisibility())"
        ".map(each => each.querySelector('.path').title)",
    )
    return [int(title.rpartition("/")[2].removesuffix(".png")) for title in titles]


def wait_for_update(page: Page) -> None:
    """Waits until the page is updated after a move of the slider."""
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => setTimeout(done)))")


def type_threshold(page: Page, text: str) -> None:
    page.get_by_role("spinbutton", name="Threshold, exact").fill(text)


def test_starts_at_the_threshold_in_force_where_a_tie_is_an_alarm(opened):
    page = opened()
    assert live(page) == expected(1.25)
    assert outcomes(1.25)[[0, 30]].tolist() == ["false-alarm", "found"]
    # This score is the prior's threshold rounded down to float32, so it is below the threshold.
    page.get_by_role("button", name="prior, 95%: 1.645").click()
    assert outcomes(PRIOR.value)[48] == "missed"
    assert live(page) == expected(PRIOR.value)
    page.get_by_role("button", name="calibrated: 1.250").click()
    assert live(page) == expected(CALIBRATED.value)
    pressed = page.locator("[aria-pressed=true]").all_text_contents()
    assert pressed == ["calibrated: 1.250"]


def test_the_number_field_changes_the_counts(opened):
    page = opened()
    table = page.locator("table", has_text="median score")
    for text in ("-10", "0", str(VALUES[7]), "2.5", "1e2"):
        type_threshold(page, text)
        assert live(page) == expected(float(text))
        missed = outcomes(float(text)) == "missed"
        of_class = [np.array(DEFECTS) == defect for defect in ("hole", HOSTILE)]
        rates = [format_rate(int((missed & one).sum()), int(one.sum())) for one in of_class]
        for cell, texts in (
            ("miss_rate", [rate.share for rate in rates]),
            ("miss_rate_counts", [rate.in_brackets for rate in rates]),
        ):
            cells = table.locator(f"[data-cell={cell}]").all_inner_texts()
            assert sorted(cells) == sorted(texts)


def test_the_slider_changes_the_counts(opened):
    page = opened()
    slider = page.get_by_role("slider", name="Threshold")
    thresholds = []
    for share in (0, 0.3, 0.8, 1):
        box = slider.bounding_box()
        page.mouse.click(box["x"] + 1 + share * (box["width"] - 2), box["y"] + box["height"] / 2)
        wait_for_update(page)
        thresholds.append(float(page.locator("#exact").input_value()))
        assert live(page) == expected(thresholds[-1])
    assert thresholds == sorted(set(thresholds))
    assert thresholds[0] < VALUES.min()
    assert thresholds[-1] > VALUES.max()


def test_the_slider_separates_scores_that_are_close(opened):
    scores = 1000 + np.arange(9) / 1000
    page = opened(make_report(scores=scores, labels=None, defects=None, pictures=[], thresholds=[]))
    slider = page.locator("#slider")
    slider.press("End")
    counts = set()
    for _ in range(100):
        slider.press("ArrowLeft")
        wait_for_update(page)
        counts.add(live(page)["alarms"])
    assert counts == {str(n) for n in range(10)}


def test_the_threshold_can_be_set_with_the_keyboard(opened):
    page = opened()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "slider"
    for _ in range(20):
        page.keyboard.press("ArrowRight")
    wait_for_update(page)
    threshold = float(page.locator("#exact").input_value())
    assert threshold > 1.5
    assert live(page) == expected(threshold)
    page.keyboard.press("Tab")
    page.keyboard.press("Control+a")
    page.keyboard.type("0.5")
    assert live(page) == expected(0.5)
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert live(page) == expected(PRIOR.value)
    page.locator("#outcome").focus()
    page.keyboard.type("missed")
    assert {*shown(page)} == {*np.flatnonzero(outcomes(PRIOR.value) == "missed")}


def test_labelled_anomalies_follow_the_threshold(opened):
    page = opened()
    section = page.locator("section", has=page.locator("#labelled"))
    for text, missed in (("0.4", (0, 0)), ("1.25", (0, 1)), ("1.26", (1, 1)), ("9", (1, 2))):
        type_threshold(page, text)
        told = section.locator("[data-missed]").all_text_contents()
        assert told == [f", {n} would be missed" for n in missed]
        words = section.locator(".outcome").all_text_contents()
        assert words.count("would be missed") == sum(missed)
        assert words.count("would be found") == 3 - sum(missed)
    section.locator(".views").nth(1).click()
    assert page.locator("#facts .path").inner_text() == "train/b.png"
    assert page.locator("#place").inner_text() == "1 of 2"


@pytest.mark.parametrize("width", [1280, 360])
@pytest.mark.parametrize("views", [1, 3])
def test_names_of_files_are_shown_to_their_end(opened, width, views):
    name = f"{'a long folder/' * 6}{'night_shift_' * 9}000123_left.png"
    example = make_report()
    pictures = [
        dataclasses.replace(each, path=f"{i}/{name}") for i, each in enumerate(example.pictures)
    ]
    if views == 1:
        pictures = [dataclasses.replace(each, overlay=None, mask=None) for each in pictures]
        example = dataclasses.replace(example, labelled_anomalies=None)
    page = opened(
        dataclasses.replace(example, pictures=pictures),
        viewport={"width": width, "height": 800},
    )
    cut = """all => all.filter(each => each.checkVisibility() && (
        each.scrollWidth > each.clientWidth || each.scrollHeight > each.clientHeight + 1
        || getComputedStyle(each).whiteSpace === "nowrap")).length"""
    assert page.eval_on_selector_all(".card .path", cut) == 0
    page.locator("#gallery .card .views").first.click()
    assert page.locator("#facts .path").inner_text().endswith("000123_left.png")
    assert page.eval_on_selector_all("#facts .path", cut) == 0
    assert page.evaluate("document.documentElement.scrollWidth") == width


def test_an_empty_number_field_changes_nothing(opened):
    page = opened()
    type_threshold(page, "2")
    type_threshold(page, "")
    assert live(page) == expected(2)


def test_filters_show_the_matching_images(opened):
    page = opened()
    kinds = {
        "": ("found", "missed", "false-alarm", "passed"),
        "mistakes": ("missed", "false-alarm"),
        "missed": ("missed",),
        "false alarms": ("false-alarm",),
        "alarms": ("found", "false-alarm"),
        "anomalies found": ("found",),
        "normal, passed": ("passed",),
        "no alarm": ("missed", "passed"),
    }
    type_threshold(page, "1.0")
    for defect in ("", *sorted(set(DEFECTS))):
        option = defect.replace("\udc80", "\\udc80").replace("\n", " ")
        page.get_by_label("Class", exact=True).select_option(label=option or "all")
        for label, allowed in kinds.items():
            page.get_by_label("Outcome", exact=True).select_option(label=label or "all")
            fits = np.isin(outcomes(1.0), allowed) & [not defect or d == defect for d in DEFECTS]
            assert {*shown(page)} == {*np.flatnonzero(fits)}
            assert page.locator("#shown").inner_text() == f"{fits.sum()} of 60 images"


def test_filters_follow_the_threshold(opened):
    page = opened()
    page.get_by_label("Outcome", exact=True).select_option(label="missed")
    type_threshold(page, "3")
    assert {*shown(page)} == {*np.flatnonzero(outcomes(3) == "missed")}
    words = {*page.locator("#gallery .card:visible .outcome").all_text_contents()}
    assert words == {"missed"}


def test_orders(opened):
    page = opened()
    order = page.get_by_label("Order")
    assert VALUES[shown(page)].tolist() == sorted(VALUES, reverse=True)
    order.select_option(label="lowest score first")
    assert VALUES[shown(page)].tolist() == sorted(VALUES)
    order.select_option(label="worst mistakes first")
    for threshold in (1.25, 2.5):
        type_threshold(page, str(threshold))
        mistaken = np.isin(outcomes(threshold), ("missed", "false-alarm"))
        n = int(mistaken.sum())
        first = shown(page)[:n]
        assert {*first} == {*np.flatnonzero(mistaken)}
        distances = np.abs(VALUES[first] - threshold)
        assert (np.diff(distances) <= 0).all()


def test_the_worst_mistakes_follow_the_threshold(opened):
    page = opened()
    require_worst(page, CALIBRATED.value)
    for threshold in (-5.0, 0.0, 3.0, 50.0, 1.0):
        type_threshold(page, str(threshold))
        require_worst(page, threshold)


def require_worst(page: Page, threshold: float) -> None:
    mistakes = {
        kind: sorted(np.flatnonzero(outcomes(threshold) == kind), key=lambda i: sign * VALUES[i])
        for kind, sign in (("missed", 1), ("false-alarm", -1))
    }
    n = {kind: len(shown(page, f"[data-worst={kind}]")) for kind in mistakes}
    assert sum(n.values()) == min(12, sum(map(len, mistakes.values())))
    for kind, worst in mistakes.items():
        assert n[kind] >= min(6, len(worst))
        assert shown(page, f"[data-worst={kind}]") == worst[: n[kind]]
        none = page.locator(f"[data-worst={kind}] + .none")
        assert none.is_visible() == (not worst)


def centre(locator: Locator) -> tuple[float, float]:
    box = locator.bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def visibility(page: Page, kind: str) -> str:
    """Returns the CSS visibility of a chart's mark.

    Playwright's own check needs an area, which a vertical line does not have.
    """
    mark = page.locator(f"[data-kind={kind}] .marks :is(line, circle)")
    return mark.evaluate("mark => getComputedStyle(mark).visibility")


def test_marks_match_the_positions_drawn_by_matplotlib(opened):
    page = opened()
    for button, i in (("prior", 1), ("calibrated", 0)):
        page.get_by_role("button", name=button).click()
        dashed = page.locator("[data-kind=histogram] path[style*='stroke-dasharray: 3.7']").nth(i)
        mark = page.locator("[data-kind=histogram] .marks line")
        assert centre(mark)[0] == pytest.approx(centre(dashed)[0], abs=0.7)
    for kind in ("roc", "precision-recall"):
        for threshold in ("0", "1.25", "3"):
            type_threshold(page, threshold)
            assert page.evaluate(
                """kind => {
                  const chart = document.querySelector(`[data-kind=${kind}]`);
                  const mark = chart.querySelector(".marks circle");
                  const point = new DOMPoint(mark.cx.baseVal.value, mark.cy.baseVal.value);
                  return [...chart.querySelectorAll("[role=img] path")].some(path =>
                    path.style.stroke.includes("series-0") && path.isPointInStroke(point));
                }""",
                kind,
            ), (kind, threshold)
    type_threshold(page, "1000")  # outside the chart; without alarms there is no precision
    assert visibility(page, "histogram") == "hidden"
    assert visibility(page, "precision-recall") == "hidden"
    assert visibility(page, "roc") == "visible"


def test_the_viewer_shows_a_card_and_arrow_keys_change_it(opened):
    page = opened()
    page.get_by_label("Outcome", exact=True).select_option(label="missed")
    order = shown(page)
    page.locator("#gallery .card:visible .views").nth(0).focus()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")

    def number() -> int:
        return int(dialog.locator(".path").get_attribute("title").rpartition("/")[2][:-4])

    assert number() == order[0]
    assert dialog.locator("figcaption").all_inner_texts() == ["image", "heat map", "mask"]
    assert dialog.get_by_role("button", name="Previous").is_disabled()
    page.keyboard.press("ArrowRight")
    assert number() == order[1]
    assert dialog.locator("#place").inner_text() == f"2 of {len(order)}"
    for _ in order:
        page.keyboard.press("ArrowRight")
    assert number() == order[-1]
    page.keyboard.press("ArrowLeft")
    assert number() == order[-2]
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    assert page.evaluate("document.activeElement.closest('.card').querySelector('.path').title"
                         ).endswith(f"/{order[-1]}.png")  # fmt: skip


@pytest.mark.parametrize("make", [make_report, make_predictions])
def test_fits_a_phone_and_names_are_not_executed(opened, make):
    page = opened(make(), viewport={"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    page.locator(".views").first.click()
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert page.evaluate("window.hacked") is None
    assert (
        page.locator("h1").inner_text().startswith("parts \"><script>window.hacked = 1</script>'&")
    )
    assert page.locator("#control").bounding_box()["height"] < 740 / 4


def test_the_slider_stays_visible(opened):
    page = opened()
    page.locator("#gallery .card").last.scroll_into_view_if_needed()
    assert page.locator("#control").bounding_box()["y"] == 0


def test_reasons_vanish_with_their_alarms(opened):
    page = opened()
    n = int(np.sum(CALIBRATED.value <= VALUES))
    assert page.locator("#gallery .reason:visible").count() == n
    type_threshold(page, "3")
    assert page.locator("#gallery .reason:visible").count() == int(np.sum(VALUES >= 3)) < n
    page.locator("#gallery .card .views").first.click()
    dialog = page.get_by_role("dialog")
    assert dialog.locator(".reason").inner_text() == "unlike the good parts"
    page.keyboard.press("Escape")
    page.get_by_label("Outcome", exact=True).select_option(label="missed")
    page.locator("#gallery .card:visible .views").first.click()
    assert dialog.locator(".facts").is_visible()
    assert not dialog.locator(".reason").is_visible()


def test_pictures_are_loaded(opened):
    page = opened()
    page.locator("#gallery .card").last.scroll_into_view_if_needed()
    image = page.locator("#gallery .card").last.locator("img").first
    page.wait_for_function("image => image.complete", arg=image.element_handle())
    assert image.evaluate("image => image.naturalWidth") == 16


def test_readable_without_javascript_and_controls_are_hidden(opened):
    page = opened(None, java_script_enabled=False)
    assert not page.locator("#control").is_visible()
    assert not page.locator(".filters").is_visible()
    assert page.locator("#gallery .card").count() == 60
    assert page.locator("[data-live=missed]:visible").first.inner_text() == expected(1.25)["missed"]


def test_alarms_without_labels(opened):
    page = opened(make_predictions())
    for threshold in (CALIBRATED.value, 2.0):
        type_threshold(page, str(threshold))
        n = int(np.sum(threshold <= VALUES))
        assert live(page) == {
            "heading": heading(threshold),
            "alarms": str(n),
            "alarms_in_words": f"{n} alarms",
            "alarm_share": format_rate(n, 60).share,
        }
    page.get_by_label("Outcome", exact=True).select_option(label="no alarm")
    assert {*shown(page)} == {*np.flatnonzero(VALUES < 2.0)}


def test_pictures_unlike_the_training_pictures_can_be_shown_alone(opened):
    pictures = [
        dataclasses.replace(picture, odd="noise" if i in (5, 40) else "")
        for i, picture in enumerate(make_predictions().pictures)
    ]
    page = opened(make_predictions(pictures=pictures))
    page.get_by_label("Outcome", exact=True).select_option(label="odd (unlike the training images)")
    assert {*shown(page)} == {5, 40}
    type_threshold(page, "2.0")
    assert {*shown(page)} == {5, 40}


def test_without_a_threshold_the_slider_sets_one(opened):
    page = opened(make_predictions(thresholds=()))
    badges = page.locator("#gallery .outcome")
    hint = page.get_by_text("No threshold is set")
    assert hint.is_visible()
    assert {*badges.all_text_contents()} == {""}
    assert page.locator("#exact").input_value() == ""
    assert visibility(page, "histogram") == "hidden"
    page.get_by_label("Outcome", exact=True).select_option(label="alarms")
    assert shown(page) == []
    page.locator("#slider").press("Home")
    page.locator("#slider").press("ArrowRight")
    wait_for_update(page)
    assert live(page)["alarms_in_words"] == "60 alarms"
    assert len(shown(page)) == 60
    assert not hint.is_visible()
    assert visibility(page, "histogram") == "visible"
    assert {*badges.all_text_contents()} == {"alarm"}
    type_threshold(page, str(VALUES.max()))
    assert live(page)["alarms_in_words"] == "1 alarm"
    assert Counter(badges.all_text_contents()) == {"alarm": 1, "no alarm": 59}


def test_headings_and_names_fit_a_phone(opened):
    report = make_report()
    defects = ["metal_contamination" if name == "hole" else name for name in report.defects]
    page = opened(
        dataclasses.replace(report, defects=defects, pictures=[]),
        viewport={"width": 360, "height": 740},
    )
    assert page.locator("table").count() == 4
    for heading in page.locator("section:has(table) :is(h2, h3)").all():
        assert heading.evaluate("heading => heading.closest('.scroll')") is None
        box = heading.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 360
    lines = page.get_by_role("rowheader", name="metal_contamination").evaluate(
        """cell => {
          const range = document.createRange();
          range.selectNodeContents(cell);
          return range.getClientRects().length;
        }"""
    )
    assert lines == 1


def test_short_tables_print_on_one_page_with_their_headings(opened):
    page = opened()
    page.emulate_media(media="print")
    for heading in ("Thresholds", "Classes", "Settings that differ from the defaults"):
        section = page.get_by_role("heading", name=heading, exact=True).locator("xpath=..")
        assert section.locator("table").count() == 1
        assert section.evaluate("section => getComputedStyle(section).breakInside") == "avoid"


def test_the_keyboard_skips_the_images(opened):
    page = opened(make_predictions())
    page.locator("#order").focus()
    page.keyboard.press("Tab")
    skip = page.get_by_role("link", name="Skip the images")
    assert skip.evaluate("link => link === document.activeElement")
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('#images, .card')") is None
    assert page.locator("table", has_text="is empty (0 bytes)").is_visible()
    assert page.evaluate("document.activeElement.matches('.scroll:has(.path)')")


@pytest.mark.parametrize(
    "changes",
    [
        {"scores": np.array([0.5]), "labels": None, "defects": None, "thresholds": []},
        {"scores": np.array([0.5, -1.0]), "labels": np.zeros(2, int), "defects": ["good"] * 2},
        {"scores": np.array([0.5, -1.0]), "labels": np.ones(2, int), "defects": ["cut"] * 2},
    ],
)
def test_the_threshold_works_in_minimal_reports(opened, changes):
    page = opened(make_report(**{"pictures": [], "history": [], "prior": None} | changes))
    type_threshold(page, "0.5")
    labels = changes["labels"]
    name = "alarms" if labels is None else "found" if labels.all() else "false_alarms"
    assert live(page)[name] == "1"


def test_percentages_are_rounded_like_in_python(opened):
    scores = np.arange(16.0)
    page = opened(make_report(scores=scores, labels=0 * scores, defects=["good"] * 16, pictures=[]))
    type_threshold(page, "15")
    assert live(page)["false_alarm_rate"] == f"{1 / 16:.1%}" == "6.2%"
    type_threshold(page, "0")
    assert live(page)["false_alarm_rate_counts"] == "(16 of 16; 81–100%)"


def test_the_threshold_moves_on_a_page_without_anomalies(opened):
    whole = make_report()
    normal = dataclasses.replace(
        whole,
        scores=SCORES[:30],
        labels=LABELS[:30],
        defects=DEFECTS[:30],
        pictures=whole.pictures[:30],
        pixel_auroc={},
    )
    page = opened(normal)
    type_threshold(page, "0.5")
    names = {"heading", "false_alarms", "false_alarms_in_words", "passed"}
    names |= {"false_alarm_rate", "false_alarm_rate_counts"}
    assert live(page) == {name: text for name, text in expected(0.5).items() if name in names}
    assert shown(page, "[data-worst='false-alarm']")
    assert page.locator("[data-worst='missed']").count() == 0
