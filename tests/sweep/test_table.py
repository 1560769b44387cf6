"""Tables of results, with expected numbers that are computed by hand."""

import dataclasses
import re
from collections import Counter
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devnet_jax.errors import UserError
from devnet_jax.sweep.results import RunResult
from devnet_jax.sweep.table import Context, to_html, to_markdown

CONTEXT = Context(settings="ResNet-18, 448×448", categories={"mvtec_ad": ("carpet", "grid")})
CLASSES = {"elpv": ("mono", "poly")}


def result(auroc: float | None, seed: int = 0, **fields) -> RunResult:
    values = {
        "dataset": "brain_mri",
        "category": "",
        "known_class": "",
        "contamination": 0.0,
        "n_anomaly": 10,
        "method": "devnet",
        "variation": "",
        "image_ap": 0.5,
        "image_f1_max": 0.5,
        "n_test_normal": 25,
        "n_test_anomaly": 145,
        "n_test_duplicates": 0,
        "steps": 1000,
    }
    values |= {"seed": seed, "image_auroc": auroc, **fields}
    return RunResult(**values, workdir="/".join(str(value) for value in values.values()))


def runs(*aurocs: float, **fields) -> list[RunResult]:
    """Returns results of the seeds 0, 1, …"""
    return [result(auroc, seed, **fields) for seed, auroc in enumerate(aurocs)]


def table(markdown: str, caption: str = "Image AUROC") -> list[dict[str, str]]:
    """Returns the rows of the table below a heading, as dictionaries by column title."""
    lines = markdown.split(f"## {caption}\n\n")[1].split("\n\n")[0].splitlines()
    titles, _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines)
    return [dict(zip(titles, row, strict=True)) for row in rows]


def only_row(results: list[RunResult], context: Context = CONTEXT) -> dict[str, str]:
    (row,) = table(to_markdown(results, context))
    return row


def test_mean_and_sample_deviation_over_seeds_and_published_values():
    assert only_row(runs(0.90, 0.92, 0.94)) == {
        "Data set": "brain_mri",
        "Setting": "general",
        "Shots": "10",
        "Ours: devnet": "0.920 ± 0.020",  # √((0.02² + 0 + 0.02²) / 2)
        "Ours − published: devnet": "−0.031 ▼",
        "Published, AHL paper: DevNet": "0.951 ± 0.007",
        "Published, AHL paper: FLOS": "0.955 ± 0.011",
    }


@pytest.mark.parametrize(
    ("method", "aurocs", "difference"),
    [
        # Two errors: 2·√(0.02²/3 + 0.007²/3) = 0.0245.
        ("devnet", (0.906, 0.926, 0.946), "−0.025 ▼"),
        ("devnet", (0.907, 0.927, 0.947), "−0.024"),
        ("devnet", (0.955, 0.975, 0.995), "+0.024"),
        ("devnet", (0.956, 0.976, 0.996), "+0.025 ▲"),
        ("devnet", (0.93, 0.95, 0.97), "−0.001"),
        ("devnet", (0.951, 0.951), "0.000"),
        # Two errors: 2·√(0.01414²/2 + 0.007²/3) = 0.0216; with n = 3 it would be 0.0182.
        ("devnet", (0.922, 0.942), "−0.019"),
        # One seed has no deviation.
        ("devnet", (0.5,), "−0.451"),
        # FLOS is 0.955 ± 0.011; two errors: 2·√(0 + 0.011²/3) = 0.0127.
        ("flos", (0.94, 0.94), "−0.015 ▼"),
        ("flos", (0.945, 0.945), "−0.010"),
    ],
)
def test_differences_beyond_two_standard_errors_are_marked(method, aurocs, difference):
    assert only_row(runs(*aurocs, method=method))[f"Ours − published: {method}"] == difference


def test_one_seed_has_no_deviation():
    assert only_row(runs(0.9))["Ours: devnet"] == "0.900"


def test_only_devnet_and_flos_are_compared_with_published_values():
    row = only_row([*runs(0.9), *runs(0.8, method="flos"), *runs(0.7, method="bce")])
    assert row["Ours − published: devnet"] == "−0.051"
    assert row["Ours − published: flos"] == "−0.155"
    assert "Ours − published: bce" not in row


