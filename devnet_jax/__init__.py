"""Explainable deep few-shot anomaly detection with deviation networks, in JAX and Flax."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from devnet_jax.api import Detector
    from devnet_jax.inference.sklearn import DevNet

__all__ = ["Detector", "DevNet", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # JAX is imported on first use, so that `--help` and reading settings are fast.
    if name == "Detector":
        from devnet_jax.api import Detector

        return Detector
    if name == "DevNet":
        from devnet_jax.inference.sklearn import DevNet

        return DevNet
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
