"""Where an anomaly is: maps of what made an image's score."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import ndimage

from devnet_jax.config import Config
from devnet_jax.data.preprocessing import normalise
from devnet_jax.inference.forward import score_images
from devnet_jax.models import DeviationNetwork
from devnet_jax.rng import key

SATURATION = 99  # the percentile of an image's gradients from which on the map is 1
BLUR = 4.0  # standard deviation in pixels of the Gaussian filter over the map


@functools.partial(jax.jit, static_argnames="model")
def gradient_maps(
    model: DeviationNetwork, variables: dict[str, Any], images: jax.Array
) -> jax.Array:
    """The paper's maps: how strongly each pixel moves the score (section 3.3, and its code).

    Args:
      model: the network.
      variables: its variables.
      images: uint8 [B, S, S, 3].

    Returns:
      Floating [B, S, S] in [0, 1]: |∂score/∂input| summed over the channels, scaled for each image
      from its minimum and its 99th percentile to 0 and 1, then smoothed. A map compares the
      pixels of one image; it says nothing of one image beside another.
    """
    return saliency(input_gradients(model, variables, normalise(images)))


def smoothgrad_maps(
    model: DeviationNetwork,
    variables: dict[str, Any],
    images: jax.Array,
    noise_key: jax.Array,
    n_samples: int,
    noise: float,
) -> jax.Array:
    """SmoothGrad (arXiv 1706.03825): as `gradient_maps`, of gradients averaged over noisy copies.

    Args:
      model: the network.
      variables: its variables.
      images: uint8 [B, S, S, 3].
      noise_key: all images of a batch get the same noise, so that a map does not depend on
        the batch that its image is in.
      n_samples: noisy copies of each image; it takes as many times as long.
      noise: standard deviation of the noise, as a share of the image's range of values.
    """
    total = jnp.zeros(images.shape)
    for i in range(n_samples):  # not a loop on the device: on a CPU, convolutions in it crawl
        total += _noisy_gradients(model, variables, images, jax.random.fold_in(noise_key, i), noise)
    return saliency(total / n_samples)


@functools.partial(jax.jit, static_argnames="model")
def upsampled_score_maps(
    model: DeviationNetwork, variables: dict[str, Any], images: jax.Array
) -> jax.Array:
    """What the head's scores of the positions of the finest level add to the image's, as images.

    One forward pass and no gradient: quicker than `gradient_maps`, and coarser. In units of the
    score, so that maps of different images compare.

    Args:
      model: the network.
      variables: its variables.
      images: uint8 [B, S, S, 3].

    Returns:
      Floating [B, S, S], interpolated linearly between the positions' centres: absolute scores,
      of which the largest make the image's score, or signed ones if it is their mean (topk = 0).
    """
    _, maps = score_images(model, variables, images)
    return jax.image.resize(jnp.abs(maps) if model.topk else maps, images.shape[:3], "linear")


@functools.partial(jax.jit, static_argnames="model")
def input_gradients(
    model: DeviationNetwork, variables: dict[str, Any], inputs: jax.Array
) -> jax.Array:
    """∂score/∂input of each image; no gradient of a parameter is computed.

    Args:
      model: the network.
      variables: its variables.
      inputs: floating [B, S, S, 3], normalised.

    Returns:
      Floating [B, S, S, 3].
    """

    def total_score(inputs: jax.Array) -> jax.Array:
        scores, _ = model.apply(variables, inputs, train=False)
        return scores.sum()  # in evaluation mode, images do not influence one another

    return jax.grad(total_score)(inputs)


@jax.jit
def saliency(gradients: jax.Array) -> jax.Array:
    """Gradients with respect to the input [B, H, W, 3] → maps [B, H, W]; see `gradient_maps`."""
    maps = jnp.abs(gradients).sum(axis=-1)
    low = maps.min(axis=(1, 2), keepdims=True)
    high = _percentile(maps.reshape(maps.shape[0], -1), SATURATION)[:, None, None]
    span = jnp.where(high > low, high - low, 1)  # where all gradients are equal, a map of zeros
    maps = jnp.clip((maps - low) / span, 0, 1)
    rows, columns = (jnp.asarray(_blur_matrix(n), maps.dtype) for n in maps.shape[1:])
    with jax.default_matmul_precision("highest"):
        return rows @ maps @ columns.T


Explain = Callable[[DeviationNetwork, dict[str, Any], jax.Array], jax.Array]

# From the settings to what explains, by name.
METHODS: dict[str, Callable[[Config], Explain]] = {
    "gradient": lambda config: gradient_maps,
    "smoothgrad": lambda config: functools.partial(
        smoothgrad_maps,
        noise_key=key(config.seed, "smoothgrad"),
        n_samples=config.evaluation.smoothgrad_samples,
        noise=config.evaluation.smoothgrad_noise,
    ),
    "score_map": lambda config: upsampled_score_maps,
}


@functools.partial(jax.jit, static_argnames="model")
def _noisy_gradients(
    model: DeviationNetwork,
    variables: dict[str, Any],
    images: jax.Array,
    key: jax.Array,
    noise: float,
) -> jax.Array:
    inputs = normalise(images)
    span = jnp.ptp(inputs, axis=(1, 2, 3), keepdims=True)
    draw = jax.random.normal(key, inputs.shape[1:], inputs.dtype)
    return input_gradients(model, variables, inputs + noise * span * draw)


def _percentile(values: jax.Array, percent: float) -> jax.Array:
    """The percentile of each row of [B, N], N at least 2 and all values at least 0, as NumPy's.

    By bisection over the bits of the floats, which at least 0 are in the order of their values:
    on a CPU, XLA takes twenty times as long to sort them or to select the largest.
    """
    rank = percent / 100 * (values.shape[1] - 1)
    n_bits = jnp.finfo(values.dtype).bits
    bits = jax.lax.bitcast_convert_type(values, f"int{n_bits}")

    def more_than(n: int, value: jax.Array) -> jax.Array:
        """[B], whether more than n of a row are at most the value [B]."""
        return (bits <= value[:, None]).sum(axis=1) > n

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = low + (high - low) // 2
        enough = more_than(math.floor(rank), middle)
        return jnp.where(enough, low, middle + 1), jnp.where(enough, middle, high)

    largest = bits.max(axis=1)
    _, below = jax.lax.fori_loop(0, n_bits - 1, halve, (jnp.zeros_like(largest), largest))
    larger = jnp.where(bits > below[:, None], bits, largest[:, None]).min(axis=1)
    above = jnp.where(more_than(math.ceil(rank), below), below, larger)
    below, above = (jax.lax.bitcast_convert_type(b, values.dtype) for b in (below, above))
    return below + (rank - math.floor(rank)) * (above - below)


@functools.cache
def _blur_matrix(size: int) -> np.ndarray:
    """[size, size], the Gaussian filter along one axis (reflecting at the ends) as a matrix."""
    return ndimage.gaussian_filter1d(np.eye(size), BLUR, axis=0)
