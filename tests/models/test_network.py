"""Tests of the network: shapes, pyramid, scores, precision, errors; see also test_golden.py."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from devnet_jax.errors import UserError
from devnet_jax.models import BACKBONES, DeviationNetwork, max_n_scales
from devnet_jax.models.heads import TopKHead
from devnet_jax.models.network import check_n_scales, downscale


@pytest.mark.parametrize("size", [(64, 97), (224, 448)])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_feature_size_is_that_of_the_maps(backbone: str, size: tuple[int, int]) -> None:
    model = DeviationNetwork(backbone, n_scales=1)
    images = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
    (scores, maps), _ = jax.eval_shape(model.init_with_output, jax.random.key(0), images)
    assert scores.shape == (2,)
    assert maps.shape == (2, *(BACKBONES[backbone].feature_size(n) for n in size))
    stages = list(BACKBONES[backbone].stages)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    features = jax.eval_shape(
        lambda v, x: model.apply(v, x, stages, method="features"), variables, images
    )
    assert features.keys() == set(stages)
    for stage in stages:
        sizes = [BACKBONES[backbone].feature_size(n, stage) for n in size]
        assert features[stage].shape[:-1] == (2, *sizes)


@pytest.mark.parametrize(
    ("backbone", "image_size", "largest"),
    [("resnet18", 448, 9), ("resnet18", 1, 1), ("alexnet", 448, 3), ("alexnet", 62, 0)],
)
def test_largest_number_of_scales(backbone: str, image_size: int, largest: int) -> None:
    assert max_n_scales(backbone, image_size) == largest


def test_too_many_scales_are_refused_with_the_largest_number_possible() -> None:
    check_n_scales("alexnet", 3, 448)
    with pytest.raises(UserError, match="at most 3"):
        check_n_scales("alexnet", 4, 448)
    with pytest.raises(UserError, match="too small for alexnet"):
        check_n_scales("alexnet", 1, 62)
    model = DeviationNetwork("alexnet", n_scales=2)
    with pytest.raises(UserError, match="at most 1"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 448, 64, 3)))


def test_wrong_settings_are_refused_on_construction() -> None:
    with pytest.raises(UserError, match="did you mean resnet18"):
        DeviationNetwork("resnet8")
    with pytest.raises(UserError, match=f"known: {', '.join(sorted(BACKBONES))}"):
        DeviationNetwork("vit")
    with pytest.raises(UserError, match="known: topk"):
        DeviationNetwork(head="attention")
    with pytest.raises(UserError, match="n_scales"):
        DeviationNetwork(n_scales=0)
    for topk in (-0.1, 1.1, float("nan")):
        with pytest.raises(UserError, match="topk"):
            DeviationNetwork(topk=topk)


@pytest.mark.parametrize(("height", "width", "factor"), [(8, 6, 2), (9, 11, 2), (13, 7, 4)])
def test_downscale_takes_the_nearest_pixel_below(height: int, width: int, factor: int) -> None:
    images = jnp.arange(2 * height * width * 3).reshape(2, height, width, 3)
    small = downscale(images, factor)
    h, w = height // factor, width // factor
    assert small.shape == (2, h, w, 3)
    for i in range(h):
        for j in range(w):
            expected = images[:, int(i * height / h), int(j * width / w)]
            np.testing.assert_array_equal(small[:, i, j], expected)


def test_image_scores_of_position_scores() -> None:
    maps = jnp.array([[[1.0, -4.0], [2.0, 0.5]], [[-1.0, -1.0], [-1.0, -3.0]]])
    for topk, scores in (
        (0, [-0.125, -1.5]),  # the signed mean
        (0.1, [4, 3]),  # at least one position
        (0.74, [3, 2]),  # ⌊2.96⌋ positions
        (1, [1.875, 1.5]),
    ):
        np.testing.assert_allclose(TopKHead(topk).image_scores(maps), scores)
    np.testing.assert_allclose(TopKHead(0).contributions(maps), maps)
    np.testing.assert_allclose(TopKHead(0.1).contributions(maps), np.abs(maps))


@pytest.fixture(scope="module")
def variables() -> Any:
    """Variables of a ResNet-18, which fit any number of scales and any image size."""
    return jax.jit(DeviationNetwork(n_scales=1).init)(jax.random.key(0), images_of_size(32))


def images_of_size(size: int) -> jax.Array:
    return jax.random.normal(jax.random.key(1), (4, size, size, 3))


def test_score_is_the_mean_of_the_largest_of_the_map(variables: Any) -> None:
    model = DeviationNetwork(n_scales=1, topk=0.5)
    scores, maps = jax.jit(model.apply)(variables, images_of_size(96))
    largest = np.sort(np.abs(maps).reshape(4, 9))[:, -4:]
    np.testing.assert_allclose(scores, largest.mean(axis=1), rtol=1e-6)


def test_features_of_any_stages_are_those_that_the_score_is_made_of(variables: Any) -> None:
    model, images = DeviationNetwork(n_scales=1), images_of_size(64)
    stages = ("layer2", "layer3", "layer4")

    @partial(jax.jit, static_argnums=0)
    def features(stages: tuple[str, ...]) -> Any:
        return model.apply(variables, images, stages, method="features")

    together = features(stages)
    for stage in stages:
        np.testing.assert_allclose(features((stage,))[stage], together[stage], rtol=1e-4, atol=1e-4)
    _, maps = jax.jit(model.apply)(variables, images)
    kernel = variables["params"]["score"]["kernel"][0, 0, :, 0]
    np.testing.assert_allclose(together["layer4"] @ kernel, maps, rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match="no stage 'layer5'; it has layer1, layer2"):
        model.apply(variables, images, ("layer5",), method="features")


def test_bfloat16_is_close_and_scores_are_float32(variables: Any) -> None:
    scores, maps = jax.jit(DeviationNetwork().apply)(variables, images_of_size(64))
    half = DeviationNetwork(dtype=jnp.bfloat16)
    half_scores, half_maps = jax.jit(half.apply)(variables, images_of_size(64))
    assert half_scores.dtype == half_maps.dtype == jnp.float32
    np.testing.assert_allclose(half_scores, scores, atol=0.03 * np.abs(maps).max())
    np.testing.assert_allclose(half_maps, maps, atol=0.05 * np.abs(maps).max())


def test_training_on_two_devices_equals_one(variables: Any) -> None:
    def apply(images: jax.Array, axis_name: str | None) -> Any:
        model = DeviationNetwork(n_scales=1, axis_name=axis_name)
        (scores, _), updated = model.apply(variables, images, train=True, mutable=["batch_stats"])
        return scores, updated

    images = images_of_size(32)
    scores, updated = jax.jit(lambda x: apply(x, None))(images)
    on_devices = jax.vmap(lambda x: apply(x, "devices"), axis_name="devices")
    each_scores, each_updated = jax.jit(on_devices)(images.reshape(2, 2, 32, 32, 3))
    np.testing.assert_allclose(each_scores.reshape(4), scores, rtol=1e-3)
    jax.tree.map(
        lambda each, one: np.testing.assert_allclose(each, np.stack([one, one]), atol=1e-4),
        each_updated,
        updated,
    )
