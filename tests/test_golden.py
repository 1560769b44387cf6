"""Tests that the package reproduces golden.npz, which the official PyTorch code computed.

The weights are not stored: `draw` makes each tensor from its official name. Computations are
compared in float64; float32 is compared where training is not yet chaotic.
"""

import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from devnet_jax.data.preprocessing import normalise
from devnet_jax.inference.explain import gradient_maps, input_gradients
from devnet_jax.losses import binary_cross_entropy, deviation_loss, focal_loss
from devnet_jax.models import DeviationNetwork, from_torch_state_dict, to_torch_state_dict
from devnet_jax.training.optimizer import make_optimizer, step_decay
from devnet_jax.training.step import TrainState, gradient_step

pytestmark = pytest.mark.usefixtures("optimised")

with np.load(Path(__file__).with_name("golden.npz")) as npz:
    GOLDEN = dict(npz)

PREFIX = "feature_extractor.net."  # of the official names
INPUTS = {"images_uint8", "labels", "prior_sample", "loss/scores", "loss/labels", "meta"}
EVALUATIONS = sorted(name.removesuffix("/scores") for name in GOLDEN if name.startswith("eval/"))
TRAININGS = sorted(name.removesuffix("/losses") for name in GOLDEN if name.endswith("/losses"))
# Compiling the step of a training takes most of a minute: fast tests compile that of one loss.
TRAININGS_BY_SPEED = [
    name if name.endswith("/deviation") else pytest.param(name, marks=pytest.mark.slow)
    for name in TRAININGS
]
LOSSES: dict[str, Callable[..., jax.Array]] = {
    "deviation": lambda scores, labels: deviation_loss(scores, labels, GOLDEN["prior_sample"]),
    "focal": focal_loss,
    "BCE": binary_cross_entropy,
}


def test_every_golden_value_is_compared() -> None:
    compared = [
        *(f"{name}/" for name in [*EVALUATIONS, *TRAININGS]),
        *(f"loss/{loss}/" for loss in LOSSES),
        "schedule/",
        "saliency/",
    ]
    for name in GOLDEN.keys() - INPUTS:
        assert sum(name.startswith(prefix) for prefix in compared) == 1, name


@pytest.fixture
def x64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", EVALUATIONS)
def test_evaluation(name: str) -> None:
    assert_agrees(name, {"scores": evaluate(name, np.float64)}, rtol=1e-8)


@pytest.mark.parametrize("name", EVALUATIONS)
def test_evaluation_float32(name: str) -> None:
    assert_agrees(name, {"scores": evaluate(name, np.float32)}, rtol=1e-4)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("loss", LOSSES)
def test_loss(loss: str) -> None:
    assert_agrees(f"loss/{loss}", loss_and_gradient(loss, np.float64), rtol=1e-8)


@pytest.mark.parametrize("loss", LOSSES)
def test_loss_float32(loss: str) -> None:
    assert_agrees(f"loss/{loss}", loss_and_gradient(loss, np.float32), rtol=1e-4)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", TRAININGS_BY_SPEED)
def test_training(name: str) -> None:
    n_steps = len(GOLDEN[f"{name}/losses"])
    assert_agrees(name, train(name, n_steps, np.float64), rtol=1e-8)


@pytest.mark.parametrize("name", TRAININGS_BY_SPEED)
def test_first_training_step_float32(name: str) -> None:
    computed = train(name, 1, np.float32)
    for key, value in computed.items():
        if key.startswith(("losses", "scores", "grad")):
            expected = GOLDEN[f"{name}/{key}"]
            first = expected[:1] if key in {"losses", "scores", "grad_global_norms"} else expected
            assert_close(value, first, 1e-4, key)


@pytest.mark.usefixtures("x64")
def test_schedule() -> None:
    steps_per_epoch = 20
    schedule = step_decay(2e-4, decay_rate=0.1, decay_every_steps=10 * steps_per_epoch)
    rates = schedule(steps_per_epoch * np.arange(35))
    assert_agrees("schedule", {"lr_per_epoch": rates}, rtol=1e-8)


@pytest.mark.usefixtures("x64")
def test_saliency() -> None:
    model = DeviationNetwork("resnet18", n_scales=2, topk=0.1)
    variables = golden_variables("resnet18", np.float64)
    images = golden_images(np.float64)[:2]
    computed = {
        "input_grad_0": input_gradients(model, variables, images)[0].transpose(2, 0, 1),
        "maps": gradient_maps(model, variables, GOLDEN["images_uint8"][:2]),
    }
    assert_agrees("saliency", computed, rtol=1e-6)


def assert_agrees(group: str, computed: dict[str, Any], rtol: float) -> None:
    """Asserts that the computed values equal all golden values of the group."""
    expected = {
        name.removeprefix(f"{group}/"): value
        for name, value in GOLDEN.items()
        if name.startswith(f"{group}/")
    }
    assert computed.keys() == expected.keys()
    for name, value in expected.items():
        assert_close(computed[name], value, rtol, name)


