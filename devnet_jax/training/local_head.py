"""Learning of DevCore's local head: the loss says which differences from good parts matter."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax

from devnet_jax.config import Config, DevCoreConfig, LossConfig
from devnet_jax.data.sampler import balanced_batch
from devnet_jax.losses import get_loss
from devnet_jax.models.devcore import position_scores
from devnet_jax.models.heads import mean_of_largest
from devnet_jax.rng import key


class LocalHead(NamedTuple):
    """Parameters of `position_scores`: v and u, each float32 [C]."""

    weight: Array
    direction: Array


class _Parameters(NamedTuple):
    """Learned parameters: the head, and scale (as a logarithm) and shift of the image's score."""

    head: LocalHead
    log_scale: Array
    shift: Array


def untrained_head(n_channels: int) -> LocalHead:
    """Returns the head that scores a position by its distance to the nearest good patch."""
    return LocalHead(jnp.zeros(n_channels), jnp.zeros(n_channels))


def fit_local_head(
    config: Config, residuals: Array, counts: np.ndarray, normal: np.ndarray, anomalous: np.ndarray
) -> LocalHead:
    """Learns a local head from normal and anomalous images.

    Args:
      config: all settings.
      residuals: floating [N, P, C], residuals of all images in units of their root mean square over
        normal images.
      counts: int [N], number of positions whose mean is the score of each image.
      normal: int [n], indices of the normal images to learn from.
      anomalous: int [a], indices of the anomalous ones.
    """
    settings = config.devcore
    batches = np.stack(
        [
            balanced_batch(
                step,
                n_normal=len(normal),
                n_anomaly=len(anomalous),
                batch_size=settings.head_batch_size,
                seed=config.seed,
            )
            for step in range(settings.head_steps)
        ]
    )
    labels = (batches >= len(normal)).astype(np.float32)
    indices = np.concatenate([normal, anomalous])[batches]
    untrained = untrained_head(residuals.shape[-1])
    centre, spread = centre_and_spread(local_scores(residuals, untrained, counts)[normal])
    return _fit(
        settings,
        config.loss,
        int(counts.max()),
        residuals,
        jnp.asarray(counts),
        indices,
        labels,
        jnp.float32(centre),
        jnp.float32(spread),
        jnp.float32(settings.head_penalty / len(anomalous)),
        key(config.seed, "prior"),
    )


@functools.partial(jax.jit, static_argnames=("settings", "loss_settings", "most"))
def _fit(
    settings: DevCoreConfig,
    loss_settings: LossConfig,
    most: int,
    residuals: Array,
    counts: Array,
    indices: Array,
    labels: Array,
    centre: Array,
    spread: Array,
    penalty: Array,
    prior_key: Array,
) -> LocalHead:
    """Runs all steps in one loop; nothing in it is a convolution."""
    loss = get_loss(loss_settings.name)
    optimizer = optax.adam(settings.head_learning_rate)

    def step_loss(
        parameters: _Parameters, step: Array, batch: Array, counts: Array, labels: Array
    ) -> Array:
        head = parameters.head
        maps = position_scores(batch, head.weight, head.direction)
        scores = (mean_of_largest(maps, counts, most) - centre) / spread
        scores = scores * jnp.exp(parameters.log_scale) + parameters.shift
        step_key = jax.random.fold_in(prior_key, step)
        squares = jnp.sum(head.weight**2) + jnp.sum(head.direction**2)
        return loss.function(scores, labels, loss_settings, step_key) + penalty * squares

    def step(
        state: tuple[_Parameters, optax.OptState], inputs: tuple[Array, ...]
    ) -> tuple[tuple[_Parameters, optax.OptState], None]:
        parameters, optimizer_state = state
        number, batch, labels = inputs
        images = residuals[batch].astype(jnp.float32)
        gradients = jax.grad(step_loss)(parameters, number, images, counts[batch], labels)
        updates, optimizer_state = optimizer.update(gradients, optimizer_state)
        return (optax.apply_updates(parameters, updates), optimizer_state), None

    first = _Parameters(untrained_head(residuals.shape[-1]), jnp.zeros(()), jnp.zeros(()))
    steps = jnp.arange(indices.shape[0])
    (last, _), _ = lax.scan(step, (first, optimizer.init(first)), (steps, indices, labels))
    return last.head


def local_scores(residuals: Array, head: LocalHead, counts: np.ndarray) -> np.ndarray:
    """Returns the local scores of images, float64 [N].

    Args:
      residuals: floating [N, P, C].
      head: local head.
      counts: int [N], number of positions whose mean is the score of each image.
    """
    scores = _local_scores(residuals, head, jnp.asarray(counts), int(counts.max()))
    return np.asarray(scores, np.float64)


@functools.partial(jax.jit, static_argnames="most")
def _local_scores(residuals: Array, head: LocalHead, counts: Array, most: int) -> Array:
    def of_image(image: tuple[Array, Array]) -> Array:
        residual, count = image
        maps = position_scores(residual.astype(jnp.float32), head.weight, head.direction)
        return mean_of_largest(maps[None], count[None], most)[0]

    return lax.map(of_image, (residuals, counts))


def centre_and_spread(scores: np.ndarray) -> tuple[float, float]:
    """Returns median and deviation of scores, the latter as 1.4826 times the median deviation."""
    centre = float(np.median(scores))
    spread = 1.4826 * float(np.median(np.abs(scores - centre)))
    # Equal scores, as of copies of one image, have no spread.
    return centre, max(spread, 1e-3 * abs(centre), 1e-6)
