"""VisA, one category, with the paper's settings.

    python -m devnet_jax.main --config=configs/visa.py:pcb1 \
        --config.dataset.manual_dir=~/data/VisA --workdir=runs/pcb1

`manual_dir` is the folder that holds the category folders and `split_csv/`, unpacked from
VisA_20220922.tar of https://registry.opendata.aws/visa. Without it, that archive (1.9 GB) is
fetched.
"""

from ml_collections import ConfigDict

from devnet_jax.config import get_config as default_config


def get_config(category: str = "candle") -> ConfigDict:
    config = default_config()
    config.dataset.name = "visa"
    config.dataset.category = category
    return config
