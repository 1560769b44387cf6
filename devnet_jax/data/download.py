"""Raw data sets that anyone may fetch: where they lie, and how they come onto this disk."""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import requests
from tqdm import tqdm

from devnet_jax.data.lock import one_process
from devnet_jax.data.paths import list_files
from devnet_jax.errors import UserError

logger = logging.getLogger(__name__)

_TIMEOUT = (10, 30)  # seconds for the connection, and between two pieces of the content
_PIECE = 1 << 16


@dataclass(frozen=True)
class Archive:
    """A file that can be fetched without a form or an account: zip or tar, compressed or not.

    Attributes:
      url: where it lies.
      checksum: `sha256:…` or `md5:…` of the archive; or, for one that its host packs anew each
        time, `files:…`: the `files_checksum` of its `folder`.
      folder: inside it, the one that is wanted; "" for its top.
    """

    url: str
    checksum: str
    folder: str = ""

    @property
    def stem(self) -> str:
        """Its name without the extension."""
        return self.url.rpartition("/")[2].partition(".")[0]


# A raw folder comes in one archive; or in several, each a folder in it, called like the archive.
Download = tuple[Archive, ...]


def fetch(name: str, download: Download, root: Path, layout: str) -> Path:
    """Returns the raw folder of a data set, after fetching it if it is absent.

    It lies in `root`/downloads/`name`, and comes there in one step, whole and verified; what is
    there is not verified again. Safe to call from many processes at once: one fetches, the
    others wait. A process that is killed leaves nothing that is taken for the folder.

    Args:
      name: the data set.
      download: its archives.
      root: where prepared data is kept: TFDS's data_dir.
      layout: the raw folder's expected content, to end a message with.

    Raises:
      UserError: the archive cannot be fetched or unpacked, or it is not the expected one.
      OSError: there is no room for it.
    """
    place = root / "downloads" / name
    checksums = "".join(archive.checksum for archive in download)
    target = place / hashlib.sha256(checksums.encode()).hexdigest()[:16]  # others, elsewhere
    if not target.is_dir():
        with one_process(place, f"fetches to '{place}'"):
            # Another process may have done it while this one waited.
            if not target.is_dir():
                _fetch(name, download, target, layout)
    return _raw_folder(target, download)


def _raw_folder(target: Path, download: Download) -> Path:
    return target / download[0].folder if len(download) == 1 else target


def files_checksum(folder: Path) -> str:
    """The sha256, in hex, over the paths and contents of all files below a folder.

    Hidden ones are left out. It is that of what `sha256sum --zero` prints for the files' paths,
    relative to the folder, in the order of their bytes.
    """
    names = (os.fsencode(file.relative_to(folder).as_posix()) for file in list_files(folder))
    digest = hashlib.sha256()
    for name in sorted(names):
        content = _file_hash(folder / os.fsdecode(name), "sha256")
        digest.update(b"%s  %s\0" % (content.encode(), name))
    return digest.hexdigest()


def _fetch(name: str, download: Download, target: Path, layout: str) -> None:
    """Fetches, verifies and unpacks beside the target, then takes its place."""
    staging = target.parent / ".fetching"
    shutil.rmtree(staging, ignore_errors=True)  # left by a process that was killed
    staging.mkdir()
    unpacked = staging / "unpacked"
    try:
        for archive in download:
            folder = unpacked / archive.stem if len(download) > 1 else unpacked
            _fetch_archive(name, archive, staging / "archive", folder, target)
        unpacked.rename(target)
    except UserError as error:
        raise UserError(
            f"data set '{name}': {error}; try again, or download it by hand,"
            f" unpack it and set config.dataset.manual_dir to a folder with {layout}"
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    logger.info("%s: the raw files are in '%s'", name, _raw_folder(target, download))


def _fetch_archive(name: str, archive: Archive, file: Path, unpacked: Path, target: Path) -> None:
    unpacked.mkdir(parents=True)
    kind = archive.checksum.partition(":")[0]
    announce = functools.partial(
        logger.info, "%s: fetching %s to '%s': %s", name, archive.url, target
    )
    try:
        _download(archive.url, file, announce)
        logger.info("%s: verifying and unpacking", name)
        if kind != "files":
            _check(archive, _file_hash(file, kind))
        _unpack(file, unpacked)
        if kind == "files":
            _check(archive, files_checksum(unpacked / archive.folder))
    except UserError as error:
        raise UserError(f"{archive.url}: {error}") from error
    finally:
        file.unlink(missing_ok=True)


def _download(url: str, archive: Path, announce: Callable[[str], None]) -> None:
    try:
        with requests.get(url, stream=True, timeout=_TIMEOUT) as response:
            response.raise_for_status()
            size = int(response.headers.get("Content-Length", 0))
            announce(f"{tqdm.format_sizeof(size)}B" if size else "size unknown")
            with (
                archive.open("wb") as file,
                tqdm(
                    total=size or None,
                    unit="B",
                    unit_scale=True,
                    desc="fetching",
                    leave=False,
                    disable=None,  # None: where there is no terminal
                ) as bar,
            ):
                for piece in response.iter_content(_PIECE):
                    file.write(piece)
                    bar.update(len(piece))
    except requests.RequestException as error:
        # The innermost says what happened, the others where in the library it was noticed.
        cause: BaseException = error
        while cause.__context__ is not None:
            cause = cause.__context__
        reason = getattr(cause, "strerror", None) or str(cause).partition(" for url: ")[0]
        raise UserError(f"cannot be fetched ({reason})") from error


def _file_hash(file: Path, algorithm: str) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, algorithm).hexdigest()


def _check(archive: Archive, found: str) -> None:
    found = f"{archive.checksum.partition(':')[0]}:{found}"
    if found != archive.checksum:
        raise UserError(f"expected {archive.checksum}, but what came is {found}")


def _unpack(archive: Path, folder: Path) -> None:
    """Unpacks a zip or tar file, told by its content; nothing is written outside the folder."""
    try:
        if tarfile.is_tarfile(archive):
            with tarfile.open(archive) as members:
                members.extractall(folder, filter="data")
        else:
            with zipfile.ZipFile(archive) as members:
                members.extractall(folder)
    except Exception as error:  # each format fails in its own ways on a damaged file
        if isinstance(error, OSError) and error.errno:
            raise  # of the disk, not of the archive
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"cannot be unpacked ({reason})") from error
