"""The data set SDD: Kolektor surface defects, https://www.vicos.si/resources/kolektorsdd/."""

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
from devnet_jax.data.datasets.crops import Box, cut_image
from devnet_jax.data.decode import map_in_threads
from devnet_jax.data.download import Archive
from devnet_jax.data.paths import inner_folder, list_files
from devnet_jax.errors import UserError

N_PARTS = 3


class Sdd(AnomalyDatasetBuilder):
    """Surfaces of commutators, intact and cracked, with pixel masks: thirds of 399 images.

    Each image is cut along its height into three parts, whose heights differ by at most one pixel.
    A part is an anomaly if its mask is not black.
    """

    name = "sdd"
    LAYOUT = (
        "kos<NN>/Part<N>.jpg and kos<NN>/Part<N>_label.bmp, as unpacked from"
        " https://data.vicos.si/datasets/KSDD/KolektorSDD.zip"
    )
    # Table 5 of arXiv 2203.14506 has 54 anomalies, thus 1143 normal parts of the 3 × 399, and 286
    # normal test images, a quarter of them. (Its 594 normal training images are not the other three
    # quarters.)
    PUBLISHED_COUNTS: ClassVar[Mapping[str | None, Mapping[str, int]]] = {
        None: {GOOD: N_PARTS * 399 - 54, "defect": 54}
    }
    # The sha256 is also given by anomalib, for https://go.vicos.si/kolektorsdd, which redirects
    # here, and by three other public repositories.
    DOWNLOAD = (
        Archive(
            "https://data.vicos.si/datasets/KSDD/KolektorSDD.zip",
            "sha256:65dc621693418585de9c4467d1340ea7958a6181816f0dc2883a1e8b61f9d4dc",
        ),
    )

    @classmethod
    def raw_examples(cls, folder: Path, category: str | None) -> list[RawExample]:
        root, files = _find_files(folder)
        images = [key for key in files if not key.endswith("_label.bmp")]
        if not images:
            raise UserError(f"no images kos<NN>/Part<N>.jpg in '{root}': expected {cls.LAYOUT}")

        def cut(key: str) -> list[RawExample]:
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
                for number, part in enumerate(cut_image(image, (mask,), _third_boxes))
            ]

        return [example for parts in map_in_threads(cut, images, None) for example in parts]

    @classmethod
    def index_files(cls, folder: Path) -> list[Path]:
        """Returns all masks, including black ones, which belong to no example."""
        files = _find_files(folder)[1]
        return [file for key, file in files.items() if key.endswith("_label.bmp")]


def _find_files(folder: Path) -> tuple[Path, dict[str, Path]]:
    """Returns the parent of the folders kos<NN>, and the files by their lower-case path in it."""
    root = inner_folder(folder, "KolektorSDD")
    paths = {file.relative_to(root).as_posix().lower(): file for file in list_files(root)}
    pattern = r"kos\d+/part\d+(\.jpe?g|_label\.bmp)"
    return root, {path: file for path, file in paths.items() if re.fullmatch(pattern, path)}


def _third_boxes(height: int, width: int) -> list[Box]:
    """Returns the boxes of the three parts of an image, from top to bottom."""
    edges = [height * i // N_PARTS for i in range(N_PARTS + 1)]
    return [(slice(*rows), slice(width)) for rows in pairwise(edges)]
