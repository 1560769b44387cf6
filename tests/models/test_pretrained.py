"""Tests of weights under torchvision's names: conversion, sources and errors."""

import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from devnet_jax.errors import UserError
from devnet_jax.models import (
    DeviationNetwork,
    from_torch_state_dict,
    load_pretrained,
    to_torch_state_dict,
)

State = dict[str, np.ndarray]


def made_up_state(backbone: str) -> State:
    """Returns a complete torchvision state dict in which all values differ."""
    images = jnp.zeros((1, 64, 64, 3))
    template = jax.eval_shape(DeviationNetwork(backbone, 1).init, jax.random.key(0), images)
    zeros = to_torch_state_dict(jax.tree.map(lambda leaf: np.zeros(leaf.shape), template))
    return {
        name: i + np.linspace(0, 1, value.size, dtype=np.float32).reshape(value.shape)
        for i, (name, value) in enumerate(zeros.items())
    }


@pytest.fixture(scope="module")
def resnet18() -> State:
    return made_up_state("resnet18")


@pytest.fixture(scope="module")
def alexnet() -> State:
    return made_up_state("alexnet")


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50", "alexnet"])
def test_round_trip(backbone: str) -> None:
    state = made_up_state(backbone)
    back = to_torch_state_dict(from_torch_state_dict(state, backbone))
    assert back.keys() == state.keys()
    for name, value in state.items():
        assert back[name].dtype == value.dtype
        np.testing.assert_array_equal(back[name], value)


def test_names_and_layout(resnet18: State) -> None:
    variables = from_torch_state_dict(resnet18, "resnet18")
    extractor = variables["params"]["feature_extractor"]
    np.testing.assert_array_equal(
        extractor["layer2_0"]["downsample_0"]["kernel"],
        resnet18["layer2.0.downsample.0.weight"].transpose(2, 3, 1, 0),
    )
    np.testing.assert_array_equal(extractor["bn1"]["scale"], resnet18["bn1.weight"])
    np.testing.assert_array_equal(
        variables["batch_stats"]["feature_extractor"]["bn1"]["var"], resnet18["bn1.running_var"]
    )
    np.testing.assert_array_equal(
        variables["params"]["score"]["kernel"], resnet18["conv.weight"].transpose(2, 3, 1, 0)
    )


def test_structure_is_that_of_init(resnet18: State) -> None:
    variables = from_torch_state_dict(resnet18, "resnet18")
    init = jax.eval_shape(DeviationNetwork().init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    assert jax.tree.map(np.shape, variables) == jax.tree.map(np.shape, init)


def test_head_is_optional_but_not_half_of_it(alexnet: State) -> None:
    headless = {name: a for name, a in alexnet.items() if not name.startswith("conv.")}
    variables = from_torch_state_dict(headless, "alexnet")
    assert variables.keys() == {"params"}
    assert variables["params"].keys() == {"feature_extractor"}
    with pytest.raises(UserError, match=r"missing: conv\.bias"):
        from_torch_state_dict({**headless, "conv.weight": alexnet["conv.weight"]}, "alexnet")


@pytest.mark.parametrize("prefix", ["feature_extractor.net.", "module.feature_extractor.net."])
def test_official_names_and_unused_tensors(resnet18: State, alexnet: State, prefix: str) -> None:
    def official(name: str) -> str:
        return name if name.startswith("conv.") else prefix + name.removeprefix("features.")

    unused = {f"{prefix}fc.weight": np.ones(3), f"{prefix}bn1.num_batches_tracked": np.array(7)}
    for backbone, state in (("resnet18", resnet18), ("alexnet", alexnet)):
        renamed = {official(name): value for name, value in state.items()} | unused
        jax.tree.map(
            np.testing.assert_array_equal,
            from_torch_state_dict(renamed, backbone),
            from_torch_state_dict(state, backbone),
        )


def test_faults_are_named(resnet18: State) -> None:
    few = {name: a for name, a in resnet18.items() if not name.startswith("layer3.0.bn")}
    with pytest.raises(UserError, match=r"missing: (layer3\.0\.bn[\w.]+, ){4}and 4 more$"):
        from_torch_state_dict(few, "resnet18")
    with pytest.raises(UserError, match=r"unexpected: other\.weight$"):
        from_torch_state_dict({**resnet18, "other.weight": np.ones(1)}, "resnet18")
    with pytest.raises(UserError, match=r"conv1\.weight \[1, 2\] instead of \[64, 3, 7, 7\]"):
        from_torch_state_dict({**resnet18, "conv1.weight": np.ones((1, 2))}, "resnet18")
    with pytest.raises(UserError, match="did you mean"):
        from_torch_state_dict(resnet18, "resnet8")


def test_weights_of_another_backbone_are_recognised(resnet18: State, alexnet: State) -> None:
    with pytest.raises(UserError, match="look like the weights of resnet18, not of resnet34"):
        from_torch_state_dict(resnet18, "resnet34")
    with pytest.raises(UserError, match="look like the weights of alexnet, not of resnet18"):
        from_torch_state_dict(alexnet, "resnet18")


@pytest.mark.parametrize(
    ("suffix", "save"),
    [(".safetensors", safetensors.numpy.save_file), (".npz", lambda s, path: np.savez(path, **s))],
)
def test_files(alexnet: State, tmp_path: Path, suffix: str, save: Callable[..., None]) -> None:
    path = tmp_path / f"weights{suffix}"
    save({**alexnet, "classifier.1.bias": np.ones(3)}, str(path))
    state = load_pretrained(str(path), "alexnet")
    assert state.keys() == alexnet.keys()
    np.testing.assert_array_equal(state["features.0.weight"], alexnet["features.0.weight"])

    with pytest.raises(UserError, match=f"weights{suffix}: these look like the weights of alexnet"):
        load_pretrained(str(path), "resnet18")

    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match=f"cannot read pretrained weights .*weights{suffix}"):
        load_pretrained(str(path), "alexnet")


