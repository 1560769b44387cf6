"""Tests that settings and flags allow exactly the names of the tables."""

from __future__ import annotations

import typing
from collections.abc import Iterable
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from devnet_jax.config import Config, EvaluationConfig, LossConfig, ModelConfig
from devnet_jax.errors import UserError
from devnet_jax.inference.explain import EXPLAINERS
from devnet_jax.losses import LOSSES, get_loss, prior_of
from devnet_jax.models import BACKBONES, HEADS, DevCore, DeviationNetwork
from devnet_jax.models.build import make_model
from devnet_jax.training.run import TRAINERS


@pytest.mark.parametrize(
    ("section", "setting", "table"),
    [
        (LossConfig, "name", LOSSES),
        (ModelConfig, "detector", TRAINERS),
        (ModelConfig, "backbone", BACKBONES),
        (ModelConfig, "head", HEADS),
        (EvaluationConfig, "explanation", [*EXPLAINERS, "none", "auto"]),
    ],
)
def test_settings_allow_what_the_tables_have(
    section: type, setting: str, table: Iterable[str]
) -> None:
    allowed = typing.get_args(typing.get_type_hints(section)[setting])
    assert set(allowed) == set(table)


def test_every_detector_has_a_network_and_values_of_its_own() -> None:
    networks = {"devnet": DeviationNetwork, "devcore": DevCore}
    assert TRAINERS.keys() == networks.keys()
    for name, network in networks.items():
        config = Config(model=ModelConfig(detector=name))
        assert isinstance(make_model(config), network)
        assert config.dataset.image_size >= 8
        assert config.evaluation.explanation in EXPLAINERS


def test_an_unknown_loss_is_refused() -> None:
    with pytest.raises(UserError, match="did you mean deviation"):
        get_loss("deviations")


@pytest.mark.parametrize("name", ["deviation", "focal", "bce"])
def test_losses_read_the_settings(name: str) -> None:
    settings = SimpleNamespace(
        name=name, margin=3.0, prior_mean=1.0, prior_std=2.0, prior_samples=50_000
    )
    scores, labels = jnp.array([1.0, -1.0]), jnp.array([0, 1])
    loss = get_loss(name).function(scores, labels, settings, jax.random.key(0))
    expected = {
        "deviation": (0 + (3 - -1)) / 2,  # deviations of 0 and -1 from N(1, 2²)
        "focal": 2 * 1.31326 * 0.73106**2 / 2,  # both images have p = 0.26894
        "bce": 1.31326,
    }
    assert loss == pytest.approx(expected[name], abs=0.02)
    assert prior_of(settings) == ((1.0, 2.0) if name == "deviation" else None)
