"""Head CT (haemorrhage or none) with the paper's settings.

    python -m devnet_jax.main --config=configs/head_ct.py \
        --config.dataset.manual_dir=~/data/head_ct --workdir=runs/head_ct

`manual_dir` is the folder that holds `labels.csv` and `head_ct/`, unpacked from
https://www.kaggle.com/datasets/felipekitamura/head-ct-hemorrhage.
"""

from ml_collections import ConfigDict

from devnet_jax.config import get_config as default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.dataset.name = "head_ct"
    return config
