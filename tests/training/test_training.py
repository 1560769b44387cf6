"""Tests of training: numbers of devices, streamed images, non-finite losses, backbones."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from devnet_jax import Detector
from devnet_jax.config import Config, DatasetConfig, with_settings
from devnet_jax.data.decode import loading
from devnet_jax.data.store import make_store
from devnet_jax.distributed.sharding import replicated
from devnet_jax.models import to_torch_state_dict
from devnet_jax.models.build import make_variables
from devnet_jax.runtime.workdir import Workdir
from devnet_jax.training.loop import batch_indices, call_inputs
from devnet_jax.training.run import train
from devnet_jax.training.step import initial_state, make_train_call
from tests.conftest import BACKBONE, IMAGE_SIZE, REPOSITORY, Main
from tests.data.test_store import ArrayReader


def parameters(workdir: Path) -> np.ndarray:
    """Returns all parameters and running statistics of the newest checkpoint as one vector."""
    leaves = jax.tree.leaves(Detector.restore(workdir).variables)
    return np.concatenate([np.ravel(leaf) for leaf in leaves])


TRAIN = """
import json, sys
from devnet_jax.config import Config
from devnet_jax.training.run import train
from devnet_jax.runtime.workdir import Workdir
train(Config.from_dict(json.loads(sys.argv[1])), Workdir(sys.argv[2]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape", [{}, {"dataset.tiles": "1x2", "dataset.fit": "letterbox"}], ids=["square", "tiles"]
)
def test_one_two_and_eight_devices_train_the_same_model(
    parts: Path, tmp_path: Path, shape: dict[str, str]
) -> None:
    settings = shape | {
        "model.backbone": "resnet18",  # has BatchNorm
        "dataset.image_size": 32,
        "train.batch_size": 8,
        "train.epochs": 4,
        "train.steps_per_epoch": 1,
        "loss.prior_samples": 10,  # few, so that another draw would be noticed
        "optimizer.clip_norm": 0.5,  # clips at every step
    }
    config = with_settings(small_run(parts, tmp_path / "prepared"), settings)
    trained, first_step = {}, {}
    for devices in (1, 2, 8):
        workdir = tmp_path / str(devices)
        result = subprocess.run(
            [sys.executable, "-c", TRAIN, json.dumps(config.to_dict()), str(workdir)],
            cwd=REPOSITORY,
            # Optimised, because convolutions in the loop over tiles take minutes otherwise.
            env={
                **os.environ,
                "JAX_NUM_CPU_DEVICES": str(devices),
                "JAX_DISABLE_MOST_OPTIMIZATIONS": "0",
            },
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert result.returncode == 0, result.stderr
        trained[devices] = parameters(workdir)
        first_step[devices] = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[0])
    start = make_variables(config)
    initial = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(start)])
    moved = np.linalg.norm(trained[1] - initial)
    for devices in (2, 8):
        # From equal parameters, the loss and the gradient are those of the whole batch.
        for name in ("loss", "gradient_norm"):
            assert first_step[devices][name] == pytest.approx(first_step[1][name], rel=1e-4)
        # Sums over the batch have another order, so float32 gradients differ in the last bits.
        # Where a gradient is nearly 0, its sign may flip, and Adam makes a full step of it. The
        # test therefore compares the norm of the difference with the total change.
        assert np.linalg.norm(trained[devices] - trained[1]) < 0.02 * moved


def small_run(parts: Path, data_dir: Path, epochs: int = 2, **dataset: object) -> Config:
    values = Config().to_dict()
    values["dataset"] |= {
        "name": "image_folder",
        "manual_dir": str(parts),
        "data_dir": str(data_dir),
        "image_size": IMAGE_SIZE,
        "n_anomaly": 3,
        **dataset,
    }
    values["model"] |= {"backbone": BACKBONE, "n_scales": 1, "pretrained": "none"}
    values["train"] |= {"batch_size": 8, "steps_per_epoch": 2, "epochs": epochs}
    return Config.from_dict(values)


