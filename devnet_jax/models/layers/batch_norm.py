"""Batch normalisation with PyTorch's running statistics, synchronised over devices."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax
from jax.typing import DTypeLike


class BatchNorm(nn.Module):
    """Batch normalisation over every axis but the last (Ioffe & Szegedy, arXiv 1502.03167).

    As in PyTorch and unlike `flax.linen.BatchNorm`, the running variance is unbiased: n/(n-1) times
    the variance that normalises the batch, where n counts the values on all devices. Statistics are
    computed in two passes, in float32 at least, so that a mean far from zero costs no precision.

    Attributes:
      momentum: weight of the new batch in the running statistics.
      epsilon: constant added to the variance.
      dtype: dtype of the result; None promotes from the input and the parameters.
      axis_name: device axis over which batch statistics are averaged.
    """

    momentum: float = 0.1
    epsilon: float = 1e-5
    dtype: DTypeLike | None = None
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Normalises x [..., C].

        Args:
          x: floating [..., C].
          train: True to normalise by batch statistics and to update the running ones.
        """
        channels = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, channels)
        bias = self.param("bias", nn.initializers.zeros, channels)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels)

        dtype = jnp.result_type(x, scale, bias) if self.dtype is None else self.dtype
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        if train:
            # During initialisation, no device axis is bound.
            axis_name = None if self.is_initializing() else self.axis_name
            y, mean, var = normalise_batch(x, scale, bias, self.epsilon, axis_name)
            if not self.is_initializing():
                n = n_batch_values(x, axis_name)
                unbiased_var = var * (n / max(n - 1, 1))
                running_mean.value += self.momentum * (mean - running_mean.value)
                running_var.value += self.momentum * (unbiased_var - running_var.value)
        else:
            mean, var = running_mean.value, running_var.value
            y = (x - mean) * (scale * lax.rsqrt(var + self.epsilon)) + bias
        return y.astype(dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def normalise_batch(
    x: Array, scale: Array, bias: Array, epsilon: float, axis_name: str | None
) -> tuple[Array, Array, Array]:
    """Normalises x [..., C] by its own mean and variance.

    The custom gradient reads x and the gradient of y twice: once for two sums, once for the result.
    Automatic differentiation of the two passes would read them about twice as often.

    Args:
      x: floating [..., C].
      scale: [C].
      bias: [C].
      epsilon: constant added to the variance.
      axis_name: device axis over which mean and variance are taken; all its devices have the same
        number of values.

    Returns:
      y [..., C], and the mean and the biased variance [C]. No gradient flows through the last two.
    """
    axes = tuple(range(x.ndim - 1))
    mean = _over_devices(lax.pmean, x.mean(axes), axis_name)
    var = _over_devices(lax.pmean, jnp.square(x - mean).mean(axes), axis_name)
    y = (x - mean) * (scale * lax.rsqrt(var + epsilon)) + bias
    return y, mean, var


def n_batch_values(x: Array, axis_name: str | None) -> int:
    """Returns the number of values per channel of x [..., C] on all devices of the axis."""
    return x.size // x.shape[-1] * (1 if axis_name is None else lax.axis_size(axis_name))


def _forward(
    x: Array, scale: Array, bias: Array, epsilon: float, axis_name: str | None
) -> tuple[tuple[Array, Array, Array], tuple[Array, ...]]:
    y, mean, var = normalise_batch(x, scale, bias, epsilon, axis_name)
    return (y, mean, var), (x, scale, mean, lax.rsqrt(var + epsilon))


def _backward(
    epsilon: float,
    axis_name: str | None,
    residuals: tuple[Array, ...],
    gradients: tuple[Array, Array, Array],
) -> tuple[Array, Array, Array]:
    x, scale, mean, inverse_std = residuals
    gradient, _, _ = gradients
    axes = tuple(range(x.ndim - 1))
    normalised = (x - mean) * inverse_std
    bias_gradient, scale_gradient = gradient.sum(axes), (gradient * normalised).sum(axes)
    # A value changes the mean and the variance on all devices.
    summed, correlated = _over_devices(lax.psum, (bias_gradient, scale_gradient), axis_name)
    shift = (summed + normalised * correlated) / n_batch_values(x, axis_name)
    return scale * inverse_std * (gradient - shift), scale_gradient, bias_gradient


def _over_devices(reduce: Callable[..., Any], values: Any, axis_name: str | None) -> Any:
    """Reduces values over the device axis, if there is one."""
    return values if axis_name is None else reduce(values, axis_name)


normalise_batch.defvjp(_forward, _backward)
