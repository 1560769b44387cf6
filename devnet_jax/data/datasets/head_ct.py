"""Head CT with and without haemorrhage, as published on Kaggle: `head_ct/` and `labels.csv`."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import ClassVar

from devnet_jax.data.datasets.builder import (
    ANOMALY,
    GOOD,
    NORMAL,
    AnomalyDatasetBuilder,
    RawExample,
)
from devnet_jax.data.paths import list_files
from devnet_jax.errors import UserError


class HeadCt(AnomalyDatasetBuilder):
    """Slices of head CT, 100 without and 100 with a haemorrhage, each of another person."""

    name = "head_ct"
    LAYOUT = (
        "labels.csv (id, hemorrhage) and the images 000.png to 199.png in head_ct/, as unpacked"
        " from https://www.kaggle.com/datasets/felipekitamura/head-ct-hemorrhage"
    )
    # The data set's page on Kaggle.
    PUBLISHED_COUNTS: ClassVar = {None: {GOOD: 100, "hemorrhage": 100}}

    @classmethod
    def raw_examples(cls, folder: Path, category: str | None) -> list[RawExample]:
        """Lists the images in the order of the table; they may lie at any depth."""
        table = _table(folder)
        if not table.is_file():
            raise UserError(f"no file '{table}': expected {cls.LAYOUT}")
        images: dict[int, Path] = {}
        for file in list_files(folder):
            if not file.stem.isdecimal():
                continue
            if (number := int(file.stem)) in images:
                raise UserError(
                    f"two images of one id, '{images[number]}' and '{file}': remove one"
                )
            images[number] = file
        examples = []
        with table.open(newline="", encoding="utf-8-sig") as lines:
            # The published header and values have a space after the comma.
            rows = csv.DictReader(lines, skipinitialspace=True)
            for row in rows:
                where = f"'{table}', line {rows.line_num}"
                try:
                    number = int(row["id"])
                    defective = {"0": False, "1": True}[row["hemorrhage"].strip()]
                except (KeyError, TypeError, ValueError, AttributeError):
                    raise UserError(
                        f"{where}: expected an id and, as hemorrhage, 0 or 1, not"
                        f" {dict(row)}: restore it"
                    ) from None
                image = images.pop(number, None)
                if image is None:
                    raise UserError(
                        f"{where}: id {number} has no image in '{folder}', or has a line already:"
                        " restore the image or remove the line"
                    )
                label, defect = (ANOMALY, "hemorrhage") if defective else (NORMAL, GOOD)
                examples.append(RawExample(image.name, label, defect, image))
        if images:
            raise UserError(
                f"{len(images)} images have no line in '{table}', for example"
                f" '{min(images.values())}': restore the table or remove them"
            )
        return examples

    @classmethod
    def index_files(cls, folder: Path) -> list[Path]:
        return [_table(folder)]


def _table(folder: Path) -> Path:
    nested = folder / "head_ct" / "labels.csv"
    return nested if nested.is_file() else folder / "labels.csv"
