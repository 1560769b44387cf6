"""MVTec AD: industrial objects and textures, https://www.mvtec.com/company/research/datasets."""

from __future__ import annotations

from pathlib import Path

from devnet_jax.data.builders.anomaly_dataset import AnomalyDatasetBuilder, RawExample
from devnet_jax.data.builders.image_folder import LAYOUT, read_class_folders
from devnet_jax.errors import UserError


class MvtecAd(AnomalyDatasetBuilder):
    """Industrial inspection: ten objects and five textures, each with its own defects and masks."""

    name = "mvtec_ad"
    CATEGORIES = (
        "bottle",
        "cable",
        "capsule",
        "carpet",
        "grid",
        "hazelnut",
        "leather",
        "metal_nut",
        "pill",
        "screw",
        "tile",
        "toothbrush",
        "transistor",
        "wood",
        "zipper",
    )
    LAYOUT = (
        "the folder that mvtec_anomaly_detection.tar.xz from"
        f" https://www.mvtec.com/company/research/datasets/mvtec-ad unpacks to: <category>/{LAYOUT}"
    )

    @classmethod
    def raw_examples(cls, folder: Path, category: str | None) -> list[RawExample]:
        """Lists <folder>/<category>, or the folder itself if it has the category's name."""
        assert category is not None
        if (folder / category).is_dir():
            return read_class_folders(folder / category)
        if folder.resolve().name == category:
            return read_class_folders(folder)
        raise UserError(f"no folder '{folder / category}': expected {cls.LAYOUT}")
