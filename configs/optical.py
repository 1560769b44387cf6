"""Optical: DAGM 2007, ten drawn textures in greyscale, 512×512, with the paper's settings.

Images: 14000 normal and 2100 anomalous, one class of anomalies for each texture, with elliptic
masks. A quarter of the normal images is held out for testing.

Command, where `manual_dir` holds `Class1/` to `Class10/`, unpacked from
https://zenodo.org/records/12750201:

    python -m devnet_jax.main --config=configs/optical.py \
        --config.dataset.manual_dir=~/data/dagm_2007 --workdir=runs/optical

Not run here. Published AUROC of DevNet with ten labelled anomalies: 0.785 ± 0.012 (arXiv
2310.12790, table 1).
"""

from ml_collections import ConfigDict

from devnet_jax.config import for_dataset


def get_config() -> ConfigDict:
    return for_dataset("optical")
