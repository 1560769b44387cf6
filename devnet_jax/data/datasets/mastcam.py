"""The data set Mastcam: multispectral images of Mars, https://zenodo.org/records/3732485."""

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
    LazyBytes,
    RawExample,
    encode_png,
)
from devnet_jax.data.download import Archive
from devnet_jax.data.paths import is_made_by_machine, list_files
from devnet_jax.errors import UserError

# A folder with copies of most files of the class folders.
_COPIES = "all"


class Mastcam(AnomalyDatasetBuilder):
    """The surface of Mars; anomalies are rare (veins, meteorites) or traces of the rover.

    The first three of the six spectral bands are used, as in the official code. Five images show
    two novelties and are in both class folders.
    """

    name = "mastcam"
    LAYOUT = (
        "train_typical/, test_typical/ and test_novel/<class>/, as unpacked from the archives of"
        " https://zenodo.org/records/3732485 (Kerner et al. 2020)"
    )
    # Counted in the archives by https://github.com/maksim-shabunov/novum. validation_typical/ is
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
    # Zenodo's checksums, from the same source.
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
            typical = cls._find_folder(folder, name)
            for image in list_files(typical):
                path = f"{name}/{image.relative_to(typical).as_posix()}"
                examples.append(RawExample(path, NORMAL, GOOD, _image(image), split=split))
        novel = cls._find_folder(folder, "test_novel")
        images = [image for image in list_files(novel) if image.parent != novel]
        classes = {image.relative_to(novel).parts[0] for image in images}
        if not classes:
            raise UserError(f"no folder of images in '{novel}': expected {cls.LAYOUT}")
        for image in images:
            relative = image.relative_to(novel)
            defect = relative.parts[0]
            if defect != _COPIES or len(classes) == 1:
                path = f"test_novel/{relative.as_posix()}"
                examples.append(RawExample(path, ANOMALY, defect, _image(image), split="test"))
        return examples

    @classmethod
    def _find_folder(cls, folder: Path, name: str) -> Path:
        """Returns the innermost folder of that name, searched up to two levels down."""
        for pattern in (name, f"*/{name}", f"*/*/{name}"):
            for match in sorted(folder.glob(pattern)):
                below = match.relative_to(folder).parts
                if any(map(is_made_by_machine, below)):  # such as __MACOSX
                    continue
                if match.is_dir() and list_files(match):
                    while (match / name).is_dir():
                        match /= name
                    return match
        raise UserError(f"no folder '{name}' with files in '{folder}': expected {cls.LAYOUT}")


def _image(file: Path) -> Path | LazyBytes:
    """Returns an image file as it is, or the first bands of an array."""
    if file.suffix.lower() != ".npy":
        return file
    return LazyBytes(functools.partial(_first_bands, file), (file,))


def _first_bands(file: Path) -> bytes:
    """Returns the first three bands of an array [H, W, C ≥ 3] as PNG.

    The values must be in 0 to 255; the published arrays hold them as float64.
    """
    try:
        # Memory-mapped: a damaged header may demand any amount of memory.
        array = np.lib.format.open_memmap(file, mode="r")
    except Exception as error:  # damaged headers raise errors of many types; so do pickles
        raise UserError(f"array '{file}' cannot be read: restore it") from error
    if array.ndim != 3 or array.shape[2] < 3 or array.dtype.kind not in "uif":
        raise UserError(
            f"array '{file}' has the shape {array.shape} and the type {array.dtype}: expected"
            " numbers, H×W×C with C ≥ 3"
        )
    low, high = float(array.min()), float(array.max())
    is_scaled_to_1 = high <= 1 and bool((array % 1).any())
    if not (low >= 0 and high <= 255) or is_scaled_to_1:  # also True for NaN
        raise UserError(
            f"array '{file}' has values from {low:g} to {high:g}; expected 0 to 255, as published:"
            " restore or rescale it"
        )
    # Truncated, not rounded, as in the official code.
    return encode_png(array[..., :3].astype(np.uint8))
