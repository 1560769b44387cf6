"""Tests that max-pooling has the values and gradients of Flax's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st

from devnet_jax.models.layers.pooling import max_pool

pytestmark = pytest.mark.usefixtures("optimised")


@settings(max_examples=30, deadline=None)
@given(
    size=st.sampled_from([(4, 9), (7, 6), (8, 5)]),  # few, because each is compiled
    shape=st.sampled_from([(3, 2, 1), (3, 2, 0), (2, 2, 0), (2, 1, 1)]),
    ties=st.booleans(),
    seed=st.integers(0, 999),
)
def test_value_and_gradient(size, shape, ties, seed) -> None:
    window, stride, padding = shape
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((2, *size, 3))
    if ties:  # as after a ReLU
        x = np.maximum(np.round(x), 0)
    x = jnp.asarray(x, jnp.float32)

    def expected(x):
        return nn.max_pool(x, (window,) * 2, (stride,) * 2, ((padding, padding),) * 2)

    value, pull = jax.vjp(lambda x: max_pool(x, window, stride, padding), x)
    expected_value, expected_pull = jax.vjp(expected, x)
    np.testing.assert_array_equal(value, expected_value)
    gradient = jnp.asarray(rng.standard_normal(value.shape), jnp.float32)
    np.testing.assert_allclose(pull(gradient)[0], expected_pull(gradient)[0], atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_the_gradient_has_the_dtype_of_the_input(dtype) -> None:
    x = jnp.ones((1, 6, 6, 2), dtype)
    gradient = jax.jit(jax.grad(lambda x: max_pool(x, 3, 2, 1).sum()))(x)
    assert gradient.dtype == dtype
    assert gradient.sum() == 3 * 3 * 2  # each window's gradient goes to one pixel


def test_accelerators_use_xla() -> None:
    traced = jax.jit(jax.grad(lambda x: max_pool(x, 3, 2, 1).sum())).trace(jnp.ones((1, 6, 6, 2)))
    for platform, by_xla in (("cuda", True), ("tpu", True), ("cpu", False)):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert ("select_and_scatter" in text) == by_xla
        assert ("reduce_window" in text) == by_xla
