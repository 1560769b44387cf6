"""The data set `image_folder`: any folder of images with the layout of an MVTec AD category."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from pathlib import Path

from devnet_jax.data.datasets import misplaced
from devnet_jax.data.datasets.builder import (
    ANOMALY,
    GOOD,
    NORMAL,
    AnomalyDatasetBuilder,
    RawExample,
)
from devnet_jax.data.paths import leave_out, list_files
from devnet_jax.errors import UserError

logger = logging.getLogger(__name__)

LAYOUT = (
    "train/good/, test/good/, test/<defect>/ and, for masks, ground_truth/<defect>/<image>_mask.png"
)
_LAYOUT_WITHOUT_TEST = (
    "train/good/ and, if there are images to test with, test/good/, test/<defect>/ and, for masks, "
    "ground_truth/<defect>/<image>_mask.png"
)


class ImageFolder(AnomalyDatasetBuilder):
    """Images in folders named after their class, with optional masks of the same names.

    Only train/good is required.
    """

    name = "image_folder"
    LAYOUT = _LAYOUT_WITHOUT_TEST
    NAME_IDENTIFIES_DATA = False
    NEEDS_TEST_IMAGES = False

    @classmethod
    def raw_examples(cls, folder: Path, category: str | None) -> list[RawExample]:
        return read_class_folders(folder, needs_test_images=False)

    @classmethod
    def config_name(cls, folder: Path | None, category: str | None) -> str | None:
        """Returns the folder's name and a hash of its full path, to tell folders apart."""
        if folder is None:
            return None
        path = folder.resolve()
        name = re.sub(r"[^A-Za-z0-9_-]+", "_", path.name).strip("_") or "folder"
        return f"{name}-{hashlib.sha256(os.fsencode(path)).hexdigest()[:8]}"


def read_class_folders(folder: Path, *, needs_test_images: bool) -> list[RawExample]:
    """Lists the images of train/good, test/good and test/<defect>, and their masks.

    Masks are in ground_truth/<defect>. A mask has the stem of its image, with or without `_mask`,
    and any image type. Subfolders of the class folders are read, too.

    Args:
      folder: folder with the layout LAYOUT.
      needs_test_images: False if test/good, all of test/<defect>, or both may be missing.

    Raises:
      UserError: if a needed folder is missing, a class folder is empty, train has anomalies, an
        image has two masks, or masks are among the images.
    """
    misplaced.require_links(folder / "train", folder / "test", folder / "ground_truth")
    layout = LAYOUT if needs_test_images else _LAYOUT_WITHOUT_TEST
    for needed in ("train/good", "test/good") if needs_test_images else ("train/good",):
        if not (folder / needed).is_dir():
            hint = misplaced.describe_pictures_above(folder / needed)
            raise UserError(f"no folder '{folder / needed}': expected {layout}{hint}")
    for stray in _class_folders(folder / "train"):
        if stray.name != GOOD:
            misplaced.require_pictures(stray, list_files(stray))
            raise UserError(
                f"'{stray}' is in train, which holds normal images only: move it to"
                f" '{folder / 'test' / stray.name}'"
            )
    classes = [folder / "train" / GOOD, *_class_folders(folder / "test")]
    if needs_test_images and len(classes) < 3:
        raise UserError(f"no folder of anomalous images in '{folder / 'test'}': expected {layout}")
    misplaced.warn_of_pictures(folder / "train", folder / "test")
    misplaced.warn_of_masks(folder, {class_folder.name for class_folder in classes})
    examples = []
    for class_folder in classes:
        defect = class_folder.name
        images = list_files(class_folder)
        misplaced.require_pictures(class_folder, images)
        if not images:
            raise UserError(f"no images in '{class_folder}': add some or remove the folder")
        masks = _masks(folder / "ground_truth" / defect) if defect != GOOD else {}
        unused = set(masks)
        for image in images:
            stem = image.relative_to(class_folder).with_suffix("").as_posix()
            # The exact stem comes first: an image may itself be named …_mask.
            mask = masks.get(stem) or masks.get(f"{stem}_mask")
            unused -= {stem, f"{stem}_mask"}
            examples.append(
                RawExample(
                    path=image.relative_to(folder).as_posix(),
                    label=NORMAL if defect == GOOD else ANOMALY,
                    defect=defect,
                    image=image,
                    mask=mask,
                    split=class_folder.parent.name,
                )
            )
        if unused:
            logger.warning(
                "%d masks belong to no image in '%s', for example '%s': a mask has the name of its "
                "image, with or without _mask, and is in the same subfolder",
                len(unused),
                class_folder,
                masks[min(unused)],
            )
    return examples


def _class_folders(folder: Path) -> list[Path]:
    """Returns the subfolders, sorted; without those that `walk` leaves out."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.is_dir() and not leave_out(p))


def _masks(folder: Path) -> dict[str, Path]:
    """Returns the mask files below a folder, by relative path without the extension."""
    masks: dict[str, Path] = {}
    for file in list_files(folder):
        stem = file.relative_to(folder).with_suffix("").as_posix()
        if stem in masks:
            raise UserError(f"two masks for one image: '{masks[stem]}' and '{file}': remove one")
        masks[stem] = file
    return masks
