"""The data set of synthetic textures: no download, for a first run and for tests."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

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
from devnet_jax.data.datasets.drawing import defects, surfaces
from devnet_jax.data.digests import FileDigests

SEED = 2108_00462
N_TRAIN_NORMAL = 200
N_TEST_NORMAL = 40
N_PER_DEFECT = 12


class SyntheticTextures(AnomalyDatasetBuilder):
    """Synthetic surfaces, 240 good and 12 of each of six defects, with masks: 256×256 PNG."""

    name = "synthetic_textures"
    CATEGORIES = tuple(surfaces.FAMILIES)
    NEEDS_FOLDER = False

    @classmethod
    def raw_examples(cls, folder: Path, category: str | None) -> list[RawExample]:
        assert category is not None
        classes = [("train", GOOD, N_TRAIN_NORMAL), ("test", GOOD, N_TEST_NORMAL)]
        classes += [("test", defect, N_PER_DEFECT) for defect in defects.DEFECTS]
        examples = []
        for split, defect, count in classes:
            for number in range(count):
                stem = f"{split}/{defect}/{number:03d}"
                image, mask = (
                    LazyBytes(functools.partial(_draw_one, category, stem, defect, index))
                    for index in (0, 1)
                )
                examples.append(
                    RawExample(
                        path=f"{stem}.png",
                        label=NORMAL if defect == GOOD else ANOMALY,
                        defect=defect,
                        image=image,
                        mask=None if defect == GOOD else mask,
                        split=split,
                    )
                )
        return examples

    @classmethod
    def fingerprint_parts(
        cls, folder: Path, examples: Iterable[RawExample], digests: FileDigests
    ) -> Iterator[str]:
        """Yields the drawing code, which determines the images, in place of raw files."""
        for module in (__file__, surfaces.__file__, defects.__file__):
            yield Path(module).read_text()


def _draw_one(category: str, stem: str, defect: str, index: int) -> bytes:
    """Returns the image (index 0) or the mask (index 1) of `_draw`."""
    return _draw(category, stem, defect)[index]


@functools.lru_cache(maxsize=64)  # the mask is requested right after the image
def _draw(category: str, stem: str, defect: str) -> tuple[bytes, bytes]:
    """Draws an image and its defect mask, as PNG; the random seed depends on its name only."""
    rng = np.random.default_rng([SEED, zlib.crc32(f"{category}/{stem}".encode())])
    surface = surfaces.draw_surface(category, rng)
    mask = np.zeros(surface.shape[:2], bool)
    if defect != GOOD:
        surface, mask = defects.draw_defect(defect, surface, rng)
    return encode_png(surfaces.photograph(surface, rng)), encode_png(mask.astype(np.uint8) * 255)
