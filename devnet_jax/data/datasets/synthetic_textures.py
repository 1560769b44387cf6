"""A data set that needs no download: drawn surfaces and defects, for a first run and for tests."""

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
    Produced,
    RawExample,
    png,
)
from devnet_jax.data.datasets.drawing import defects as texture_defects
from devnet_jax.data.datasets.drawing import surfaces as textures

SEED = 2108_00462
N_TRAIN_NORMAL = 200
N_TEST_NORMAL = 40
N_PER_DEFECT = 12


class SyntheticTextures(AnomalyDatasetBuilder):
    """Drawn surfaces, 240 good and 12 of each of six defects, with pixel masks: 256×256 PNG."""

    name = "synthetic_textures"
    CATEGORIES = tuple(textures.FAMILIES)
    NEEDS_FOLDER = False

    @classmethod
    def raw_examples(cls, folder: Path, category: str | None) -> list[RawExample]:
        assert category is not None
        classes = [("train", GOOD, N_TRAIN_NORMAL), ("test", GOOD, N_TEST_NORMAL)]
        classes += [("test", defect, N_PER_DEFECT) for defect in texture_defects.DEFECTS]
        examples = []
        for split, defect, count in classes:
            for number in range(count):
                stem = f"{split}/{defect}/{number:03d}"
                image, mask = (
                    Produced(functools.partial(_draw_part, category, stem, defect, part))
                    for part in (0, 1)
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
    def state(cls, folder: Path, examples: Iterable[RawExample]) -> Iterator[str]:
        """The drawing code stands in for raw files: when it changes, so do the pictures."""
        for module in (__file__, textures.__file__, texture_defects.__file__):
            yield Path(module).read_text()


def _draw_part(category: str, stem: str, defect: str, part: int) -> bytes:
    return _draw(category, stem, defect)[part]


@functools.lru_cache(maxsize=64)  # the mask is asked for right after the picture
def _draw(category: str, stem: str, defect: str) -> tuple[bytes, bytes]:
    """The PNGs of a picture and of its defect's mask; seeded by its name, whatever the order."""
    rng = np.random.default_rng([SEED, zlib.crc32(f"{category}/{stem}".encode())])
    surface = textures.draw_surface(category, rng)
    mask = np.zeros(surface.shape[:2], bool)
    if defect != GOOD:
        surface, mask = texture_defects.draw_defect(defect, surface, rng)
    return png(textures.photograph(surface, rng)), png(mask.astype(np.uint8) * 255)
