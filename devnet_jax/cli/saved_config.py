"""A config file, like those in `configs/`, that holds the settings of an existing run.

It is used as `--config=…/saved_config.py:WORKDIR`, which `with_saved_config` adds to a command line
without `--config`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from ml_collections import ConfigDict

from devnet_jax.cli.flags import flag_names
from devnet_jax.config import get_config as default_config
from devnet_jax.errors import UserError
from devnet_jax.runtime.workdir import Workdir, read_config


def get_config(workdir: str) -> ConfigDict:
    """Returns the settings in the config.json of a workdir."""
    config = default_config()
    config.update(read_config(Workdir(workdir)).to_dict())
    return config


def with_saved_config(argv: Sequence[str]) -> list[str]:
    """Returns the command line with the saved settings of `--workdir`, unless it has `--config`."""
    argv = list(argv)
    names = flag_names(argv)
    if "config" in names or "workdir" not in names:
        return argv
    i = names.index("workdir")
    value = argv[i].split("=", 1)[1:] or argv[i + 1 : i + 2]
    with contextlib.suppress(UserError, OSError):  # raised again, and reported, later
        if value and value[0] and Workdir(value[0]).config.exists():
            argv.insert(1, f"--config={__file__}:{value[0]}")
    return argv