def assert_close(computed: Any, expected: np.ndarray, rtol: float, name: str) -> None:
    """Asserts that all elements agree, relative to the largest element of the array."""
    atol = rtol * np.abs(expected).max()
    np.testing.assert_allclose(computed, expected, rtol=0, atol=atol, err_msg=name)


def parse(name: str) -> tuple[DeviationNetwork, str]:
    """Returns network and last part of eval/{backbone}/n_scales={n}/topk={k} or train/…/{loss}."""
    _, backbone, n_scales, topk, *rest = name.split("/")
    model = DeviationNetwork(
        backbone,
        n_scales=int(n_scales.removeprefix("n_scales=")),
        topk=float(topk.removeprefix("topk=")),
    )
    return model, "".join(rest)


def draw(official_name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Returns the golden value of a tensor of the official state dict."""
    seed = [0, zlib.crc32(official_name.encode())]
    z = np.random.default_rng(seed).standard_normal(shape)
    if official_name == "conv.weight":
        return 0.05 * z
    if len(shape) == 2:  # the unused classifier
        return 0.01 * z
    if len(shape) == 4:
        return z * np.sqrt(2 / (shape[0] * shape[2] * shape[3]))
    if official_name.endswith("running_var"):
        return 1 + 0.1 * np.abs(z)
    return 1 + 0.1 * z if official_name.endswith("weight") else 0.1 * z


def golden_variables(backbone: str, dtype: type[np.floating]) -> dict[str, Any]:
    images = jnp.zeros((1, 64, 64, 3))
    template = jax.eval_shape(DeviationNetwork(backbone, 1).init, jax.random.key(0), images)
    state = to_torch_state_dict(jax.tree.map(lambda leaf: np.empty(leaf.shape), template))
    golden = {
        name: draw(name.removeprefix("features."), value.shape).astype(dtype)
        for name, value in state.items()
    }
    return jax.tree.map(jnp.asarray, from_torch_state_dict(golden, backbone))


def golden_images(dtype: type[np.floating]) -> jax.Array:
    return normalise(jnp.asarray(GOLDEN["images_uint8"], dtype))


@partial(jax.jit, static_argnums=0)
def apply(model: DeviationNetwork, variables: Any, images: jax.Array) -> Any:
    return model.apply(variables, images)


def evaluate(name: str, dtype: type[np.floating]) -> jax.Array:
    model, _ = parse(name)
    variables = golden_variables(model.backbone, dtype)
    scores, maps = apply(model, variables, golden_images(dtype))
    assert scores.dtype == maps.dtype == dtype
    return scores


def loss_and_gradient(loss: str, dtype: type[np.floating]) -> dict[str, jax.Array]:
    scores = jnp.asarray(GOLDEN["loss/scores"], dtype)
    value, gradient = jax.value_and_grad(LOSSES[loss])(scores, GOLDEN["loss/labels"])
    return {"value": value, "grad": gradient}


def train(name: str, n_steps: int, dtype: type[np.floating]) -> dict[str, Any]:
    """Trains on the golden batch; returns the results by golden name."""
    model, loss = parse(name)
    images = golden_images(dtype)
    variables = golden_variables(model.backbone, dtype)
    optimizer = make_optimizer(2e-4, weight_decay=1e-5, clip_norm=1.0)

    def loss_function(scores: jax.Array, labels: jax.Array, step: jax.Array) -> jax.Array:
        return LOSSES[loss](scores, labels)

    step = jax.jit(partial(gradient_step, model, optimizer, loss_function))
    labels = jnp.asarray(GOLDEN["labels"], dtype)
    state = TrainState(jnp.int32(0), variables, optimizer.init(variables["params"]))
    history = []
    for i in range(n_steps):
        state, result = step(state, images, labels)
        history.append(
            {
                "losses": result.loss,
                "scores": result.scores,
                "grad_global_norms": optax.tree.norm(result.gradients),
            }
        )
        if i == 0:
            first_gradients = to_torch_state_dict({"params": result.gradients})
    variables = state.variables

    computed: dict[str, Any] = {
        key: np.stack([metrics[key] for metrics in history]) for key in history[0]
    }
    # This gradient was recorded after PyTorch's clipping.
    clip = min(1.0, 1 / (computed["grad_global_norms"][0] + 1e-6))
    computed["grad/conv1"] = clip * first_gradients["conv1.weight"]
    for key, gradient in first_gradients.items():
        computed[f"grad_norm/{official(key)}"] = np.linalg.norm(gradient)
    final = to_torch_state_dict(variables)
    final |= {key: draw(key, shape) for key, shape in UNUSED.items()}
    for key, value in final.items():
        computed[f"final_norm/{official(key)}"] = np.linalg.norm(value)
        computed[f"final_head/{official(key)}"] = value.ravel()[:4]
    computed["eval_scores_after"] = apply(model, variables, images)[0]
    return computed


# Unused tensors of the official ResNet-18, which training does not change.
UNUSED = {"fc.weight": (1000, 512), "fc.bias": (1000,)}


def official(name: str) -> str:
    return name if name.startswith("conv.") else PREFIX + name
