"""Lists the pictures of a labelled folder to evaluate a detector on, whatever it trained on."""

from __future__ import annotations

from pathlib import Path

from devnet_jax.data.datasets import misplaced
from devnet_jax.data.datasets.builder import GOOD, SPLITS, RawExample
from devnet_jax.data.datasets.image_folder import class_folders, read_class
from devnet_jax.data.datasets.label_list import GOOD_WORDS
from devnet_jax.errors import UserError

LAYOUT = "good/ and <defect>/, or train/ and test/ with such folders in them"
_MASKS = "ground_truth"


def read_labelled_folder(folder: Path) -> list[RawExample]:
    """Lists all pictures of the class folders, and their masks in ground_truth/<defect>.

    The class folders are those in `train` and `test`, or, without these two, those in the folder
    itself. One named good, normal or ok, in any case, holds normal pictures; the name of any other
    is the kind of its defects. If there are both `train` and `test`, masks are those of `test`.

    Raises:
      UserError: if there is no class folder, one is empty or holds masks, a picture has two masks,
        or the name of `train`, `test` or `ground_truth` differs in case only.
    """
    misplaced.require_case(folder, *SPLITS, _MASKS)
    tops = [top for split in SPLITS if (top := folder / split).is_dir()] or [folder]
    misplaced.require_links(*tops, folder / _MASKS)
    classes = [(top, path) for top in tops for path in class_folders(top) if path.name != _MASKS]
    if not classes:
        hint = misplaced.describe_pictures_above(tops[-1] / GOOD)
        raise UserError(
            f"'{folder}' has no folder of good parts or of a defect: expected {LAYOUT}{hint}"
        )
    misplaced.warn_of_pictures(*tops)
    misplaced.warn_of_masks(folder, {path.name for _, path in classes})
    return [
        example
        for top, path in classes
        for example in read_class(
            folder,
            path,
            GOOD if path.name.lower() in GOOD_WORDS else path.name,
            "test",
            has_masks=top == tops[-1],
        )
    ]
