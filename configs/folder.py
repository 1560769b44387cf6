"""A folder of your own pictures, with a calibrated threshold.

Images: `train/good`; optionally `test/good` and `test/<defect>`, with optional masks in
`ground_truth/<defect>`. `n_anomaly` (ten) of the pictures in `test/<defect>` train with their
label; the others test. Without defects set it to 0. A fifth of `train/good` does not train; it
calibrates the threshold.

Command, where `manual_dir` is that folder:

    python -m devnet_jax.main --config=configs/folder.py \
        --config.dataset.manual_dir=my_parts --workdir=runs/my_parts

It trains DevCore, in less than a minute on a CPU. `configs/folder.py:devnet` trains the paper's
network with its settings, which take hours on a CPU. The AUROC depends on your pictures.
"""

from ml_collections import ConfigDict

from devnet_jax.config import FOLDER_CALIBRATION, for_dataset


def get_config(detector: str = "devcore") -> ConfigDict:
    config = for_dataset("image_folder")
    config.model.detector = detector
    config.dataset.calibration = FOLDER_CALIBRATION
    return config
