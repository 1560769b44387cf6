"""Head CT: slices of head scans with and without a haemorrhage, with the paper's settings.

Images: 100 normal and 100 anomalous, one class of anomalies, no masks. A quarter of the normal
images is held out for testing.

Command, where `manual_dir` holds `labels.csv` and `head_ct/`, unpacked from
https://www.kaggle.com/datasets/felipekitamura/head-ct-hemorrhage:

    python -m devnet_jax.main --config=configs/head_ct.py \
        --config.dataset.manual_dir=~/data/head_ct --workdir=runs/head_ct

Not run here. Published AUROC of DevNet with ten labelled anomalies: 0.997 ± 0.002 (arXiv
2310.12790, table 1).
"""

from ml_collections import ConfigDict

from devnet_jax.config import for_dataset


def get_config() -> ConfigDict:
    return for_dataset("head_ct")
