"""The data set ELPV: solar cells in electroluminescence, https://github.com/zae-bayern/elpv-dataset."""

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
from devnet_jax.data.paths import read_lines
from devnet_jax.errors import UserError


class Elpv(AnomalyDatasetBuilder):
    """Solar cells, 1508 working and 715 defective, monocrystalline or polycrystalline.

    Cells with a defect probability other than 0 or 1 are not used.
    """

    name = "elpv"
    LAYOUT = (
        "labels.csv and images/, as in src/elpv_dataset/data of"
        " https://github.com/zae-bayern/elpv-dataset"
    )
    # Counted in labels.csv.
    PUBLISHED_COUNTS: ClassVar = {None: {GOOD: 1508, "mono": 313, "poly": 402}}
    # The host packs the archive for each download, so the checksum is that of labels.csv and the
    # 2624 images.
    DOWNLOAD = (
        Archive(
            "https://github.com/zae-bayern/elpv-dataset/archive/refs/heads/master.zip",
            "files:0a6f64069e70ca4a3ecdab35fff0d31cce14ee5e6bda21c15ce66b82017121a4",
            folder="elpv-dataset-master/src/elpv_dataset/data",
        ),
    )

    @classmethod
    def raw_examples(cls, folder: Path, category: str | None) -> list[RawExample]:
        table = folder / "labels.csv"
        if not table.is_file():
            raise UserError(f"no file '{table}': expected {cls.LAYOUT}")
        examples = []
        for number, line in enumerate(read_lines(table), start=1):
            if not line.strip():
                continue
            try:
                path, probability_text, kind = line.split()
                probability = float(probability_text)
            except ValueError:
                raise UserError(
                    f"'{table}', line {number}: expected a path, a probability and mono or poly,"
                    f" not '{line}'"
                ) from None
            if not (folder / path).is_file():
                raise UserError(f"'{table}', line {number}: no file '{folder / path}': restore it")
            if probability == 0:
                examples.append(RawExample(path, NORMAL, GOOD, folder / path))
            elif probability == 1:
                examples.append(RawExample(path, ANOMALY, kind, folder / path))
        return examples

    @classmethod
    def index_files(cls, folder: Path) -> list[Path]:
        return [folder / "labels.csv"]
