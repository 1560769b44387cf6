"""SDD (KolektorSDD: surfaces of electrical commutators) with the paper's settings.

    python -m devnet_jax.main --config=configs/sdd.py \
        --config.dataset.manual_dir=~/data/KolektorSDD --workdir=runs/sdd

`manual_dir` is the folder that holds `kos01/` to `kos50/`, unpacked from
https://data.vicos.si/datasets/KSDD/KolektorSDD.zip; without it, that archive (97 MiB) is fetched.
"""

from ml_collections import ConfigDict

from devnet_jax.config import get_config as default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.dataset.name = "sdd"
    return config
