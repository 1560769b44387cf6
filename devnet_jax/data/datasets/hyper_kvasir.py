"""The data set HyperKvasir, upper GI tract only, https://datasets.simula.no/hyper-kvasir."""

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
from devnet_jax.data.download import Archive
from devnet_jax.data.paths import inner_folder, list_files
from devnet_jax.errors import UserError

_TRACT = "upper-gi-tract"


class HyperKvasir(AnomalyDatasetBuilder):
    """Gastroscopy: anatomical landmarks are normal, four pathological findings anomalous."""

    name = "hyper_kvasir"
    LAYOUT = (
        f"{_TRACT}/anatomical-landmarks/<class>/ and {_TRACT}/pathological-findings/<class>/,"
        " as in hyper-kvasir-labeled-images.zip of https://datasets.simula.no/hyper-kvasir"
    )
    # Borgli et al. 2020, https://doi.org/10.1038/s41597-020-00622-y. The normal images are 999 of
    # the pylorus, 764 of the retroflex stomach and 932 of the Z-line.
    PUBLISHED_COUNTS: ClassVar = {
        None: {
            GOOD: 2695,
            "barretts": 41,
            "barretts-short-segment": 53,
            "esophagitis-a": 403,
            "esophagitis-b-d": 260,
        }
    }
    # The checksum is from the GitHub repositories christianbueno1/polysight-seg and
    # 47-Nibirh/Agreement-Stratified-Evaluation-, which downloaded the archive independently.
    DOWNLOAD = (
        Archive(
            "https://datasets.simula.no/downloads/hyper-kvasir/hyper-kvasir-labeled-images.zip",
            "sha256:c603449b1bc0be86948b11d9aea8b2002058a11e6f5499e2a384b9ae9c8dbd3f",
            folder="labeled-images",
        ),
    )

    @classmethod
    def raw_examples(cls, folder: Path, category: str | None) -> list[RawExample]:
        folder = inner_folder(folder, "labeled-images")
        examples = []
        for name, label in (("anatomical-landmarks", NORMAL), ("pathological-findings", ANOMALY)):
            group = folder / _TRACT / name
            images = [image for image in list_files(group) if image.parent != group]
            if not images:
                raise UserError(f"no images in the folders of '{group}': expected {cls.LAYOUT}")
            for image in images:
                defect = GOOD if label == NORMAL else image.relative_to(group).parts[0]
                path = image.relative_to(folder).as_posix()
                examples.append(RawExample(path, label, defect, image))
        return examples
