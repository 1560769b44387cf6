"""Tests of BatchNorm against NumPy, and over several devices (here a named axis of vmap)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from devnet_jax.models.layers.batch_norm import BatchNorm

pytestmark = pytest.mark.usefixtures("optimised")

VARIABLES = {
    "params": {"scale": jnp.array([1.0, 2.0, -0.5]), "bias": jnp.array([0.0, 1.0, -1.0])},
    "batch_stats": {"mean": jnp.array([0.1, 0.0, -2.0]), "var": jnp.array([1.0, 0.5, 4.0])},
}


@pytest.fixture
def x() -> jax.Array:
    return 3 + 2 * jax.random.normal(jax.random.key(0), (4, 5, 6, 3))


def test_training_normalises_by_the_biased_variance_and_stores_the_unbiased(
    x: jax.Array,
) -> None:
    y, updated = BatchNorm().apply(VARIABLES, x, train=True, mutable=["batch_stats"])

    params, stats = VARIABLES["params"], VARIABLES["batch_stats"]
    mean, var = np.mean(x, (0, 1, 2)), np.var(x, (0, 1, 2))
    expected = (x - mean) / np.sqrt(var + 1e-5) * params["scale"] + params["bias"]
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    stats = {
        "mean": 0.9 * stats["mean"] + 0.1 * mean,
        "var": 0.9 * stats["var"] + 0.1 * np.var(x, (0, 1, 2), ddof=1),
    }
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), updated["batch_stats"], stats
    )


def test_evaluation_mode_uses_the_running_statistics(x: jax.Array) -> None:
    y = np.asarray(BatchNorm().apply(VARIABLES, x, train=False))
    params, stats = VARIABLES["params"], VARIABLES["batch_stats"]
    expected = (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5) * params["scale"] + params["bias"]
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


def test_initialisation_does_not_update_the_running_statistics(x: jax.Array) -> None:
    variables = BatchNorm(axis_name="devices").init(jax.random.key(0), x, train=True)
    np.testing.assert_array_equal(variables["batch_stats"]["mean"], np.zeros(3))
    np.testing.assert_array_equal(variables["batch_stats"]["var"], np.ones(3))


@pytest.mark.parametrize("n_devices", [2, 4])
def test_several_devices_equal_one(x: jax.Array, n_devices: int) -> None:
    targets = jax.random.normal(jax.random.key(1), x.shape)

    def loss(params, x, targets, axis_name):  # type: ignore[no-untyped-def]
        y, updated = BatchNorm(axis_name=axis_name).apply(
            {**VARIABLES, "params": params}, x, train=True, mutable=["batch_stats"]
        )
        return jnp.square(y - targets).mean(), (y, updated)

    def on_device(x, targets):  # type: ignore[no-untyped-def]
        gradient, aux = jax.grad(loss, has_aux=True)(VARIABLES["params"], x, targets, "devices")
        return jax.lax.pmean(gradient, "devices"), aux

    def shard(a: jax.Array) -> jax.Array:
        return a.reshape(n_devices, -1, *a.shape[1:])

    whole, (y, updated) = jax.grad(loss, has_aux=True)(VARIABLES["params"], x, targets, None)
    sharded, (ys, all_updated) = jax.vmap(on_device, axis_name="devices")(shard(x), shard(targets))

    np.testing.assert_allclose(ys.reshape(x.shape), y, rtol=1e-5, atol=1e-5)
    for device in range(n_devices):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a[device], b, rtol=1e-5, atol=1e-6),  # noqa: B023
            (sharded, all_updated),
            (whole, updated),
        )


def test_gradients_agree_with_finite_differences() -> None:
    with jax.enable_x64(True):
        x = 3 + 2 * jax.random.normal(jax.random.key(0), (2, 3, 2, 3), jnp.float64)
        weights = jax.random.normal(jax.random.key(1), x.shape, jnp.float64)
        params = jax.tree.map(lambda p: p.astype(jnp.float64), VARIABLES["params"])

        def loss(x, params):  # type: ignore[no-untyped-def]
            y, _ = BatchNorm().apply(
                {**VARIABLES, "params": params}, x, train=True, mutable=["batch_stats"]
            )
            return (weights * jnp.square(y)).sum()

        check_grads(loss, (x, params), order=1, modes=["rev"], rtol=1e-6)


def test_variance_is_accurate_far_from_zero() -> None:
    x = 1e4 + jax.random.normal(
        jax.random.key(0), (64, 64, 1)
    )  # E[x²] - E[x]² would lose all digits
    _, updated = BatchNorm(momentum=1.0).apply(
        {
            "params": {"scale": jnp.ones(1), "bias": jnp.zeros(1)},
            "batch_stats": {"mean": jnp.zeros(1), "var": jnp.ones(1)},
        },
        x,
        train=True,
        mutable=["batch_stats"],
    )
    expected = np.var(np.asarray(x, np.float64), ddof=1)
    np.testing.assert_allclose(updated["batch_stats"]["var"][0], expected, rtol=1e-4)


def test_bfloat16_keeps_statistics_in_float32(x: jax.Array) -> None:
    y, updated = BatchNorm(dtype=jnp.bfloat16).apply(
        VARIABLES, x.astype(jnp.bfloat16), train=True, mutable=["batch_stats"]
    )
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(updated)} == {jnp.dtype(jnp.float32)}
    exact, _ = BatchNorm().apply(VARIABLES, x, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(y.astype(jnp.float32), exact, atol=0.05)
