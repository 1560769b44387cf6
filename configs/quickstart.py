"""The built-in data set, small enough for two CPU cores and a few minutes, from random weights.

python -m devnet_jax.main --config=configs/quickstart.py --workdir=runs/quickstart
"""

from ml_collections import ConfigDict

from devnet_jax.config import get_config as default_config


def get_config(category: str = "mesh") -> ConfigDict:
    config = default_config()
    config.dataset.name = "synthetic_textures"
    config.dataset.category = category
    config.dataset.image_size = 96
    config.dataset.calibration = 0.5
    config.model.pretrained = "none"
    config.model.n_scales = 1
    config.train.batch_size = 16
    config.train.epochs = 12
    config.evaluation.batch_size = 64
    return config
