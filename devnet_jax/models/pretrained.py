"""Weights under torchvision's names: from files and the Hugging Face Hub to Flax and back.

In a torchvision state dict `layer1.0.conv1.weight` is a kernel [O, I, H, W]; here it is
`params/feature_extractor/layer1_0/conv1/kernel` [H, W, I, O]. The scoring head is
`conv.weight` and `conv.bias`, as in the official implementation's checkpoints.
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
from devnet_jax.models.network import BACKBONES, DeviationNetwork, get_backbone

logger = logging.getLogger(__name__)

# Repositories of torchvision's ImageNet weights (IMAGENET1K_V1) on the Hugging Face Hub.
IMAGENET_REPOSITORIES = {
    "resnet18": "timm/resnet18.tv_in1k",
    "resnet34": "timm/resnet34.tv_in1k",
    "resnet50": "timm/resnet50.tv_in1k",
}

_Path = tuple[str, ...]
_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
_HEAD = ("conv.weight", "conv.bias")
_TO_OTHER_SOURCE = "give a file of torchvision's weights as config.model.pretrained"


def from_torch_state_dict(state: Mapping[str, Any], backbone: str) -> dict[str, Any]:
    """Turns a PyTorch state dict into the variables of a `DeviationNetwork`.

    Args:
      state: tensor name → array, under torchvision's names or those of an official DevNet
        checkpoint (prefix `feature_extractor.net.`); a prefix `module.` is dropped. The
        classifier (`fc.*`, `classifier.*`) and `num_batches_tracked` are ignored.
      backbone: a key of `BACKBONES`.

    Returns:
      {"params": …, "batch_stats": …} of NumPy arrays in the dtypes of `state`, as from
      `DeviationNetwork.init`: no "batch_stats" for a backbone without BatchNorm. The head is
      present if and only if `state` has `conv.weight` and `conv.bias`.

    Raises:
      UserError: where tensors are missing, unexpected or misshapen.
    """
    state = _clean(state)
    _check(state, backbone)
    names = {path: torch_name(path) for path in _template(backbone)}
    return traverse_util.unflatten_dict(
        {path: _to_flax(state[name]) for path, name in names.items() if name in state}
    )


def to_torch_state_dict(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The inverse of `from_torch_state_dict`: PyTorch's layout, torchvision's names."""
    return {
        torch_name(path): _to_torch(np.asarray(value))
        for path, value in traverse_util.flatten_dict(variables).items()
    }


def load_pretrained(source: str, backbone: str) -> dict[str, np.ndarray]:
    """Reads a state dict, complete and right for the backbone, under torchvision's names.

    Args:
      source: "imagenet", for torchvision's weights from the Hugging Face Hub (kept in its
        cache), or a path, local or in a bucket, ending in .safetensors, .npz, .pth or .pt
        (the last two need PyTorch; nothing is unpickled but tensors).
      backbone: a key of `BACKBONES`.

    Raises:
      UserError: where the source does not exist, cannot be reached or read, or does not fit.
    """
    path = _download(backbone) if source == "imagenet" else source
    state = _clean(_read(path))
    try:
        _check(state, backbone)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    return state


def torch_name(path: _Path) -> str:
    """torchvision's name of the variable at a path such as ("params", "score", "kernel")."""
    _, *modules, leaf = path
    modules = ["conv"] if modules == ["score"] else modules[1:]
    return ".".join([*(re.sub(r"_(\d+)$", r".\1", m) for m in modules), _LEAVES[leaf]])


def _to_flax(array: np.ndarray) -> np.ndarray:
    """OIHW → HWIO; other tensors have the same layout."""
    return np.ascontiguousarray(array.transpose(2, 3, 1, 0)) if array.ndim == 4 else array


def _to_torch(array: np.ndarray) -> np.ndarray:
    """HWIO → OIHW; other tensors have the same layout."""
    return np.ascontiguousarray(array.transpose(3, 2, 0, 1)) if array.ndim == 4 else array