def test_a_mean_over_categories_is_taken_for_each_seed_first():
    carpet = runs(0.8, 0.9, dataset="mvtec_ad", category="carpet")
    grid = runs(0.9, 0.6, dataset="mvtec_ad", category="grid")
    rows = table(to_markdown(carpet + grid, CONTEXT))
    assert [row["Data set"] for row in rows] == [
        "mvtec_ad/carpet",
        "mvtec_ad/grid",
        "mvtec_ad (mean of all 2 categories)",
    ]
    # The seeds' means are 0.85 and 0.75; the deviation of the four would be 0.141.
    assert rows[2]["Ours: devnet"] == "0.800 ± 0.071"
    # Two errors: 2·√(0.0707²/2 + 0.005²/3) = 0.1002.
    assert rows[2]["Ours − published: devnet"] == "−0.148 ▼"
    assert rows[0]["Published, AHL paper: DevNet"] == ""


@pytest.mark.parametrize(
    ("categories", "name"),
    [
        (("carpet", "grid", "wood"), "mvtec_ad (mean of 2 of 3 categories)"),
        (("carpet",), "mvtec_ad (mean of 2 categories)"),
        ((), "mvtec_ad (mean of 2 categories)"),
    ],
)
def test_a_mean_over_other_categories_is_not_compared(categories, name):
    results = [
        result(0.9, dataset="mvtec_ad", category=category) for category in ("carpet", "grid")
    ]
    context = dataclasses.replace(CONTEXT, categories={"mvtec_ad": categories})
    markdown = to_markdown(results, context)
    mean = table(markdown)[-1]
    assert mean == {
        "Data set": name,
        "Setting": "general",
        "Shots": "10",
        "Ours: devnet": "0.900",
    }
    assert "published one only if it is over the same categories" in markdown


def test_missing_seeds_are_counted():
    results = [
        *runs(0.8, 0.9, 0.7, dataset="mvtec_ad", category="carpet"),
        *runs(0.9, 0.8, dataset="mvtec_ad", category="grid"),
        *runs(0.5, dataset="mvtec_ad", category="grid", method="bce"),
    ]
    carpet, grid, mean = table(to_markdown(results, CONTEXT))
    assert carpet["Ours: devnet"] == "0.800 ± 0.100"
    assert grid["Ours: devnet"] == "**0.850 ± 0.071** (2 of 3 seeds)"
    # Seed 2 has no grid: (0.8 + 0.9) / 2 and (0.9 + 0.8) / 2 remain.
    assert mean["Ours: devnet"] == "0.850 ± 0.000 (2 of 3 seeds)"
    assert mean["Ours: bce"] == "incomplete"
    asked = dataclasses.replace(CONTEXT, seeds=range(5))
    assert table(to_markdown(results, asked))[0]["Ours: devnet"] == "0.800 ± 0.100 (3 of 5 seeds)"


def test_hard_setting_is_compared_as_the_mean_over_all_known_classes():
    mono = runs(0.70, 0.72, 0.74, dataset="elpv", known_class="mono")
    poly = runs(0.60, 0.62, 0.64, dataset="elpv", known_class="poly")
    context = dataclasses.replace(CONTEXT, known_classes=CLASSES)
    rows = table(to_markdown(mono + poly, context))
    assert [row["Setting"] for row in rows] == [
        "hard (known class mono)",
        "hard (known class poly)",
        "hard (mean of all 2 known classes)",
    ]
    assert [row["Published, AHL paper: DevNet"] for row in rows] == ["", "", "0.722 ± 0.018"]
    # The seeds' means are 0.65, 0.67, 0.69.
    assert rows[2]["Ours: devnet"] == "0.670 ± 0.020"
    # Two errors: 2·√(0.02²/3 + 0.018²/3) = 0.0311.
    assert rows[2]["Ours − published: devnet"] == "−0.052 ▼"
    unknown = table(to_markdown(mono + poly, CONTEXT))
    assert "Published, AHL paper: DevNet" not in unknown[2]


