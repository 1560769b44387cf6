"""A config file with the settings of an existing run.

The command line uses `--config=…/saved_config.py:WORKDIR` where `--config` is left out.
"""

from ml_collections import ConfigDict

from devnet_jax.config import get_config as default_config
from devnet_jax.runtime.workdir import Workdir, read_config


def get_config(workdir: str) -> ConfigDict:
    """Returns the settings in the config.json of a workdir."""
    config = default_config()
    config.update(read_config(Workdir(workdir)).to_dict())
    return config
