"""AITEX: woven fabrics, https://www.aitex.es/afid/."""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Mapping
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
from devnet_jax.data.paths import list_files, unnested
from devnet_jax.errors import UserError

logger = logging.getLogger(__name__)

PATCH = 256  # pixels

# By the code in a defective strip's name.
DEFECTS = {
    "002": "Broken_end",
    "006": "Broken_yarn",
    "010": "Broken_pick",
    "016": "Weft_curling",
    "019": "Fuzzyball",
    "022": "Cut_selvage",
    "023": "Crease",
    "025": "Warp_ball",
    "027": "Knots",
    "029": "Contamination",
    "030": "Nep",
    "036": "Weft_crack",
}


class Aitex(AnomalyDatasetBuilder):
    """Seven woven fabrics and twelve kinds of their defects, with pixel masks: 256×256 patches.

    The strips of 4096×256 pixels are cut from the left into patches 256 wide; what remains at the
    right end is a narrower patch, as in the published results. All patches of a strip without
    defects are normal. Of a defective strip those are anomalies where its masks are not black;
    the others are not used. A defective strip without any is left out, with a warning.
    """

    name = "aitex"
    LAYOUT = (
        "NODefect_images/<fabric>/*.png, Defect_images/*.png and Mask_images/*_mask.png, as"
        " unpacked from the three archives of https://www.aitex.es/afid/"
    )
    # 16 patches of each of the 141 strips without defects in the archives (the paper that
    # describes them counts 140), which is 1692 + 564 in table 5 of arXiv 2203.14506. That table
    # has 183 anomalies; how many of each class is not published.
    PUBLISHED_COUNTS: ClassVar[Mapping[str | None, Mapping[str, int]]] = {None: {GOOD: 141 * 16}}

    @classmethod
    def raw_examples(cls, folder: Path, category: str | None) -> list[RawExample]:
        examples = []
        for path, strip in cls._strips(folder, "NODefect_images"):
            for number, part in enumerate(cut(strip, (), _patches)):
                examples.append(RawExample(f"{path}_{number:02d}.png", NORMAL, GOOD, part.image))
        masks = defaultdict(list)
        for mask in cls.index_files(folder):
            masks[re.sub(r"_mask\d*$", "", mask.stem)].append(mask)  # one or several of a strip
        unmarked = []
        for path, strip in cls._strips(folder, "Defect_images"):
            defect = _defect(strip)
            anomalies = [
                RawExample(f"{path}_{number:02d}.png", ANOMALY, defect, part.image, part.mask)
                for number, part in enumerate(cut(strip, tuple(masks[strip.stem]), _patches))
                if part.mask
            ]
            examples += anomalies
            unmarked += [] if anomalies else [strip.name]
        if unmarked:
            logger.warning(
                "%d defective strips are left out, for want of a mask that is not black: %s",
                len(unmarked),
                ", ".join(unmarked),
            )
        return examples

    @classmethod
    def index_files(cls, folder: Path) -> list[Path]:
        """The masks: also those that are black, and in no example."""
        return [mask for _, mask in cls._strips(folder, "Mask_images")]

    @classmethod
    def _strips(cls, folder: Path, name: str) -> list[tuple[str, Path]]:
        """The images of one of the three folders, by their path without the extension."""
        place = unnested(folder / name, name)
        strips = [file for file in list_files(place) if file.suffix.lower() == ".png"]
        if not strips:
            raise UserError(f"no PNG images in '{place}': expected {cls.LAYOUT}")
        return [(f"{name}/{s.relative_to(place).with_suffix('').as_posix()}", s) for s in strips]


def _patches(height: int, width: int) -> list[Box]:
    return [(slice(height), slice(left, left + PATCH)) for left in range(0, width, PATCH)]


def _defect(strip: Path) -> str:
    """The class in a name such as 0001_002_00: number, defect and fabric."""
    code = re.fullmatch(r"[^_]+_([^_]+)_[^_]+", strip.stem)
    if not code or code[1] not in DEFECTS:
        raise UserError(
            f"'{strip}': expected a name like 0001_002_00.png, with the defect's code in the"
            f" middle: {', '.join(DEFECTS)}; strips without defects belong in NODefect_images"
        )
    return DEFECTS[code[1]]
