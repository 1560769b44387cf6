"""Losses on image scores; each is a pure function and returns a scalar mean.

Scores are real numbers, larger where an image looks more anomalous; labels are 0 for normal
and 1 for anomalous.
"""

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike, DTypeLike


def sample_prior(
    key: Array,
    n_samples: int = 5000,
    mean: float = 0.0,
    std: float = 1.0,
    dtype: DTypeLike = jnp.float32,
) -> Array:
    """Draws reference scores [n_samples] from the Gaussian prior N(mean, std²).

    A draw stands for the scores of normal images (arXiv 2108.00462, section 3.2): training
    makes a new one at each step.
    """
    return mean + std * jax.random.normal(key, (n_samples,), dtype)


def deviations(scores: ArrayLike, prior_sample: ArrayLike) -> Array:
    """Scores as numbers of standard deviations from the mean of a sample of the prior.

    Args:
      scores: any shape, floating.
      prior_sample: [n], n at least 2; its standard deviation is the one with n - 1.

    Returns:
      Deviations of the shape of `scores` (arXiv 2108.00462, equation 2).
    """
    scores, prior_sample = jnp.asarray(scores), jnp.asarray(prior_sample)
    if prior_sample.ndim != 1 or prior_sample.size < 2:
        raise ValueError(f"prior_sample must be [n], n at least 2; got {prior_sample.shape}")
    return (scores - prior_sample.mean()) / prior_sample.std(ddof=1)


def deviation_loss(
    scores: ArrayLike, labels: ArrayLike, prior_sample: ArrayLike, margin: float = 5.0
) -> Array:
    """Deviation loss: normal scores to the prior's mean, anomalies `margin` deviations above it.

    mean((1 - y)·|dev| + y·max(0, margin - dev)), with dev from `deviations`.

    Args:
      scores: [B], floating.
      labels: [B], 0 or 1, any numeric dtype.
      prior_sample: [n], from `sample_prior`.
      margin: the confidence margin a, in standard deviations.

    Returns:
      The mean over the batch, in the dtype of `scores` and `prior_sample` promoted.

    Raises:
      ValueError: where shapes do not agree.
      TypeError: where scores are not floating.

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

    mean(-(1 - p)^gamma · log p), with p the probability given to the true label.

    Args:
      scores: [B], floating.
      labels: [B], 0 or 1, any numeric dtype.
      gamma: how much well-classified images are discounted; 0 gives the cross-entropy.

    Returns:
      The mean over the batch, in the dtype of `scores`.

    Raises:
      ValueError: where shapes do not agree.
      TypeError: where scores are not floating.

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
      ValueError: where shapes do not agree.
      TypeError: where scores are not floating.
    """
    scores, labels = _check(scores, labels)
    return optax.losses.sigmoid_binary_cross_entropy(scores, labels).mean()


def _check(scores: ArrayLike, labels: ArrayLike) -> tuple[Array, Array]:
    """Scores and labels as arrays of one shape [B] and one floating dtype."""
    scores, labels = jnp.asarray(scores), jnp.asarray(labels)
    if not jnp.issubdtype(scores.dtype, jnp.floating):
        raise TypeError(f"scores must be floating, got {scores.dtype}")
    if scores.ndim != 1 or scores.shape != labels.shape:
        # A label column [B, 1] would broadcast to [B, B] in silence.
        raise ValueError(
            f"scores and labels must both be [B], got {scores.shape} and {labels.shape}"
        )
    return scores, labels.astype(scores.dtype)
