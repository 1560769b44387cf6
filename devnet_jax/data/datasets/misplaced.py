"""Pictures and masks in the wrong place of an image folder: they are named, not ignored."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path

from devnet_jax.data.decode.file_types import is_named_as_image
from devnet_jax.data.paths import (
    UnreadableFileError,
    file_state,
    is_made_by_machine,
    list_files,
    name_some,
    unreadable_files,
)
from devnet_jax.errors import UserError

logger = logging.getLogger(__name__)

# Names that other programs give to a folder of masks, without case, spaces and punctuation.
_MASK_FOLDERS = frozenset({"mask", "masks", "groundtruth", "groundtruths", "gt", "gtmasks"})
_MASKS_BELONG = "masks belong in ground_truth/<defect>/, as <image>_mask.png"


def warn_of_pictures(*folders: Path) -> None:
    """Logs a warning for pictures that lie directly in `train` or `test`, in no class folder."""
    for folder in folders:
        pictures = _pictures_in(folder)
        if pictures:
            logger.warning("%s", _describe(folder, pictures))


def describe_pictures_above(needed: Path) -> str:
    """Returns the end of an error message about a missing class folder, such as train/good.

    Names the pictures that lie in the folder above it, or in the one above that; "" if there are
    none.
    """
    for folder in needed.parents[:2]:
        pictures = _pictures_in(folder)
        if pictures:
            return f"; {_describe(folder, pictures, needed)}"
    return ""


def _describe(folder: Path, pictures: Sequence[Path], needed: Path | None = None) -> str:
    target = f"'{needed or folder / 'good'}'"
    if folder.name == "test":
        target += f" or '{folder / '<defect>'}'"
    names = name_some([f"'{picture.name}'" for picture in pictures])
    return f"{len(pictures)} pictures lie directly in '{folder}': move them to {target}: {names}"


def _pictures_in(folder: Path) -> list[Path]:
    """Returns the files directly in a folder that are named as images, sorted."""
    if not folder.is_dir():
        return []
    return sorted(
        path
        for path in folder.iterdir()
        if is_named_as_image(path) and not path.is_dir() and not is_made_by_machine(path.name)
    )


def require_case(folder: Path, *names: str) -> None:
    """Raises `UserError` if the name of a subfolder differs from one of these in case only.

    Args:
      folder: folder, which need not exist.
      names: names in lower case.
    """
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        named = folder / path.name.lower()
        if named.name not in names or path.name == named.name or not path.is_dir():
            continue
        if named.is_dir() and named.samefile(path):  # the file system ignores case
            continue
        raise UserError(
            f"the name of the folder '{path}' differs from '{named.name}' in case only: rename it"
            f" to '{named}'"
        )


def require_links(*folders: Path) -> None:
    """Raises `UserError` if folders, or links to class folders in them, lead nowhere."""
    errors = []
    for folder in folders:
        for path in (folder, *(sorted(folder.iterdir()) if folder.is_dir() else ())):
            if path.is_symlink() and not path.is_dir() and not is_made_by_machine(path.name):
                try:
                    file_state(path)
                except UnreadableFileError as error:
                    errors.append(error)
    if errors:
        raise unreadable_files(errors)


def require_pictures(class_folder: Path, files: Sequence[Path]) -> None:
    """Raises `UserError` if a class folder holds masks, which would be taken for pictures.

    Logs a warning if some of its files are named like masks of others.

    Args:
      class_folder: folder of one class.
      files: all files below it.
    """
    # A defect class may be named so, if it has masks itself.
    has_masks = (class_folder.parents[1] / "ground_truth" / class_folder.name).is_dir()
    top = class_folder if has_masks else class_folder.parent
    parts = [(file, file.relative_to(top).parts[:-1]) for file in files]
    masks = [file for file, folders in parts if any(map(_is_mask_folder, folders))]
    if masks:
        raise UserError(
            f"'{masks[0].parent}' holds masks by its name, where pictures are expected"
            f" ({len(masks)} files): {_MASKS_BELONG}; rename the folder if they are pictures"
        )
    stems = {file.with_suffix("") for file in files}
    beside = [
        file
        for file in files
        if re.fullmatch(r".+_mask", file.stem, re.DOTALL)
        and file.with_name(file.stem.removesuffix("_mask")) in stems
    ]
    if beside:
        logger.warning(
            "%d files in '%s' are named like masks of the pictures beside them, but are taken for "
            "pictures: %s: %s",
            len(beside),
            class_folder,
            _MASKS_BELONG,
            name_some([f"'{file.name}'" for file in beside]),
        )


def warn_of_masks(folder: Path, classes: set[str]) -> None:
    """Logs a warning for folders of masks that are not read because of their name or place.

    Args:
      folder: folder with train and test.
      classes: names of the class folders.
    """
    ground_truth = folder / "ground_truth"
    misplaced = [
        path
        for path in sorted(folder.iterdir())
        if path.is_dir() and path != ground_truth and _is_mask_folder(path.name)
    ]
    if ground_truth.is_dir():
        misplaced += [
            path
            for path in sorted(ground_truth.iterdir())
            if path.is_dir() and path.name not in classes and not is_made_by_machine(path.name)
        ]
        flat = _pictures_in(ground_truth)
        if flat:
            logger.warning(
                "%d masks lie directly in '%s' and are not used, for example '%s': %s",
                len(flat),
                ground_truth,
                flat[0].name,
                _MASKS_BELONG,
            )
    for path in misplaced:
        masks = [file for file in list_files(path) if is_named_as_image(file)]
        if masks:
            logger.warning(
                "%d masks in '%s' are not used, for example '%s': %s, where test/<defect> exists",
                len(masks),
                path,
                masks[0].relative_to(path),
                _MASKS_BELONG,
            )


def _is_mask_folder(name: str) -> bool:
    return re.sub(r"[\W_]+", "", name).lower() in _MASK_FOLDERS
