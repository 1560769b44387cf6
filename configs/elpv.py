"""ELPV solar cells with the paper's settings.

    python -m devnet_jax.main --config=configs/elpv.py \
        --config.dataset.manual_dir=~/data/elpv --workdir=runs/elpv

`manual_dir` is the folder that holds `labels.csv` and `images/`, as in
https://github.com/zae-bayern/elpv-dataset.
"""

from ml_collections import ConfigDict

from devnet_jax.config import get_config as default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.dataset.name = "elpv"
    return config
