"""Your own pictures, with the paper's settings.

    python -m devnet_jax.main --config=configs/folder.py \
        --config.dataset.manual_dir=my_parts --workdir=runs/my_parts

The folder is laid out as `train/good`, `test/good` and `test/<defect>`, with masks of the
defects, where there are any, in `ground_truth/<defect>`. `n_anomaly` of the pictures in
`test/<defect>` are taken for training with their label; the others test.
"""

from ml_collections import ConfigDict

from devnet_jax.config import FOLDER_CALIBRATION
from devnet_jax.config import get_config as default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.dataset.name = "image_folder"
    config.dataset.calibration = FOLDER_CALIBRATION
    return config
