"""A trained network without BatchNorm: each one is folded into the convolution before it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import traverse_util
from jax import lax

from devnet_jax.models.layers.batch_norm import BatchNorm


def fold_batch_norm(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Variables of the same network with `folded=True`, equal in evaluation mode up to rounding.

    Args:
      variables: "params" and "batch_stats" of a `DeviationNetwork`.

    Returns:
      "params" alone, the convolutions' kernels scaled and their biases added.
    """
    params = traverse_util.flatten_dict(variables["params"])
    statistics = traverse_util.flatten_dict(variables.get("batch_stats", {}))
    for *path, leaf in list(statistics):
        if leaf != "mean":
            continue
        norm = tuple(path)
        convolution = (*norm[:-1], _before(norm[-1]))
        inverse_std = lax.rsqrt(statistics[*norm, "var"] + BatchNorm.epsilon)
        factor = params.pop((*norm, "scale")) * inverse_std
        shift = params.pop((*norm, "bias")) - statistics[*norm, "mean"] * factor
        kernel = params[*convolution, "kernel"]
        params[*convolution, "kernel"] = jnp.asarray(kernel * factor, kernel.dtype)
        params[*convolution, "bias"] = shift
    return {"params": traverse_util.unflatten_dict(params)}


def _before(norm: str) -> str:
    """The name of the convolution before a BatchNorm, after torchvision's: conv1 of bn1."""
    return "downsample_0" if norm == "downsample_1" else norm.replace("bn", "conv")
