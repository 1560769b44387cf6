"""Pretrained weights: from files and the Hugging Face Hub to Flax variables, and back to PyTorch.

In a torchvision state dict `layer1.0.conv1.weight` is a kernel [O, I, H, W]. In Flax it is
`params/feature_extractor/layer1_0/conv1/kernel` [H, W, I, O]. The head is `conv.weight` and
`conv.bias`, as in checkpoints of the official implementation.
"""

import functools
import io
import logging
import re
from collections.abc import Iterable, Mapping
from typing import Any

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from etils import epath
from flax import traverse_util

from devnet_jax.errors import UserError
from devnet_jax.models.backbones import BACKBONES, get_backbone
from devnet_jax.models.network import DeviationNetwork

logger = logging.getLogger(__name__)

_Path = tuple[str, ...]
_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
_HEAD = ("conv.weight", "conv.bias")
_HINT = "give a file of torchvision's weights as config.model.pretrained"


def from_torch_state_dict(state: Mapping[str, Any], backbone: str) -> dict[str, Any]:
    """Converts a PyTorch state dict to the variables of a `DeviationNetwork`.

    Args:
      state: arrays by tensor name, under torchvision's names or those of an official DevNet
        checkpoint (prefix `feature_extractor.net.`). A prefix `module.` is dropped. The classifier
        (`fc.*`, `classifier.*`) and `num_batches_tracked` are ignored.
      backbone: key of `BACKBONES`.

    Returns:
      {"params": …, "batch_stats": …} of NumPy arrays in the dtypes of `state`, structured as by
      `DeviationNetwork.init`, without "batch_stats" for a backbone without BatchNorm. The head is
      included if and only if `state` has `conv.weight` and `conv.bias`.

    Raises:
      UserError: if tensors are missing, unexpected or of the wrong shape.
    """
    state = _clean(state)
    _check(state, backbone)
    names = {path: torch_name(path, backbone) for path in _template(backbone)}
    return traverse_util.unflatten_dict(
        {path: _to_flax(state[name]) for path, name in names.items() if name in state}
    )


def to_torch_state_dict(
    variables: Mapping[str, Any], backbone: str = "resnet18"
) -> dict[str, np.ndarray]:
    """Converts variables to PyTorch's layout and names: the inverse of `from_torch_state_dict`.

    Args:
      variables: "params" and, if there are any, "batch_stats" of a `DeviationNetwork`.
      backbone: key of `BACKBONES`. The names of all built-in backbones follow the same rule.
    """
    return {
        torch_name(path, backbone): _to_torch(np.asarray(value))
        for path, value in traverse_util.flatten_dict(variables).items()
    }


def load_pretrained(source: str, backbone: str) -> dict[str, np.ndarray]:
    """Loads a state dict under torchvision's names, and checks that it fits the backbone.

    Args:
      source: "imagenet" for torchvision's weights from the Hugging Face Hub, which are kept in its
        cache, or a path, local or in a bucket, that ends in .safetensors, .npz, .pth or .pt. The
        last two need PyTorch; only tensors are unpickled.
      backbone: key of `BACKBONES`.

    Raises:
      UserError: if the source does not exist, cannot be reached or read, or does not fit.
    """
    path = _download(backbone) if source == "imagenet" else source
    state = _clean(_read(path))
    try:
        _check(state, backbone)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    return state


def torch_name(path: _Path, backbone: str) -> str:
    """Returns the PyTorch name of a variable's path, such as ("params", "score", "kernel")."""
    _, part, *modules, leaf = path
    if part == "score":  # official checkpoints call the head conv
        return ".".join(["conv", *modules, _LEAVES[leaf]])
    return f"{get_backbone(backbone).torch_module(modules)}.{_LEAVES[leaf]}"


def _to_flax(array: np.ndarray) -> np.ndarray:
    """Converts OIHW to HWIO; other tensors keep their layout."""
    return np.ascontiguousarray(array.transpose(2, 3, 1, 0)) if array.ndim == 4 else array


def _to_torch(array: np.ndarray) -> np.ndarray:
    """Converts HWIO to OIHW; other tensors keep their layout."""
    return np.ascontiguousarray(array.transpose(3, 2, 0, 1)) if array.ndim == 4 else array


@functools.cache
def _template(backbone: str) -> dict[_Path, jax.ShapeDtypeStruct]:
    """Returns the shape of every variable of a network by path, including the head's."""
    model = DeviationNetwork(backbone, n_scales=1)
    variables = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.zeros((1, 224, 224, 3), jnp.float32))
    )
    return traverse_util.flatten_dict(variables)


