"""Training: the state, one step, many steps in one call over all devices, and the loop.

In the order of a run: the state is initialised (from pretrained weights where asked), the
newest checkpoint is restored over it if there is one, then epoch follows epoch: draw the
indices of its batches, run its steps on the devices, log, save.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from devnet_jax.checkpoints import Checkpoints
from devnet_jax.config import Config, LossConfig
from devnet_jax.data.augment import random_rotations
from devnet_jax.data.sampler import balanced_batch
from devnet_jax.data.store import ImageStore, make_store
from devnet_jax.devices import AXIS, n_devices, replicated
from devnet_jax.errors import UserError
from devnet_jax.initialisation import make_model
from devnet_jax.losses import binary_cross_entropy, deviation_loss, focal_loss, sample_prior
from devnet_jax.models import DeviationNetwork
from devnet_jax.optimizer import make_optimizer, step_decay
from devnet_jax.preprocessing import normalise
from devnet_jax.randomness import key
from devnet_jax.training_log import TrainingLog

logger = logging.getLogger(__name__)


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


def make_train_step(config: Config) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """One training step on one device's share of a batch, to be run under the device axis `AXIS`.

    The returned function takes the state, images (uint8 [b, S, S, 3]) and labels ([b]), and
    returns the next state and scalar metrics, both equal on all devices.
    """
    model = make_model(config, axis_name=AXIS)
    optimizer = make_optimizer_from(config)
    loss_function = make_loss(config.loss, key(config.seed, "prior"))
    augment_key = key(config.seed, "augment")

    def train_step(
        state: TrainState, images: jax.Array, labels: jax.Array
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        share = labels.shape[0]
        positions = jax.lax.axis_index(AXIS) * share + jnp.arange(share)
        step_key = jax.random.fold_in(augment_key, state.step)
        images = random_rotations(images, step_key, positions, config.train.rotation)
        state, result = gradient_step(
            model, optimizer, loss_function, state, normalise(images), labels
        )
        metrics = {"loss": result.loss, "gradient_norm": optax.tree.norm(result.gradients)}
        return state, metrics

    return train_step


def make_train_call(config: Config, store: ImageStore, scan: bool) -> Callable[..., Any]:
    """Many steps on all local devices in one call: the package's one pmap.

    Args:
      config: all settings.
      store: where the images are.
      scan: whether the steps of a call are a loop on the device, or laid out one after the other.

    Returns:
      A function that takes the state (replicated; donated), `store.resident`, `store.per_call` of
      indices [steps, D, b], and labels [steps, D, b], and returns the state and the metrics of
      each step, [steps]. No array in it carries a device axis: the state is replicated by its
      sharding.
    """
    train_step = make_train_step(config)

    def steps(
        state: TrainState, resident: Any, batches: jax.Array, labels: jax.Array
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        def one(state: TrainState, batch: tuple[jax.Array, jax.Array]) -> Any:
            return train_step(state, store.gather(resident, batch[0]), batch[1])

        if scan:
            return jax.lax.scan(one, state, (batches, labels))
        history = []
        for batch in zip(batches, labels, strict=True):
            state, metrics = one(state, batch)
            history.append(metrics)
        return state, jax.tree.map(lambda *values: jnp.stack(values), *history)

    return jax.pmap(
        steps, axis_name=AXIS, in_axes=(None, None, 1, 1), out_axes=None, donate_argnums=0
    )


def require_divisible_batch(config: Config) -> None:
    """Raises `UserError` where the batch cannot be shared equally among the devices."""
    if config.train.batch_size % n_devices():
        raise UserError(
            f"config.train.batch_size = {config.train.batch_size}: must be a multiple of the "
            f"{n_devices()} devices"
        )


def fit(
    config: Config,
    images: np.ndarray,
    n_normal: int,
    variables: dict[str, Any],
    checkpoints: Checkpoints,
    log: TrainingLog,
) -> TrainState:
    """Trains from the newest checkpoint, or from `variables` where there is none, to the end.

    Args:
      config: all settings.
      images: uint8 [N, S, S, 3], the normal training images, then the labelled anomalies.
      n_normal: how many of them are normal.
      variables: what a run without a checkpoint starts from (`make_variables`).
      checkpoints: read once, then written.
      log: told of every call and every epoch.

    Returns:
      The state after the last step.

    Raises:
      UserError: the batch does not divide by the devices, a checkpoint cannot be restored, or
        the loss, the gradient or a parameter is no longer finite (the last good checkpoint
        stays).
    """
    require_divisible_batch(config)
    state = initial_state(config, variables)
    if checkpoints.latest_step() is not None:
        state = restore_state(checkpoints, state, config)
    # Replicated before the first call, or the second, with other shardings, compiles again.
    state = jax.device_put(state, replicated())
    store = make_store(images, config.dataset.store, replicated())
    logger.info("%d training images are kept in %s memory", len(images), store.place)
    train_call = make_train_call(config, store, scan=not on_cpu())

    per_call = steps_per_call(config, store)
    done = int(state.step)
    log.resume(done)
    for epoch in range(done // config.train.steps_per_epoch, config.train.epochs):
        last_step = (epoch + 1) * config.train.steps_per_epoch
        history = []
        while done < last_step:
            started = time.perf_counter()
            count = min(per_call, last_step - done)
            indices = batch_indices(config, range(done, done + count), n_normal, len(images))
            labels = (indices >= n_normal).astype(np.float32)
            state, metrics = train_call(state, store.resident, store.per_call(indices), labels)
            metrics = {name: np.asarray(values) for name, values in metrics.items()}
            _require_finite(metrics, done, checkpoints)
            done += count
            history.append(metrics)
            log.call(done, metrics, time.perf_counter() - started)
        log.epoch(
            epoch + 1,
            done,
            {name: np.concatenate([m[name] for m in history]) for name in history[0]},
            learning_rate=float(make_schedule(config)(last_step - 1)),
        )
        if (epoch + 1) % config.train.checkpoint_epochs == 0 or epoch + 1 == config.train.epochs:
            save_state(checkpoints, state, config)
    return state


def steps_per_call(config: Config, store: ImageStore) -> int:
    """Steps that one call runs: as set, else one on a CPU, and on accelerators an epoch, or as
    many as the store can hand over at once."""
    if config.train.steps_per_call:
        return config.train.steps_per_call
    if on_cpu():
        return 1
    return min(config.train.steps_per_epoch, store.max_steps(config.train.batch_size))


def on_cpu() -> bool:
    """Whether the steps of a call are laid out one after the other rather than scanned.

    XLA's CPU backend runs convolutions inside a loop by a path many times slower, also where
    the scan is unrolled.
    """
    return jax.default_backend() == "cpu"


def batch_indices(config: Config, steps: range, n_normal: int, n_images: int) -> np.ndarray:
    """Indices int32 [steps, D, b] of the global batches of those steps, shared among devices."""
    batches = [
        balanced_batch(
            step,
            n_normal=n_normal,
            n_anomaly=n_images - n_normal,
            batch_size=config.train.batch_size,
            seed=config.seed,
        )
        for step in steps
    ]
    return np.stack(batches).reshape(len(steps), n_devices(), -1)


def save_state(checkpoints: Checkpoints, state: TrainState, config: Config) -> None:
    """Saves the state as the checkpoint of its step; raises `UserError` if it is not finite."""
    step = int(state.step)
    if not _all_finite(state.variables):
        raise _not_finite(step, "a parameter", checkpoints)
    optimizer = {"state": state.optimizer_state, "step": state.step}
    checkpoints.save(step, state.variables, optimizer, settings=config.to_dict())


@jax.jit
def _all_finite(tree: Any) -> jax.Array:
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]))


def restore_state(checkpoints: Checkpoints, like: TrainState, config: Config) -> TrainState:
    """The newest checkpoint's state, with the shapes of `like`, replicated over the devices."""
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated()), like
    )
    restored = checkpoints.restore(
        config,
        variables=abstract.variables,
        optimizer={"state": abstract.optimizer_state, "step": abstract.step},
    )
    optimizer = restored["optimizer"]
    return TrainState(optimizer["step"], restored["variables"], optimizer["state"])


def _require_finite(
    metrics: dict[str, np.ndarray], first_step: int, checkpoints: Checkpoints
) -> None:
    for name, values in metrics.items():
        bad = np.flatnonzero(~np.isfinite(values))
        if bad.size:
            what = f"the {name.replace('_', ' ')} ({values[bad[0]]})"
            raise _not_finite(first_step + int(bad[0]) + 1, what, checkpoints)


def _not_finite(step: int, what: str, checkpoints: Checkpoints) -> UserError:
    last_good = checkpoints.latest_step()
    saved = "no checkpoint was saved yet" if last_good is None else f"step {last_good} is saved"
    return UserError(
        f"step {step}: {what} is not finite; training stopped, {saved}; "
        "a smaller config.optimizer.learning_rate may help"
    )
