"""The data set VisA: industrial objects with masks, https://registry.opendata.aws/visa."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import ClassVar

from devnet_jax.data.datasets.builder import (
    ANOMALY,
    GOOD,
    NORMAL,
    SPLITS,
    AnomalyDatasetBuilder,
    RawExample,
)
from devnet_jax.data.download import Archive
from devnet_jax.data.paths import list_files, read_lines
from devnet_jax.errors import UserError

_URL = "https://amazon-visual-anomaly.s3.us-west-2.amazonaws.com/VisA_20220922.tar"
# From https://github.com/amazon-science/spot-diff (Zou et al. 2022), with 100 anomalies each.
_NORMAL_IMAGES = {
    "candle": 1000,
    "capsules": 602,
    "cashew": 500,
    "chewinggum": 503,
    "fryum": 500,
    "macaroni1": 1000,
    "macaroni2": 1000,
    "pcb1": 1004,
    "pcb2": 1001,
    "pcb3": 1006,
    "pcb4": 1005,
    "pipe_fryum": 500,
}


class Visa(AnomalyDatasetBuilder):
    """Industrial inspection: twelve objects, one or several per image, with masks.

    The split is the one-class split of split_csv/1cls.csv, if that file exists.
    """

    name = "visa"
    CATEGORIES = tuple(_NORMAL_IMAGES)
    LAYOUT = (
        "<category>/Data/Images/Normal/, <category>/Data/Images/Anomaly/,"
        f" <category>/Data/Masks/Anomaly/ and split_csv/1cls.csv, as {_URL} unpacks to"
    )
    PUBLISHED_COUNTS: ClassVar = {
        category: {GOOD: normal, "anomaly": 100} for category, normal in _NORMAL_IMAGES.items()
    }
    # anomalib's checksum; others have published the same value.
    DOWNLOAD = (
        Archive(_URL, "sha256:2eb8690c803ab37de0324772964100169ec8ba1fa3f7e94291c9ca673f40f362"),
    )

    @classmethod
    def raw_examples(cls, folder: Path, category: str | None) -> list[RawExample]:
        assert category is not None
        data = folder / category / "Data"
        table = _split_table(folder)
        splits = _read_splits(table, category)
        # Mask values number the kinds of defects from 1; 0 is no defect.
        masks = {mask.stem: mask for mask in list_files(data / "Masks" / "Anomaly")}
        examples = []
        for name, label, defect in (("Normal", NORMAL, GOOD), ("Anomaly", ANOMALY, "anomaly")):
            images = list_files(data / "Images" / name)
            if not images:
                raise UserError(f"no images in '{data / 'Images' / name}': expected {cls.LAYOUT}")
            for image in images:
                path = image.relative_to(folder).as_posix()
                mask = masks.get(image.stem) if label == ANOMALY else None
                split = splits.pop(path, None)
                examples.append(RawExample(path, label, defect, image, mask, split))
        if splits:
            raise UserError(
                f"no file '{folder / min(splits)}', which is listed in '{table}': restore it"
            )
        return examples

    @classmethod
    def index_files(cls, folder: Path) -> list[Path]:
        table = _split_table(folder)
        return [table] if table.is_file() else []


def _split_table(folder: Path) -> Path:
    """Returns the path of the table of the one-class split."""
    return folder / "split_csv" / "1cls.csv"


def _read_splits(table: Path, category: str) -> dict[str, str]:
    """Returns the split of each image of the category, by path; {} if there is no table."""
    if not table.is_file():
        return {}
    splits = {}
    rows = csv.DictReader(read_lines(table))
    for row in rows:
        if row.get("split") not in SPLITS or not row.get("image") or not row.get("object"):
            raise UserError(
                f"'{table}', line {rows.line_num}: expected object, split (train or test),"
                f" label, image and mask, not {dict(row)}: restore it"
            )
        if row["object"] == category:
            splits[row["image"]] = row["split"]
    return splits
