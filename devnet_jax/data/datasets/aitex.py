"""The data set AITEX: woven fabrics, https://www.aitex.es/afid/."""

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
from devnet_jax.data.datasets.crops import Box, cut_image
from devnet_jax.data.paths import inner_folder, list_files
from devnet_jax.errors import UserError

logger = logging.getLogger(__name__)

PATCH_WIDTH = 256  # pixels

# Defect classes by the code in the file name of a defective strip.
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
    """Seven woven fabrics with twelve classes of defects and pixel masks: 256×256 patches.

    The strips of 4096×256 pixels are cut from the left into patches 256 pixels wide; the last patch
    may be narrower, as in the published results. All patches of a strip without defects are normal.
    Patches of a defective strip are anomalies if its masks are not black there; the others are not
    used. A defective strip without such a patch is skipped with a warning.
    """

    name = "aitex"
    LAYOUT = (
        "NODefect_images/<fabric>/*.png, Defect_images/*.png and Mask_images/*_mask.png, as"
        " unpacked from the three archives of https://www.aitex.es/afid/"
    )
    # 16 patches of each of the 141 strips without defects in the archives (140 in the paper that
    # describes them): 1692 + 564 in table 5 of arXiv 2203.14506. That table has 183 anomalies; the
    # number of each class is not published.
    PUBLISHED_COUNTS: ClassVar[Mapping[str | None, Mapping[str, int]]] = {None: {GOOD: 141 * 16}}

    @classmethod
    def raw_examples(cls, folder: Path, category: str | None) -> list[RawExample]:
        examples = []
        for path, strip in cls._strips(folder, "NODefect_images"):
            for number, part in enumerate(cut_image(strip, (), _patch_boxes)):
                examples.append(RawExample(f"{path}_{number:02d}.png", NORMAL, GOOD, part.image))
        masks = defaultdict(list)  # a strip may have several masks
        for mask in cls.index_files(folder):
            masks[re.sub(r"_mask\d*$", "", mask.stem)].append(mask)
        skipped = []
        for path, strip in cls._strips(folder, "Defect_images"):
            defect = _defect_class(strip)
            parts = cut_image(strip, tuple(masks[strip.stem]), _patch_boxes)
            anomalies = [
                RawExample(f"{path}_{number:02d}.png", ANOMALY, defect, part.image, part.mask)
                for number, part in enumerate(parts)
                if part.mask
            ]
            examples += anomalies
            skipped += [] if anomalies else [strip.name]
        if skipped:
            logger.warning(
                "skipped %d defective strips without a mask that is not black: %s",
                len(skipped),
                ", ".join(skipped),
            )
        return examples

    @classmethod
    def index_files(cls, folder: Path) -> list[Path]:
        """Returns all masks, including black ones, which belong to no example."""
        return [mask for _, mask in cls._strips(folder, "Mask_images")]

    @classmethod
    def _strips(cls, folder: Path, name: str) -> list[tuple[str, Path]]:
        """Lists the images of one of the three folders.

        Returns:
          Pairs of the path in the data set, without the extension, and the file.
        """
        root = inner_folder(folder / name, name)
        strips = [file for file in list_files(root) if file.suffix.lower() == ".png"]
        if not strips:
            raise UserError(f"no PNG images in '{root}': expected {cls.LAYOUT}")
        return [(f"{name}/{s.relative_to(root).with_suffix('').as_posix()}", s) for s in strips]


def _patch_boxes(height: int, width: int) -> list[Box]:
    """Returns the boxes of the patches of a strip, from left to right."""
    starts = range(0, width, PATCH_WIDTH)
    return [(slice(height), slice(left, left + PATCH_WIDTH)) for left in starts]


def _defect_class(strip: Path) -> str:
    """Returns the class from a file name such as 0001_002_00: number, defect and fabric."""
    code = re.fullmatch(r"[^_]+_([^_]+)_[^_]+", strip.stem)
    if not code or code[1] not in DEFECTS:
        raise UserError(
            f"'{strip}': expected a name like 0001_002_00.png, with the defect's code in the"
            f" middle: {', '.join(DEFECTS)}; strips without defects belong in NODefect_images"
        )
    return DEFECTS[code[1]]
