"""The data set Optical: DAGM 2007, optical inspection, https://zenodo.org/records/12750201."""

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
from devnet_jax.data.paths import inner_folder, read_lines
from devnet_jax.errors import UserError

CLASSES = tuple(f"Class{number}" for number in range(1, 11))


class Optical(AnomalyDatasetBuilder):
    """Ten synthetic textures, 14000 images without a defect and 2100 with one: 512×512, greyscale.

    The defect class is the name of the texture. Masks are ellipses around the defects. The split
    into Train and Test is not used, as in the published results.
    """

    name = "optical"
    LAYOUT = (
        "Class1/ to Class10/, each with Train/*.PNG, Train/Label/Labels.txt and the same in"
        " Test/: DAGM 2007, https://zenodo.org/records/12750201"
    )
    # The first six classes have 1000 images without and 150 with a defect each, the others twice as
    # many (https://conferences.mpi-inf.mpg.de/dagm/2007/prizes.html). The sums agree with table 5
    # of arXiv 2203.14506: 10500 + 3500 normal, 2100 anomalous.
    PUBLISHED_COUNTS: ClassVar[Mapping[str | None, Mapping[str, int]]] = {
        None: {GOOD: 14000} | {name: 150 if name in CLASSES[:6] else 300 for name in CLASSES}
    }

    @classmethod
    def raw_examples(cls, folder: Path, category: str | None) -> list[RawExample]:
        examples = []
        for prefix, table in _label_tables(folder):
            if not table.is_file():
                raise UserError(f"no file '{table}': expected {cls.LAYOUT}")
            examples += _read_label_table(prefix, table)
        return examples

    @classmethod
    def index_files(cls, folder: Path) -> list[Path]:
        return [table for _, table in _label_tables(folder)]


def _label_tables(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yields the label tables, each after the prefix of its images' paths, such as Class1/Train."""
    root = inner_folder(folder, "DAGM_KaggleUpload")
    for name in CLASSES:
        for part in ("Train", "Test"):
            texture = inner_folder(root / name, name)
            yield f"{name}/{part}", texture / part / "Label" / "Labels.txt"


def _read_label_table(prefix: str, table: Path) -> list[RawExample]:
    """Reads a label table: the number 1, then lines of number, label, image, 0, and mask or 0."""
    images = _CaseInsensitiveFolder(table.parents[1])
    masks = _CaseInsensitiveFolder(table.parent)
    examples = []
    for number, line in enumerate(read_lines(table), start=1):
        if len(line.split()) <= 1:
            continue
        where = f"'{table}', line {number}"
        try:
            _, label_text, image, _, mask = line.split()
            label = {"0": NORMAL, "1": ANOMALY}[label_text]
        except (ValueError, KeyError):
            raise UserError(
                f"{where}: expected a number, 0 or 1, an image, 0 and a mask or 0, not '{line}'"
            ) from None
        examples.append(
            RawExample(
                path=f"{prefix}/{image}",
                label=label,
                defect=prefix.partition("/")[0] if label == ANOMALY else GOOD,
                image=images.find(image, where),
                mask=masks.find(mask, where) if label == ANOMALY and mask != "0" else None,
            )
        )
    return examples


class _CaseInsensitiveFolder:
    """A folder whose files are found by name, ignoring case, which not all copies preserve."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files = {file.name.lower(): file for file in folder.iterdir()}

    def find(self, name: str, where: str) -> Path:
        """Returns the file of that name; `where` starts the message of the `UserError`."""
        if name.lower() not in self._files:
            raise UserError(f"{where}: no file '{self._folder / name}': restore it")
        return self._files[name.lower()]
