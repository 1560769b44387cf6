"""Opens a data set by name, preparing it first where it is absent or its raw files changed."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from absl import logging as absl_logging

from devnet_jax.data.datasets import DATASETS
from devnet_jax.data.datasets.builder import SPLITS, AnomalyDatasetBuilder, RawDataset, verify
from devnet_jax.data.download import fetch
from devnet_jax.data.lock import one_process
from devnet_jax.errors import UserError, nearest

logger = logging.getLogger(__name__)

__all__ = ["DATASETS", "Example", "Source", "open_source"]


@dataclass(frozen=True)
class Example:
    """One image of a data set, without its bytes.

    Attributes:
      path: its name, posix, relative to the raw folder.
      split: "train" (normal images only) or "test" (normal images, and all anomalies).
      label: 0 normal, 1 anomaly.
      defect: "good" for a normal image, else the defect's class.
      digest: equal for images that are equal once decoded.
    """

    path: str
    split: str
    label: int
    defect: str
    digest: str


class Source:
    """A prepared data set, opened for random access from any thread.

    Attributes:
      name: the data set, and its category or folder: "mvtec_ad/bottle".
      examples: all of train, then all of test, each sorted by path.
      fingerprint: changes whenever the raw files do.
      folder: where the prepared data lies; what is in it vanishes when the raw files change.
    """

    def __init__(self, builder: AnomalyDatasetBuilder) -> None:
        """Opens what `builder` has prepared; the images stay on disk."""
        self.folder = Path(builder.data_dir)
        index = _read_index(self.folder)
        self.name = "/".join(filter(None, (builder.name, builder.builder_config_name)))
        self.fingerprint: str = index["fingerprint"]
        self.examples: Sequence[Example] = [Example(*fields) for fields in index["examples"]]
        self._records = [builder.as_data_source(split) for split in SPLITS]
        if sum(map(len, self._records)) != len(self.examples):
            raise ValueError("index and records differ in length")
        for records in self._records:
            # Every file is opened now: should the data be prepared anew by another process,
            # the open files keep what this index describes.
            first = 0
            for length in builder.info.splits[str(records.split)].shard_lengths:
                records[first]
                first += length
        if _read_index(self.folder)["fingerprint"] != self.fingerprint:
            raise ValueError("another process replaced it meanwhile")

    def image_bytes(self, i: int) -> bytes:
        """The bytes of example i's image file."""
        return self._record(i)["image"]

    def mask_bytes(self, i: int) -> bytes:
        """The bytes of example i's mask file; b"" where there is none."""
        return self._record(i)["mask"]

    def image_name(self, i: int) -> str:
        """Example i's path, after the data set's name: for messages."""
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
) -> Source:
    """Opens a data set, after preparing it if it is absent or its raw files have changed.

    Safe to call from many processes at once: one prepares, the others wait. A process that is
    killed leaves the earlier data, or none, or the new.

    Args:
      name: a key of DATASETS.
      category: the part of a data set that is divided into categories.
      manual_dir: the folder of raw files; None to use the copy prepared before or, where anyone
        may, to fetch them.
      data_dir: where prepared data is kept; None for TFDS's default, ~/tensorflow_datasets.

    Raises:
      UserError: an unknown name or category, a folder that is absent or not laid out as it
        should be, or an image that cannot be used.
    """
    builder_class = DATASETS.get(name)
    if builder_class is None:
        raise UserError(
            f"config.dataset.name = {name!r}: no such data set; {nearest(name, DATASETS)}"
        )
    _check_category(builder_class, category)
    for setting, place in (("manual_dir", manual_dir), ("data_dir", data_dir)):
        if place is not None and "://" in place:
            raise UserError(
                f"config.dataset.{setting} = {place!r}: data is read from local disks only;"
                " copy it to one"
            )
    folder = Path(manual_dir).expanduser().absolute() if manual_dir else None
    root = _root(data_dir)
    prepared = _Prepared(builder_class, root, builder_class.config_name(folder, category))
    if folder is None and builder_class.NEEDS_FOLDER:
        if prepared.is_interrupted():
            with prepared.lock():
                pass  # which mends it
        if prepared.is_shared():
            return prepared.open()
        if builder_class.DOWNLOAD is None:
            raise UserError(
                f"data set '{name}' is not in '{root}' and no raw folder is given:"
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
    raw = builder_class.read_raw(folder or root, category)
    if prepared.fingerprint() != raw.fingerprint:
        with prepared.lock():
            # Another process may have done it while this one waited.
            if prepared.fingerprint() != raw.fingerprint:
                prepared.replace(raw, lambda: builder_class.read_raw(folder or root, category))
    return prepared.open()


def is_at_hand(name: str, category: str | None, data_dir: str | None) -> bool:
    """Whether `open_source` needs no raw folder: it is drawn, prepared before, or fetched."""
    builder_class = DATASETS[name]
    root = _root(data_dir)
    prepared = _Prepared(builder_class, root, builder_class.config_name(None, category))
    return (
        not builder_class.NEEDS_FOLDER or builder_class.DOWNLOAD is not None or prepared.is_shared()
    )


def _root(data_dir: str | None) -> Path:
    return Path(data_dir or tfds.core.constants.DATA_DIR).expanduser().absolute()


def _check_category(builder_class: type[AnomalyDatasetBuilder], category: str | None) -> None:
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
class _Prepared:
    """The place of one prepared data set, which may be empty."""

    builder_class: type[AnomalyDatasetBuilder]
    root: Path
    config: str | None

    @property
    def target(self) -> Path:
        version = str(self.builder_class.VERSION)
        return self.root / self.builder_class.name / (self.config or "") / version

    @property
    def retired(self) -> Path:
        """Where the earlier data is while the new takes its place."""
        return self.target.with_name(f".{self.target.name}.replaced")

    def builder(self, root: Path, **kwargs: Any) -> AnomalyDatasetBuilder:
        # The config as an object: TFDS knows names from BUILDER_CONFIGS only.
        config = self.builder_class.builder_configs.get(self.config, self.config)
        if isinstance(config, str):
            config = tfds.core.BuilderConfig(name=config)
        return self.builder_class(data_dir=root, config=config, **kwargs)

    def fingerprint(self) -> str | None:
        """That of the data which is there; None if there is none."""
        try:
            return _read_index(self.target)["fingerprint"]
        except (OSError, ValueError, KeyError):
            return None

    def is_shared(self) -> bool:
        """Whether data is there that may be used without its raw folder."""
        return self.builder_class.SHARED_NAME and self.fingerprint() is not None

    def is_interrupted(self) -> bool:
        """Whether a process was killed between the two renames of `replace`."""
        return self.retired.exists() and not self.target.exists()

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Lets one process prepare, and mends what a killed one has left."""
        with one_process(self.target.parent, f"prepares '{self.target}'"):
            if self.is_interrupted():
                self.retired.rename(self.target)
            yield

    def replace(self, raw: RawDataset, read_again: Callable[[], RawDataset]) -> None:
        """Verifies and writes `raw` beside the data that is there, then takes its place."""
        examples = verify(raw)
        staging = self.target.parent / ".preparing"
        shutil.rmtree(staging, ignore_errors=True)  # left by a process that was killed
        try:
            with _quiet_tfds():
                builder = self.builder(staging, examples=examples)
                builder.write(raw.fingerprint)
            if read_again().fingerprint != raw.fingerprint:
                raise UserError(f"{raw.name}: files changed while they were read: start again")
            shutil.rmtree(self.retired, ignore_errors=True)
            if self.target.exists():
                self.target.rename(self.retired)
            Path(builder.data_dir).rename(self.target)
            shutil.rmtree(self.retired, ignore_errors=True)
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
        try:
            with _quiet_tfds():
                return Source(self.builder(self.root))
        except Exception as error:  # TFDS and ArrayRecord raise many kinds on damaged files
            raise UserError(
                f"cannot open the prepared data in '{self.target}'"
                f" ({' '.join(str(error).split())}): delete that folder and start again"
            ) from error


def _read_index(folder: Path) -> dict[str, Any]:
    # TFDS's own metadata file, read without building the data set.
    return json.loads((folder / tfds.core.constants.METADATA_FILENAME).read_text())


@contextlib.contextmanager
def _quiet_tfds() -> Iterator[None]:
    """Keeps TFDS's account of its own doings out of the log; its errors stay."""
    verbosity = absl_logging.get_verbosity()
    absl_logging.set_verbosity(absl_logging.ERROR)
    try:
        yield
    finally:
        absl_logging.set_verbosity(verbosity)
