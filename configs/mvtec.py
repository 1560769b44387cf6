"""MVTec AD: industrial objects and textures, one of 15 categories, with the paper's settings.

Images of all categories: 4096 normal and 1258 anomalous, with masks; of carpet, the default
category: 308 normal and 89 anomalous in five classes of anomalies. The data set has its own split.

Command, where `manual_dir` holds the category folders, unpacked from
https://www.mvtec.com/company/research/datasets/mvtec-ad:

    python -m devnet_jax.main --config=configs/mvtec.py:carpet \
        --config.dataset.manual_dir=~/data/mvtec_anomaly_detection --workdir=runs/carpet

Not run here. Published AUROC of DevNet with ten labelled anomalies, mean over the categories:
0.948 ± 0.005 (arXiv 2310.12790, table 1) and 0.945 (arXiv 2108.00462).
"""

from ml_collections import ConfigDict

from devnet_jax.config import for_dataset


def get_config(category: str = "carpet") -> ConfigDict:
    return for_dataset("mvtec_ad", category)
