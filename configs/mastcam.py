"""Mastcam: novelties on the surface of Mars, with the paper's settings.

Images: 9728 normal and 451 anomalous, in eleven classes of anomalies, no masks. The data set has
its own split. The first three of the six spectral bands are used.

Command, where `manual_dir` holds `train_typical/`, `test_typical/` and `test_novel/`, unpacked from
https://zenodo.org/records/3732485 (fetched from there if `manual_dir` is not given):

    python -m devnet_jax.main --config=configs/mastcam.py \
        --config.dataset.manual_dir=~/data/mastcam --workdir=runs/mastcam

Not run here. Published AUROC of DevNet with ten labelled anomalies: 0.797 ± 0.021 (arXiv
2310.12790, table 1).
"""

from ml_collections import ConfigDict

from devnet_jax.config import for_dataset


def get_config() -> ConfigDict:
    return for_dataset("mastcam")