def test_images_that_do_not_fit_are_streamed_and_train_the_same_model(
    parts: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO")
    data_dir = tmp_path / "prepared"
    train(small_run(parts, data_dir), Workdir(tmp_path / "host"))
    assert "12 training images (0.14 MiB) are kept in host memory\n" in caplog.text
    caplog.clear()
    streamed = tmp_path / "streamed"
    for epochs in (1, 2):  # stopped halfway
        train(small_run(parts, data_dir, epochs, memory_gib=1e-5), Workdir(streamed))
    reason = "are streamed from disk: more than the 1e-05 GiB of config.dataset.memory_gib"
    assert caplog.text.count(reason) == 2
    np.testing.assert_array_equal(parameters(streamed), parameters(tmp_path / "host"))

    def fail(*_: object) -> None:
        raise AssertionError("decoded")

    # A finished run does not read its images.
    monkeypatch.setattr(loading, "load_image", fail)
    train(small_run(parts, data_dir, cache=False), Workdir(streamed))
    with pytest.raises(AssertionError, match="decoded"):
        train(small_run(parts, data_dir, epochs=3, cache=False), Workdir(streamed))


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(
    main: Main, tiny: tuple[str, ...], tmp_path: Path
) -> None:
    # Adam's first step is about the learning rate: the second loss overflows.
    result = main(
        *tiny,
        f"--workdir={tmp_path}",
        "--config.optimizer.learning_rate=1e30",
        "--config.train.steps_per_epoch=1",
    )
    assert result.returncode == 1
    message = (
        r"error: step 2: the .* \(nan\) is not finite; training stopped, step 1 is saved; .*\n"
    )
    assert re.fullmatch(message, last_line(result))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["1"]


def last_line(result: subprocess.CompletedProcess[str]) -> str:
    assert "Traceback" not in result.stderr
    return result.stderr.splitlines(keepends=True)[-1]


@pytest.mark.parametrize(
    "settings",
    [
        # AlexNet has no BatchNorm and needs 63 pixels. 4 of 7 images of a batch are anomalies.
        # A call of two steps does not divide its epoch of three.
        {
            "model.backbone": "alexnet",
            "model.topk": 0,
            "loss.name": "bce",
            "dataset.image_size": 65,
            "train.batch_size": 7,
            "train.steps_per_epoch": 3,
            "train.steps_per_call": 2,
        },
        pytest.param(
            {
                "model.backbone": "resnet50",
                "loss.name": "focal",
                "train.batch_size": 2,
                "train.steps_per_epoch": 2,
                "evaluation.explanation": "none",
            },
            marks=pytest.mark.slow,
        ),
    ],
    ids=lambda settings: settings["model.backbone"],
)
def test_other_backbones_losses_and_types(
    main: Main, tiny: tuple[str, ...], tmp_path: Path, settings: dict[str, object]
) -> None:
    result = main(
        *tiny,
        f"--workdir={tmp_path}",
        "--config.model.dtype=bfloat16",
        "--config.train.epochs=1",
        *(f"--config.{name}={value}" for name, value in settings.items()),
    )
    assert result.returncode == 0, result.stderr
    metrics = json.loads((tmp_path / "eval/metrics.json").read_text())
    assert metrics["step"] == settings["train.steps_per_epoch"]
    assert 0 <= metrics["image_auroc"] <= 1
    assert "prior_threshold" not in metrics  # only the deviation loss has a prior
    detector = Detector.restore(tmp_path)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(detector.variables))


def test_processes_load_consecutive_parts_of_each_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config()
    whole = batch_indices(config, range(3), 30, 40)
    assert whole.shape == (3, 48)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    parts = []
    for process in range(2):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        parts.append(batch_indices(config, range(3), 30, 40))
        assert parts[-1].shape == (3, 24)
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)


