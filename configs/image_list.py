"""A list of your own pictures and their labels, with a calibrated threshold.

The list is a table (CSV) with the columns `path`, `label` (good or anomaly), `defect`, `split`
(train or test) and `mask`; only the first is required. Paths start from the folder of the list, or
from `manual_dir`. `n_anomaly` (ten) of the anomalies train with their label; the others test.
Without anomalies set it to 0. A fifth of the good pictures to train with does not train; it
calibrates the threshold.

Command, where `labels` is that list:

    python -m devnet_jax.main --config=configs/image_list.py \
        --config.dataset.labels=labels.csv --workdir=runs/my_list

It trains DevCore; `configs/image_list.py:devnet` trains the paper's network, with the same settings
as `configs/folder.py`. The AUROC depends on your pictures.
"""

from ml_collections import ConfigDict

from devnet_jax.config import FOLDER_CALIBRATION, for_dataset


def get_config(detector: str = "devcore") -> ConfigDict:
    config = for_dataset("image_list")
    config.model.detector = detector
    config.dataset.calibration = FOLDER_CALIBRATION
    return config
