"""ELPV: solar cells, working and defective, with the paper's settings.

Images: 1508 normal and 715 anomalous, in two classes of anomalies (`mono`, `poly`), no masks. A
quarter of the normal images tests. Cells with a probability of being defective between 0 and 1 are
left out.

Command, where `manual_dir` holds `labels.csv` and `images/`, as in
https://github.com/zae-bayern/elpv-dataset (fetched from there if `manual_dir` is not given):

    python -m devnet_jax.main --config=configs/elpv.py \
        --config.dataset.manual_dir=~/data/elpv --workdir=runs/elpv

Measured at 224×224, batch 16, 200 steps (`--config.dataset.image_size=224
--config.train.batch_size=16 --config.train.epochs=10`): test AUROC 0.848 ± 0.026 over three seeds
(2026-11-28, two CPU cores, benchmarks/results/real_data.md). 200 such steps take five to seven
minutes on two CPU cores (2026-11-28 and 29). The paper's settings take hours on a CPU and were not
run here. Published AUROC of DevNet with ten labelled anomalies: 0.843 ± 0.001 (arXiv 2310.12790,
table 1).
"""

from ml_collections import ConfigDict

from devnet_jax.config import for_dataset


def get_config() -> ConfigDict:
    return for_dataset("elpv")
