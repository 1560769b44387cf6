"""Labelled pictures to evaluate a detector on: a folder or a list, read without a copy of it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from devnet_jax.data.datasets.builder import RawDataset, RawExample, read_content
from devnet_jax.data.datasets.label_list import read_list
from devnet_jax.data.datasets.labelled_folder import LAYOUT, read_labelled_folder
from devnet_jax.data.datasets.verify import verify_files
from devnet_jax.data.decode import Batch, load_images, load_mask, open_picture
from devnet_jax.data.example import Example
from devnet_jax.data.paths import log_left_out, permission_errors
from devnet_jax.data.preprocessing import Preprocessing
from devnet_jax.data.tables import read_table
from devnet_jax.errors import UserError
from devnet_jax.runtime.accounts import expand_home


def read_labelled(given: str) -> list[RawExample]:
    """Lists the pictures of a labelled folder or a list, and decodes each of them once.

    All labelled pictures count, whatever part a list or a folder train/ gives them.

    Args:
      given: path of a folder for `read_labelled_folder`, or of a list for `read_list`. Paths in the
        list start from its folder or, if no picture is there, from the current one.

    Returns:
      The verified examples, sorted by path; at least one.

    Raises:
      UserError: if there is no such folder or list, its layout, a label or a path is wrong, a list
        has no label, or a picture or a mask cannot be used.
    """
    path = expand_home(given).absolute()
    if not path.exists():
        raise UserError(
            f"--input={given}: no such folder or list; give a folder with {LAYOUT}, or a CSV file "
            "with the columns path and label"
        )
    with permission_errors(), log_left_out(f"'{path}'"):
        if path.is_dir():
            raw = read_labelled_folder(path)
        else:
            raw = read_list(path, _start_of_paths(path), trains=False)
            if not raw:
                raise UserError(
                    f"--input={given}: no picture of the list has a label: label some, or score "
                    "them with --mode=predict"
                )
    examples = [dataclasses.replace(e, split="test") for e in sorted(raw, key=lambda e: e.path)]
    return verify_files(
        RawDataset(
            f"'{path}'",
            examples,
            fingerprint="",
            needs_test_images=False,
            skips_other_files=path.is_dir(),
        )
    )


def _start_of_paths(table: Path) -> Path:
    """Returns the folder that the relative paths of a list start from."""
    paths = [row.cells.get("path", "") for row in read_table(table).rows]
    for folder in (table.parent, Path.cwd()):
        if any(os.path.lexists(folder / path) for path in paths if path):
            return folder
    return table.parent


@dataclasses.dataclass(frozen=True)
class LabelledPictures:
    """Labelled pictures as the input of one detector.

    Attributes:
      raw: verified examples, from `read_labelled`.
      preprocessing: settings of the way to the network's input.
    """

    raw: Sequence[RawExample]
    preprocessing: Preprocessing

    @cached_property
    def examples(self) -> list[Example]:
        """The examples, without their contents."""
        return [
            Example(e.path, e.split or "test", e.label, e.defect, e.digest, *e.size)
            for e in self.raw
        ]

    @cached_property
    def _index(self) -> dict[str, int]:
        return {example.path: i for i, example in enumerate(self.raw)}

    def image_bytes(self, i: int) -> bytes:
        """Returns the content of the image file of example i."""
        return read_content(self.raw[i].image)

    def image_name(self, i: int) -> str:
        """Returns the path of example i, for messages."""
        return self.raw[i].path

    def images(self, paths: Sequence[str]) -> Batch:
        """Loads pictures by path, in that order.

        Raises:
          UserError: if a picture cannot be decoded.
        """
        indices = [self._index[path] for path in paths]
        white_level = self.preprocessing.white_level
        return Batch(
            load_images(self, indices, self.preprocessing),
            [self.raw[i].size for i in indices],
            lambda n: open_picture(self.image_bytes(indices[n]), paths[n], white_level=white_level),
        )

    def mask(self, path: str, original: bool = False) -> np.ndarray | None:
        """Loads a defect mask with `load_mask`: bool [h, w]; `None` if the picture has none."""
        mask = self.raw[self._index[path]].mask
        if mask is None:
            return None
        return load_mask(read_content(mask), f"{path} (mask)", self.preprocessing, original)
