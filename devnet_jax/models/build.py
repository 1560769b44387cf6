"""Builds the network and its initial variables from the settings."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from devnet_jax.config import Config
from devnet_jax.data.preprocessing import Preprocessing
from devnet_jax.models import (
    DevCore,
    DeviationNetwork,
    from_torch_state_dict,
    load_pretrained,
)
from devnet_jax.models.bags import Model
from devnet_jax.models.devcore import LABELLED_PER_IMAGE
from devnet_jax.rng import key


def make_model(config: Config, axis_name: str | None = None) -> Model:
    """Builds the network of the settings' detector.

    Args:
      config: all settings.
      axis_name: device axis over which BatchNorm is synchronised.
    """
    if config.model.detector == "devcore":
        return DevCore(
            backbone=config.model.backbone,
            memory_size=config.devcore.memory_size,
            n_labelled=max(LABELLED_PER_IMAGE * config.n_labelled, 1),
            top_positions=config.devcore.top_positions,
            dtype=jnp.dtype(config.model.dtype),
            axis_name=axis_name,
        )
    return DeviationNetwork(
        backbone=config.model.backbone,
        n_scales=config.model.n_scales,
        head=config.model.head,
        topk=config.model.topk,
        dtype=jnp.dtype(config.model.dtype),
        axis_name=axis_name,
    )


def make_variables(
    config: Config, pretrained: dict[str, np.ndarray] | None = None
) -> dict[str, Any]:
    """Returns initial "params" and "batch_stats", drawn from the seed.

    Args:
      config: all settings.
      pretrained: tensors under torchvision's names (`devnet_jax.models.load_pretrained`), which
        replace the drawn ones.
    """
    loaded: dict[str, Any] = {}
    if pretrained is not None:
        loaded = from_torch_state_dict(pretrained, backbone=config.model.backbone)
    # The program runs once for 0.1 s; optimising it took 4 s.
    make = jax.jit(
        functools.partial(_initialise, config),
        compiler_options={"xla_backend_optimization_level": 1},
    )
    return make(_key(config), loaded)


def first_variables(config: Config) -> dict[str, Any]:
    """Returns `make_variables`, with pretrained weights if the settings name some.

    Raises:
      UserError: if the weights cannot be loaded, or belong to another network.
    """
    if config.model.pretrained == "none":
        return make_variables(config)
    return make_variables(config, load_pretrained(config.model.pretrained, config.model.backbone))


def abstract_variables(config: Config) -> dict[str, Any]:
    """Returns shapes and dtypes of the variables without computing them."""
    return jax.eval_shape(lambda: _draw(config, _key(config)))  # the key is not computed, either


def _key(config: Config) -> jax.Array:
    return key(config.seed, "initialise")


def _draw(config: Config, seed: jax.Array) -> dict[str, Any]:
    height, width = Preprocessing.from_settings(config.dataset).shape[-3:-1]
    variables = make_model(config).init(seed, jnp.zeros((1, height, width, 3)), train=False)
    return {"batch_stats": {}, **variables}  # AlexNet has no running statistics


def _initialise(config: Config, seed: jax.Array, loaded: dict[str, Any]) -> dict[str, Any]:
    """Draws the variables that are not loaded; XLA removes the draws of the others."""
    drawn = traverse_util.flatten_dict(_draw(config, seed), keep_empty_nodes=True)
    flat = traverse_util.flatten_dict(loaded)
    # A file may hold half precision; training keeps the precision of the drawn variables. Only the
    # head of an official checkpoint may have no place: another head is drawn.
    cast = {path: value.astype(drawn[path].dtype) for path, value in flat.items() if path in drawn}
    return traverse_util.unflatten_dict({**drawn, **cast})
