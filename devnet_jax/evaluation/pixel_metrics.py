"""Measures of how well explanation maps find the defects' pixels, in memory of a fixed size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import ndimage
from sklearn import metrics

from devnet_jax.evaluation.metrics import f1_scores

MAX_FPR = 0.3  # up to where AUPRO integrates, as MVTec defines it
# Of a float32 the sign, the exponent and 13 bits of the fraction, whatever the range of the maps.
# Two bits fewer cost the average precision of a small test set its third decimal.
KEPT_BITS = 22


class PixelMetrics:
    """Pixel measures over a test set, gathered image by image.

    `pixel_auroc_mean`, the paper's, is exact. The others are over the pixels of all images
    together and rest on histograms of the values' leading bits: values that differ by less than
    one part in 8192 may count as equal, all others keep their order. On smooth maps that moves
    a measure by less than 1e-4 where there are a million pixels, by less than 1e-3 where there
    are ten thousand. It never moves AUROC by more than half of the sum, over the bins, of the
    share of normal times the share of defect pixels.

    The state takes 100 MB at most, of which the system gives what the values' range touches.
    """

    def __init__(self) -> None:
        self._normal, self._defect, self._overlap = np.zeros((3, 2**KEPT_BITS))
        self._aurocs: list[float] = []
        self._n_images = 0

    def update(self, explanation: np.ndarray, mask: np.ndarray) -> float | None:
        """Adds an image.

        Args:
          explanation: float32 [H, W], larger for more anomalous, on one scale for all images.
          mask: bool [H, W], true on defects; all false for a normal image.

        Returns:
          The image's pixel AUROC; `None` if it has no defect or no normal pixel.

        Raises:
          ValueError: the two differ in shape, are of other types, or the map holds NaN.
        """
        if explanation.ndim != 2 or explanation.shape != mask.shape:
            raise ValueError(
                f"a map {explanation.shape} with a mask {mask.shape}: want [H, W] both"
            )
        if explanation.dtype != np.float32 or mask.dtype != np.bool_:
            raise ValueError(
                f"a map {explanation.dtype} with a mask {mask.dtype}: want float32 and bool"
            )
        if np.isnan(explanation).any():
            raise ValueError("the map holds NaN")
        bins = _bins(explanation)
        np.add.at(self._normal, bins[~mask], 1.0)
        np.add.at(self._defect, bins[mask], 1.0)
        np.add.at(self._overlap, bins[mask], _shares_of_region(mask))
        self._n_images += 1
        auroc = _auroc(normal=explanation[~mask], defect=explanation[mask])
        if auroc is not None:
            self._aurocs.append(auroc)
        return auroc

    def state(self) -> dict[str, Any]:
        """What was gathered, as a small tree of arrays that `merge` adds to another's."""
        bins = np.flatnonzero(self._normal + self._defect)
        return {
            "bins": bins,
            "counts": np.stack([self._normal[bins], self._defect[bins], self._overlap[bins]]),
            "aurocs": np.array(self._aurocs, np.float64),
            "n_images": self._n_images,
        }

    def merge(self, state: Mapping[str, Any]) -> None:
        """Adds the images of another, by its `state`."""
        for counts, more in zip(
            (self._normal, self._defect, self._overlap), state["counts"], strict=True
        ):
            counts[state["bins"]] += more
        self._aurocs += state["aurocs"].tolist()
        self._n_images += int(state["n_images"])

    def compute(self) -> dict[str, float]:
        """The measures so far; empty if no defect pixel or no normal pixel was seen.

        Returns:
          pixel_auroc_mean: mean AUROC of the images that have one; absent if none has.
          pixel_auroc, pixel_ap, pixel_f1_max: AUROC, average precision and best F1 of all pixels.
          pixel_aupro: the mean share of a defect region (8-connected) that is found, as a function
            of the share of normal pixels that are flagged, averaged up to 30 % of these.
          n_pixel_images: the images that were added.
        """
        occupied = np.flatnonzero(self._normal + self._defect)
        normal, defect, overlap = (
            counts[occupied] for counts in (self._normal, self._defect, self._overlap)
        )
        if not normal.any() or not defect.any():
            return {}
        labels = np.repeat([0, 1], len(occupied))
        values = np.tile(occupied, 2)
        pixels = np.concatenate([normal, defect])
        precision, recall, _ = metrics.precision_recall_curve(labels, values, sample_weight=pixels)
        # With each defect pixel weighing 1 / the size of its region, a ROC curve is the PRO curve.
        fpr, pro, _ = metrics.roc_curve(
            labels, values, sample_weight=np.concatenate([normal, overlap])
        )
        mean = {"pixel_auroc_mean": float(np.mean(self._aurocs))} if self._aurocs else {}
        return mean | {
            "pixel_auroc": float(metrics.roc_auc_score(labels, values, sample_weight=pixels)),
            "pixel_ap": float(
                metrics.average_precision_score(labels, values, sample_weight=pixels)
            ),
            "pixel_f1_max": float(f1_scores(precision, recall).max()),
            "pixel_aupro": _mean_height(fpr, pro, MAX_FPR),
            "n_pixel_images": self._n_images,
        }


def _bins(values: np.ndarray) -> np.ndarray:
    """The histogram bins of float32 values: never decreasing in the value."""
    bits = (values + np.float32(0)).view(np.int32)  # + 0 turns -0 into 0
    # Sign and magnitude become two's complement, which orders as the numbers do.
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered >> (32 - KEPT_BITS)) + 2 ** (KEPT_BITS - 1)


def _shares_of_region(mask: np.ndarray) -> np.ndarray:
    """For each defect pixel, in the order of `values[mask]`, 1 / the pixels of its region."""
    regions = ndimage.label(mask, structure=np.ones((3, 3)))[0][mask]
    return 1 / np.bincount(regions)[regions]


def _auroc(normal: np.ndarray, defect: np.ndarray) -> float | None:
    """The share of pairs in order, ties counting half; `None` without pairs.

    As scikit-learn's, at a sixth of its time: it is called for every image.
    """
    if not len(normal) or not len(defect):
        return None
    normal, defect = np.sort(normal), np.sort(defect)
    below = np.searchsorted(normal, defect, "left").sum()
    not_above = np.searchsorted(normal, defect, "right").sum()
    return float((below + not_above) / (2 * len(normal) * len(defect)))


def _mean_height(x: np.ndarray, y: np.ndarray, end: float) -> float:
    """The mean over [0, end] of a curve that is linear between its points; x from 0 to 1."""
    inside = x <= end
    return float(
        metrics.auc(np.append(x[inside], end), np.append(y[inside], np.interp(end, x, y))) / end
    )
