"""MVTec AD, one category, with the paper's settings.

    python -m devnet_jax.main --config=configs/mvtec.py:carpet \
        --config.dataset.manual_dir=~/data/mvtec_anomaly_detection --workdir=runs/carpet

`manual_dir` is the folder that holds the category folders, unpacked from
https://www.mvtec.com/company/research/datasets/mvtec-ad.
"""

from ml_collections import ConfigDict

from devnet_jax.config import get_config as default_config


def get_config(category: str = "carpet") -> ConfigDict:
    config = default_config()
    config.dataset.name = "mvtec_ad"
    config.dataset.category = category
    return config
