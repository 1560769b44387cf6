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

from devnet_jax.data.paths import list_files, walk
from devnet_jax.errors import UserError
from devnet_jax.prediction.output import Output

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


def find_inputs(arguments: Sequence[str], output: Path) -> Inputs:
    """Lists the images of `--input`; opens none.

    An argument is a file, whatever its suffix; a folder, for all images below it; or a pattern in
    which `**` stands for any number of folders, for the images that match and those below matching
    folders. What exists is taken as it is, though its name may look like a pattern. In folders and
    patterns hidden files are left out, and so are, with a line in the log, those whose suffix is
    of no image type; a file without a suffix may be an image. What a prediction has written is no
    image: the output's own files, and in folders and patterns a folder "overlays" beside a
    predictions.csv.

    Args:
      arguments: at least one.
      output: the folder that is written to; it need not be there.

    Raises:
      UserError: there is no such file or folder, or no image in it.
    """
    if not arguments or "" in arguments:
        raise UserError("--input is missing: the images to score, as a file, folder or pattern")
    own = Output(output.resolve())
    # Of a million files in a folder, the folder's own path need be resolved but once.
    resolved = functools.cache(Path.resolve)
    found: dict[Path, Path] = {}  # by where they really are: two links to one image are one image
    others: dict[Path, str] = {}
    overlays: set[Path] = set()
    for argument in arguments:
        holds_overlays = functools.cache(functools.partial(_holds_overlays, top=_folder(argument)))
        is_empty = True
        for file in _expand(argument):
            real = file.resolve() if file.is_symlink() else resolved(file.parent) / file.name
            if own.owns(real):
                continue
            if not _may_be_image(file) and file != _given(argument):
                others[real] = argument
            elif holds_overlays(file.parent):
                overlays.add(real)
            else:
                found.setdefault(real, file)
                is_empty = False
        if is_empty:
            n_others = list(others.values()).count(argument)
            hint = f" ({n_others} files there are of other types)" if n_others else ""
            raise UserError(f"--input={argument}: no image is there{hint}")
    if others:
        logger.info("files of no image type that were passed over: %d", len(others))
    if overlays:
        logger.info("overlays of other predictions that were passed over: %d", len(overlays))
    folder = os.path.commonpath([_folder(argument) for argument in arguments])
    return Inputs(sorted(found.values(), key=Path.as_posix), Path(folder))


def _holds_overlays(folder: Path, top: Path) -> bool:
    """Whether a folder below `top` is, or lies in, one that a prediction has laid overlays in."""
    folder = _absolute(folder)
    below = [one for one in (folder, *folder.parents) if one != top and one.is_relative_to(top)]
    return any(one.name == "overlays" and any(one.parent.glob("predictions*.csv")) for one in below)


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
    for part in path.parts:
        if "**" in part and part != "**":
            mended = argument.replace(part, f"**/{part.replace('**', '*')}")
            raise UserError(
                f"--input={argument}: ** must stand alone between slashes, as in {mended}"
            )
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
