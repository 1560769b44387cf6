"""Tests that folding BatchNorm does not change the network in evaluation mode."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from devnet_jax.models import DeviationNetwork, fold_batch_norm

pytestmark = pytest.mark.usefixtures("optimised")


@pytest.mark.parametrize(  # every kind of block
    "backbone", ["resnet18", pytest.param("resnet50", marks=pytest.mark.slow), "alexnet"]
)
def test_scores_maps_and_input_gradients_stay(backbone: str) -> None:
    with jax.enable_x64(True):
        model = DeviationNetwork(backbone, n_scales=1)
        images = jax.random.normal(jax.random.key(0), (2, 70, 70, 3), jnp.float64)
        drawn = jax.eval_shape(model.init, jax.random.key(1), images)
        # Statistics, scales and shifts that are neither 0 nor 1, as after training.
        rng = np.random.default_rng(2)
        variables = jax.tree_util.tree_map_with_path(
            lambda path, leaf: jnp.asarray(
                rng.uniform(0.5, 2, leaf.shape)
                if leaf.ndim == 1
                else rng.standard_normal(leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1]))
            ),
            drawn,
        )
        folded = fold_batch_norm(variables, backbone)
        assert set(folded) == {"params"}

        def scores(model, variables, images):
            scores, maps = model.apply(variables, images)
            return scores.sum(), (scores, maps)

        def of(model, variables):
            return jax.jit(jax.value_and_grad(scores, argnums=2, has_aux=True), static_argnums=0)(
                model, variables, images
            )

        expected, found = of(model, variables), of(model.clone(folded=True), folded)
        assert np.ptp(expected[0][1][0]) > 0
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8), found, expected)


def test_a_convolution_keeps_its_bias() -> None:
    norm = {"scale": jnp.array([6.0]), "bias": jnp.array([5.0])}
    params = {
        "conv1": {"kernel": jnp.full((1, 1, 1, 1), 2.0), "bias": jnp.array([3.0])},
        "bn1": norm,
    }
    statistics = {"bn1": {"mean": jnp.array([1.0]), "var": jnp.array([4.0 - 1e-5])}}
    folded = fold_batch_norm({"params": params, "batch_stats": statistics}, "resnet18")
    # 6 / 2 · (2x + 3 - 1) + 5 = 6x + 11
    assert folded["params"]["conv1"]["kernel"].item() == pytest.approx(6)
    assert folded["params"]["conv1"]["bias"].item() == pytest.approx(11)
