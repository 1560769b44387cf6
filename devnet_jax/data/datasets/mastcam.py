"""Mastcam: novelties on Mars in multispectral images, https://zenodo.org/records/3732485."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import ClassVar

import numpy as np

from devnet_jax.data.datasets.builder import (
    ANOMALY,
    GOOD,
    NORMAL,
    AnomalyDatasetBuilder,
    Produced,
    RawExample,
    png,
)
from devnet_jax.data.download import Archive
from devnet_jax.data.paths import list_files
from devnet_jax.errors import UserError

# Beside the classes' folders: copies of most of their files.
_UNION = "all"


class Mastcam(AnomalyDatasetBuilder):
    """The surface of Mars; novel is what is rare (veins, meteorites) or the rover's own trace.

    Of the six spectral bands the first three are taken, as in the official code. Five of the
    images show two novelties and are in the folders of both.
    """

    name = "mastcam"
    LAYOUT = (
        "train_typical/, test_typical/ and test_novel/<class>/, as unpacked from the archives of"
        " https://zenodo.org/records/3732485 (Kerner et al. 2020)"
    )
    # As counted in the archives by https://github.com/maksim-shabunov/novum; validation_typical/ is
    # not used.
    PUBLISHED_COUNTS: ClassVar = {
        None: {
            GOOD: 9302 + 426,
            "bedrock": 11,
            "broken-rock": 76,
            "drill-hole": 62,
            "drt": 111,
            "dump-pile": 93,
            "float": 18,
            "meteorite": 34,
            "veins": 30,
            "scuff": 12,
            "edge_cases": 3,
            "other": 1,
        }
    }
    # The checksums are Zenodo's, by the same source.
    DOWNLOAD = tuple(
        Archive(f"https://zenodo.org/records/3732485/files/{name}.zip", f"md5:{checksum}")
        for name, checksum in (
            ("train_typical", "c00a056386eafc8597e0295890a79b40"),
            ("test_typical", "1393469a7348e233f2154d501864d7b6"),
            ("test_novel", "b423a12d6539eac4bf2c02acb729ba8e"),
        )
    )

    @classmethod
    def raw_examples(cls, folder: Path, category: str | None) -> list[RawExample]:
        examples = []
        for name, split in (("train_typical", "train"), ("test_typical", "test")):
            part = cls._part(folder, name)
            for image in list_files(part):
                path = f"{name}/{image.relative_to(part).as_posix()}"
                examples.append(RawExample(path, NORMAL, GOOD, _image(image), split=split))
        part = cls._part(folder, "test_novel")
        novel = [image for image in list_files(part) if image.parent != part]
        classes = {image.relative_to(part).parts[0] for image in novel}
        if not classes:
            raise UserError(f"no folder of images in '{part}': expected {cls.LAYOUT}")
        for image in novel:
            inside = image.relative_to(part)
            defect = inside.parts[0]
            if defect != _UNION or len(classes) == 1:
                path = f"test_novel/{inside.as_posix()}"
                examples.append(RawExample(path, ANOMALY, defect, _image(image), split="test"))
        return examples

    @classmethod
    def _part(cls, folder: Path, name: str) -> Path:
        """The folder of that name, up to two levels down, or the one inside it."""
        for pattern in (name, f"*/{name}", f"*/*/{name}"):
            for found in sorted(folder.glob(pattern)):
                if found.is_dir() and list_files(found):  # not the archiver's __MACOSX
                    while (found / name).is_dir():
                        found /= name
                    return found
        raise UserError(f"no folder '{name}' with files in '{folder}': expected {cls.LAYOUT}")


def _image(file: Path) -> Path | Produced:
    if file.suffix.lower() != ".npy":
        return file
    return Produced(functools.partial(_first_bands, file), (file,))


def _first_bands(file: Path) -> bytes:
    """The first three bands of an array [H, W, C ≥ 3] of values from 0 to 255, as PNG.

    The published arrays hold such values as float64.
    """
    try:
        # Mapped and not read: a damaged header may ask for any amount of memory.
        array = np.lib.format.open_memmap(file, mode="r")
    except Exception as error:  # a damaged header fails in many ways; a pickle is refused
        raise UserError(f"array '{file}' cannot be read: restore it") from error
    if array.ndim != 3 or array.shape[2] < 3 or array.dtype.kind not in "uif":
        raise UserError(
            f"array '{file}' is of shape {array.shape} and type {array.dtype}: expected"
            " H×W×C, C ≥ 3, of numbers"
        )
    low, high = float(array.min()), float(array.max())
    scaled_down = high <= 1 and bool((array % 1).any())
    if not (low >= 0 and high <= 255) or scaled_down:  # also when there is a NaN
        raise UserError(
            f"array '{file}' has values from {low:g} to {high:g}; the published ones go from 0"
            " to 255: restore or rescale it"
        )
    # Fractions are cut off, as in the official code.
    return png(array[..., :3].astype(np.uint8))
