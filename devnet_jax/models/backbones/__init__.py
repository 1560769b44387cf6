"""The registry of backbones: every module of this folder adds its own `BACKBONES` to it."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping

from devnet_jax.errors import lookup
from devnet_jax.models.backbones.spec import Backbone

BACKBONES: Mapping[str, Backbone] = {
    name: backbone
    for module in pkgutil.iter_modules(__path__, f"{__name__}.")
    for name, backbone in getattr(importlib.import_module(module.name), "BACKBONES", {}).items()
}


def get_backbone(name: str) -> Backbone:
    """Returns a registered backbone; raises `UserError` with the nearest names if unknown."""
    return lookup(BACKBONES, name, "backbone")