def test_no_array_is_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "weights.npz"
    np.savez(path, a=np.array([object()]))
    with pytest.raises(UserError, match="cannot read"):
        load_pretrained(str(path), "alexnet")


def test_sources_that_do_not_exist(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        load_pretrained(str(tmp_path / "missing.npz"), "resnet18")
    with pytest.raises(UserError, match="neither 'imagenet' nor a file ending in"):
        load_pretrained("imagnet", "resnet18")


class FakeTensor:
    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def detach(self) -> "FakeTensor":
        return self

    def numpy(self) -> np.ndarray:
        return self.array


@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"state_dict": state}])
def test_torch_files_are_read_as_weights_only(
    alexnet: State,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    wrap: Callable[[dict[str, Any]], dict[str, Any]],
) -> None:
    def load(file: Any, *, map_location: str, weights_only: bool) -> dict[str, Any]:
        assert weights_only
        assert map_location == "cpu"
        assert file.read() == b"a checkpoint"
        return wrap({name: FakeTensor(array) for name, array in alexnet.items()})

    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(load=load))
    path = tmp_path / "weights.pth"
    path.write_bytes(b"a checkpoint")
    assert load_pretrained(str(path), "alexnet").keys() == alexnet.keys()


def test_torch_files_need_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    path = tmp_path / "weights.pt"
    path.write_bytes(b"")
    with pytest.raises(UserError, match="needs PyTorch"):
        load_pretrained(str(path), "resnet18")


def test_imagenet_comes_from_the_hub(
    resnet18: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(repository: str, filename: str) -> str:
        assert (repository, filename) == ("timm/resnet18.tv_in1k", "model.safetensors")
        path = tmp_path / filename
        backbone = {name: a for name, a in resnet18.items() if not name.startswith("conv.")}
        safetensors.numpy.save_file({**backbone, "fc.bias": np.ones(1000)}, path)
        return str(path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    state = load_pretrained("imagenet", "resnet18")
    assert state.keys() == resnet18.keys() - {"conv.weight", "conv.bias"}


def test_imagenet_without_a_way_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(repository: str, filename: str) -> str:
        raise huggingface_hub.errors.LocalEntryNotFoundError("offline\nand more lines")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(UserError, match=r"as config\.model\.pretrained") as raised:
        load_pretrained("imagenet", "resnet18")
    assert "\n" not in str(raised.value)
    with pytest.raises(UserError, match="no ImageNet weights of alexnet"):
        load_pretrained("imagenet", "alexnet")


def test_real_imagenet_weights(shared: Path) -> None:
    path = shared / "weights" / "resnet18_imagenet.safetensors"
    variables = from_torch_state_dict(load_pretrained(str(path), "resnet18"), "resnet18")
    assert "score" not in variables["params"]
    init = jax.eval_shape(DeviationNetwork().init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    del init["params"]["score"]
    assert jax.tree.map(np.shape, variables) == jax.tree.map(np.shape, init)
    assert {a.dtype for a in jax.tree.leaves(variables)} == {np.dtype(np.float32)}
    variances = jax.tree.leaves(variables["batch_stats"]["feature_extractor"]["bn1"]["var"])
    assert all((v >= 0).all() for v in variances)
