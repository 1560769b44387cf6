"""The data set Brain MRI, with and without a tumour, as published on Kaggle."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from devnet_jax.data.datasets.builder import (
    ANOMALY,
    GOOD,
    NORMAL,
    AnomalyDatasetBuilder,
    RawExample,
)
from devnet_jax.data.paths import inner_folder, list_files
from devnet_jax.errors import UserError


class BrainMri(AnomalyDatasetBuilder):
    """Slices of brain MRI, 98 without a tumour (`no`) and 155 with one (`yes`)."""

    name = "brain_mri"
    LAYOUT = (
        "no/ and yes/, as unpacked from"
        " https://www.kaggle.com/datasets/navoneel/brain-mri-images-for-brain-tumor-detection"
    )
    # Counted in the archive.
    PUBLISHED_COUNTS: ClassVar = {None: {GOOD: 98, "tumor": 155}}

    @classmethod
    def raw_examples(cls, folder: Path, category: str | None) -> list[RawExample]:
        folder = inner_folder(folder, "brain_tumor_dataset")
        examples = []
        for name, label, defect in (("no", NORMAL, GOOD), ("yes", ANOMALY, "tumor")):
            images = list_files(folder / name)
            if not images:
                raise UserError(f"no images in '{folder / name}': expected {cls.LAYOUT}")
            examples += [
                RawExample(image.relative_to(folder).as_posix(), label, defect, image)
                for image in images
            ]
        return examples
