"""Optical: DAGM 2007, industrial optical inspection, https://zenodo.org/records/12750201."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

from devnet_jax.data.datasets.builder import (
    ANOMALY,
    GOOD,
    NORMAL,
    AnomalyDatasetBuilder,
    RawExample,
)
from devnet_jax.data.paths import unnested
from devnet_jax.errors import UserError

CLASSES = tuple(f"Class{number}" for number in range(1, 11))


class Optical(AnomalyDatasetBuilder):
    """Ten drawn textures, 14000 images without a defect and 2100 with one: 512×512, greyscale.

    The defect's class is its texture's name. Masks are ellipses around the defects. The division
    into Train and Test is not used, as in the published results.
    """

    name = "optical"
    LAYOUT = (
        "Class1/ to Class10/, each with Train/*.PNG, Train/Label/Labels.txt and the same in"
        " Test/: DAGM 2007, https://zenodo.org/records/12750201"
    )
    # 1000 images without and 150 with a defect in each of the first six classes, twice as many
    # in the others (https://conferences.mpi-inf.mpg.de/dagm/2007/prizes.html); in all those of
    # table 5 of arXiv 2203.14506: 10500 + 3500 normal, 2100 anomalous.
    PUBLISHED_COUNTS: ClassVar[Mapping[str | None, Mapping[str, int]]] = {
        None: {GOOD: 14000} | {name: 150 if name in CLASSES[:6] else 300 for name in CLASSES}
    }

    @classmethod
    def raw_examples(cls, folder: Path, category: str | None) -> list[RawExample]:
        examples = []
        for place, table in _tables(folder):
            if not table.is_file():
                raise UserError(f"no file '{table}': expected {cls.LAYOUT}")
            examples += _read_table(place, table)
        return examples

    @classmethod
    def index_files(cls, folder: Path) -> list[Path]:
        return [table for _, table in _tables(folder)]


def _tables(folder: Path) -> Iterator[tuple[str, Path]]:
    """The tables of labels, each with its place in the data set, such as Class1/Train."""
    root = unnested(folder, "DAGM_KaggleUpload")
    for name in CLASSES:
        for part in ("Train", "Test"):
            texture = unnested(root / name, name)
            yield f"{name}/{part}", texture / part / "Label" / "Labels.txt"


def _read_table(place: str, table: Path) -> list[RawExample]:
    """Reads the number 1, then lines of: number, whether defective, image, 0, mask or 0."""
    images, masks = _Folder(table.parents[1]), _Folder(table.parent)
    examples = []
    for number, line in enumerate(table.read_text().splitlines(), start=1):
        if len(line.split()) <= 1:
            continue
        where = f"'{table}', line {number}"
        try:
            _, defective, image, _, mask = line.split()
            label = {"0": NORMAL, "1": ANOMALY}[defective]
        except (ValueError, KeyError):
            raise UserError(
                f"{where}: expected a number, 0 or 1, an image, 0 and a mask or 0, not '{line}'"
            ) from None
        examples.append(
            RawExample(
                path=f"{place}/{image}",
                label=label,
                defect=place.partition("/")[0] if label == ANOMALY else GOOD,
                image=images.file(image, where),
                mask=masks.file(mask, where) if label == ANOMALY and mask != "0" else None,
            )
        )
    return examples


class _Folder:
    """A folder's files, whatever the case of their names: not all copies keep it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files = {file.name.lower(): file for file in folder.iterdir()}

    def file(self, name: str, where: str) -> Path:
        if name.lower() not in self._files:
            raise UserError(f"{where}: no file '{self._folder / name}': restore it")
        return self._files[name.lower()]
