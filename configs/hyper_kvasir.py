"""HyperKvasir (upper gastrointestinal tract) with the paper's settings.

    python -m devnet_jax.main --config=configs/hyper_kvasir.py \
        --config.dataset.manual_dir=~/data/labeled-images --workdir=runs/hyper_kvasir

`manual_dir` is the folder that holds `upper-gi-tract/`, unpacked from
hyper-kvasir-labeled-images.zip of https://datasets.simula.no/hyper-kvasir. Without it, that archive
(3.9 GB) is fetched.
"""

from ml_collections import ConfigDict

from devnet_jax.config import get_config as default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.dataset.name = "hyper_kvasir"
    return config
