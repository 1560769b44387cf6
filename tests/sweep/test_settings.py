"""Settings in words."""

from devnet_jax.config import Config
from devnet_jax.sweep.grid import with_settings
from devnet_jax.sweep.settings import departures, describe_settings


def test_the_papers_settings_depart_in_nothing() -> None:
    assert departures(Config()) == ""
    moved = {"dataset.name": "elpv", "dataset.manual_dir": "/data"}
    weights = {"model.pretrained": "/weights/resnet18.safetensors"}
    assert departures(with_settings(Config(), {**moved, **weights})) == ""
    assert describe_settings(Config()) == (
        "resnet18 from ImageNet weights, 2 scales, 448×448, batch 48, 50 epochs × 20 steps"
    )


def test_other_settings_are_named() -> None:
    config = with_settings(
        Config(), {"dataset.image_size": 128, "train.epochs": 2, "model.pretrained": "none"}
    )
    assert departures(config) == (
        "dataset.image_size 128 instead of 448, train.epochs 2 instead of 50, "
        "model.pretrained none instead of imagenet"
    )
    assert describe_settings(config) == (
        "resnet18 from random weights, 2 scales, 128×128, batch 48, 2 epochs × 20 steps"
    )
    one = with_settings(config, {"model.n_scales": 1, "model.pretrained": "/w/mine.npz"})
    assert describe_settings(one).startswith("resnet18 from mine.npz, one scale, 128×128")
