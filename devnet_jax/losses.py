"""Losses on image scores as pure functions, and `LOSSES`, the table that settings choose from.

Scores are real numbers, larger for images that look more anomalous. Labels are 0 for normal images
and 1 for anomalies. Every loss returns the mean over the batch as a scalar.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from devnet_jax.errors import lookup
from devnet_jax.prior import Prior


def sample_prior(
    key: Array,
    n_samples: int = 5000,
    mean: float = 0.0,
    std: float = 1.0,
    dtype: DTypeLike = jnp.float32,
) -> Array:
    """Draws reference scores [n_samples] from the Gaussian prior N(mean, std²).

    The sample stands for the scores of normal images (arXiv 2108.00462, section 3.2). Training
    draws a new one at each step.
    """
    return mean + std * jax.random.normal(key, (n_samples,), dtype)


def deviations(scores: ArrayLike, prior_sample: ArrayLike) -> Array:
    """Standardises scores by a sample of the prior (arXiv 2108.00462, equation 2).

    Args:
      scores: floating array of any shape.
      prior_sample: [n] with n ≥ 2. The divisor of its variance is n - 1.

    Returns:
      (scores - mean) / standard deviation, of the shape of `scores`.

    Raises:
      ValueError: if `prior_sample` has another shape.
    """
    scores, prior_sample = jnp.asarray(scores), jnp.asarray(prior_sample)
    if prior_sample.ndim != 1 or prior_sample.size < 2:
        raise ValueError(f"prior_sample must be [n], n at least 2; got {prior_sample.shape}")
    return (scores - prior_sample.mean()) / prior_sample.std(ddof=1)


def deviation_loss(
    scores: ArrayLike, labels: ArrayLike, prior_sample: ArrayLike, margin: float = 5.0
) -> Array:
    """Pulls normal scores to the prior's mean and pushes anomalies `margin` deviations above it.

    mean((1 - y)·|dev| + y·max(0, margin - dev)), with dev from `deviations`.

    Args:
      scores: [B], floating.
      labels: [B], 0 or 1, any numeric dtype.
      prior_sample: [n], from `sample_prior`.
      margin: confidence margin a, in standard deviations.

    Returns:
      The mean over the batch, in the dtype of `scores` and `prior_sample` promoted.

    Raises:
      ValueError: if shapes differ.
      TypeError: if scores are not floating.

    References:
      Pang, Ding, Shen, van den Hengel, `Explainable Deep Few-shot Anomaly Detection with
      Deviation Networks <https://arxiv.org/abs/2108.00462>`_, 2021, equation 3.
    """
    scores, labels = _check(scores, labels)
    dev = deviations(scores, prior_sample)
    normal = jnp.abs(dev)
    anomalous = jnp.maximum(0, margin - dev)
    return jnp.mean((1 - labels) * normal + labels * anomalous)


def focal_loss(scores: ArrayLike, labels: ArrayLike, gamma: float = 2.0) -> Array:
    """Binary focal loss with the scores as logits: the FLOS baseline of arXiv 2108.00462.

    mean(-(1 - p)^gamma · log p), where p is the predicted probability of the true label.

    Args:
      scores: [B], floating.
      labels: [B], 0 or 1, any numeric dtype.
      gamma: focusing parameter; 0 gives the cross-entropy.

    Returns:
      The mean over the batch, in the dtype of `scores`.

    Raises:
      ValueError: if shapes differ.
      TypeError: if scores are not floating.

    References:
      Lin et al., `Focal Loss for Dense Object Detection <https://arxiv.org/abs/1708.02002>`_,
      2017.
    """
    scores, labels = _check(scores, labels)
    return optax.losses.sigmoid_focal_loss(scores, labels, gamma=gamma).mean()


def binary_cross_entropy(scores: ArrayLike, labels: ArrayLike) -> Array:
    """Binary cross-entropy with the scores as logits; baseline of arXiv 2108.00462.

    Args:
      scores: [B], floating.
      labels: [B], 0 or 1, any numeric dtype.

    Returns:
      The mean over the batch, in the dtype of `scores`.

    Raises:
      ValueError: if shapes differ.
      TypeError: if scores are not floating.
    """
    scores, labels = _check(scores, labels)
    return optax.losses.sigmoid_binary_cross_entropy(scores, labels).mean()


def _check(scores: ArrayLike, labels: ArrayLike) -> tuple[Array, Array]:
    """Returns scores and labels as arrays of one shape [B] and one floating dtype."""
    scores, labels = jnp.asarray(scores), jnp.asarray(labels)
    if not jnp.issubdtype(scores.dtype, jnp.floating):
        raise TypeError(f"scores must be floating, got {scores.dtype}")
    if scores.ndim != 1 or scores.shape != labels.shape:
        # Labels [B, 1] would silently broadcast to [B, B].
        raise ValueError(
            f"scores and labels must both be [B], got {scores.shape} and {labels.shape}"
        )
    return scores, labels.astype(scores.dtype)


class LossSettings(Protocol):
    """The settings that a loss may read: `LossConfig`."""

    @property
    def name(self) -> str: ...
    @property
    def margin(self) -> float: ...
    @property
    def prior_mean(self) -> float: ...
    @property
    def prior_std(self) -> float: ...
    @property
    def prior_samples(self) -> int: ...


class Loss(NamedTuple):
    """An entry of `LOSSES`.

    Attributes:
      function: maps (scores [b], labels [b], settings, key) to the scalar loss, a mean over the
        images of one device, which may all be of one class; devices are averaged. The key is the
        same on all devices and differs at each step.
      prior: maps settings to the prior that normal scores follow, or to `None` if the loss
        assumes no distribution.
    """

    function: Callable[[Array, Array, LossSettings, Array], Array]
    prior: Callable[[LossSettings], Prior | None] = lambda settings: None


def _deviation(scores: Array, labels: Array, settings: LossSettings, key: Array) -> Array:
    mean, std = settings.prior_mean, settings.prior_std
    sample = sample_prior(key, n_samples=settings.prior_samples, mean=mean, std=std)
    return deviation_loss(scores, labels, sample, margin=settings.margin)


LOSSES: Mapping[str, Loss] = {
    "deviation": Loss(_deviation, lambda settings: Prior(settings.prior_mean, settings.prior_std)),
    "focal": Loss(lambda scores, labels, settings, key: focal_loss(scores, labels)),
    "bce": Loss(lambda scores, labels, settings, key: binary_cross_entropy(scores, labels)),
}


def get_loss(name: str) -> Loss:
    """Returns the entry of `LOSSES`; raises `UserError` with the nearest names if there is none."""
    return lookup(LOSSES, name, "loss")


def prior_of(settings: LossSettings) -> Prior | None:
    """Returns the prior that normal scores follow under a loss, or `None` if it has no prior."""
    return get_loss(settings.name).prior(settings)