@functools.cache
def _torch_shapes(backbone: str) -> dict[str, tuple[int, ...]]:
    """Returns the PyTorch shape of every tensor of a network by name, including the head's."""
    shapes = {}
    for path, leaf in _template(backbone).items():
        height_width, channels = leaf.shape[:-2], leaf.shape[-2:]
        shapes[torch_name(path, backbone)] = (*reversed(channels), *height_width)
    return shapes


def _clean(state: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns the tensors of network and head as NumPy arrays, under torchvision's names."""
    clean = {}
    for name, value in state.items():
        name = name.removeprefix("module.").removeprefix("feature_extractor.net.")
        if re.match(r"\d+\.", name):  # official AlexNet checkpoints hold only its `features`
            name = f"features.{name}"
        if name.startswith(("fc.", "classifier.")) or name.endswith("num_batches_tracked"):
            continue
        clean[name] = np.asarray(value)
    return clean


def _check(state: Mapping[str, np.ndarray], backbone: str) -> None:
    """Raises `UserError` unless the tensors are the backbone's, with or without a head."""
    get_backbone(backbone)
    faults = _faults(state, backbone)
    if not faults:
        return
    for other in BACKBONES:
        if not _faults(state, other):
            raise UserError(f"these look like the weights of {other}, not of {backbone}")
    raise UserError(f"not the weights of {backbone}: {'; '.join(faults)}")


def _faults(state: Mapping[str, np.ndarray], backbone: str) -> list[str]:
    """Lists missing, unexpected and wrongly shaped tensors in words; empty if there are none."""
    expected = dict(_torch_shapes(backbone))
    if not any(name in state for name in _HEAD):
        for name in _HEAD:
            del expected[name]
    misshapen = [
        f"{name} {list(state[name].shape)} instead of {list(shape)}"
        for name, shape in expected.items()
        if name in state and state[name].shape != shape
    ]
    faults = {
        "missing": [name for name in expected if name not in state],
        "unexpected": [name for name in state if name not in expected],
        "of the wrong shape": misshapen,
    }
    return [f"{what}: {_shorten(names)}" for what, names in faults.items() if names]


def _shorten(names: Iterable[str], at_most: int = 4) -> str:
    """Joins names with commas; names after the first few are only counted."""
    names = list(names)
    more = f", and {len(names) - at_most} more" if len(names) > at_most else ""
    return ", ".join(names[:at_most]) + more


def _download(backbone: str) -> str:
    """Downloads the ImageNet weights unless they are cached, and returns their path."""
    repository = get_backbone(backbone).imagenet
    if repository is None:
        raise UserError(f"no ImageNet weights of {backbone} to download: {_HINT}")
    logger.info("fetching ImageNet weights: %s, from the Hugging Face Hub or its cache", repository)
    verbosity = huggingface_hub.logging.get_verbosity()
    huggingface_hub.logging.set_verbosity_error()  # or it reports every attempt to connect
    try:
        return huggingface_hub.hf_hub_download(repository, "model.safetensors")
    except Exception as error:  # hub, transport and cache raise different types
        raise UserError(
            f"cannot download {repository} from huggingface.co ({type(error).__name__}): {_HINT}"
        ) from error
    finally:
        huggingface_hub.logging.set_verbosity(verbosity)


def _read(path: str) -> dict[str, Any]:
    """Reads the tensors of a file as arrays."""
    suffix = epath.Path(path).suffix
    if suffix not in _READERS:
        raise UserError(
            f"pretrained weights '{path}': neither 'imagenet' nor a file ending in "
            f"{', '.join(_READERS)}"
        )
    try:
        return _READERS[suffix](epath.Path(path).expanduser().read_bytes())
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"pretrained weights '{path}': no such file") from error
    except Exception as error:  # each format raises other types on a damaged file
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise UserError(f"cannot read pretrained weights '{path}': {reason}") from error


def _read_npz(data: bytes) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return dict(arrays)


def _read_torch(data: bytes) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError as error:
        raise UserError(
            "reading .pth and .pt files needs PyTorch (pip install torch); or convert the file "
            "to .safetensors where PyTorch is installed"
        ) from error
    state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    if not isinstance(state, Mapping):
        raise TypeError("not a state dict")
    state = state.get("state_dict", state)  # many training scripts nest it
    return {name: tensor.detach().numpy() for name, tensor in state.items()}


_READERS = {
    ".safetensors": safetensors.numpy.load,
    ".npz": _read_npz,
    ".pth": _read_torch,
    ".pt": _read_torch,
}