def test_known_classes_of_a_category():
    results = [
        result(0.9, dataset="mvtec_ad", category="carpet", known_class=known)
        for known in ("hole", "cut")
    ]
    context = dataclasses.replace(CONTEXT, known_classes={"mvtec_ad/carpet": {"cut", "hole"}})
    mean = table(to_markdown(results, context))[-1]
    assert mean["Data set"] == "mvtec_ad/carpet"
    assert mean["Published, AHL paper: DevNet"] == "0.853 ± 0.005"


def test_contamination_is_not_compared():
    rows = table(to_markdown([*runs(0.9), *runs(0.8, contamination=0.07)], CONTEXT))
    assert [row["Setting"] for row in rows] == ["general", "general (contamination 7%)"]
    assert rows[1]["Ours − published: devnet"] == rows[1]["Published, AHL paper: DevNet"] == ""


def test_the_best_of_several_is_bold_as_shown():
    results = [*runs(0.90004), *runs(0.90001, method="bce"), *runs(0.8, method="no_mil")]
    row = only_row(results)
    assert [row[f"Ours: {m}"] for m in ("devnet", "bce", "no_mil")] == [
        "**0.900**",
        "**0.900**",
        "0.800",
    ]
    assert list(row)[3:6] == ["Ours: devnet", "Ours: bce", "Ours: no_mil"]


def test_variations_are_columns_in_the_order_of_their_numbers():
    results = [
        *runs(0.9, variation="loss.margin=10.0"),
        *runs(0.8, variation="loss.margin=3.0"),
        *runs(0.7),
        *runs(0.6, method="flos", variation="loss.margin=3.0"),
    ]
    row = only_row(results)
    assert list(row)[3:7] == [
        "Ours: devnet",
        "Ours: devnet loss.margin=3.0",
        "Ours: devnet loss.margin=10.0",
        "Ours: flos loss.margin=3.0",
    ]
    # There are no published values of the variations.
    assert [title for title in row if "−" in title] == ["Ours − published: devnet"]
    assert row["Ours − published: devnet"] == "−0.251"


def test_average_precision_and_test_images():
    caption = "Average precision and test images"
    results = [
        result(0.9, 0, image_ap=0.7, n_test_anomaly=145),
        result(0.9, 1, image_ap=0.8, n_test_anomaly=143),
    ]
    (row,) = table(to_markdown(results, CONTEXT), caption)
    assert row["Average precision: devnet"] == "0.750 ± 0.071"
    assert row["Test images: normal"] == "25"
    assert row["Test images: anomalous"] == "143–145"
    assert "Test images: also in training" not in row
    results += [result(0.9, dataset="elpv", n_test_duplicates=3)]
    rows = table(to_markdown(results, CONTEXT), caption)
    assert [row["Test images: also in training"] for row in rows] == ["0", "3"]


def test_table_of_other_published_values():
    results = [result(0.9, dataset="mvtec_ad", category=c) for c in ("carpet", "grid")]
    results += runs(0.9)
    rows = table(to_markdown(results, CONTEXT), "Other published values of image AUROC")
    assert [row["Data set"] for row in rows] == [
        "brain_mri",
        "mvtec_ad (mean of all 2 categories)",
    ]
    assert rows[0]["Published, AHL paper: DRA"] == "0.971 ± 0.001"
    assert rows[0]["Published, DevNet paper: DevNet"] == ""
    assert rows[1]["Published, DevNet paper: DevNet"] == "0.945"


