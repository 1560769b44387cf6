"""Explanation maps: input gradients, SmoothGrad and score maps."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import ndimage

from devnet_jax.config import Config
from devnet_jax.data.preprocessing import network_input
from devnet_jax.inference.forward import score_images
from devnet_jax.models.bags import Model, score_bags
from devnet_jax.models.heads import are_inside, inside_levels
from devnet_jax.rng import key

SATURATION = 99  # percentile of an image's gradients at which its map reaches 1
BLUR = 4.0  # standard deviation of the map's Gaussian filter, in pixels


@functools.partial(jax.jit, static_argnames="model")
def gradient_maps(model: Model, variables: dict[str, Any], images: jax.Array) -> jax.Array:
    """Returns the paper's maps: the influence of each pixel on the score (section 3.3).

    Args:
      model: network.
      variables: variables of the network.
      images: uint8 [B, *preprocessing.shape].

    Returns:
      Floating [B, H, W], or with tiles [B, T, H, W], in [0, 1]: |∂score/∂input| summed over
      channels, scaled for each image so that its minimum is 0 and its 99th percentile is 1, then
      smoothed; 0 in the padding. Values of different images are not comparable.
    """
    inputs, inside = network_input(images)
    return saliency(input_gradients(model, variables, inputs, inside), inside)


def smoothgrad_maps(
    model: Model,
    variables: dict[str, Any],
    images: jax.Array,
    noise_key: jax.Array,
    n_samples: int,
    noise: float,
) -> jax.Array:
    """Returns `gradient_maps` of gradients averaged over noisy copies (arXiv 1706.03825).

    Args:
      model: network.
      variables: variables of the network.
      images: uint8 [B, *preprocessing.shape].
      noise_key: key of the noise. All images of a batch get the same noise, so that a map does not
        depend on the other images of its batch.
      n_samples: number of noisy copies of each image; time grows with it.
      noise: standard deviation of the noise, as a share of the image's range of values.
    """
    total = jnp.zeros((*images.shape[:-1], 3))
    for i in range(n_samples):  # one compiled program for any n_samples
        total += _noisy_gradients(model, variables, images, jax.random.fold_in(noise_key, i), noise)
    return saliency(total / n_samples, network_input(images)[1])


@functools.partial(jax.jit, static_argnames="model")
def upsampled_score_maps(model: Model, variables: dict[str, Any], images: jax.Array) -> jax.Array:
    """Returns what each position of the finest scale adds to the image's score, enlarged.

    One forward pass without gradients: faster and coarser than `gradient_maps`. Maps of different
    images are comparable.

    Args:
      model: network.
      variables: variables of the network.
      images: uint8 [B, *preprocessing.shape].

    Returns:
      `enlarge` of the position scores.
    """
    return enlarge(model, score_images(model, variables, images)[1], images)


@functools.partial(jax.jit, static_argnames="model")
def enlarge(model: Model, maps: jax.Array, images: jax.Array) -> jax.Array:
    """Enlarges position scores to the size of the network's input.

    Args:
      model: network.
      maps: floating [B, h, w] or [B, T, h, w], position scores of the finest scale.
      images: uint8 [B, *preprocessing.shape], of which size and padding are used.

    Returns:
      Floating [B, H, W] or [B, T, H, W] in units of the score, interpolated linearly between the
      centres of the positions inside the image (see `Head.contributions`), and smoothed by a
      Gaussian filter for devcore.
    """
    tiles = images.reshape(-1, *images.shape[-3:])
    positions = model.contributions(maps).reshape(-1, *maps.shape[-2:])

    def resize(values: jax.Array) -> jax.Array:
        return jax.image.resize(values, tiles.shape[:3], "linear")

    if tiles.shape[-1] == 3:
        enlarged = resize(positions)
    else:  # positions in the padding must not shine into the image
        levels = inside_levels(tiles[..., 3] / 255.0, *positions.shape[1:])
        inside = are_inside(levels.reshape(maps.shape)).reshape(positions.shape)
        enlarged = resize(jnp.where(inside, positions, 0)) / jnp.maximum(resize(1.0 * inside), 1e-6)
    if model.smooths_maps:
        enlarged = blur(enlarged)
    return enlarged.reshape(images.shape[:-1])


@functools.partial(jax.jit, static_argnames="model")
def input_gradients(
    model: Model, variables: dict[str, Any], inputs: jax.Array, inside: jax.Array | None = None
) -> jax.Array:
    """Returns ∂score/∂input of each image, without computing gradients of parameters.

    Args:
      model: network.
      variables: variables of the network.
      inputs: floating [B, H, W, 3] or [B, T, H, W, 3], normalised.
      inside: floating, 1 inside the image and 0 in its padding; `None` without padding.

    Returns:
      Floating, of the shape of `inputs`.
    """

    def total_score(inputs: jax.Array) -> jax.Array:
        (scores, *_), _ = score_bags(model, variables, inputs, inside)
        return scores.sum()  # in evaluation mode, images are independent

    return jax.grad(total_score)(inputs)


@jax.jit
def saliency(gradients: jax.Array, inside: jax.Array | None = None) -> jax.Array:
    """Returns maps [B, …, H, W] of input gradients [B, …, H, W, 3]; see `gradient_maps`.

    Args:
      gradients: input gradients.
      inside: floating [B, …, H, W], 1 inside the image and 0 in its padding; `None` without
        padding.
    """
    maps = jnp.abs(gradients).sum(axis=-1)
    values = maps.reshape(maps.shape[0], -1)
    n: int | jax.Array = values.shape[1]
    lowest = values
    if inside is not None:
        is_inside = inside.reshape(values.shape) >= 0.5
        lowest = jnp.where(is_inside, values, jnp.inf)
        values = jnp.where(is_inside, values, 0)
        n = is_inside.sum(axis=1)
    low = lowest.min(axis=1, keepdims=True)
    high = _percentile(values, SATURATION, n)[:, None]
    span = jnp.where(high > low, high - low, 1)  # equal gradients give a map of zeros
    scaled = jnp.clip((values - low) / span, 0, 1).reshape(maps.shape)
    if inside is None:
        return blur(scaled)
    return inside * blur(scaled) / jnp.maximum(blur(inside), 1e-6)


def blur(maps: jax.Array) -> jax.Array:
    """Returns maps [..., H, W] smoothed by a Gaussian filter of `BLUR` pixels."""
    rows, columns = (jnp.asarray(_blur_matrix(n), maps.dtype) for n in maps.shape[-2:])
    with jax.default_matmul_precision("highest"):
        return rows @ maps @ columns.T


Explain = Callable[[Model, dict[str, Any], jax.Array], jax.Array]

# Explanation methods by name: each entry maps the settings to a function.
EXPLAINERS: dict[str, Callable[[Config], Explain]] = {
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
    model: Model,
    variables: dict[str, Any],
    images: jax.Array,
    key: jax.Array,
    noise: float,
) -> jax.Array:
    inputs, inside = network_input(images)
    span = jnp.ptp(inputs, axis=tuple(range(1, inputs.ndim)), keepdims=True)
    noises = noise * span * jax.random.normal(key, inputs.shape[1:], inputs.dtype)
    if inside is not None:
        noises *= inside[..., None]
    return input_gradients(model, variables, inputs + noises, inside)


def _percentile(values: jax.Array, percent: int, n: int | jax.Array) -> jax.Array:
    """Returns the percentile of the n largest values of each row of [B, N], as NumPy's: [B].

    It bisects over the bits of the floats, which have the order of their values if none is
    negative. XLA's sort and top-k take ten times as long on a CPU.

    Args:
      values: floating, not negative.
      percent: the percentile.
      n: number of values that count, or numbers [B]; at least 2.
    """
    # In integers, because float32 does not hold all ranks of large images.
    from_top, rest = divmod((n - 1) * (100 - percent), 100)
    upper_rank = values.shape[1] - 1 - from_top
    lower_rank = upper_rank - (rest > 0)
    n_bits = jnp.finfo(values.dtype).bits
    bits = jax.lax.bitcast_convert_type(values, f"int{n_bits}")

    def more_than(n: int | jax.Array, value: jax.Array) -> jax.Array:
        """Returns True for each row [B] in which more than n values are at most `value` [B]."""
        return (bits <= value[:, None]).sum(axis=1) > n

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = low + (high - low) // 2
        enough = more_than(lower_rank, middle)
        return jnp.where(enough, low, middle + 1), jnp.where(enough, middle, high)

    largest = bits.max(axis=1)
    _, below = jax.lax.fori_loop(0, n_bits - 1, halve, (jnp.zeros_like(largest), largest))
    larger = jnp.where(bits > below[:, None], bits, largest[:, None]).min(axis=1)
    above = jnp.where(more_than(upper_rank, below), below, larger)
    below, above = (jax.lax.bitcast_convert_type(b, values.dtype) for b in (below, above))
    return above + rest / 100 * (below - above)


@functools.cache
def _blur_matrix(size: int) -> np.ndarray:
    """Returns the Gaussian filter along one axis, reflecting at the ends, as [size, size]."""
    return ndimage.gaussian_filter1d(np.eye(size), BLUR, axis=0)
