"""Opens a data set by name; prepares it first if it is missing or its raw files have changed."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from absl import logging as absl_logging

from devnet_jax.data.datasets import DATASETS
from devnet_jax.data.datasets.builder import SPLITS, AnomalyDatasetBuilder, RawDataset
from devnet_jax.data.datasets.image_list import ImageList
from devnet_jax.data.datasets.verify import verify, white_level
from devnet_jax.data.digests import FileDigests
from devnet_jax.data.download import fetch
from devnet_jax.data.example import Example
from devnet_jax.data.lock import exclusive_lock
from devnet_jax.data.paths import log_left_out, require_utf8
from devnet_jax.errors import UserError, nearest
from devnet_jax.runtime.accounts import do_without_accounts, expand_home
from devnet_jax.runtime.io import full_disk_message

logger = logging.getLogger(__name__)

__all__ = ["DATASETS", "Source", "open_source"]


class Source:
    """A prepared data set, opened for random access from any thread.

    Attributes:
      name: name for messages: "mvtec_ad/bottle", or that of a folder or list.
      examples: all of train, then all of test, each sorted by path.
      fingerprint: hash that changes when the raw files change.
      folder: folder of the prepared data; it is replaced when the raw files change.
      white_level: value that is white in images of 16 bits; 0 if they use all.
      is_own_data: True for the user's own pictures, False for a published data set.
    """

    def __init__(self, builder: AnomalyDatasetBuilder) -> None:
        """Opens the data that `builder` has prepared; the images stay on disk."""
        self.folder = Path(builder.data_dir)
        index = _read_index(self.folder)
        self.name = builder.title
        self.fingerprint: str = index["fingerprint"]
        self.white_level: int = index["white_level"]
        self.is_own_data = not builder.NEEDS_TEST_IMAGES
        self.examples: Sequence[Example] = [Example(*fields) for fields in index["examples"]]
        self._records: list[Sequence[dict[str, bytes]]] = [
            builder.as_data_source(split) if split in builder.info.splits else []
            for split in SPLITS  # "test" may be empty
        ]
        if sum(map(len, self._records)) != len(self.examples):
            raise ValueError("index and records differ in length")
        for split, records in zip(SPLITS, self._records, strict=True):
            # Opens every shard: if another process replaces the data, the open files still match
            # this index.
            first = 0
            for length in builder.info.splits[split].shard_lengths if len(records) else ():
                records[first]
                first += length
        if _read_index(self.folder)["fingerprint"] != self.fingerprint:
            raise ValueError("another process has replaced it")

    def image_bytes(self, i: int) -> bytes:
        """Returns the content of the image file of example i."""
        return self._record(i)["image"]

    def mask_bytes(self, i: int) -> bytes:
        """Returns the content of the mask file of example i; b"" if it has none."""
        return self._record(i)["mask"]

    def image_name(self, i: int) -> str:
        """Returns the data set's name and the path of example i, for messages."""
        return f"{self.name}/{self.examples[i].path}"

    def _record(self, i: int) -> dict[str, bytes]:
        if not 0 <= i < len(self.examples):
            raise IndexError(f"example {i} of {len(self.examples)}")
        train, test = self._records
        return train[i] if i < len(train) else test[i - len(train)]


