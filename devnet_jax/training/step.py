"""One training step, and many of them in one call over all devices.

A step is pure: state, images and labels in, state and metrics out. The loop around it is in
`training.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct

from devnet_jax.config import Config, LossConfig
from devnet_jax.data.augment import random_rotations
from devnet_jax.data.preprocessing import normalise
from devnet_jax.data.store import ImageStore
from devnet_jax.distributed.sharding import AXIS, replicated
from devnet_jax.losses import binary_cross_entropy, deviation_loss, focal_loss, sample_prior
from devnet_jax.models import DeviationNetwork
from devnet_jax.models.build import make_model
from devnet_jax.rng import key
from devnet_jax.training.optimizer import make_optimizer, step_decay


class TrainState(struct.PyTreeNode):
    """What a step changes; a pytree, equal on all devices.

    Attributes:
      step: int32 scalar, steps done.
      variables: the network's "params" and "batch_stats".
      optimizer_state: of the Optax chain.
    """

    step: jax.Array
    variables: dict[str, Any]
    optimizer_state: optax.OptState


def make_optimizer_from(config: Config) -> optax.GradientTransformation:
    """The optimiser that the settings describe."""
    settings = config.optimizer
    return make_optimizer(
        learning_rate=make_schedule(config),
        weight_decay=settings.weight_decay,
        clip_norm=settings.clip_norm,
    )


def make_schedule(config: Config) -> optax.Schedule:
    """The learning rate as a function of the step."""
    settings = config.optimizer
    return step_decay(
        settings.learning_rate,
        settings.decay_rate,
        settings.decay_epochs * config.train.steps_per_epoch,
    )


def initial_state(config: Config, variables: dict[str, Any]) -> TrainState:
    """The state before the first step."""
    optimizer_state = make_optimizer_from(config).init(variables["params"])
    return TrainState(jnp.zeros((), jnp.int32), variables, optimizer_state)


def make_loss(config: LossConfig, prior_key: jax.Array) -> Callable[..., jax.Array]:
    """The loss as a function of (scores [B], labels [B], step)."""
    if config.name == "focal":
        return lambda scores, labels, step: focal_loss(scores, labels)
    if config.name == "bce":
        return lambda scores, labels, step: binary_cross_entropy(scores, labels)

    def deviation(scores: jax.Array, labels: jax.Array, step: jax.Array) -> jax.Array:
        # The same key on all devices: they compare their scores with the same draw.
        prior = sample_prior(
            jax.random.fold_in(prior_key, step),
            n_samples=config.prior_samples,
            mean=config.prior_mean,
            std=config.prior_std,
        )
        return deviation_loss(scores, labels, prior, margin=config.margin)

    return deviation


class StepResult(NamedTuple):
    """What one step computed: the loss, this device's scores, the gradients before clipping."""

    loss: jax.Array
    scores: jax.Array
    gradients: Any


def gradient_step(
    model: DeviationNetwork,
    optimizer: optax.GradientTransformation,
    loss_function: Callable[..., jax.Array],
    state: TrainState,
    images: jax.Array,
    labels: jax.Array,
) -> tuple[TrainState, StepResult]:
    """One step of gradient descent on one device's share of a batch.

    Args:
      model: whose `axis_name`, if it has one, is the device axis that the step runs under.
      optimizer: of the parameters.
      loss_function: of (scores, labels, step).
      state: the state before.
      images: float [b, S, S, 3], normalised.
      labels: float [b], 0 normal or 1 anomalous.

    Returns:
      The next state, loss and gradients, which are equal on all devices, and scores [b].
    """
    params = state.variables["params"]

    def loss_of(params: Any) -> tuple[jax.Array, tuple[jax.Array, Any]]:
        variables = {**state.variables, "params": params}
        (scores, _), updated = model.apply(variables, images, train=True, mutable=["batch_stats"])
        return loss_function(scores, labels, state.step), (scores, updated)

    (loss, (scores, updated)), gradients = jax.value_and_grad(loss_of, has_aux=True)(params)
    if model.axis_name is not None:
        # The mean over devices comes before clipping: the norm is that of the whole batch.
        loss, gradients = jax.lax.pmean((loss, gradients), model.axis_name)
    updates, optimizer_state = optimizer.update(gradients, state.optimizer_state, params)
    variables = {**state.variables, **updated, "params": optax.apply_updates(params, updates)}
    return TrainState(state.step + 1, variables, optimizer_state), StepResult(
        loss, scores, gradients
    )


class Keys(NamedTuple):
    """Where a run's randomness starts: for the augmentation, and for the draws from the prior."""

    augment: jax.Array
    prior: jax.Array


def make_train_step(config: Config) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """One training step on one device's share of a batch, to be run under the device axis `AXIS`.

    The returned function takes `Keys`, the state, images (uint8 [b, S, S, 3]) and labels ([b]),
    and returns the next state and scalar metrics, both equal on all devices.
    """
    model = make_model(config, axis_name=AXIS)
    optimizer = make_optimizer_from(config)

    def train_step(
        keys: Keys, state: TrainState, images: jax.Array, labels: jax.Array
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        share = labels.shape[0]
        positions = jax.lax.axis_index(AXIS) * share + jnp.arange(share)
        step_key = jax.random.fold_in(keys.augment, state.step)
        images = random_rotations(images, step_key, positions, config.train.rotation)
        loss_function = make_loss(config.loss, keys.prior)
        state, result = gradient_step(
            model, optimizer, loss_function, state, normalise(images), labels
        )
        metrics = {"loss": result.loss, "gradient_norm": optax.tree.norm(result.gradients)}
        return state, metrics

    return train_step


def make_train_call(config: Config, store: ImageStore, scan: bool) -> Callable[..., Any]:
    """Many steps on all devices, of all processes, in one call: the package's one pmap.

    Args:
      config: all settings.
      store: where the images are.
      scan: whether the steps of a call are a loop on the device, or laid out one after the other.

    Returns:
      A function that takes the state (replicated; donated), `store.resident`, `store.per_call` of
      indices [steps, D, b], and labels [steps, D, b], D the devices of this process, and returns
      the state and the metrics of each step, [steps]. No array in it carries a device axis: the
      state is replicated by its sharding.
    """
    train_step = make_train_step(config)

    def steps(
        keys: Keys, state: TrainState, resident: Any, batches: jax.Array, labels: jax.Array
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        def one(state: TrainState, batch: tuple[jax.Array, jax.Array]) -> Any:
            return train_step(keys, state, store.gather(resident, batch[0]), batch[1])

        if scan:
            return jax.lax.scan(one, state, (batches, labels))
        history = []
        for batch in zip(batches, labels, strict=True):
            state, metrics = one(state, batch)
            history.append(metrics)
        return state, jax.tree.map(lambda *values: jnp.stack(values), *history)

    call = jax.pmap(
        steps, axis_name=AXIS, in_axes=(None, None, None, 1, 1), out_axes=None, donate_argnums=1
    )
    # Keys are given, not built in: runs that differ in their seed share what was compiled.
    keys = Keys(augment=key(config.seed, "augment"), prior=key(config.seed, "prior"))
    return functools.partial(call, jax.device_put(keys, replicated()))
