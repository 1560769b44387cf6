"""Tests that convolutions with their own algorithms have the values and gradients of XLA's."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from devnet_jax.models.layers.convolution import convolve, winograd

pytestmark = pytest.mark.usefixtures("optimised")

NHWC = ("NHWC", "HWIO", "NHWC")
STEM = {"window_strides": (2, 2), "padding": [(3, 3), (3, 3)], "dimension_numbers": NHWC}
BLOCK = {"window_strides": (1, 1), "padding": [(1, 1), (1, 1)], "dimension_numbers": NHWC}


def assert_equals_xla(
    x: jax.Array,
    kernel: jax.Array,
    options: Any,
    rng: np.random.Generator,
    atol: float,
    trained: bool = True,
) -> None:
    """Compares the value and both gradients of a convolution with XLA's."""
    value, pull = jax.vjp(lambda *a: convolve(*a, **options, trained=trained), x, kernel)
    expected, expected_pull = jax.vjp(
        lambda *a: jax.lax.conv_general_dilated(*a, **options), x, kernel
    )
    np.testing.assert_allclose(value, expected, atol=atol)
    gradient = jnp.asarray(rng.standard_normal(value.shape))
    for ours, theirs in zip(pull(gradient), expected_pull(gradient), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=atol)


@settings(max_examples=12, deadline=None)
@given(
    n=st.integers(1, 5),
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    seed=st.integers(0, 999),
)
def test_stem_value_and_gradients(n: int, height: int, width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    with jax.enable_x64(True):
        x = jnp.asarray(rng.standard_normal((n, height, width, 3)))
        kernel = jnp.asarray(rng.standard_normal((7, 7, 3, 4)))
        assert_equals_xla(x, kernel, STEM, rng, atol=1e-11)


@settings(max_examples=15, deadline=None)
@given(
    height=st.integers(1, 5),
    width=st.integers(1, 5),
    window=st.sampled_from([2, 3, 5]),
    stride=st.integers(1, 3),
    before=st.integers(0, 2),
    after=st.integers(0, 2),
)
def test_small_outputs(
    height: int, width: int, window: int, stride: int, before: int, after: int
) -> None:
    before, after = (
        min(before, window - 1),
        min(after, window - 1),
    )  # no window lies only in padding
    assume(min(height, width) + before + after >= window)
    # XLA, the reference, crashes the process here (jaxlib 0.10.2).
    assume((*sorted((height, width)), window, stride, before, after) != (1, 4, 2, 2, 1, 1))
    rng = np.random.default_rng(height)
    options = {
        "window_strides": (stride, stride),
        "padding": [(before, after)] * 2,
        "dimension_numbers": NHWC,
    }
    with jax.enable_x64(True):
        x = jnp.asarray(rng.standard_normal((2, height, width, 3)))
        kernel = jnp.asarray(rng.standard_normal((window, window, 3, 4)))
        assert_equals_xla(x, kernel, options, rng, atol=1e-12)


@settings(max_examples=10, deadline=None)
@given(
    n=st.integers(1, 3),
    height=st.integers(4, 13),
    width=st.integers(1, 9),
    trained=st.booleans(),
    seed=st.integers(0, 999),
)
def test_winograd_value_and_gradients(
    n: int, height: int, width: int, trained: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    with jax.enable_x64(True), pytest.MonkeyPatch.context() as patch:
        patch.setattr(winograd, "MIN_CHANNELS", 1)
        patch.setattr(winograd, "MIN_POSITIONS", 1)
        patch.setattr(winograd, "MIN_MULTIPLICATIONS", 1)
        x = jnp.asarray(rng.standard_normal((n, height, width, 3)))
        kernel = jnp.asarray(rng.standard_normal((3, 3, 3, 4)))
        assert winograd.is_faster(x, kernel)
        assert_equals_xla(x, kernel, BLOCK, rng, atol=1e-11, trained=trained)


@pytest.mark.parametrize(("size", "channels", "trained"), [(14, 256, True), (56, 64, False)])
def test_winograd_is_about_as_precise_as_xla(size: int, channels: int, trained: bool) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, size, size, channels))
    kernel = rng.standard_normal((3, 3, channels, 128)) / np.sqrt(9 * channels)
    assert winograd.is_faster(jnp.asarray(x), jnp.asarray(kernel))
    with jax.enable_x64(True):
        exact = np.asarray(jax.lax.conv_general_dilated(x, kernel, **BLOCK))
    single = jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32)

    def error(value: jax.Array) -> float:
        return float(np.sqrt(np.mean((np.asarray(value, np.float64) - exact) ** 2)))

    plain = jax.lax.conv_general_dilated(*single, **BLOCK)
    ours = convolve(*single, **BLOCK, trained=trained)
    assert not np.array_equal(ours, plain)
    assert 0 < error(ours) < 4 * error(plain)


