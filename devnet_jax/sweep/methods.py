"""The paper's method, its baselines and ablations, as settings over the same network and data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

METHODS: Mapping[str, Mapping[str, Any]] = {
    "devnet": {"loss.name": "deviation"},
    "flos": {"loss.name": "focal"},  # few-shot learning of scores by the focal loss
    "bce": {"loss.name": "bce"},
    "no_mil": {"loss.name": "deviation", "model.topk": 0.0},  # the mean of all positions
    "one_scale": {"loss.name": "deviation", "model.n_scales": 1},
}
