"""The networks of both detectors, and their weights."""

from devnet_jax.models.backbones import BACKBONES
from devnet_jax.models.devcore import DevCore
from devnet_jax.models.folding import fold_batch_norm
from devnet_jax.models.heads import HEADS
from devnet_jax.models.network import DeviationNetwork, check_n_scales, max_n_scales
from devnet_jax.models.pretrained import (
    from_torch_state_dict,
    load_pretrained,
    to_torch_state_dict,
)

__all__ = [
    "BACKBONES",
    "HEADS",
    "DevCore",
    "DeviationNetwork",
    "check_n_scales",
    "fold_batch_norm",
    "from_torch_state_dict",
    "load_pretrained",
    "max_n_scales",
    "to_torch_state_dict",
]
