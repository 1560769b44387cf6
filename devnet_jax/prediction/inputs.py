"""The images that a user points at: files, folders, patterns."""

from __future__ import annotations

import dataclasses
import functools
import glob
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from devnet_jax.data.files import list_files, walk
from devnet_jax.errors import UserError

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Image files, and the folder that holds them all.

    Attributes:
      paths: sorted, each file once, as they were found from what the user has given.
      folder: absolute.
    """

    paths: Sequence[Path]
    folder: Path

    def name(self, path: Path) -> str:
        """What tells a file from all others, wherever the program runs: its path in the folder."""
        return str(_absolute(path).relative_to(self.folder))


def find_inputs(arguments: Sequence[str], excluded: Path) -> Inputs:
    """Lists the images of `--input`; opens none.

    An argument is a file, whatever its suffix; a folder, for all images below it; or a pattern in
    which `**` stands for any number of folders, for the images that match and those below matching
    folders. What exists is taken as it is, though its name may look like a pattern. In folders and
    patterns hidden files are left out, and so are, with a line in the log, those whose suffix is
    of no image type; a file without a suffix may be an image.

    Args:
      arguments: at least one.
      excluded: a folder whose files are none of the images; it need not be there.

    Raises:
      UserError: there is no such file or folder, or no image in it.
    """
    if not arguments or "" in arguments:
        raise UserError("--input is missing: the images to score, as a file, folder or pattern")
    excluded = excluded.resolve()
    # Of a million files in a folder, the folder's own path need be resolved but once.
    resolved = functools.cache(Path.resolve)
    found: dict[Path, Path] = {}  # by where they really are: two links to one image are one image
    passed_over: set[Path] = set()
    for argument in arguments:
        files = _expand(argument)
        images = [file for file in files if _may_be_image(file) or file == _given(argument)]
        others = set(files) - set(images)
        passed_over |= others
        real = {
            image: image.resolve() if image.is_symlink() else resolved(image.parent) / image.name
            for image in images
        }
        images = [image for image in images if not real[image].is_relative_to(excluded)]
        if not images:
            hint = f" ({len(others)} files there are of other types)" if others else ""
            raise UserError(f"--input={argument}: no image is there{hint}")
        for image in images:
            found.setdefault(real[image], image)
    if passed_over:
        logger.info("files of no image type that were passed over: %d", len(passed_over))
    folder = os.path.commonpath([_folder(argument) for argument in arguments])
    return Inputs(sorted(found.values(), key=Path.as_posix), Path(folder))


def _given(argument: str) -> Path:
    """An argument as a path; shells leave the ~ of --input=~/images to the program."""
    path = Path(argument)
    return path if os.path.lexists(path) else path.expanduser()


def _expand(argument: str) -> list[Path]:
    """The files that an argument stands for."""
    path = _given(argument)
    if path.is_file():
        return [path]
    if path.is_dir():
        return list_files(path)
    if os.path.lexists(path):
        raise UserError(f"--input={argument}: is neither a file nor a folder")
    files = [
        file
        for match in _matches(path)
        for file in (list_files(match) if match.is_dir() else [match])
    ]
    if not files:
        is_pattern = glob.has_magic(str(path))
        missing = "nothing matches this pattern" if is_pattern else "no such file or folder"
        raise UserError(f"--input={argument}: {missing}")
    return files


def _matches(pattern: Path) -> Iterator[Path]:
    """The files and folders that match a pattern."""
    if "**" not in pattern.parts:
        # Not pathlib's, which finds hidden files.
        yield from map(Path, glob.glob(str(pattern)))  # noqa: PTH207
        return
    place = pattern.parts.index("**")
    for top in filter(Path.is_dir, _matches(Path(*pattern.parts[:place]))):
        if pattern.parts[place + 1 :]:
            for folder, _ in walk(top):
                yield from _matches(Path(glob.escape(str(folder)), *pattern.parts[place + 1 :]))
        else:
            yield top


def _folder(argument: str) -> Path:
    """The folder that holds whatever an argument stands for, now or later."""
    path = _given(argument)
    if path.is_dir():
        return _absolute(path)
    is_pattern = not os.path.lexists(path)
    path = path.parent
    while is_pattern and glob.has_magic(str(path)):
        path = path.parent
    return _absolute(path)


def _may_be_image(path: Path) -> bool:
    """By its name; a link to nowhere may be one, and is an image that cannot be read."""
    is_special = path.exists() and not path.is_file()  # a pipe would never end
    return not is_special and path.suffix.lower() in _suffixes()


@functools.cache
def _suffixes() -> frozenset[str]:
    # Pillow writes PDF, and does not read it.
    return frozenset(Image.registered_extensions()) - {".pdf"} | {".npy", ""}


def _absolute(path: Path) -> Path:
    """Without "..", and with the names that the user knows: links are not resolved."""
    return Path(os.path.normpath(path.absolute()))
