"""Descriptions of settings and machines."""

from devnet_jax.config import Config, with_settings
from devnet_jax.sweep.description import (
    describe_departures,
    describe_detectors,
    describe_environment,
    describe_settings,
)
from tests.sweep.test_table import result


def test_the_paper_s_settings_have_no_departures() -> None:
    assert describe_departures(Config()) == ""
    moved = {"dataset.manual_dir": "/data", "model.pretrained": "/weights/resnet18.safetensors"}
    assert describe_departures(with_settings(Config(), moved)) == ""
    assert describe_settings(Config()) == (
        "resnet18 from ImageNet weights, 2 scales, 448×448, batch 48, 50 epochs × 20 steps"
    )


def test_other_settings_are_listed() -> None:
    config = with_settings(
        Config(), {"dataset.image_size": 128, "train.epochs": 2, "model.pretrained": "none"}
    )
    assert describe_departures(config) == (
        "dataset.image_size 128 instead of 448, train.epochs 2 instead of 50, "
        "model.pretrained none instead of imagenet"
    )
    assert describe_settings(config) == (
        "resnet18 from random weights, 2 scales, 128×128, batch 48, 2 epochs × 20 steps"
    )
    one = with_settings(config, {"model.n_scales": 1, "model.pretrained": "/w/mine.npz"})
    assert describe_settings(one).startswith("resnet18 from mine.npz, one scale, 128×128")


def test_several_detectors_are_described_with_their_own_settings() -> None:
    base = with_settings(Config(), {"model.n_scales": 1})
    devcore = "devcore: resnet18 from ImageNet weights, 224×224, memory of 2000 vectors"
    assert describe_detectors(base, ["devcore", "devcore"]) == devcore
    assert describe_detectors(base, ["devcore", "devnet"]) == (
        f"{describe_settings(base)}; {devcore}"
    )
    assert describe_detectors(base, []) == describe_settings(base)


def test_environments_of_the_runs() -> None:
    gpu = {"device": "8 × NVIDIA H200", "software": "Python 3.12.1, jax 0.12.0"}
    cpu = {"device": "2 CPU cores (x86_64)", "software": "Python 3.11.7, jax 0.10.2"}
    first, last = "2026-11-23", "2026-12-01"
    assert describe_environment([result(0.9)]) == ""
    runs = [result(0.9, seed, started=first, **cpu) for seed in range(3)]
    assert describe_environment(runs) == (
        "2026-11-23; 2 CPU cores (x86_64), Python 3.11.7, jax 0.10.2"
    )
    assert describe_environment([result(0.9, 4, started=last, **gpu), *runs]) == (
        "2026-11-23 to 2026-12-01; 2 CPU cores (x86_64), Python 3.11.7, jax 0.10.2; "
        "8 × NVIDIA H200, Python 3.12.1, jax 0.12.0"
    )
