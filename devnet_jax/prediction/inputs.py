"""Finds the input images of a prediction: files, folders and glob patterns."""

from __future__ import annotations

import dataclasses
import functools
import glob
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from devnet_jax.data.decode import map_in_threads
from devnet_jax.data.decode.file_types import is_named_as_image
from devnet_jax.data.pages import page_paths, split_page
from devnet_jax.data.paths import (
    UnreadableFileError,
    file_state,
    leave_out,
    list_files,
    log_left_out,
    name_some,
    permission_errors,
    walk,
)
from devnet_jax.errors import UserError
from devnet_jax.prediction.output import Output

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The input images and their common folder.

    Attributes:
      paths: sorted paths, each file once, or each of its pages (`page_paths`); relative where the
        user's argument was relative.
      folder: absolute path of the folder that contains all of them.
    """

    paths: Sequence[Path]
    folder: Path

    def name(self, path: Path) -> str:
        """Returns the unique name of a file: its path relative to `folder`."""
        return str(_absolute(path).relative_to(self.folder))


def find_inputs(arguments: Sequence[str], output: Path) -> Inputs:
    """Lists the images of `--input`; opens TIFF files alone, to count their pages.

    An argument is one of:

    - a file, with any suffix, or one page of it, as stack.tif#2;
    - a folder: all images in it and its subfolders;
    - a pattern, in which `**` matches any number of folders: all matching images, and all images
      below matching folders. A path that exists is never a pattern.

    In folders and patterns, names that are hidden or made by machines are left out (`walk`). Files
    whose suffix is not of an image type are ignored, and ten of them are named in the log; files
    without a suffix are listed, and so are images of types that cannot be read, broken links and
    pipes that are named as images. Output of predictions is ignored: all files that this prediction
    writes, and in folders and patterns every folder "overlays" next to a predictions.csv.

    Args:
      arguments: at least one file, folder or pattern.
      output: output folder of the prediction, which need not exist.

    Raises:
      UserError: if an argument matches no file or folder, or no image, or a page has the name of
        another file.
    """
    if not arguments or "" in arguments:
        raise UserError("--input is missing: give the images as a file, folder or pattern")
    where = " ".join(f"--input={argument}" for argument in arguments)
    with log_left_out(where), permission_errors():
        return _find_inputs(arguments, Output(output.resolve()))


def _find_inputs(arguments: Sequence[str], written: Output) -> Inputs:
    resolve_folder = functools.cache(Path.resolve)  # a folder may contain a million files
    images: dict[Path, Path] = {}  # by resolved path: two links to one image are one image
    other_types: dict[Path, str] = {}
    overlays: set[Path] = set()
    for argument in arguments:
        is_overlays = functools.cache(
            functools.partial(_is_overlays_folder, top=_containing_folder(argument))
        )
        is_empty = True
        for file in _expand(argument):
            # Not Path.resolve, which raises if a link leads to itself.
            real = resolve_folder(file.parent) / file.name
            real = Path(os.path.realpath(file)) if os.path.islink(file) else real  # noqa: PTH114
            if written.is_output(real):
                continue
            if not _may_be_image(file) and file != _to_path(argument):
                other_types[real] = argument
            elif is_overlays(file.parent):
                overlays.add(real)
            else:
                images.setdefault(real, file)
                is_empty = False
        if is_empty:
            n_others = list(other_types.values()).count(argument)
            hint = f" (files of other types: {n_others})" if n_others else ""
            raise UserError(f"--input={argument}: contains no image{hint}")
    if other_types:
        logger.info(
            "files ignored because their names are not of an image type: %d: %s",
            len(other_types),
            name_some([f"'{file.name}'" for file in sorted(other_types)]),
        )
    if overlays:
        logger.info("overlays of other predictions ignored: %d", len(overlays))
    folder = os.path.commonpath([_containing_folder(argument) for argument in arguments])
    reals, files = zip(*sorted(images.items(), key=lambda item: item[1].as_posix()), strict=True)
    pages: dict[Path, Path] = {}  # as `images`: a page may be given beside its file
    for real, file, file_pages in zip(
        reals, files, map_in_threads(page_paths, files, None), strict=True
    ):
        for page in file_pages:
            number = page.name.removeprefix(file.name)
            pages.setdefault(real.with_name(f"{real.name}{number}"), page)
    return Inputs(list(pages.values()), Path(folder))


def _is_overlays_folder(folder: Path, top: Path) -> bool:
    """True if a folder is, or is in, the overlays folder of a prediction below `top`."""
    folder = _absolute(folder)
    below = [part for part in (folder, *folder.parents) if part != top and part.is_relative_to(top)]
    return any(
        part.name == "overlays" and any(part.parent.glob("predictions*.csv")) for part in below
    )


def _to_path(argument: str) -> Path:
    """Returns an argument as a path, with ~ expanded: shells leave it in --input=~/images."""
    path = Path(argument)
    return path if os.path.lexists(path) else path.expanduser()


def _expand(argument: str) -> list[Path]:
    """Returns the files that match an argument."""
    path = _to_path(argument)
    if path.is_dir():
        return list_files(path)
    if _is_page(path):
        _require_page(argument, path)
        return [path]
    if os.path.lexists(path):
        try:
            file_state(path)
        except UnreadableFileError as error:
            raise UserError(f"--input={argument}: {error.reason}; give a file or folder") from None
        return [path]
    for part in path.parts:
        if "**" in part and part != "**":
            correct = argument.replace(part, f"**/{part.replace('**', '*')}")
            raise UserError(
                f"--input={argument}: ** must stand alone between slashes, as in {correct}"
            )
    files = [
        file for match in _glob(path) for file in (list_files(match) if match.is_dir() else [match])
    ]
    if not files:
        is_pattern = glob.has_magic(str(path))
        missing = "nothing matches this pattern" if is_pattern else "no such file or folder"
        raise UserError(f"--input={argument}: {missing}")
    return files


def _is_page(path: Path) -> bool:
    """Returns True for a path that names a page of a file, as stack.tif#2."""
    file, page = split_page(path)
    return page is not None and os.path.lexists(file)


