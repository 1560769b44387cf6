"""One training step, and the one `pmap` that runs steps on all devices.

A step is a pure function of state, images and labels. Only this module knows of a
device axis; `training/loop.py` handles batches of this process.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from devnet_jax.config import Config
from devnet_jax.data.augment import random_rotations
from devnet_jax.data.store import ImageStore
from devnet_jax.distributed.sharding import AXIS, replicated
from devnet_jax.losses import get_loss
from devnet_jax.models import DeviationNetwork
from devnet_jax.models.bags import score_bags
from devnet_jax.models.build import make_model
from devnet_jax.rng import key
from devnet_jax.training.optimizer import optimizer_from


class TrainState(struct.PyTreeNode):
    """The training state: a pytree that is equal on all devices.

    Attributes:
      step: int32 scalar, number of steps done.
      variables: "params" and "batch_stats" of the network.
      optimizer_state: state of the Optax chain.
    """

    step: jax.Array
    variables: dict[str, Any]
    optimizer_state: optax.OptState


def initial_state(config: Config, variables: dict[str, Any]) -> TrainState:
    """Returns the state before the first step."""
    optimizer_state = optimizer_from(config).init(variables["params"])
    return TrainState(jnp.zeros((), jnp.int32), variables, optimizer_state)


class StepResult(NamedTuple):
    """Loss, scores [b] of this device's images, and gradients before clipping."""

    loss: jax.Array
    scores: jax.Array
    gradients: Any


def gradient_step(
    model: DeviationNetwork,
    optimizer: optax.GradientTransformation,
    loss_function: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
    state: TrainState,
    images: jax.Array,
    labels: jax.Array,
) -> tuple[TrainState, StepResult]:
    """Performs one step of gradient descent on one device's share of a batch.

    Args:
      model: network. Its `axis_name`, if set, is the device axis that the step runs under.
      optimizer: optimiser of the parameters.
      loss_function: maps (scores [b], labels [b], step) to a scalar.
      state: state before the step.
      images: uint8 [b, *preprocessing.shape], or floating [b, H, W, 3], normalised.
      labels: float [b], 0 for normal images and 1 for anomalies.

    Returns:
      The next state; and the loss and gradients, which are equal on all devices, and scores [b].
    """
    params = state.variables["params"]

    def loss_of(params: Any) -> tuple[jax.Array, tuple[jax.Array, Any]]:
        variables = {**state.variables, "params": params}
        (scores, _), updated = score_bags(model, variables, images, train=True)
        return loss_function(scores, labels, state.step), (scores, updated)

    (loss, (scores, updated)), gradients = jax.value_and_grad(loss_of, has_aux=True)(params)
    if model.axis_name is not None:
        # Averaged before clipping: the norm is that of the whole batch.
        loss, gradients = jax.lax.pmean((loss, gradients), model.axis_name)
    updates, optimizer_state = optimizer.update(gradients, state.optimizer_state, params)
    variables = {**state.variables, **updated, "params": optax.apply_updates(params, updates)}
    return TrainState(state.step + 1, variables, optimizer_state), StepResult(
        loss, scores, gradients
    )


class Keys(NamedTuple):
    """A run's keys for augmentation and for samples of the prior; the step is folded in."""

    augment: jax.Array
    prior: jax.Array


def make_train_step(
    config: Config, store: ImageStore
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """Returns the training step of one device, to be run under the device axis `AXIS`.

    The step maps `Keys`, `store.resident`, the state and one batch, (`store.call_input` of indices
    [b], labels [b]), to the next state and scalar metrics, both equal on all devices.
    """
    model = make_model(config, axis_name=AXIS)
    assert isinstance(model, DeviationNetwork)
    optimizer = optimizer_from(config)
    loss = get_loss(config.loss.name)

    def train_step(
        keys: Keys, resident: Any, state: TrainState, batch: tuple[jax.Array, jax.Array]
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        def loss_function(scores: jax.Array, labels: jax.Array, step: jax.Array) -> jax.Array:
            # The key is the same on all devices: all compare with the same sample of the prior.
            return loss.function(scores, labels, config.loss, jax.random.fold_in(keys.prior, step))

        images, labels = store.gather(resident, batch[0]), batch[1]
        n = labels.shape[0]
        positions = jax.lax.axis_index(AXIS) * n + jnp.arange(n)  # in the batch of all devices
        step_key = jax.random.fold_in(keys.augment, state.step)
        images = random_rotations(images, step_key, positions, config.train.rotation)
        state, result = gradient_step(model, optimizer, loss_function, state, images, labels)
        metrics = {"loss": result.loss, "gradient_norm": optax.tree.norm(result.gradients)}
        return state, metrics

    return train_step


@dataclasses.dataclass(frozen=True)
class TrainCall:
    """Several steps on all devices of all processes in one call; see `make_train_call`."""

    pmapped: Any
    keys: Keys

    def __call__(
        self, state: TrainState, resident: Any, batches: np.ndarray, labels: np.ndarray
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """Runs the steps.

        Args:
          state: state before the call, replicated over the devices; it is donated.
          resident: `store.resident`.
          batches: `store.call_input(indices)` of indices [steps, B], B the batch of this process.
          labels: [steps, B], 0 or 1.

        Returns:
          The state after the steps, and the metrics of each step, [steps].
        """
        return self.pmapped(self.keys, state, resident, _per_device(batches), _per_device(labels))

    def lower(self, state: Any, resident: Any, batches: np.ndarray, labels: np.ndarray) -> Any:
        """Lowers the call to the compiler without running it, as `jax.jit`'s `lower` does."""
        return self.pmapped.lower(
            self.keys, state, resident, _per_device(batches), _per_device(labels)
        )


def make_train_call(config: Config, store: ImageStore, scan: bool) -> TrainCall:
    """Returns a function that runs several steps on all devices of all processes in one call.

    This is the package's one `pmap`. It splits each batch among the devices of this process.
    `in_axes=None` and `out_axes=None` keep the state without a device axis, replicated by its
    sharding.

    Args:
      config: all settings.
      store: training images.
      scan: True to run the steps in a loop on the device, False to unroll them.
    """
    train_step = make_train_step(config, store)

    def steps(
        keys: Keys, state: TrainState, resident: Any, batches: jax.Array, labels: jax.Array
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        step = functools.partial(train_step, keys, resident)
        if scan:
            return jax.lax.scan(step, state, (batches, labels))
        history = []
        for batch in zip(batches, labels, strict=True):
            state, metrics = step(state, batch)
            history.append(metrics)
        return state, jax.tree.map(lambda *values: jnp.stack(values), *history)

    pmapped = jax.pmap(
        steps, axis_name=AXIS, in_axes=(None, None, None, 1, 1), out_axes=None, donate_argnums=1
    )
    # Keys are arguments, not constants: runs that differ only in their seed share the program.
    keys = Keys(augment=key(config.seed, "augment"), prior=key(config.seed, "prior"))
    return TrainCall(pmapped, jax.device_put(keys, replicated()))


def _per_device(batches: np.ndarray) -> np.ndarray:
    """Splits [steps, B, …] into [steps, D, B / D, …] for the D devices of this process."""
    n_steps, batch_size, *rest = batches.shape
    n_devices = jax.local_device_count()
    return batches.reshape(n_steps, n_devices, batch_size // n_devices, *rest)
