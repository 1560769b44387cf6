"""Folding of BatchNorm into the convolutions before it, for evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import traverse_util
from jax import lax

from devnet_jax.models.backbones import get_backbone
from devnet_jax.models.layers.batch_norm import BatchNorm


def fold_batch_norm(variables: Mapping[str, Any], backbone: str) -> dict[str, Any]:
    """Returns variables of the same network with `folded=True`, equal in evaluation to rounding.

    Args:
      variables: "params" and "batch_stats" of a `DeviationNetwork`.
      backbone: key of `BACKBONES`.

    Returns:
      "params" alone, with the convolutions' kernels scaled and their biases added.
    """
    convolution_before = get_backbone(backbone).convolution_before
    params = traverse_util.flatten_dict(variables["params"])
    statistics = traverse_util.flatten_dict(variables.get("batch_stats", {}))
    for *path, leaf in list(statistics):
        if leaf != "mean":
            continue
        norm = tuple(path)
        convolution = (*norm[:-1], convolution_before(norm[-1]))
        inverse_std = lax.rsqrt(statistics[*norm, "var"] + BatchNorm.epsilon)
        factor = params.pop((*norm, "scale")) * inverse_std
        shift = params.pop((*norm, "bias")) - statistics[*norm, "mean"] * factor
        kernel = params[*convolution, "kernel"]
        params[*convolution, "kernel"] = jnp.asarray(kernel * factor, kernel.dtype)
        params[*convolution, "bias"] = shift + factor * params.get((*convolution, "bias"), 0)
    return {"params": traverse_util.unflatten_dict(params)}
