"""AITEX: woven fabrics, in patches of 256×256 pixels, with the paper's settings.

Images: 2256 normal patches, of which a quarter is held out for testing. The number of anomalous
patches depends on
the masks; arXiv 2203.14506, table 5, has 183. Twelve classes of defects, with masks.

Command, where `manual_dir` holds `NODefect_images/`, `Defect_images/` and `Mask_images/`, unpacked
from the three archives of https://www.aitex.es/afid/:

    python -m devnet_jax.main --config=configs/aitex.py \
        --config.dataset.manual_dir=~/data/aitex --workdir=runs/aitex

Not run here. Published AUROC of DevNet with ten labelled anomalies: 0.889 ± 0.007 (arXiv
2310.12790, table 1).
"""

from ml_collections import ConfigDict

from devnet_jax.config import for_dataset


def get_config() -> ConfigDict:
    return for_dataset("aitex")