def test_xla_computes_outputs_of_64_channels_in_training() -> None:
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((1, 56, 56, 64)), jnp.float32)
    kernel = jnp.asarray(rng.standard_normal((3, 3, 64, 64)), jnp.float32)
    expected = jax.lax.conv_general_dilated(x, kernel, **BLOCK)
    np.testing.assert_array_equal(convolve(x, kernel, **BLOCK), expected)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((1, 28, 28, 64), jnp.float32),
        ((1, 60, 60, 56), jnp.float32),
        ((1, 28, 28, 128), jnp.bfloat16),
        ((70, 3, 3, 128), jnp.float32),
        ((1, 7, 7, 512), jnp.float32),
    ],
)
def test_xla_is_used_where_winograd_is_slower(shape: tuple[int, ...], dtype: jnp.dtype) -> None:
    x = jnp.asarray(np.random.default_rng(0).standard_normal(shape), dtype)
    kernel = jnp.ones((3, 3, shape[-1], shape[-1]), dtype)
    expected = jax.lax.conv_general_dilated(x, kernel, **BLOCK)
    np.testing.assert_array_equal(convolve(x, kernel, **BLOCK), expected)


@pytest.mark.parametrize(("size", "stride", "padding"), [(7, 1, 3), (7, 2, 0), (3, 2, 1)])
def test_xla_is_used_for_other_windows(size: int, stride: int, padding: int) -> None:
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((1, 13, 13, 2)), jnp.float32)
    kernel = jnp.asarray(rng.standard_normal((size, size, 2, 1)), jnp.float32)
    window = ((stride, stride), [(padding, padding)] * 2)
    value = convolve(x, kernel, *window, dimension_numbers=NHWC)
    expected = jax.lax.conv_general_dilated(x, kernel, *window, dimension_numbers=NHWC)
    np.testing.assert_array_equal(value, expected)


@pytest.mark.parametrize(
    ("options", "image", "kernel", "ours"),
    [
        (STEM, (1, 8, 8, 3), (7, 7, 3, 4), "1x4x4x48"),  # four kinds of pixels, four rows
        (
            BLOCK,
            (1, 28, 28, 128),
            (3, 3, 128, 128),
            "1x3x128x128",
        ),  # a combination of the kernel's rows
    ],
)
def test_accelerators_use_xla(
    options: dict[str, object], image: tuple[int, ...], kernel: tuple[int, ...], ours: str
) -> None:
    def loss(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return convolve(x, kernel, **options).sum()

    traced = jax.jit(jax.grad(loss, argnums=(0, 1))).trace(jnp.ones(image), jnp.ones(kernel))
    for platform, is_cpu in (("cuda", False), ("tpu", False), ("cpu", True)):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert (ours in text) == is_cpu


@pytest.mark.parametrize(
    ("kernel_shape", "options"),
    [
        ((3, 3, 4, 4), {**BLOCK, "rhs_dilation": (2, 2)}),
        ((7, 7, 4, 4), {**STEM, "lhs_dilation": (2, 2)}),
        ((7, 7, 2, 4), {**STEM, "feature_group_count": 2}),
    ],
)
def test_dilated_and_grouped_convolutions(kernel_shape: tuple[int, ...], options: Any) -> None:
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((1, 8, 8, 4)), jnp.float32)
    kernel = jnp.asarray(rng.standard_normal(kernel_shape), jnp.float32)
    assert_equals_xla(x, kernel, options, rng, atol=1e-6)
