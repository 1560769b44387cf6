"""AITEX (fabrics) with the paper's settings.

    python -m devnet_jax.main --config=configs/aitex.py \
        --config.dataset.manual_dir=~/data/aitex --workdir=runs/aitex

`manual_dir` is the folder that holds `NODefect_images/`, `Defect_images/` and `Mask_images/`,
unpacked from the three archives of https://www.aitex.es/afid/.
"""

from ml_collections import ConfigDict

from devnet_jax.config import get_config as default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.dataset.name = "aitex"
    return config
