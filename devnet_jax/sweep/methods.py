"""The settings of both detectors, and of baselines and ablations of the paper's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

METHODS: Mapping[str, Mapping[str, Any]] = {
    "devnet": {"loss.name": "deviation"},
    "devcore": {"model.detector": "devcore"},
    "flos": {"loss.name": "focal"},  # few-shot scores learnt with the focal loss
    "bce": {"loss.name": "bce"},
    "no_mil": {"loss.name": "deviation", "model.topk": 0.0},  # mean over all positions
    "one_scale": {"loss.name": "deviation", "model.n_scales": 1},
}