def open_source(
    name: str,
    *,
    category: str | None = None,
    manual_dir: str | None = None,
    data_dir: str | None = None,
    labels: str | None = None,
) -> Source:
    """Opens a data set; prepares it first if it is missing or its raw files have changed.

    Many processes may call this at once: one prepares the data, the others wait. Data is replaced
    atomically: a killed process leaves no partial data.

    Args:
      name: key of `DATASETS`.
      category: category of the data set, if it has categories.
      manual_dir: folder of the raw files; None uses data prepared earlier or, if there is none,
        downloads the raw files if they are public.
      data_dir: folder of all prepared data; None for $TFDS_DATA_DIR or
        ~/tensorflow_datasets.
      labels: table of the pictures and their labels, for image_list alone, whose `manual_dir` is by
        default the folder of the table.

    Raises:
      UserError: if the name or category is unknown, the raw folder or the table is missing or has
        another layout, or an image cannot be used.
    """
    locations = {"manual_dir": manual_dir, "data_dir": data_dir, "labels": labels}
    for setting, value in locations.items():
        if value is not None and "://" in value:
            raise UserError(
                f"config.dataset.{setting} = {value!r}: data is read from local disks only;"
                " copy it to a local disk"
            )
    do_without_accounts()  # before TFDS uses etils
    folder = expand_home(manual_dir).absolute() if manual_dir else None
    builder_class = _find_builder(name, labels)
    _check_category(builder_class, category)
    if issubclass(builder_class, ImageList) and folder is None:
        folder = builder_class.LABELS.parent
    root = _data_root(data_dir)
    require_utf8(root, "config.dataset.data_dir")
    prepared = _PreparedData(builder_class, root, builder_class.config_name(folder, category))
    if folder is None and builder_class.NEEDS_FOLDER:
        if prepared.is_interrupted():
            with prepared.lock():
                pass  # the lock restores the data
        if prepared.is_reusable():
            return prepared.open()
        if builder_class.DOWNLOAD is None:
            raise UserError(
                f"data set '{name}' is not prepared in '{root}' and no raw folder is given:"
                f" set config.dataset.manual_dir to a folder with {builder_class.LAYOUT}"
            )
        folder = fetch(name, builder_class.DOWNLOAD, root, builder_class.LAYOUT)
    if folder is not None and not builder_class.NEEDS_FOLDER:
        raise UserError(
            f"config.dataset.manual_dir = '{folder}': data set '{name}' has no raw files;"
            " leave it unset"
        )
    if folder is not None and not folder.is_dir():
        raise UserError(
            f"config.dataset.manual_dir = '{folder}': no such folder; expected a folder with"
            f" {builder_class.LAYOUT}"
        )
    digests = FileDigests(prepared.digests)

    def read_raw() -> RawDataset:
        return builder_class.read_raw(folder or root, category, digests)

    with log_left_out(f"'{folder}'"):
        raw = read_raw()
    if prepared.fingerprint() != raw.fingerprint:
        with prepared.lock():
            # Another process may have prepared it while this one waited.
            if prepared.fingerprint() != raw.fingerprint:
                prepared.replace(raw, read_raw)
    digests.save(prepared.digests)
    return prepared.open()


def is_available(name: str, category: str | None, data_dir: str | None) -> bool:
    """Returns True if `open_source` needs no raw folder for this data set.

    That is if the data set is synthetic, public for download, or was prepared earlier.
    """
    builder_class = DATASETS[name]
    if not builder_class.NEEDS_FOLDER or builder_class.DOWNLOAD is not None:
        return True
    if not builder_class.NAME_IDENTIFIES_DATA:
        return False
    config = builder_class.config_name(None, category)
    return _PreparedData(builder_class, _data_root(data_dir), config).is_reusable()


def _data_root(data_dir: str | None) -> Path:
    """Returns the folder of all prepared data."""
    try:
        return expand_home(data_dir or tfds.core.constants.DATA_DIR).absolute()
    except UserError as error:
        raise UserError(f"{error}; or set config.dataset.data_dir or TFDS_DATA_DIR") from None


def _find_builder(name: str, labels: str | None) -> type[AnomalyDatasetBuilder]:
    """Returns the builder of a data set; that of image_list reads the table of labels."""
    builder_class = DATASETS.get(name)
    if builder_class is None:
        raise UserError(
            f"config.dataset.name = {name!r}: no such data set; {nearest(name, DATASETS)}"
        )
    if builder_class is not ImageList:
        if labels is None:
            return builder_class
        raise UserError(
            f"config.dataset.labels = {labels!r}: data set '{name}' has labels of its own; leave it"
            f" unset, or set config.dataset.name={ImageList.name}"
        )
    if not labels:
        raise UserError(
            f"data set '{name}' needs a list: set config.dataset.labels to a CSV file with the"
            " column path, and label, defect, split or mask"
        )
    table = expand_home(labels).absolute()
    if not os.path.lexists(table):
        raise UserError(f"config.dataset.labels = '{table}': no such file; give a CSV file")
    return ImageList.of(table)


def _check_category(builder_class: type[AnomalyDatasetBuilder], category: str | None) -> None:
    """Raises `UserError` unless the category fits the data set."""
    name, known = builder_class.name, builder_class.CATEGORIES
    if category is None and known:
        raise UserError(f"data set '{name}' needs a category: one of {', '.join(known)}")
    if category is not None and not known:
        raise UserError(
            f"config.dataset.category = {category!r}: data set '{name}' has no categories;"
            " leave it unset"
        )
    if category is not None and category not in known:
        raise UserError(
            f"config.dataset.category = {category!r}: no such category of {name}; "
            + nearest(category, known)
        )


