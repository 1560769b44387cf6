"""The data set `image_list`: pictures anywhere, with the labels of a table."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import ClassVar

from devnet_jax.data.datasets.builder import AnomalyDatasetBuilder, RawExample, name_with_hash
from devnet_jax.data.datasets.label_list import read_list
from devnet_jax.data.digests import FileDigests


class ImageList(AnomalyDatasetBuilder):
    """Pictures with the labels of a table: the columns path, label, defect, split and mask.

    Only the class that `of` returns can read pictures.

    Attributes:
      LABELS: the table.
    """

    name = "image_list"
    LAYOUT = "the pictures of the list that config.dataset.labels names"
    NAME_IDENTIFIES_DATA = False
    NEEDS_TEST_IMAGES = False
    SKIPS_OTHER_FILES = False
    LABELS: ClassVar[Path]

    @classmethod
    def of(cls, labels: Path) -> type[ImageList]:
        """Returns the builder of one table."""
        return type(cls.__name__, (cls,), {"LABELS": labels, "__doc__": cls.__doc__})

    @classmethod
    def raw_examples(cls, folder: Path, category: str | None) -> list[RawExample]:
        return read_list(cls.LABELS, folder)

    @classmethod
    def fingerprint_parts(
        cls, folder: Path, examples: Iterable[RawExample], digests: FileDigests
    ) -> Iterator[str]:
        """Yields the texts to fingerprint; two pictures may also have exchanged their masks."""
        examples = list(examples)
        yield from super().fingerprint_parts(folder, examples, digests)
        for example in examples:
            if isinstance(example.mask, Path):
                yield f"{example.path}\0mask\0{os.path.relpath(example.mask, folder)}"

    @classmethod
    def config_name(cls, folder: Path | None, category: str | None) -> str | None:
        """Returns the table's name and a hash of its path and the folder's, to tell lists apart."""
        paths = [path.resolve() for path in (cls.LABELS, folder or cls.LABELS.parent)]
        return name_with_hash(cls.LABELS.stem, "list", paths)
