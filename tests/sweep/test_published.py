"""Published values, compared with the tables that they were copied from."""

import pytest

from devnet_jax.data.datasets import DATASETS
from devnet_jax.sweep.published import PublishedValue, published_known_classes, published_values


def published_value(
    dataset: str, category: str = "", *, method: str, **row
) -> PublishedValue | None:
    """Returns the first value of a method in a row."""
    values = published_values(dataset, category, **row)
    return next((value for value in values if value.method == method), None)


@pytest.mark.parametrize(
    ("dataset", "category", "setting", "n_anomaly", "method", "expected"),
    [
        ("brain_mri", "", "general", 10, "DevNet", (0.951, 0.007)),
        ("elpv", "", "general", 1, "FLOS", (0.457, 0.056)),
        ("mvtec_ad", "", "general", 10, "DevNet", (0.948, 0.005)),
        ("mvtec_ad", "", "general", 1, "AHL(DRA)", (0.901, 0.003)),
        ("mvtec_ad", "carpet", "hard", 10, "DevNet", (0.853, 0.005)),
        ("hyper_kvasir", "", "hard", 1, "SAOE", (0.406, 0.018)),
        ("mvtec_ad", "", "unsupervised", 0, "PatchCore", (0.992, None)),
    ],
)
def test_figures(dataset, category, setting, n_anomaly, method, expected):
    value = published_value(dataset, category, setting=setting, n_anomaly=n_anomaly, method=method)
    assert (value.mean, value.std) == expected
    assert value.source.runs == 3
    assert value.source.url == "https://arxiv.org/abs/2310.12790"


@pytest.mark.parametrize(
    ("dataset", "category", "setting", "expected"),
    [
        ("sdd", "", "general", (0.983, 0.013)),
        ("mvtec_ad", "carpet", "hard", (0.751, 0.023)),
        ("mvtec_ad", "metal_nut", "hard", (0.878, 0.058)),
        ("aitex", "", "hard", (0.626, 0.041)),
        ("elpv", "", "hard", (0.745, 0.020)),
        ("mastcam", "", "hard", (0.588, 0.016)),
        ("hyper_kvasir", "", "hard", (0.571, 0.014)),
    ],
)
def test_mlep_is_that_of_the_dra_paper(dataset, category, setting, expected):
    # The AHL paper took MLEP over from there, but prints 0.783 for SDD, and in the hard setting the
    # values that the DRA paper has for DRA.
    value = published_value(dataset, category, setting=setting, n_anomaly=10, method="MLEP")
    assert (value.mean, value.std) == expected
    assert "arXiv 2203.14506" in value.origin


@pytest.mark.parametrize(
    ("dataset", "category", "setting", "n_anomaly", "method"),
    [
        ("brain_mri", "", "general", 5, "DevNet"),
        ("mvtec_ad", "carpet", "general", 10, "DevNet"),
        ("mvtec_ad", "", "hard", 10, "DevNet"),
        ("optical", "", "unsupervised", 0, "PatchCore"),
        ("my_parts", "", "general", 10, "DevNet"),
        ("brain_mri", "", "general", 10, "KDAD"),
    ],
)
def test_unpublished_values_are_none(dataset, category, setting, n_anomaly, method):
    assert (
        published_value(dataset, category, setting=setting, n_anomaly=n_anomaly, method=method)
        is None
    )


def test_values_with_a_standard_deviation_come_first():
    values = published_values("mvtec_ad", setting="general", n_anomaly=10)
    assert [(v.source.name, v.method, v.mean, v.std) for v in values] == [
        ("AHL paper", "SAOE", 0.926, 0.010),
        ("AHL paper", "MLEP", 0.907, 0.005),
        ("AHL paper", "FLOS", 0.939, 0.007),
        ("AHL paper", "DevNet", 0.948, 0.005),
        ("AHL paper", "DRA", 0.966, 0.002),
        ("AHL paper", "AHL(DevNet)", 0.954, 0.003),
        ("AHL paper", "AHL(DRA)", 0.970, 0.002),
        ("DevNet paper", "DevNet", 0.945, None),
        ("DevNet paper", "FLOS", 0.939, None),
    ]
    pixel = published_value(
        "mvtec_ad", setting="general", n_anomaly=10, method="DevNet", metric="pixel_auroc"
    )
    assert (pixel.mean, pixel.std) == (0.918, None)


def test_protocol():
    devnet, dra = (
        published_value("elpv", setting="general", n_anomaly=10, method=method)
        for method in ("DevNet", "DRA")
    )
    assert devnet.protocol == "448×448, batch 48, 50 epochs × 20 steps"
    assert dra.protocol.startswith("448×448, batch 48, 30 epochs × 20 steps")


def test_known_classes_are_those_of_the_builders() -> None:
    for row, classes in published_known_classes().items():
        name, _, category = row.partition("/")
        counts = DATASETS[name].PUBLISHED_COUNTS[category or None]
        if name != "aitex":  # no publication has the counts of its classes
            assert set(classes) <= set(counts)
        assert published_values(name, category, setting="hard", n_anomaly=10)