def test_shots():
    results = [r for n in (10, 1, 5) for r in runs(0.5 + n / 100, 0.5, n_anomaly=n)]
    results += runs(0.4, 0.4, n_anomaly=5, method="bce")
    markdown = to_markdown(results, CONTEXT)
    assert table(markdown, "Image AUROC over labelled anomalies: brain_mri, general") == [
        {
            "Method": "devnet",
            "Shots: 1": "0.505 ± 0.007",
            "Shots: 5": "0.525 ± 0.035",
            "Shots: 10": "0.550 ± 0.071",
        },
        {"Method": "bce", "Shots: 1": "", "Shots: 5": "0.400 ± 0.000", "Shots: 10": ""},
        {
            "Method": "DevNet, published",
            "Shots: 1": "0.853 ± 0.045",
            "Shots: 5": "",
            "Shots: 10": "0.951 ± 0.007",
        },
        {
            "Method": "FLOS, published",
            "Shots: 1": "0.693 ± 0.036",
            "Shots: 5": "",
            "Shots: 10": "0.955 ± 0.011",
        },
    ]
    assert [row["Shots"] for row in table(markdown)] == ["1", "5", "10"]


def test_a_run_without_anomalies_to_test_has_no_auroc():
    nothing = {"image_ap": None, "image_f1_max": None, "n_test_anomaly": 0, "n_anomaly": 0}
    unmeasured = [result(None, seed, **nothing) for seed in (0, 1)]
    markdown = to_markdown(unmeasured, CONTEXT)
    assert only_row(unmeasured)["Ours: devnet"] == "not measured"
    assert "Not measured: there are no normal images or no anomalies to test with." in markdown
    (details,) = table(markdown, "Average precision and test images")
    assert details["Average precision: devnet"] == "not measured"
    assert details["Test images: anomalous"] == "0"
    # Of two seeds, one could measure.
    half = [unmeasured[0], result(0.9, 1, n_anomaly=0)]
    assert only_row(half)["Ours: devnet"] == "0.900 (1 of 2 seeds)"


def test_a_chart_begins_with_no_labelled_anomalies():
    results = [r for n in (0, 1, 10) for r in runs(0.8, 0.9, n_anomaly=n)]
    (chart,) = charts(to_html(results, CONTEXT))
    assert {"0", "1", "10", "devnet", "DevNet, published"} <= {*words(chart)}


