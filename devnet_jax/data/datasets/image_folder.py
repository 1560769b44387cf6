"""The data set `image_folder`: any folder of images with the layout of an MVTec AD category."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from pathlib import Path

from devnet_jax.data.datasets import misplaced
from devnet_jax.data.datasets.builder import (
    ANOMALY,
    GOOD,
    NORMAL,
    AnomalyDatasetBuilder,
    RawExample,
    name_with_hash,
)
from devnet_jax.data.decode.file_types import is_named_as_image
from devnet_jax.data.paths import leave_out, list_files, name_some
from devnet_jax.errors import UserError

logger = logging.getLogger(__name__)

LAYOUT = (
    "train/good/, test/good/, test/<defect>/ and, for masks, ground_truth/<defect>/<image>_mask.png"
)
_LAYOUT_WITHOUT_TEST = (
    "train/good/, train/<defect>/ for defects that shall train, and, if there are images to test "
    "with, test/good/, test/<defect>/ and, for masks, ground_truth/<defect>/<image>_mask.png"
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
        return name_with_hash(path.name, "folder", [path])


def read_class_folders(folder: Path, *, needs_test_images: bool) -> list[RawExample]:
    """Lists the images of train/good, train/<defect>, test/good and test/<defect>, and their masks.

    Masks are in ground_truth/<defect>. A mask has the stem of its image, with or without `_mask`,
    and any image type; other files there are left out. If there is no such mask, case is ignored.
    Subfolders of the class folders are read, too.

    Args:
      folder: folder with the layout LAYOUT.
      needs_test_images: False for the user's own pictures: test/good, all of test/<defect>, or both
        may be missing, and there may be train/<defect>.

    Raises:
      UserError: if a needed folder is missing, the name of a folder differs from that of a needed
        one in case only, a class folder is empty, train has anomalies, an image has two masks, or
        masks are among the images.
    """
    misplaced.require_links(folder / "train", folder / "test", folder / "ground_truth")
    misplaced.require_case(folder, "train", "test", "ground_truth")
    misplaced.require_case(folder / "train", GOOD)
    misplaced.require_case(folder / "test", GOOD)
    layout = LAYOUT if needs_test_images else _LAYOUT_WITHOUT_TEST
    for needed in ("train/good", "test/good") if needs_test_images else ("train/good",):
        if not (folder / needed).is_dir():
            hint = misplaced.describe_pictures_above(folder / needed)
            raise UserError(f"no folder '{folder / needed}': expected {layout}{hint}")
    trained = [path for path in class_folders(folder / "train") if path.name != GOOD]
    for stray in trained if needs_test_images else ():
        misplaced.require_pictures(stray, list_files(stray))
        raise UserError(
            f"'{stray}' is in train, which holds normal images only: move it to"
            f" '{folder / 'test' / stray.name}'"
        )
    classes = [folder / "train" / GOOD, *trained, *class_folders(folder / "test")]
    if needs_test_images and len(classes) < 3:
        raise UserError(f"no folder of anomalous images in '{folder / 'test'}': expected {layout}")
    misplaced.warn_of_pictures(folder / "train", folder / "test")
    misplaced.warn_of_masks(folder, {class_folder.name for class_folder in classes})
    examples = []
    for class_folder in classes:
        defect, split = class_folder.name, class_folder.parent.name
        # Training needs no masks.
        examples += read_class(folder, class_folder, defect, split, has_masks=split == "test")
    return examples


def read_class(
    folder: Path, class_folder: Path, defect: str, split: str, *, has_masks: bool
) -> list[RawExample]:
    """Lists the images of a class folder, and their masks in ground_truth/<class folder>.

    Args:
      folder: folder of the data set, which the paths of the images are relative to.
      class_folder: folder of the class.
      defect: defect class; GOOD for normal images, which have no masks.
      split: part of the images.
      has_masks: False to look for no masks.

    Raises:
      UserError: if the folder is empty or holds masks, or an image has two masks.
    """
    images = list_files(class_folder)
    misplaced.require_pictures(class_folder, images)
    if not images:
        raise UserError(f"no images in '{class_folder}': add some or remove the folder")
    stems = [_stem(image, class_folder) for image in images]
    masks = _find_masks(folder, class_folder, stems) if has_masks and defect != GOOD else {}
    return [
        RawExample(
            path=image.relative_to(folder).as_posix(),
            label=NORMAL if defect == GOOD else ANOMALY,
            defect=defect,
            image=image,
            mask=masks.get(stem),
            split=split,
        )
        for image, stem in zip(images, stems, strict=True)
    ]


def _find_masks(folder: Path, class_folder: Path, stems: Sequence[str]) -> dict[str, Path]:
    """Returns the masks of the images of a class, by the stems of the images that have one.

    Logs a warning for masks that belong to no image of the class.
    """
    masks = _masks(folder / "ground_truth" / class_folder.name)
    names = _mask_names(stems, masks)
    trained = folder / "train" / class_folder.name
    known = [*stems, *(_stem(image, trained) for image in list_files(trained))]
    unused = set(masks) - set(names.values()) - {n for s in known for n in (s, f"{s}_mask")}
    if unused:
        logger.warning(
            "%d masks belong to no image in '%s', for example '%s': a mask has the name of its "
            "image, with or without _mask, and is in the same subfolder",
            len(unused),
            class_folder,
            masks[min(unused)],
        )
    return {stem: masks[name] for stem, name in names.items()}


def class_folders(folder: Path) -> list[Path]:
    """Returns the subfolders, sorted; without those that `walk` leaves out."""
    if not folder.is_dir():
        return []
    paths = {path for path in folder.iterdir() if path.is_dir() and not leave_out(path)}
    # On file systems that ignore case, `require_case` accepts Good.
    return sorted({p.with_name(GOOD) if p.name.lower() == GOOD else p for p in paths})


def _stem(file: Path, folder: Path) -> str:
    """Returns the relative path of a file in a folder, without the extension."""
    return file.relative_to(folder).with_suffix("").as_posix()


def _mask_names(stems: Sequence[str], masks: Collection[str]) -> dict[str, str]:
    """Returns the names of the masks of images, by the stems of the images that have one.

    Args:
      stems: stems of the images.
      masks: names of the masks, without the extension.

    Raises:
      UserError: if several masks fit an image, and none of them has its case.
    """
    exact = set(masks)
    # The exact stem comes first: an image may itself be named …_mask.
    found = {stem: name for stem in stems for name in (f"{stem}_mask", stem) if name in exact}
    folded: dict[str, list[str]] = {}
    for name in sorted(exact - set(found.values())):
        folded.setdefault(name.lower(), []).append(name)
    for stem in stems:
        for name in (stem, f"{stem}_mask"):
            fitting = folded.get(name.lower(), [])
            if stem in found or not fitting:
                continue
            if len(fitting) > 1:
                raise UserError(
                    f"two masks for the image '{stem}': '{fitting[0]}' and '{fitting[1]}': remove"
                    " one"
                )
            found[stem] = fitting[0]
    return found


def _masks(folder: Path) -> dict[str, Path]:
    """Returns the mask files below a folder, by relative path without the extension.

    Files that are not named as images, such as annotations, are left out, and named in the log.
    """
    masks: dict[str, Path] = {}
    others: list[Path] = []
    for file in list_files(folder):
        if file.suffix and not is_named_as_image(file):
            others.append(file)
            continue
        stem = _stem(file, folder)
        if stem in masks:
            raise UserError(f"two masks for one image: '{masks[stem]}' and '{file}': remove one")
        masks[stem] = file
    if others:
        logger.info(
            "%d files in '%s' are not named as images, so they are no masks: %s",
            len(others),
            folder,
            name_some([f"'{file.relative_to(folder)}'" for file in others]),
        )
    return masks
