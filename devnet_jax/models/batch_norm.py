"""Batch normalisation with PyTorch's running statistics, synchronised over devices."""

import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax
from jax.typing import DTypeLike


class BatchNorm(nn.Module):
    """Batch normalisation over every axis but the last (Ioffe & Szegedy, arXiv 1502.03167).

    It differs from `flax.linen.BatchNorm` where PyTorch does: the running variance is the
    unbiased one, n/(n-1) times the variance that normalises the batch, with n counted over
    all devices. Statistics are computed in two passes, in float32 at least, so that a mean
    far from zero costs no precision.

    Attributes:
      momentum: weight of the new batch in the running statistics.
      epsilon: added to the variance.
      dtype: of the result; None promotes from the input and the parameters.
      axis_name: device axis over which batch statistics are averaged.
    """

    momentum: float = 0.1
    epsilon: float = 1e-5
    dtype: DTypeLike | None = None
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Normalises x [..., C] by the batch (train) or by the running statistics."""
        channels = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, channels)
        bias = self.param("bias", nn.initializers.zeros, channels)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels)

        dtype = jnp.result_type(x, scale, bias) if self.dtype is None else self.dtype
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        if train:
            # No device axis is bound while parameters are being initialised.
            axis_name = None if self.is_initializing() else self.axis_name
            mean, var, n = batch_moments(x, axis_name)
            if not self.is_initializing():
                unbiased_var = var * (n / max(n - 1, 1))
                running_mean.value += self.momentum * (mean - running_mean.value)
                running_var.value += self.momentum * (unbiased_var - running_var.value)
        else:
            mean, var = running_mean.value, running_var.value
        y = (x - mean) * (scale * lax.rsqrt(var + self.epsilon)) + bias
        return y.astype(dtype)


def batch_moments(x: Array, axis_name: str | None = None) -> tuple[Array, Array, int]:
    """Mean and biased variance [C] of x [..., C], and the number of values in each.

    With `axis_name` all three are taken over the devices of that axis, which hold equally
    many values each.
    """
    axes = tuple(range(x.ndim - 1))
    n = x.size // x.shape[-1]
    if axis_name is None:
        mean = x.mean(axes)
        return mean, jnp.square(x - mean).mean(axes), n
    mean = lax.pmean(x.mean(axes), axis_name)
    var = lax.pmean(jnp.square(x - mean).mean(axes), axis_name)
    return mean, var, n * lax.axis_size(axis_name)
