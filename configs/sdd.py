"""SDD: KolektorSDD, surfaces of electrical commutators, with the paper's settings.

Images: 1143 normal and 54 anomalous parts, thirds of 399 images, with masks. A quarter of the
normal parts tests.

Command, where `manual_dir` holds `kos01/` to `kos50/`, unpacked from
https://data.vicos.si/datasets/KSDD/KolektorSDD.zip (97 MiB, fetched from there if `manual_dir` is
not given):

    python -m devnet_jax.main --config=configs/sdd.py \
        --config.dataset.manual_dir=~/data/KolektorSDD --workdir=runs/sdd

Not run here. Published AUROC of DevNet with ten labelled anomalies: 0.985 ± 0.004 (arXiv
2310.12790, table 1).
"""

from ml_collections import ConfigDict

from devnet_jax.config import for_dataset


def get_config() -> ConfigDict:
    return for_dataset("sdd")
