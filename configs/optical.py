"""Optical (DAGM 2007: drawn textures) with the paper's settings.

    python -m devnet_jax.main --config=configs/optical.py \
        --config.dataset.manual_dir=~/data/dagm_2007 --workdir=runs/optical

`manual_dir` is the folder that holds `Class1/` to `Class10/`, unpacked from
https://zenodo.org/records/12750201.
"""

from ml_collections import ConfigDict

from devnet_jax.config import get_config as default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.dataset.name = "optical"
    return config
