"""A folder of your own pictures, with the paper's settings and a calibrated threshold.

Images: `train/good`, `test/good` and `test/<defect>`, with optional masks in
`ground_truth/<defect>`. `n_anomaly` (ten) of the pictures in `test/<defect>` train with their
label; the others test. A fifth of `train/good` does not train; it calibrates the threshold.

Command, where `manual_dir` is that folder:

    python -m devnet_jax.main --config=configs/folder.py \
        --config.dataset.manual_dir=my_parts --workdir=runs/my_parts

The paper's settings take hours on a CPU. With `--config.dataset.image_size=224
--config.train.batch_size=16 --config.train.epochs=10` the 200 steps take five to seven minutes on
two CPU cores (2026-11-28 and 29, docs/own_data.md). The AUROC depends on your pictures.
"""

from ml_collections import ConfigDict

from devnet_jax.config import FOLDER_CALIBRATION, for_dataset


def get_config(detector: str = "devcore") -> ConfigDict:
    config = for_dataset("image_folder")
    config.model.detector = detector
    config.dataset.calibration = FOLDER_CALIBRATION
    return config
