"""Mastcam (novelties on Mars) with the paper's settings.

    python -m devnet_jax.main --config=configs/mastcam.py \
        --config.dataset.manual_dir=~/data/mastcam --workdir=runs/mastcam

`manual_dir` is the folder that holds `train_typical/`, `test_typical/` and `test_novel/`, unpacked
from https://zenodo.org/records/3732485.
"""

from ml_collections import ConfigDict

from devnet_jax.config import get_config as default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.dataset.name = "mastcam"
    return config