def charts(html: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", html, re.DOTALL)]


def words(chart: ElementTree.Element) -> list[str]:
    return [text.text or "" for text in chart.iter("{http://www.w3.org/2000/svg}text")]


def test_charts_show_means_instead_of_their_parts_and_need_three_shots():
    results = [
        r
        for n in (1, 5, 10)
        for category in ("carpet", "grid")
        for r in runs(0.8, 0.9, dataset="mvtec_ad", category=category, n_anomaly=n)
    ]
    results += [r for n in (1, 5) for r in runs(0.9, n_anomaly=n)]
    html = to_html(results, CONTEXT)
    assert re.findall("<figcaption>(.*)</figcaption>", html) == [
        "mvtec_ad (mean of all 2 categories), general"
    ]
    (chart,) = charts(html)
    assert {"1", "5", "10", "devnet", "DevNet, published", "FLOS, published"} <= {*words(chart)}


def test_means_over_different_categories_are_not_joined_to_a_curve():
    results = [
        result(0.8, dataset="mvtec_ad", category=category, n_anomaly=n)
        for n, categories in ((1, "ab"), (5, "ab"), (10, "bc"))
        for category in categories
    ]
    assert not charts(to_html(results, CONTEXT))


def test_names_with_markdown_html_and_math_characters_are_escaped():
    name = "a|b <i>*c*</i> $x_ _y_"
    results = [
        result(0.9, category=name, known_class=name, variation="$a$", n_anomaly=n)
        for n in (1, 2, 3)
    ]
    markdown, html = to_markdown(results, CONTEXT), to_html(results, CONTEXT)
    assert r"known class a\|b \<i>\*c\*\</i> $x\_ \_y\_" in markdown
    assert "<i>" not in html
    assert re.search(r"brain_.*/.*a\|b &lt;i&gt;", html)
    assert "known class a|b &lt;i&gt;*c*&lt;/i&gt; $x_ _y_" in html
    assert "devnet $a$" in words(charts(html)[0])


def test_settings_protocols_and_warning_are_shown():
    context = Context(
        settings="224×224, batch 16",
        departures="smaller images",
        environment="2 CPU cores",
        command="python -m sweep \\\n  --seeds=0",
    )
    for page in (to_markdown(runs(0.9, 0.8), context), to_html(runs(0.9, 0.8), context)):
        assert "224×224, batch 16 (2 runs of 1000 training steps)" in page
        assert "DevNet: re-run of the official code, 448×448, batch 48, 50 epochs × 20" in page
        assert "our settings depart from the published protocol: smaller images." in page
        assert "2 CPU cores" in page
        assert "  --seeds=0" in page
        assert "https://arxiv.org/abs/2310.12790" in page
    for write in (to_markdown, to_html):
        assert "Warning" not in write(runs(0.9), CONTEXT)
        # Without published values there is nothing to warn about.
        assert "Warning" not in write(runs(0.9, dataset="my_parts"), context)


def test_different_numbers_of_training_steps_are_shown():
    page = to_markdown([result(0.9, 0), result(0.9, 1, steps=200)], CONTEXT)
    assert "(2 runs of 200–1000 training steps)" in page


def test_two_results_of_one_run_are_refused():
    again = dataclasses.replace(result(0.8), workdir="again")
    with pytest.raises(UserError, match=r"'again' are two results of one run .*seed 0"):
        to_markdown([result(0.9), again], CONTEXT)


def test_documents_without_results():
    assert "no runs yet" in to_markdown([], CONTEXT)
    assert "no runs yet" in to_html([], CONTEXT)


EXAMPLE = [
    *(r for n in (1, 5, 10) for r in runs(0.91, 0.94, 0.92, n_anomaly=n)),
    *(r for n in (1, 5, 10) for r in runs(0.8, 0.81, dataset="elpv", n_anomaly=n, method="bce")),
    *runs(0.33, 0.11, 0.7, dataset="mvtec_ad", category="carpet"),
    *runs(0.43, 0.61, 0.9, dataset="mvtec_ad", category="grid", method="flos"),
    *runs(0.51, 0.62, 0.53, dataset="mvtec_ad", category="grid"),
    *(r for known in "ba" for r in runs(0.71, 0.72, dataset="elpv", known_class=known)),
]


@settings(max_examples=20, deadline=None)
@given(st.permutations(EXAMPLE))
def test_the_order_of_results_does_not_matter(results):
    assert to_markdown(results, CONTEXT) == to_markdown(EXAMPLE, CONTEXT)


def test_html_does_not_depend_on_the_order_of_results():
    assert to_html(EXAMPLE, CONTEXT) == to_html(EXAMPLE[::-1], CONTEXT)


class Page(HTMLParser):
    """Parses a page: counts tags, identifiers, links, and the columns of each table row."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.ids: Counter[str] = Counter()
        self.links: list[str] = []
        self.tables: list[list[int]] = []
        self.scopes: Counter[str] = Counter()
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.tags[tag] += 1
        self.ids.update([values["id"]] if "id" in values else [])
        self.scopes.update([values["scope"]] if "scope" in values else [])
        self.links += [values[name] for name in ("src", "href", "xlink:href") if name in values]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append(0)
        elif tag in ("td", "th"):
            self.tables[-1][-1] += int(values.get("colspan", 1))


def test_html_is_well_formed_and_self_contained():
    html = to_html(EXAMPLE, CONTEXT)
    page = Page(html)
    assert set(page.ids.values()) == {1}
    assert page.tags["script"] == page.tags["link"] == page.tags["img"] == 0
    assert {link for link in page.links if not link.startswith("#")} == {
        "https://arxiv.org/abs/2310.12790",
        "https://arxiv.org/abs/2108.00462",
    }
    assert {link[1:] for link in page.links if link.startswith("#")} <= {*page.ids}
    assert "url(http" not in html
    assert page.tags["caption"] == len(page.tables) == 2
    # Columns: 3 labels, 3 of ours, 1 difference, 7 and 2 published; 3 labels, 3 of ours, 2 counts.
    assert [{*rows} for rows in page.tables] == [{16}, {8}]
    # Rows: brain_mri ×3, elpv ×3, carpet, grid, their mean; hard setting ×2 and their mean.
    assert page.scopes["row"] == 2 * 12
    assert page.tags["figure"] == 2
