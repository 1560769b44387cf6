"""SDD: the Kolektor surface-defect data set, https://www.vicos.si/resources/kolektorsdd/."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

from devnet_jax.data.datasets.builder import (
    ANOMALY,
    GOOD,
    NORMAL,
    AnomalyDatasetBuilder,
    RawExample,
)
from devnet_jax.data.datasets.crops import Box, cut
from devnet_jax.data.decode import map_in_threads
from devnet_jax.data.download import Archive
from devnet_jax.data.paths import list_files, unnested
from devnet_jax.errors import UserError

PARTS = 3


class Sdd(AnomalyDatasetBuilder):
    """Surfaces of commutators, sound and cracked, with pixel masks: thirds of 399 images.

    Each image is cut along its height into three parts, equal but for a row of pixels. A part is
    an anomaly where its mask is not black.
    """

    name = "sdd"
    LAYOUT = (
        "kos<NN>/Part<N>.jpg and kos<NN>/Part<N>_label.bmp, as unpacked from"
        " https://data.vicos.si/datasets/KSDD/KolektorSDD.zip"
    )
    # 54 anomalies and, in the test quarter, 286 normal parts: table 5 of arXiv 2203.14506; that
    # leaves 1143 of the 3 × 399 parts, and 286 is a quarter of them. (The 594 normal parts to
    # train with that it names are not the other three.)
    PUBLISHED_COUNTS: ClassVar[Mapping[str | None, Mapping[str, int]]] = {
        None: {GOOD: PARTS * 399 - 54, "defect": 54}
    }
    # The same sha256 is given by anomalib, for https://go.vicos.si/kolektorsdd, which leads
    # here, and by three other public repositories.
    DOWNLOAD = (
        Archive(
            "https://data.vicos.si/datasets/KSDD/KolektorSDD.zip",
            "sha256:65dc621693418585de9c4467d1340ea7958a6181816f0dc2883a1e8b61f9d4dc",
        ),
    )

    @classmethod
    def raw_examples(cls, folder: Path, category: str | None) -> list[RawExample]:
        root, files = _files(folder)
        images = [key for key in files if not key.endswith("_label.bmp")]
        if not images:
            raise UserError(f"no images kos<NN>/Part<N>.jpg in '{root}': expected {cls.LAYOUT}")

        def parts(key: str) -> list[RawExample]:
            image, mask = files[key], files.get(f"{key.rpartition('.')[0]}_label.bmp")
            if mask is None:
                raise UserError(
                    f"no mask '{image.with_name(image.stem)}_label.bmp' of '{image}': restore it"
                )
            path = image.relative_to(root).with_suffix("").as_posix()
            return [
                RawExample(
                    path=f"{path}_{number}.png",
                    label=ANOMALY if part.mask else NORMAL,
                    defect="defect" if part.mask else GOOD,
                    image=part.image,
                    mask=part.mask,
                )
                for number, part in enumerate(cut(image, (mask,), _thirds))
            ]

        return [example for found in map_in_threads(parts, images, None) for example in found]

    @classmethod
    def index_files(cls, folder: Path) -> list[Path]:
        """The masks: also those that are black, and in no example."""
        return [file for key, file in _files(folder)[1].items() if key.endswith("_label.bmp")]


def _files(folder: Path) -> tuple[Path, dict[str, Path]]:
    """The folder that holds kos<NN>, and the files by their path in it, in lower case."""
    root = unnested(folder, "KolektorSDD")
    paths = {file.relative_to(root).as_posix().lower(): file for file in list_files(root)}
    pattern = r"kos\d+/part\d+(\.jpe?g|_label\.bmp)"
    return root, {path: file for path, file in paths.items() if re.fullmatch(pattern, path)}


def _thirds(height: int, width: int) -> list[Box]:
    edges = [height * i // PARTS for i in range(PARTS + 1)]
    return [(slice(*rows), slice(width)) for rows in pairwise(edges)]
