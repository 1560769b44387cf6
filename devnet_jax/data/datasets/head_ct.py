"""The data set Head CT, with and without haemorrhage, as published on Kaggle."""

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
from devnet_jax.data.paths import list_files, read_lines
from devnet_jax.errors import UserError


class HeadCt(AnomalyDatasetBuilder):
    """Slices of head CT, 100 without and 100 with a haemorrhage, each of a different person."""

    name = "head_ct"
    LAYOUT = (
        "labels.csv (id, hemorrhage) and the images 000.png to 199.png in head_ct/, as unpacked"
        " from https://www.kaggle.com/datasets/felipekitamura/head-ct-hemorrhage"
    )
    # From the data set's page on Kaggle.
    PUBLISHED_COUNTS: ClassVar = {None: {GOOD: 100, "hemorrhage": 100}}

    @classmethod
    def raw_examples(cls, folder: Path, category: str | None) -> list[RawExample]:
        """Lists the images in the order of the table; they may be at any depth."""
        table = _label_table(folder)
        if not table.is_file():
            raise UserError(f"no file '{table}': expected {cls.LAYOUT}")
        images: dict[int, Path] = {}
        for file in list_files(folder):
            if not file.stem.isdecimal():
                continue
            if (number := int(file.stem)) in images:
                raise UserError(
                    f"two images with the same id, '{images[number]}' and '{file}': remove one"
                )
            images[number] = file
        examples = []
        # In the published table, a space follows each comma.
        rows = csv.DictReader(read_lines(table), skipinitialspace=True)
        for row in rows:
            where = f"'{table}', line {rows.line_num}"
            try:
                number = int(row["id"])
                label = {"0": NORMAL, "1": ANOMALY}[row["hemorrhage"].strip()]
            except (KeyError, TypeError, ValueError, AttributeError):
                raise UserError(
                    f"{where}: expected an id and a hemorrhage, 0 or 1, not {dict(row)}: restore it"
                ) from None
            image = images.pop(number, None)
            if image is None:
                raise UserError(
                    f"{where}: id {number} has no image in '{folder}', or has an earlier line:"
                    " restore the image or remove the line"
                )
            defect = "hemorrhage" if label == ANOMALY else GOOD
            examples.append(RawExample(image.name, label, defect, image))
        if images:
            raise UserError(
                f"{len(images)} images have no line in '{table}', for example"
                f" '{min(images.values())}': restore the table or remove the images"
            )
        return examples

    @classmethod
    def index_files(cls, folder: Path) -> list[Path]:
        return [_label_table(folder)]


def _label_table(folder: Path) -> Path:
    """Returns the path of labels.csv, which some copies have inside head_ct/."""
    nested = folder / "head_ct" / "labels.csv"
    return nested if nested.is_file() else folder / "labels.csv"
