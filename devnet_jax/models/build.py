"""From settings to the network and to its first variables."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from devnet_jax.config import Config
from devnet_jax.models import DeviationNetwork, from_torch_state_dict
from devnet_jax.rng import key


def make_model(config: Config, axis_name: str | None = None) -> DeviationNetwork:
    """The network that the settings describe; `axis_name` synchronises BatchNorm in training."""
    return DeviationNetwork(
        backbone=config.model.backbone,
        n_scales=config.model.n_scales,
        topk=config.model.topk,
        dtype=jnp.dtype(config.model.dtype),
        axis_name=axis_name,
    )


def make_variables(
    config: Config, pretrained: dict[str, np.ndarray] | None = None
) -> dict[str, Any]:
    """Initial "params" and "batch_stats", drawn with the seed.

    Args:
      config: all settings.
      pretrained: tensors under torchvision's names (`devnet_jax.models.load_pretrained`), which
        take the place of the drawn ones.
    """
    loaded: dict[str, Any] = {}
    if pretrained is not None:
        loaded = from_torch_state_dict(pretrained, backbone=config.model.backbone)
    # Drawing takes a tenth of a second, and optimising the program for it took four.
    make = jax.jit(
        functools.partial(_draw_or_take, config),
        compiler_options={"xla_backend_optimization_level": 1},
    )
    return make(_key(config), loaded)


def abstract_variables(config: Config) -> dict[str, Any]:
    """Shapes and dtypes of the variables, computed without making them."""
    return jax.eval_shape(functools.partial(_draw, config), _key(config))


def _key(config: Config) -> jax.Array:
    return key(config.seed, "initialise")


def _draw(config: Config, seed: jax.Array) -> dict[str, Any]:
    size = config.dataset.image_size
    variables = make_model(config).init(seed, jnp.zeros((1, size, size, 3)), train=False)
    return {"batch_stats": {}, **variables}  # AlexNet has no running statistics


def _draw_or_take(config: Config, seed: jax.Array, loaded: dict[str, Any]) -> dict[str, Any]:
    """The variables, drawn where they are not loaded: XLA draws only what is asked for."""
    drawn = traverse_util.flatten_dict(_draw(config, seed), keep_empty_nodes=True)
    taken = traverse_util.flatten_dict(loaded)
    # A file may hold half precision; parameters are trained in the precision of the drawn.
    cast = {path: value.astype(drawn[path].dtype) for path, value in taken.items()}
    return traverse_util.unflatten_dict({**drawn, **cast})