@dataclass(frozen=True)
class _PreparedData:
    """The prepared data of one data set on disk, which may not exist yet.

    Attributes:
      builder_class: builder of the data set.
      root: folder of all prepared data.
      config: name of the TFDS config.
    """

    builder_class: type[AnomalyDatasetBuilder]
    root: Path
    config: str | None

    @property
    def target(self) -> Path:
        """The folder of the prepared data."""
        version = str(self.builder_class.VERSION)
        return self.root / self.builder_class.name / (self.config or "") / version

    @property
    def digests(self) -> Path:
        """The file with the digests of the raw files."""
        return self.target / "digests.json"

    @property
    def retired(self) -> Path:
        """The folder that holds the earlier data while it is being replaced."""
        return self.target.with_name(f".{self.target.name}.replaced")

    def builder(self, root: Path, **kwargs: Any) -> AnomalyDatasetBuilder:
        """Returns a builder that writes to, or reads from, a folder of prepared data."""
        # A config object, since TFDS finds by name only the configs in BUILDER_CONFIGS.
        config = self.builder_class.builder_configs.get(self.config, self.config)
        if isinstance(config, str):
            config = tfds.core.BuilderConfig(name=config)
        return self.builder_class(data_dir=root, config=config, **kwargs)

    def fingerprint(self) -> str | None:
        """Returns the fingerprint of the prepared data; None if there is no data."""
        try:
            return _read_index(self.target)["fingerprint"]
        except (OSError, ValueError, KeyError):
            return None

    def is_reusable(self) -> bool:
        """Returns True if there is data that may be used without its raw folder."""
        return self.builder_class.NAME_IDENTIFIES_DATA and self.fingerprint() is not None

    def is_interrupted(self) -> bool:
        """Returns True if a process was killed between the two renames of `replace`."""
        return self.retired.exists() and not self.target.exists()

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Locks the data for preparing; restores the earlier data if `is_interrupted`."""
        with exclusive_lock(self.target.parent, f"prepares '{self.target}'"):
            if self.is_interrupted():
                self.retired.rename(self.target)
            yield

    def replace(self, raw: RawDataset, read_again: Callable[[], RawDataset]) -> None:
        """Verifies and prepares a raw data set in a staging folder, then replaces the data.

        Args:
          raw: the raw data set.
          read_again: reads the raw data set again, to notice files that changed meanwhile.

        Raises:
          UserError: if the raw data cannot be used, or changed while it was read.
        """
        examples = verify(raw)
        level = white_level(examples)
        staging = self.target.parent / ".preparing"
        shutil.rmtree(staging, ignore_errors=True)  # left by a process that was killed
        try:
            with _quiet_tfds():
                builder = self.builder(staging, examples=examples)
                builder.write(raw.fingerprint, level)
            if read_again().fingerprint != raw.fingerprint:
                raise UserError(f"{raw.name}: files changed while they were read: run again")
            shutil.rmtree(self.retired, ignore_errors=True)
            if self.target.exists():
                self.target.rename(self.retired)
            Path(builder.data_dir).rename(self.target)
            shutil.rmtree(self.retired, ignore_errors=True)
        except Exception as error:  # TFDS and ArrayRecord raise a RuntimeError on a full disk
            reason = full_disk_message(error)
            if reason is None:
                raise
            raise UserError(
                f"cannot prepare the data in '{staging.parent}' ({reason}): free disk space there,"
                " or set config.dataset.data_dir to another folder"
            ) from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        normal = sum(e.label == 0 for e in examples)
        logger.info(
            "%s: prepared %d normal and %d anomalous images in '%s'",
            raw.name,
            normal,
            len(examples) - normal,
            self.target,
        )

    def open(self) -> Source:
        """Opens the data; raises `UserError` if it is damaged."""
        try:
            with _quiet_tfds():
                return Source(self.builder(self.root))
        except Exception as error:  # on damaged files, TFDS and ArrayRecord raise many types
            raise UserError(
                f"cannot open the prepared data in '{self.target}'"
                f" ({' '.join(str(error).split())}): delete the folder and run again"
            ) from error


def _read_index(folder: Path) -> dict[str, Any]:
    """Reads the index that `AnomalyDatasetBuilder.write` puts into TFDS's metadata file."""
    return json.loads((folder / tfds.core.constants.METADATA_FILENAME).read_text())


@contextlib.contextmanager
def _quiet_tfds() -> Iterator[None]:
    """Suppresses TFDS's log messages, except errors."""
    verbosity = absl_logging.get_verbosity()
    absl_logging.set_verbosity(absl_logging.ERROR)
    try:
        yield
    finally:
        absl_logging.set_verbosity(verbosity)