def _require_page(argument: str, path: Path) -> None:
    """Raises `UserError` if there is no such page."""
    file, _ = split_page(path)
    pages = page_paths(file)
    if path not in pages:
        n = f"has {len(pages)} pages" if len(pages) > 1 else "is one picture, without pages"
        raise UserError(f"--input={argument}: no such page: '{file}' {n}")


def _glob(pattern: Path) -> Iterator[Path]:
    """Yields the files and folders that match a pattern."""
    if "**" not in pattern.parts:
        # Path.glob also matches hidden files.
        for match in map(Path, glob.glob(str(pattern))):  # noqa: PTH207
            # As in folders, except for names that the user has written out.
            if not any(
                glob.has_magic(part) and leave_out(Path(*match.parts[:n]))
                for n, part in enumerate(pattern.parts, start=1)
            ):
                yield match
        return
    index = pattern.parts.index("**")
    for top in filter(Path.is_dir, _glob(Path(*pattern.parts[:index]))):
        if pattern.parts[index + 1 :]:
            for folder, _ in walk(top):
                yield from _glob(Path(glob.escape(str(folder)), *pattern.parts[index + 1 :]))
        else:
            yield top


def _containing_folder(argument: str) -> Path:
    """Returns the folder that contains all possible matches of an argument."""
    path = _to_path(argument)
    if path.is_dir():
        return _absolute(path)
    is_pattern = not os.path.lexists(path) and not _is_page(path)
    path = path.parent
    while is_pattern and glob.has_magic(str(path)):
        path = path.parent
    return _absolute(path)


def _may_be_image(path: Path) -> bool:
    """Returns True for a name with an image's suffix, and for files and links without a suffix."""
    if path.suffix:
        return is_named_as_image(path)
    return os.path.isfile(path) or os.path.islink(path)  # noqa: PTH113, PTH114 (may not raise)


def _absolute(path: Path) -> Path:
    """Returns an absolute path without ".."; links are not resolved."""
    return Path(os.path.normpath(path.absolute()))
