"""Downloads, verifies and unpacks public raw data sets."""

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

from devnet_jax.data.lock import exclusive_lock
from devnet_jax.data.paths import list_files
from devnet_jax.errors import UserError
from devnet_jax.runtime.progress import Phase

logger = logging.getLogger(__name__)

_TIMEOUT = (10, 30)  # seconds: to connect, and between two chunks of the content
_CHUNK_BYTES = 1 << 16


@dataclass(frozen=True)
class Archive:
    """A public zip or tar archive, compressed or not.

    Attributes:
      url: its URL.
      checksum: `sha256:…` or `md5:…` of the archive; or `files:…`, the `files_checksum` of
        `folder`, for an archive that its host packs again for each download.
      folder: the folder in the archive that holds the data; "" for its root.
    """

    url: str
    checksum: str
    folder: str = ""

    @property
    def stem(self) -> str:
        """The archive's file name without the extension."""
        return self.url.rpartition("/")[2].partition(".")[0]


# The archives of a raw folder. If there are several, each has a subfolder with the archive's name.
Download = tuple[Archive, ...]


def fetch(name: str, download: Download, root: Path, layout: str) -> Path:
    """Returns the raw folder of a data set; downloads it first if it is missing.

    The folder is in `root`/downloads/`name`. It is created atomically, complete and verified, and
    is not verified again later. Many processes may call this at once: one downloads, the others
    wait.

    Args:
      name: name of the data set.
      download: its archives.
      root: folder of all prepared data: TFDS's data_dir.
      layout: expected content of the raw folder, for messages.

    Raises:
      UserError: if an archive cannot be downloaded or unpacked, or has another checksum.
      OSError: if the disk is full.
    """
    folder = root / "downloads" / name
    checksums = "".join(archive.checksum for archive in download)
    target = folder / hashlib.sha256(checksums.encode()).hexdigest()[:16]  # one folder per version
    if not target.is_dir():
        with exclusive_lock(folder, f"downloads to '{folder}'"):
            # Another process may have downloaded it while this one waited.
            if not target.is_dir():
                _fetch(name, download, target, layout)
    return _raw_folder(target, download)


def _raw_folder(target: Path, download: Download) -> Path:
    """Returns the raw folder in the folder of the unpacked archives."""
    return target / download[0].folder if len(download) == 1 else target


def files_checksum(folder: Path) -> str:
    """Returns the sha256, in hex, of the paths and contents of all files below a folder.

    Hidden files are skipped. The value is the sha256 of the output of `sha256sum --zero` for the
    files' paths, relative to the folder and sorted by their bytes.
    """
    names = (os.fsencode(file.relative_to(folder).as_posix()) for file in list_files(folder))
    digest = hashlib.sha256()
    for name in sorted(names):
        file_hash = _file_hash(folder / os.fsdecode(name), "sha256")
        digest.update(b"%s  %s\0" % (file_hash.encode(), name))
    return digest.hexdigest()


def _fetch(name: str, download: Download, target: Path, layout: str) -> None:
    """Downloads, verifies and unpacks in a staging folder, then renames it to `target`."""
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
            f"data set '{name}': {error}; try again, or download it manually,"
            f" unpack it and set config.dataset.manual_dir to a folder with {layout}"
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    logger.info("%s: the raw files are in '%s'", name, _raw_folder(target, download))


def _fetch_archive(name: str, archive: Archive, file: Path, unpacked: Path, target: Path) -> None:
    """Downloads an archive, verifies it and unpacks it.

    Args:
      name: name of the data set, for the log.
      archive: the archive.
      file: path of the downloaded file, which is deleted at the end.
      unpacked: folder to create and to unpack into.
      target: folder that the data will be in at the end, for the log.
    """
    unpacked.mkdir(parents=True)
    kind = archive.checksum.partition(":")[0]
    log_size = functools.partial(
        logger.info, "%s: downloading %s to '%s': %s", name, archive.url, target
    )
    try:
        _download(archive.url, file, log_size)
        logger.info("%s: verifying and unpacking", name)
        if kind != "files":
            _require_checksum(archive, _file_hash(file, kind))
        _unpack(file, unpacked)
        if kind == "files":
            _require_checksum(archive, files_checksum(unpacked / archive.folder))
    except UserError as error:
        raise UserError(f"{archive.url}: {error}") from error
    finally:
        file.unlink(missing_ok=True)


def _download(url: str, archive: Path, log_size: Callable[[str], None]) -> None:
    """Downloads a file; calls `log_size` with its size before the content arrives."""
    try:
        with requests.get(url, stream=True, timeout=_TIMEOUT) as response:
            response.raise_for_status()
            size = int(response.headers.get("Content-Length", 0))
            log_size(f"{tqdm.format_sizeof(size)}B" if size else "size unknown")
            with (
                archive.open("wb") as file,
                Phase("downloading", size or None, "B") as phase,
            ):
                for chunk in response.iter_content(_CHUNK_BYTES):
                    file.write(chunk)
                    phase.update(len(chunk))
    except requests.RequestException as error:
        # The innermost error has the cause; the outer ones are the library's wrappers.
        cause: BaseException = error
        while cause.__context__ is not None:
            cause = cause.__context__
        reason = getattr(cause, "strerror", None) or str(cause).partition(" for url: ")[0]
        raise UserError(f"cannot be downloaded ({reason})") from error


def _file_hash(file: Path, algorithm: str) -> str:
    """Returns the hash of a file's content, in hex."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, algorithm).hexdigest()


def _require_checksum(archive: Archive, digest: str) -> None:
    """Raises `UserError` unless the digest is the archive's checksum."""
    actual = f"{archive.checksum.partition(':')[0]}:{digest}"
    if actual != archive.checksum:
        raise UserError(f"expected {archive.checksum}, but the download has {actual}")


def _unpack(archive: Path, folder: Path) -> None:
    """Unpacks a zip or tar file; nothing is written outside the folder."""
    try:
        if tarfile.is_tarfile(archive):
            with tarfile.open(archive) as members:
                members.extractall(folder, filter="data")
        else:
            with zipfile.ZipFile(archive) as members:
                members.extractall(folder)
    except Exception as error:  # on a damaged file, each format raises its own types
        if isinstance(error, OSError) and error.errno:
            raise  # an error of the disk, not of the archive
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"cannot be unpacked ({reason})") from error
