"""Brain MRI: slices of brain scans with and without a tumour, with the paper's settings.

Images: 98 normal and 155 anomalous, one class of anomalies, no masks. A quarter of the normal
images is held out for testing.

Command, where `manual_dir` holds `no/` and `yes/`, unpacked from
https://www.kaggle.com/datasets/navoneel/brain-mri-images-for-brain-tumor-detection:

    python -m devnet_jax.main --config=configs/brain_mri.py \
        --config.dataset.manual_dir=~/data/brain_mri --workdir=runs/brain_mri

Measured at 224×224, batch 16, 200 steps (`--config.dataset.image_size=224
--config.train.batch_size=16 --config.train.epochs=10`): test AUROC 0.870 ± 0.048 over three seeds
(2026-11-28, two CPU cores, benchmarks/results/real_data.md). 200 such steps take five to seven
minutes on two CPU cores (2026-11-28 and 29). The paper's settings take hours on a CPU and were not
run here. Published AUROC of DevNet with ten labelled anomalies: 0.951 ± 0.007 (arXiv 2310.12790,
table 1).
"""

from ml_collections import ConfigDict

from devnet_jax.config import for_dataset


def get_config() -> ConfigDict:
    return for_dataset("brain_mri")
