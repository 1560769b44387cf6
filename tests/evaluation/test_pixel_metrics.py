"""Tests of pixel-level metrics against hand-computed values, scikit-learn and an exact AUPRO."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage
from sklearn import metrics

from devnet_jax.evaluation.pixel_metrics import PixelMetrics

POOLED = ("pixel_auroc", "pixel_ap", "pixel_f1_max", "pixel_aupro")
Image = tuple[np.ndarray, np.ndarray]  # a map and its mask


def compute(images: Sequence[Image]) -> dict[str, float]:
    pixel_metrics = PixelMetrics()
    for explanation, mask in images:
        pixel_metrics.update(explanation, mask)
    return pixel_metrics.compute()


def exact(images: Sequence[Image]) -> dict[str, float]:
    """Computes the pooled metrics from all pixels at once; AUPRO and F1 threshold by threshold."""
    values = np.concatenate([explanation.ravel() for explanation, _ in images])
    labels = np.concatenate([mask.ravel() for _, mask in images])
    regions = []
    for explanation, mask in images:
        numbered, n = ndimage.label(mask, structure=np.ones((3, 3)))
        regions += [explanation[numbered == i] for i in range(1, n + 1)]
    f1, area, fpr, pro = 0.0, 0.0, 0.0, 0.0
    for threshold in np.unique(values)[::-1]:
        flagged = values >= threshold
        f1 = max(f1, 2 * np.sum(flagged & labels) / (flagged.sum() + labels.sum()))
        last_fpr, last_pro = fpr, pro
        fpr = flagged[~labels].mean()
        pro = np.mean([(region >= threshold).mean() for region in regions])
        end = min(fpr, 0.3)
        if end > last_fpr:
            at_end = last_pro + (pro - last_pro) * (end - last_fpr) / (fpr - last_fpr)
            area += (end - last_fpr) * (last_pro + at_end) / 2
    return {
        "pixel_auroc": metrics.roc_auc_score(labels, values),
        "pixel_ap": metrics.average_precision_score(labels, values),
        "pixel_f1_max": f1,
        "pixel_aupro": area / 0.3,
    }


def smooth_image(rng: np.random.Generator, defects: int) -> Image:
    """Returns a smooth 40×40 map in [0, 1] that is higher on most, but not all, defects."""
    score = ndimage.gaussian_filter(rng.standard_normal((40, 40)), 2) * 4
    mask = np.zeros((40, 40), bool)
    for _ in range(defects):
        y, x = rng.integers(0, 34, 2)
        height, width = rng.integers(2, 7, 2)
        mask[y : y + height, x : x + width] = True
        score[y : y + height, x : x + width] += rng.uniform(-0.3, 2)
    score = ndimage.gaussian_filter(score, 1)
    return ((score - score.min()) / np.ptp(score)).astype(np.float32), mask


def test_by_hand() -> None:
    # Two regions: one pixel of 0.9, and two that touch at a corner, 0.8 and 0.35.
    explanation = np.array([[0.9, 0.85, 0.8, 0.5], [0.4, 0.3, 0.1, 0.35]], np.float32)
    mask = np.array([[1, 0, 1, 0], [0, 0, 0, 1]], bool)
    normal = np.full((1, 5), 0.1, np.float32), np.zeros((1, 5), bool)
    pixel_metrics = PixelMetrics()
    # 5 + 4 + 2 of the 3 × 5 pairs in the image are in order; 10 + 9 + 7 of the 3 × 10 in both.
    assert pixel_metrics.update(explanation, mask) == pytest.approx(11 / 15)
    assert pixel_metrics.update(*normal) is None
    assert pixel_metrics.compute() == pytest.approx(
        {
            "pixel_auroc_mean": 11 / 15,
            "pixel_auroc": 26 / 30,
            "pixel_ap": (1 + 2 / 3 + 1 / 2) / 3,  # precision at 0.9, at 0.8 and at 0.35
            "pixel_f1_max": 2 / 3,  # at 0.8: precision and recall 2/3
            # The overlap is 1/2 up to 10 % false positives, then (1 + 1/2) / 2 up to 30 %.
            "pixel_aupro": (0.1 * 0.5 + 0.2 * 0.75) / 0.3,
            "n_pixel_images": 2,
        }
    )


def test_a_constant_map_scores_at_chance() -> None:
    mask = np.array([[True, False, False, False]])
    result = compute([(np.full((1, 4), 7, np.float32), mask)])
    # All pixels are flagged at once: the overlap equals the false-positive rate, up to 0.3.
    assert result == pytest.approx(
        {
            "pixel_auroc_mean": 0.5,
            "pixel_auroc": 0.5,
            "pixel_ap": 0.25,
            "pixel_f1_max": 0.4,
            "pixel_aupro": 0.15,
            "n_pixel_images": 1,
        }
    )


def test_all_defects_on_top_are_perfect() -> None:
    mask = np.eye(5, dtype=bool)
    result = compute([(np.where(mask, np.inf, -np.inf).astype(np.float32), mask)])
    assert {name: result[name] for name in POOLED} == pytest.approx(dict.fromkeys(POOLED, 1))


@st.composite
def small_images(draw: st.DrawFn) -> list[Image]:
    """Draws one to four images with ties, negative values and both zeros, exact in their bins."""
    images = []
    for _ in range(draw(st.integers(1, 4))):
        shape = draw(hnp.array_shapes(min_dims=2, max_dims=2, max_side=6))
        steps = draw(hnp.arrays(np.int8, shape, elements=st.integers(-4, 6)))
        sign = np.where(steps == 0, draw(st.sampled_from([0.0, -0.0])), steps)
        images.append(((sign / 4).astype(np.float32), draw(hnp.arrays(bool, shape))))
    return images


@settings(max_examples=50, deadline=None)
@given(small_images())
def test_agrees_with_an_exact_computation(images: list[Image]) -> None:
    labels = np.concatenate([mask.ravel() for _, mask in images])
    assume(labels.any() and not labels.all())
    result = compute(images)
    assert {name: result[name] for name in POOLED} == pytest.approx(exact(images), abs=1e-12)
    both = [(e, m) for e, m in images if m.any() and not m.all()]
    if both:
        aurocs = [metrics.roc_auc_score(m.ravel(), e.ravel()) for e, m in both]
        assert result["pixel_auroc_mean"] == pytest.approx(np.mean(aurocs), abs=1e-12)
    else:
        assert "pixel_auroc_mean" not in result


@pytest.mark.parametrize(("scale", "offset"), [(1, 0), (12, -2)])
@pytest.mark.parametrize("seed", range(3))
def test_binning_changes_metrics_by_less_than_a_thousandth(
    seed: int, scale: float, offset: float
) -> None:
    rng = np.random.default_rng(seed)
    images = [smooth_image(rng, defects) for defects in (0, 0, 1, 2, 3, 4)]
    images = [(np.float32(scale) * e + np.float32(offset), mask) for e, mask in images]
    result = compute(images)
    assert {name: result[name] for name in POOLED} == pytest.approx(exact(images), abs=1e-3)


def test_auroc_error_is_bounded_for_bins_too_wide_for_the_map() -> None:
    explanation, mask = smooth_image(np.random.default_rng(1), defects=3)
    explanation = 1 + np.float32(0.01) * explanation
    labels, pixels = mask.ravel(), explanation.ravel()
    # In [1, 2) a bin is one part in 8192.
    edges = 1 + np.arange(8193) / 8192
    defect, normal = (np.histogram(pixels[of], edges)[0] / of.sum() for of in (labels, ~labels))
    result = compute([(explanation, mask)])
    error = abs(result["pixel_auroc"] - metrics.roc_auc_score(labels, pixels))
    assert 0 < error <= np.sum(defect * normal) / 2
    assert result["pixel_auroc"] == pytest.approx(
        metrics.roc_auc_score(labels, np.digitize(pixels, edges)), abs=1e-12
    )


values = st.floats(-(2.0**99), 2.0**99, width=32)
neighbours = st.tuples(values, st.floats(0.999, 1.001)).map(lambda pair: (pair[0], np.prod(pair)))


@settings(max_examples=60, deadline=None)
@given(st.one_of(st.tuples(values, values), neighbours))
def test_only_close_values_are_tied(pair: tuple[float, float]) -> None:
    explanation = np.array([pair], np.float32)
    normal, defect = explanation[0].astype(float)
    result = compute([(explanation, np.array([[False, True]]))])["pixel_auroc"]
    in_order = (1 + np.sign(defect - normal)) / 2
    if abs(defect - normal) > max(abs(normal), abs(defect)) / 8192 + 1e-38:
        assert result == in_order
    else:
        assert result in (in_order, 0.5)


def test_the_auroc_of_an_image_is_exact() -> None:
    rng = np.random.default_rng(5)
    # Values a millionth apart, which share their bins, and many ties.
    explanation = (1 + rng.integers(0, 300, (60, 70)) * 1e-6).astype(np.float32)
    mask = rng.random((60, 70)) < explanation * 1000 - 999.9
    expected = metrics.roc_auc_score(mask.ravel(), explanation.ravel())
    assert PixelMetrics().update(explanation, mask) == pytest.approx(expected, abs=1e-12)
    assert expected != pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("masks", [[], [False, False], [True]])
def test_no_metrics_without_both_kinds_of_pixels(masks: list[bool]) -> None:
    pixel_metrics = PixelMetrics()
    for mask in masks:
        assert pixel_metrics.update(np.ones((1, 1), np.float32), np.array([[mask]])) is None
    assert pixel_metrics.compute() == {}


def test_an_image_that_is_all_defect_counts_only_in_pooled_metrics() -> None:
    result = compute(
        [
            (np.ones((2, 3), np.float32), np.ones((2, 3), bool)),
            (np.zeros((2, 3), np.float32), np.zeros((2, 3), bool)),
        ]
    )
    assert result["pixel_auroc"] == result["pixel_aupro"] == 1
    assert "pixel_auroc_mean" not in result


@pytest.mark.parametrize(
    ("explanation", "mask", "message"),
    [
        (np.array([[0, np.nan]], np.float32), np.zeros((1, 2), bool), "NaN"),
        (np.zeros((2, 2), np.float32), np.zeros((2, 3), bool), "(2, 2).*(2, 3)"),
        (np.zeros((1, 2, 2), np.float32), np.zeros((1, 2, 2), bool), "H, W"),
        (np.zeros((2, 2), np.float32), np.zeros((2, 2), np.uint8), "uint8"),
        (np.zeros((2, 2)), np.zeros((2, 2), bool), "float64"),
    ],
)
def test_wrong_shapes_dtypes_and_nan_are_rejected(
    explanation: np.ndarray, mask: np.ndarray, message: str
) -> None:
    pixel_metrics = PixelMetrics()
    pixel_metrics.update(np.array([[0, 1]], np.float32), np.array([[False, True]]))
    before = pixel_metrics.compute()
    with pytest.raises(ValueError, match=message):
        pixel_metrics.update(explanation, mask)
    assert pixel_metrics.compute() == before