@functools.cache
def _template(backbone: str) -> dict[_Path, jax.ShapeDtypeStruct]:
    """Path → shape of every variable of a network, its head included; computes nothing."""
    model = DeviationNetwork(backbone, n_scales=1)
    variables = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.zeros((1, 224, 224, 3), jnp.float32))
    )
    return traverse_util.flatten_dict(variables)


@functools.cache
def _torch_shapes(backbone: str) -> dict[str, tuple[int, ...]]:
    """torchvision's name → PyTorch's shape of every tensor of a network, its head included."""
    shapes = {}
    for path, leaf in _template(backbone).items():
        height_width, channels = leaf.shape[:-2], leaf.shape[-2:]
        shapes[torch_name(path)] = (*reversed(channels), *height_width)
    return shapes


def _clean(state: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The tensors that matter as NumPy arrays, under torchvision's names."""
    clean = {}
    for name, value in state.items():
        name = name.removeprefix("module.").removeprefix("feature_extractor.net.")
        if re.match(r"\d+\.", name):  # the official code keeps only AlexNet's `features`
            name = f"features.{name}"
        if name.startswith(("fc.", "classifier.")) or name.endswith("num_batches_tracked"):
            continue
        clean[name] = np.asarray(value)
    return clean


def _check(state: Mapping[str, np.ndarray], backbone: str) -> None:
    """Raises UserError unless the tensors are exactly the backbone's, with or without a head."""
    get_backbone(backbone)
    faults = _faults(state, backbone)
    if not faults:
        return
    for other in BACKBONES:
        if not _faults(state, other):
            raise UserError(f"these look like the weights of {other}, not of {backbone}")
    raise UserError(f"not the weights of {backbone}: {'; '.join(faults)}")


def _faults(state: Mapping[str, np.ndarray], backbone: str) -> list[str]:
    """What is missing, unexpected or misshapen, in words; empty if nothing is."""
    expected = dict(_torch_shapes(backbone))
    if not any(name in state for name in _HEAD):
        for name in _HEAD:
            del expected[name]
    misshapen = [
        f"{name} {list(state[name].shape)} instead of {list(shape)}"
        for name, shape in expected.items()
        if name in state and state[name].shape != shape
    ]
    found = {
        "missing": [name for name in expected if name not in state],
        "unexpected": [name for name in state if name not in expected],
        "of the wrong shape": misshapen,
    }
    return [f"{what}: {_few(names)}" for what, names in found.items() if names]


def _few(names: Iterable[str], at_most: int = 4) -> str:
    names = list(names)
    more = f", and {len(names) - at_most} more" if len(names) > at_most else ""
    return ", ".join(names[:at_most]) + more


def _download(backbone: str) -> str:
    """Path of the backbone's ImageNet weights in the Hub's cache, fetched if need be."""
    get_backbone(backbone)
    if backbone not in IMAGENET_REPOSITORIES:
        raise UserError(f"no ImageNet weights of {backbone} to download: {_TO_OTHER_SOURCE}")
    repository = IMAGENET_REPOSITORIES[backbone]
    logger.info("fetching ImageNet weights: %s, from the Hugging Face Hub or its cache", repository)
    verbosity = huggingface_hub.logging.get_verbosity()
    huggingface_hub.logging.set_verbosity_error()  # it would report every attempt to connect
    try:
        return huggingface_hub.hf_hub_download(repository, "model.safetensors")
    except Exception as error:  # the Hub, its transport and its cache each have their own
        raise UserError(
            f"cannot download {repository} from huggingface.co ({type(error).__name__}): "
            f"{_TO_OTHER_SOURCE}"
        ) from error
    finally:
        huggingface_hub.logging.set_verbosity(verbosity)


def _read(path: str) -> dict[str, Any]:
    """The tensors of a file, as arrays."""
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
    except Exception as error:  # each format fails in its own ways on a damaged file
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
    state = state.get("state_dict", state)  # as saved by many training scripts
    return {name: tensor.detach().numpy() for name, tensor in state.items()}


_READERS = {
    ".safetensors": safetensors.numpy.load,
    ".npz": _read_npz,
    ".pth": _read_torch,
    ".pt": _read_torch,
}