def test_calls_end_with_their_epoch_and_resume_where_they_were() -> None:
    config = with_settings(
        Config(),
        {
            "train.batch_size": 2 * jax.local_device_count(),
            "train.steps_per_epoch": 5,
            "train.steps_per_call": 2,
            "train.epochs": 3,
        },
    )
    images = np.arange(9 * 4 * 4 * 3, dtype=np.uint8).reshape(9, 4, 4, 3)
    store = make_store(ArrayReader(images), config.dataset, replicated())
    whole = list(call_inputs(config, store, 6, 0))
    assert [len(labels) for _, labels in whole] == [2, 2, 1] * 3
    indices = batch_indices(config, range(15), 6, 9)
    np.testing.assert_array_equal(np.concatenate([labels for _, labels in whole]), indices >= 6)
    for done, calls in ((5, whole[3:]), (15, [])):
        resumed = list(call_inputs(config, store, 6, done))
        assert len(resumed) == len(calls)
        for one, other in zip(resumed, calls, strict=True):
            np.testing.assert_array_equal(one[0], other[0])
            np.testing.assert_array_equal(one[1], other[1])


def test_steps_of_a_call_are_the_same_one_by_one_in_one_call_and_in_a_loop() -> None:
    values = Config().to_dict()
    values["dataset"]["image_size"] = IMAGE_SIZE
    values["model"] |= {"backbone": BACKBONE, "n_scales": 1}
    values["train"]["batch_size"] = 4 * jax.local_device_count()
    config = Config.from_dict(values)
    images = np.random.default_rng(0).integers(
        0, 256, (9, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8
    )
    indices = batch_indices(config, range(2), 6, 9)
    labels = (indices >= 6).astype(np.float32)
    drawn = make_variables(config)
    moved, losses = {}, {}
    for how, where, scan, calls in (
        ("one by one", "device", False, [[0], [1]]),
        ("one call", "host", False, [[0, 1]]),
        ("loop", "device", True, [[0, 1]]),
    ):
        store = make_store(ArrayReader(images), DatasetConfig(store=where), replicated())
        call = make_train_call(config, store, scan=scan)
        variables = jax.tree.map(jnp.copy, drawn)  # a call donates its state
        state = jax.device_put(initial_state(config, variables), replicated())
        history = []
        for steps in calls:
            batches = store.call_input(indices[steps])
            state, metrics = call(state, store.resident, batches, labels[steps])
            history.append(np.asarray(metrics["loss"]))
        assert int(state.step) == 2
        losses[how] = np.concatenate(history)
        moved[how] = difference(state.variables, drawn)
    for how in ("one call", "loop"):
        # XLA sums in another order in programs of other shapes; see the test of devices.
        np.testing.assert_allclose(losses[how][0], losses["one by one"][0], rtol=1e-5)
        apart = np.linalg.norm(moved[how] - moved["one by one"])
        assert apart < 0.02 * np.linalg.norm(moved["one by one"])


def difference(one: Any, other: Any) -> np.ndarray:
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return np.concatenate([np.ravel(a - b) for a, b in pairs])


def test_half_precision_weights_are_trained_in_single_precision() -> None:
    values = Config().to_dict()
    values["dataset"]["image_size"] = 32
    values["model"]["n_scales"] = 1
    config = Config.from_dict(values)
    state = to_torch_state_dict(make_variables(config))
    half = {name: value.astype(np.float16) for name, value in state.items()}
    assert {leaf.dtype for leaf in jax.tree.leaves(make_variables(config, half))} == {
        np.dtype(np.float32)
    }


def test_a_pretrained_start_replaces_the_features_and_keeps_a_drawn_head() -> None:
    values = Config().to_dict()
    values["dataset"]["image_size"] = 32
    values["model"]["n_scales"] = 1
    config = Config.from_dict(values)
    drawn = make_variables(config)
    state = {k: v + 1 for k, v in to_torch_state_dict(drawn).items()}
    features = {k: v for k, v in state.items() if not k.startswith("conv.")}
    loaded = make_variables(config, features)
    again = to_torch_state_dict(loaded)
    for name, value in features.items():
        np.testing.assert_array_equal(again[name], value, err_msg=name)
    np.testing.assert_array_equal(
        loaded["params"]["score"]["kernel"], drawn["params"]["score"]["kernel"]
    )
