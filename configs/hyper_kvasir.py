"""HyperKvasir: endoscopy of the upper gastrointestinal tract, with the paper's settings.

Images: 2695 normal and 757 anomalous, in four classes of anomalies, no masks. A quarter of the
normal images is held out for testing.

Command, where `manual_dir` holds `upper-gi-tract/`, unpacked from hyper-kvasir-labeled-images.zip
of https://datasets.simula.no/hyper-kvasir (3.9 GB, fetched from there if `manual_dir` is not
given):

    python -m devnet_jax.main --config=configs/hyper_kvasir.py \
        --config.dataset.manual_dir=~/data/labeled-images --workdir=runs/hyper_kvasir

Not run here. Published AUROC of DevNet with ten labelled anomalies: 0.822 ± 0.031 (arXiv
2310.12790, table 1).
"""

from ml_collections import ConfigDict

from devnet_jax.config import for_dataset


def get_config() -> ConfigDict:
    return for_dataset("hyper_kvasir")
