"""Brain MRI (tumour or none) with the paper's settings.

    python -m devnet_jax.main --config=configs/brain_mri.py \
        --config.dataset.manual_dir=~/data/brain_mri --workdir=runs/brain_mri

`manual_dir` is the folder that holds `no/` and `yes/`, unpacked from
https://www.kaggle.com/datasets/navoneel/brain-mri-images-for-brain-tumor-detection.
"""

from ml_collections import ConfigDict

from devnet_jax.config import get_config as default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.dataset.name = "brain_mri"
    return config
