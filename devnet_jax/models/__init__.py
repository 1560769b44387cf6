"""The deviation network and its weights."""

from devnet_jax.models.folding import fold_batch_norm
from devnet_jax.models.network import (
    BACKBONES,
    DeviationNetwork,
    check_n_scales,
    feature_size,
    max_n_scales,
)
from devnet_jax.models.pretrained import from_torch_state_dict, load_pretrained, to_torch_state_dict

__all__ = [
    "BACKBONES",
    "DeviationNetwork",
    "check_n_scales",
    "feature_size",
    "fold_batch_norm",
    "from_torch_state_dict",
    "load_pretrained",
    "max_n_scales",
    "to_torch_state_dict",
]
