"""VisA: industrial objects, one of 12 categories, with the paper's settings.

Images of all categories: 9621 normal and 1200 anomalous, with masks; of candle, the default
category: 1000 normal and 100 anomalous. The split is that of split_csv/1cls.csv.

Command, where `manual_dir` holds the category folders and `split_csv/`, unpacked from
VisA_20220922.tar of https://registry.opendata.aws/visa (1.9 GB, fetched from there if `manual_dir`
is not given):

    python -m devnet_jax.main --config=configs/visa.py:pcb1 \
        --config.dataset.manual_dir=~/data/VisA --workdir=runs/pcb1

Not run here. devnet_jax/sweep/published_results.json has no result of DevNet on VisA.
"""

from ml_collections import ConfigDict

from devnet_jax.config import for_dataset


def get_config(category: str = "candle") -> ConfigDict:
    return for_dataset("visa", category)
