"""The HTML of a report; expected numbers are computed by hand or by scikit-learn."""

import dataclasses
import json
import re
from collections import Counter
from html.parser import HTMLParser

import markupsafe
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from devnet_jax.inference.thresholds import Threshold
from devnet_jax.report.content import Picture, Report, choose_pictures
from devnet_jax.report.page import to_html
from devnet_jax.report.thumbnails import mask_thumbnail, side_for, thumbnail
from tests.report.example import (
    CALIBRATED,
    HOSTILE,
    draw_scores,
    make_labelled,
    make_predictions,
    make_report,
)


def escape(text: str) -> str:
    """Returns text as it stands in a page."""
    return str(markupsafe.escape(text.replace("\udc80", "\\udc80")))


# Four normal images and four anomalies of two classes.
SCORES = np.array([-1.0, 0.0, 1.0, 2.0, 0.5, 1.5, 3.0, 4.0])
LABELS = np.array([0, 0, 0, 0, 1, 1, 1, 1])
DEFECTS = ["good"] * 4 + ["cut", "cut", "hole", "hole"]


def small(**changes) -> Report:
    values = {"title": "t", "subtitle": "s", "scores": SCORES, "labels": LABELS, "defects": DEFECTS}
    return Report(**(values | changes))


class Content(HTMLParser):
    """Parses a page: live numbers by name, tables by heading, tags, identifiers and links."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.live: dict[str, str] = {}
        self.tables: dict[str, list[list[str]]] = {}
        self.tags: Counter[str] = Counter()
        self.ids: Counter[str] = Counter()
        self.sources: list[str] = []
        self.outcomes: Counter[str] = Counter()
        self.text = ""
        self._live = ""
        self._heading = ""
        self._in_heading = False
        self._rows: list[list[str]] = []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.tags[tag] += 1
        self.ids.update([values["id"]] if "id" in values else [])
        self.sources += [values[name] for name in ("src", "href", "xlink:href") if name in values]
        self.outcomes.update([values["data-outcome"]] if "data-outcome" in values else [])
        self._live = values.get("data-live", "")
        if tag in ("h2", "h3", "summary"):
            self._heading, self._in_heading = "", True
        if tag == "table":
            self._rows = self.tables[self._heading] = []
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append("")

    def handle_endtag(self, tag):
        if tag in ("h2", "h3", "summary"):
            self._in_heading = False
        if tag == "table":
            self._rows = []

    def handle_data(self, data):
        self.text += data
        self._heading += data if self._in_heading else ""
        if self._live:
            assert self.live.setdefault(self._live, data) == data
            self._live = ""
        elif self._rows and self._rows[-1]:
            self._rows[-1][-1] += data.strip()


def test_outcomes_at_the_threshold_in_force():
    # At 1: of the normal images 1 and 2 are alarms; of the anomalies 0.5 is missed.
    content = Content(to_html(small(thresholds=[Threshold("calibrated", 1.0, 0.05, 40)])))
    assert content.live == {
        "heading": "At the threshold 1.000",
        "found": "3",
        "missed": "1",
        "false_alarms": "2",
        "false_alarms_in_words": "2 false alarms",
        "passed": "2",
        # The intervals are Wilson's, by SciPy's binomtest(…).proportion_ci(method="wilson").
        "miss_rate": "25%",
        "miss_rate_counts": "(1 of 4; 5–70%)",
        "false_alarm_rate": "50%",
        "false_alarm_rate_counts": "(2 of 4; 15–85%)",
        "precision": "60%",
        "precision_counts": "(3 of 5; 23–88%)",
        "f1": "0.67",  # 2·3 / (2·3 + 1 + 2)
    }


def test_promised_and_observed_rates_of_thresholds():
    thresholds = [Threshold("calibrated", 1.0, 0.1, 40), Threshold("prior", 1.75, 1 - 0.95)]
    table = Content(to_html(small(thresholds=thresholds))).tables["Thresholds"]
    assert table[1:] == [
        [
            "calibrated (in force)",
            "1.000",
            "at most 10%, on average",
            "50%(2 of 4; 15–85%)",
            "25%(1 of 4; 5–70%)",
            "60%(3 of 5; 23–88%)",
            "0.67",
        ],
        [
            "prior, 95%",
            "1.750",
            "5% of the prior",
            "25%(1 of 4; 5–70%)",
            "50%(2 of 4; 15–85%)",
            "67%(2 of 3; 21–94%)",
            "0.57",
        ],
        # F1 at 0.5: 2·4 / (2·4 + 2 false alarms) = 0.8; at 3: 2·2 / (2·2 + 2 missed) = 0.67.
        [
            "best F1",
            "0.5000",
            "–",
            "50%(2 of 4; 15–85%)",
            "0%(0 of 4; 0–49%)",
            "67%(4 of 6; 30–90%)",
            "0.80",
        ],
    ]


def test_without_anomalies_the_page_shows_no_misses():
    # At 1: the scores 1.0, 2.0, 1.5, 3.0 and 4.0 are alarms.
    report = small(
        labels=np.zeros(8, int),
        defects=["good"] * 8,
        thresholds=[Threshold("calibrated", 1.0, 0.1, 40)],
    )
    content = Content(to_html(report))
    assert content.live == {
        "heading": "At the threshold 1.000",
        "false_alarms": "5",
        "false_alarms_in_words": "5 false alarms",
        "passed": "3",
        "false_alarm_rate": "62%",
        "false_alarm_rate_counts": "(5 of 8; 31–86%)",
    }
    assert content.tables["Thresholds"] == [
        ["threshold", "score", "false alarms promised", "false alarms observed"],
        ["calibrated (in force)", "1.000", "at most 10%, on average", "62%(5 of 8; 31–86%)"],
    ]
    assert "ROC curve" not in content.text


def test_without_normal_images_the_page_shows_no_false_alarms():
    report = small(
        labels=np.ones(8, int),
        defects=["cut"] * 8,
        thresholds=[Threshold("prior", 1.0, 0.05)],
    )
    content = Content(to_html(report))
    assert content.live == {
        "heading": "At the threshold 1.000",
        "found": "5",
        "missed": "3",
        "miss_rate": "38%",
        "miss_rate_counts": "(3 of 8; 14–69%)",
    }
    assert content.tables["Thresholds"] == [
        ["threshold", "score", "false alarms promised", "missed"],
        ["prior, 95% (in force)", "1.000", "5% of the prior", "38%(3 of 8; 14–69%)"],
    ]


def test_classes_are_sorted_by_auroc():
    html = to_html(small(thresholds=[Threshold("prior", 1.0, 0.05)], pixel_auroc={"hole": 0.98765}))
    # Normal scores are -1, 0, 1, 2. Of the cuts, 0.5 is above two and 1.5 above three of them; both
    # holes are above all.
    assert Content(html).tables["Classes"][1:] == [
        ["good (normal)", "4", "0.5000", "–", "–", "2", "–"],
        ["cut", "2", "1.000", "0.62(0.21–0.91)", "–", "1", "50%(1 of 2; 9–91%)"],
        ["hole", "2", "3.500", "1.00(0.47–1.00)", "0.99", "2", "0%(0 of 2; 0–66%)"],
    ]


def test_area_under_the_roc_curve_equals_that_of_scikit_learn():
    scores, labels, _ = draw_scores()
    assert f"ROC curve: area {roc_auc_score(labels, scores):.2f} (" in to_html(make_report())


def test_without_a_threshold_the_page_starts_at_the_best_f1():
    assert Content(to_html(small())).live["heading"] == "At the threshold 0.5000"


def test_without_threshold_and_labels_no_image_is_an_alarm():
    content = Content(to_html(make_predictions(thresholds=())))
    assert content.live == {
        "heading": "No threshold",
        "alarms_in_words": "0 alarms",
        "alarms": "0",
        "alarm_share": "0%",
    }
    assert content.outcomes == {"undecided": 60}


def test_singular_of_one_alarm():
    live = Content(to_html(small(thresholds=[Threshold("prior", 2.0, 0.05)]))).live
    assert live["false_alarms_in_words"] == "1 false alarm"
    unlabelled = small(labels=None, defects=None, thresholds=[Threshold("prior", 3.5, 0.05)])
    assert Content(to_html(unlabelled)).live["alarms_in_words"] == "1 alarm"


def test_changed_settings_are_listed_without_the_location_of_the_data():
    settings = [
        ("seed", 42, 42),
        ("dataset.image_size", 128, 448),
        ("dataset.name", "parts", "mvtec_ad"),
        ("dataset.manual_dir", "/data", None),
    ]
    tables = Content(to_html(make_report(settings=settings))).tables
    assert tables["Settings that differ from the defaults"] == [
        ["setting", "here", "default"],
        ["dataset.image_size", "128", "448"],
    ]
    assert tables["1 setting as by default"][1:] == [["seed", "42", "42"]]


@pytest.mark.parametrize("make", [make_report, make_predictions])
def test_the_page_is_self_contained_and_names_are_escaped(make):
    html = to_html(make())
    html.encode("utf-8")
    content = Content(html)
    assert content.tags["script"] == 2  # the data and the page's own script
    assert set(content.ids.values()) == {1}
    assert all(source.startswith(("data:", "#")) for source in content.sources)
    assert {source[1:] for source in content.sources if source[0] == "#"} <= {*content.ids}
    assert "url(http" not in html
    shown = HOSTILE.replace("\udc80", "\\udc80")
    assert f"parts {shown}" in content.text
    assert f"{shown}/48.png" in content.text or f"{shown}.png" in content.text


@pytest.mark.parametrize("make", [make_report, make_predictions])
def test_alarms_are_shown_with_their_reasons(make):
    html = to_html(make())
    cards = re.findall(
        r'<li class="card"[^>]*data-group[^>]*data-score="(.*?)">(.*?)</li>', html, re.DOTALL
    )
    assert len(cards) >= 60
    for score, card in cards:
        assert ('<span class="reason">' in card) == (float(score) >= CALIBRATED.value)
    assert f"like the labelled {HOSTILE}".replace("\udc80", "\\udc80") in Content(html).text
    assert "<dt>Reason of an alarm</dt>" in html


def test_the_table_of_kinds_names_rows_and_columns():
    kinds = {
        "hole": {"hole": 3, HOSTILE: 1, "no labelled kind": 2, "no alarm": 0},
        HOSTILE: {"hole": 0, HOSTILE: 1234, "no labelled kind": 0, "no alarm": 5},
    }
    html = to_html(make_report(kinds=kinds, kind_accuracy="99% are right"))
    section = html.partition('id="kinds"')[2].partition("</section>")[0]
    assert "at the threshold in force: 99% are right.</p>" in section
    heads, *rows = re.findall("<tr>(.*?)</tr>", section, re.DOTALL)
    assert heads.count("<th") == 5
    assert [re.findall(r"<td>(?:<b>)?([\d,]+)", row) for row in rows] == [
        ["3", "1", "2", "0"],
        ["0", "1,234", "0", "5"],
    ]
    assert re.findall(r"<b>([\d,]+)</b>", section) == ["3", "1,234"]
    assert "<script" not in section
    assert 'id="kinds"' not in to_html(make_report())


def test_pictures_unlike_the_training_pictures_are_marked():
    report = make_predictions()
    first, *others = report.pictures
    odd = dataclasses.replace(first, odd=f"noise {HOSTILE}")
    html = to_html(make_predictions(pictures=[odd, *others]))
    assert html.count(" data-odd>") == html.count('<span class="odd">') == 1
    assert "<script>window.hacked" not in html
    assert '<option value="odd">' in html
    assert '<option value="odd">' not in to_html(report)


def test_the_page_says_what_the_scores_and_maps_of_each_detector_are():
    changes = {"explanation": "score_map"}
    devnet, devcore = (
        to_html(make_report(detector=name, **changes)) for name in ("devnet", "devcore")
    )
    assert ("Training pulls the scores" in devnet, "standardised" in devnet) == (True, False)
    assert ("Training pulls the scores" in devcore, "standardised" in devcore) == (False, True)
    assert "adds to the score, enlarged" in devnet
    assert "from the nearest good one" in devcore


def explained(report: Report) -> set[str]:
    """Returns the terms that "How to read this page" explains."""
    section = to_html(report).partition('<dl class="reading">')[2].partition("</dl>")[0]
    return {*re.findall("<dt>(.*?)</dt>", section)}


def test_measures_are_explained_if_they_are_on_the_page():
    rates = {"In brackets", "False-alarm rate", "Miss rate"}
    both = {"Precision", "F1", "AUROC", "Average precision"}
    pixels = {"Pixel AUROC", "Pixel precision", "AUPRO"}
    terms = rates | both | pixels
    names = ("pixel AUROC, mean", "pixel precision, average", "AUPRO, 30%")
    assert explained(small(numbers=[(name, "0.5") for name in names])) >= terms
    assert explained(small()) & terms == rates | both
    normal = small(labels=np.zeros(8, int), defects=["good"] * 8)
    assert explained(normal) & terms == rates - {"Miss rate"}
    assert not explained(small(labels=None, defects=None)) & terms


def test_the_expected_performance_is_shown_above_the_threshold():
    html = to_html(small(expected="Expected: <AUROC> 0.95."))
    assert html.index("Expected: &lt;AUROC&gt; 0.95.") < html.index('id="control"')


def test_errors_are_announced_first_and_listed():
    errors = [(f"{i}.png", "is empty") for i in range(1500)]
    html = to_html(make_predictions(errors=errors))
    assert html.index("1,500 images could not be read") < html.index('id="control"')
    table = Content(html).tables["Images that could not be read: 1,500"]
    assert table[1] == ["0.png", "is empty"]
    assert len(table) == 1 + 1000
    assert "Only the first 1,000 are listed." in html


@pytest.mark.parametrize(
    "changes",
    [
        {"scores": np.array([-1.5]), "labels": None, "defects": None},
        {"scores": np.array([0.5]), "labels": np.array([1]), "defects": ["cut"]},
        {"labels": np.zeros(8, int), "defects": ["good"] * 8},
        {"labels": np.ones(8, int), "defects": ["cut"] * 8},
        {"scores": np.zeros(8), "thresholds": [Threshold("prior", 0.0, 0.5)]},
        {"history": [{"epoch": 1, "step": 20, "loss": float("nan"), "learning_rate": 0.0}]},
        {"labels": np.arange(8) % 2, "defects": [f"class {i}" for i in range(8)]},
    ],
)
def test_pages_of_minimal_reports(changes):
    report = small(**changes)
    live = Content(to_html(report)).live
    outcomes = ("found", "missed", "false_alarms", "passed")
    expected = len(report.scores) if report.labels is not None else 0
    assert sum(int(live.get(name, 0)) for name in outcomes) == expected


def test_the_rarest_of_many_classes_share_a_colour():
    defects = ["good"] * 4 + [f"class {i:02}" for i in range(20) for _ in range(20 - i)]
    scores = np.linspace(-1, 3, len(defects))
    labels = np.array([int(name != "good") for name in defects])
    html = to_html(small(scores=scores, labels=labels, defects=defects))
    key = re.search('<ul class="key">(.*?)</ul>', html, re.DOTALL)[1]
    colours = re.findall(r"series-(\d)", key)
    assert sorted(colours) == list("01234567")
    assert (colours[0], colours[-1]) == ("0", "7")
    assert "class 05 (15)" in key
    # 14 + 13 + … + 1 images of the classes 6 to 19.
    assert "14 other classes (105)" in key


def labelled_section(html: str) -> str:
    """Returns the HTML of the section of labelled anomalies, or ""."""
    found = re.search('<section aria-labelledby="labelled">(.*?)</section>', html, re.DOTALL)
    return found[1] if found else ""


def labelled_rows(html: str) -> dict[str, list[tuple[str, str]]]:
    """Returns outcome and score of each labelled anomaly, by the heading of its kind."""
    rows = {}
    for part in labelled_section(html).split("<h3>")[1:]:
        heading = re.sub("<.*?>", "", part[: part.index("</h3>")])
        rows[heading] = re.findall(r'"outcome">(.*?)</b>\s*<span>score (.*?)</span>', part)
    return rows


def test_labelled_anomalies_are_listed_by_kind_with_what_would_be_missed():
    html = to_html(make_report())
    assert labelled_rows(html) == {
        "hole: 2, 1 would be missed": [("would be missed", "0.5000"), ("would be found", "3.750")],
        # A score at the threshold is an alarm.
        f"{escape(HOSTILE)}: 1, 0 would be missed": [("would be found", "1.250")],
    }
    section = labelled_section(html)
    assert section.count("<img ") == 9  # image, heat map and mask of each
    assert "cross-validated" in section
    assert "<script>" not in section
    counts = Content(html).live
    alone = Content(to_html(make_report(labelled_anomalies=None)))
    assert counts == alone.live  # they are not tested
    assert "Labelled anomalies" not in alone.text


def test_labelled_anomalies_that_the_detector_has_seen_are_said_to_be_so():
    seen = make_labelled(cross_validated=False, n=250)
    section = labelled_section(to_html(make_report(labelled_anomalies=seen)))
    assert "which has seen the pictures" in section
    assert "cross-validated" not in section
    assert "3 of 250 are shown." in section
    html = to_html(make_report(labelled_anomalies=seen, thresholds=[], labels=None, defects=None,
                               pictures=[]))  # fmt: skip
    assert labelled_rows(html)["hole: 2"] == [("", "0.5000"), ("", "3.750")]


def test_counts_of_many_images_are_as_accurate_as_the_page_states():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], [300_007, 11])
    scores = (rng.normal(size=len(labels)) + 2 * labels).astype(np.float32)
    html = to_html(small(scores=scores, labels=labels, defects=list(np.where(labels, "a", "good"))))
    assert len(html.encode()) < 5e6
    exactness = int(re.search(r"to within (\d+) images of each class", html)[1])
    assert exactness == 2  # the page has every fourth score
    data = json.loads(re.search('id="data">(.*?)</script>', html)[1])
    for group, of_class in zip(
        data["groups"], (scores[labels == 0], scores[labels == 1]), strict=True
    ):
        kept = np.array(group["scores"])
        for threshold in rng.choice(of_class, 11):
            alarms = min(int((kept >= threshold).sum()) * data["step"], group["n"])
            assert abs(alarms - (of_class >= threshold).sum()) <= exactness


def test_a_page_of_2000_noise_pictures_is_smaller_than_20_mb():
    rng = np.random.default_rng(1)
    n, side = 2000, side_for(2000)
    noise = rng.integers(0, 256, (5, 448, 448, 3), dtype=np.uint8)
    crops = [noise[i, :side, :side] for i in range(5)]
    images = [
        max(thumbnail(image, side) for image in (whole, crop))
        for whole, crop in zip(noise, crops, strict=True)
    ]
    masks = [mask_thumbnail(crop[..., 0] > 127, side) for crop in crops]
    scores = rng.normal(size=100_000).astype(np.float32)
    pictures = [
        Picture(f"test/a class with a long name/{i:0100}.png", float(scores[i]), int(i % 2),
                "ab"[i % 2], images[i % 5], images[i % 5], masks[i % 5], 0.5)
        for i in range(n)
    ]  # fmt: skip
    labels = np.arange(len(scores)) % 2
    defects = ["ab"[label] for label in labels]
    report = small(scores=scores, labels=labels, defects=defects, pictures=pictures)
    html = to_html(report)
    assert len(html.encode()) < 20e6
    assert "2,000 of 100,000 images are shown" in html


def test_all_pictures_are_chosen_if_they_are_within_the_limit():
    scores = np.array([3.0, 1.0, 2.0])
    assert choose_pictures(scores, None, None, limit=3).tolist() == [0, 1, 2]


def test_of_many_pictures_the_worst_mistakes_and_the_extremes_are_chosen():
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 2, 1000)
    scores = rng.normal(size=1000) + 2 * labels
    chosen = choose_pictures(scores, labels, 1.0, limit=100)
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    assert len(chosen) == 100
    mistakes = [i for i in range(1000) if (scores[i] >= 1) != labels[i]]
    worst = sorted(mistakes, key=lambda i: -abs(scores[i] - 1))[:50]
    assert {*worst} <= {*chosen.tolist()}
    assert {int(scores.argmax()), int(scores.argmin())} <= {*chosen.tolist()}


def test_of_many_pictures_odd_ones_are_chosen():
    scores = np.random.default_rng(3).normal(size=1000)
    odd = np.zeros(1000, bool)
    odd[[3, 500, 998]] = True
    chosen = choose_pictures(scores, limit=100, first=odd).tolist()
    assert {3, 500, 998} <= {*chosen}
    assert len({*chosen}) == 100
    assert len(choose_pictures(scores, limit=100, first=~odd)) == 100


def test_inconsistent_fields_are_refused():
    with pytest.raises(ValueError, match="labels and defects"):
        small(defects=None)
    with pytest.raises(ValueError, match="same length"):
        small(labels=LABELS[1:])
    with pytest.raises(ValueError, match="finite"):
        small(scores=np.array([np.nan, *SCORES[1:]]))
    with pytest.raises(ValueError, match="1 'scratch'"):
        small(pictures=[Picture("a", 1.0, 1, "scratch", b"")])
    with pytest.raises(ValueError, match="at most 2000"):
        small(pictures=[Picture("a", 1.0, 1, "cut", b"")] * 2001)
