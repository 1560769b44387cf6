"""The base class of all data sets: turns raw files into verified, versioned TFDS records.

A subclass of `AnomalyDatasetBuilder` lists the raw examples of a data set. This module does the
rest: it detects changes, verifies every file, holds out normal images, and writes ArrayRecord files
and an index that can be read without the images. TensorFlow is not needed.
"""

from __future__ import annotations

import abc
import hashlib
import io
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from devnet_jax.data.digests import FileDigests
from devnet_jax.data.download import Download
from devnet_jax.data.pages import split_page
from devnet_jax.data.paths import file_state, permission_errors, read_file

logger = logging.getLogger(__name__)

SPLITS = ("train", "test")
NORMAL, ANOMALY = 0, 1
GOOD = "good"  # the defect class of normal images
_MAX_SHARD_BYTES = 128 << 20  # TFDS holds all examples of a shard in memory to write it


@dataclass(frozen=True)
class LazyBytes:
    """The content of an image file that is computed on demand, such as a crop.

    Attributes:
      make: computes the content.
      source_files: the raw files that the content is computed from.
    """

    make: Callable[[], bytes]
    source_files: tuple[Path, ...] = ()


def encode_png(pixels: np.ndarray) -> bytes:
    """Encodes uint8 [H, W] or [H, W, 3] as PNG, fast rather than small."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


@dataclass(frozen=True)
class RawExample:
    """An image of a raw data set, not read yet.

    Attributes:
      path: posix path relative to the raw folder, or as in a list; it names the image, and no other
        of the data set has it.
      label: NORMAL or ANOMALY.
      defect: defect class; GOOD for a normal image.
      image: the image file, one page of it (stack.tif#2), or its content.
      mask: file, page or content of the defect mask, if there is one.
      split: "train" or "test". None if the data set has no split: a quarter of its normal images
        and all anomalies then become "test".
      digest: hash of the decoded pixels, independent of the file type; set by `verify`.
      size: height and width of the upright image; set by `verify`.
      highest: highest value of an image of 16 bits that may use fewer of them; set by `verify`.
    """

    path: str
    label: int
    defect: str
    image: Path | LazyBytes | bytes
    mask: Path | LazyBytes | bytes | None = None
    split: str | None = None
    digest: str = ""
    size: tuple[int, int] = (0, 0)
    highest: int | None = None


@dataclass(frozen=True)
class RawDataset:
    """All examples of a raw data set, not read yet.

    Attributes:
      name: name of the data set and its folder, for messages.
      examples: the examples, sorted by path.
      fingerprint: hash that changes with the path or content of any file used.
      published_counts: published number of images of each class, if known.
      needs_test_images: True if the test part must have normal images and anomalies.
      skips_other_files: True if files that are no images are skipped, else they are errors.
    """

    name: str
    examples: list[RawExample]
    fingerprint: str
    published_counts: Mapping[str, int] = field(default_factory=dict)
    needs_test_images: bool = True
    skips_other_files: bool = True


class AnomalyDatasetBuilder(tfds.core.ShardBasedBuilder, abc.ABC):
    """The base class of the data sets for anomaly detection.

    A subclass implements `raw_examples` and sets `name`. The base is `ShardBasedBuilder`, since
    TFDS's `GeneratorBasedBuilder` shuffles, and needs TensorFlow beyond 1 GB.

    Attributes:
      CATEGORIES: names of the categories, each a data set of its own; () if there are none.
      LAYOUT: expected content of the raw folder, for messages.
      NEEDS_FOLDER: False if the data set has no raw folder.
      NAME_IDENTIFIES_DATA: True if all raw folders of this name hold the same data, so that
        prepared data can be used without the raw folder.
      NEEDS_TEST_IMAGES: False if the data set may lack normal test images, anomalies, or both.
      SKIPS_OTHER_FILES: False if a file that is no image is an error, as where each is named.
      PUBLISHED_COUNTS: published number of images of each defect class (GOOD for normal images),
        by category (None if there are no categories); {} if unknown. If the counts differ when the
        data set is prepared, a warning is logged.
      DOWNLOAD: archives to download if no raw folder is given; None if they are not public.
    """

    VERSION = tfds.core.Version("1.2.0")
    CATEGORIES: ClassVar[tuple[str, ...]] = ()
    LAYOUT: ClassVar[str] = ""
    NEEDS_FOLDER: ClassVar[bool] = True
    NAME_IDENTIFIES_DATA: ClassVar[bool] = True
    NEEDS_TEST_IMAGES: ClassVar[bool] = True
    SKIPS_OTHER_FILES: ClassVar[bool] = True
    PUBLISHED_COUNTS: ClassVar[Mapping[str | None, Mapping[str, int]]] = {}
    DOWNLOAD: ClassVar[Download | None] = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        # Not registered in TFDS, which has data sets of the same name (image_folder).
        super().__init_subclass__(skip_registration=True, **kwargs)
        cls.BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in cls.CATEGORIES]

    def __init__(self, *, examples: Iterable[RawExample] = (), **kwargs: Any) -> None:
        """Creates a builder.

        Args:
          examples: verified examples, if the data is to be written.
          **kwargs: arguments of the TFDS builder.
        """
        self._examples = list(examples)
        super().__init__(**kwargs)

    @classmethod
    @abc.abstractmethod
    def raw_examples(cls, folder: Path, category: str | None) -> list[RawExample]:
        """Lists the examples of the raw folder; reads no images.

        Raises:
          UserError: if the folder does not have the layout LAYOUT.
        """

    @classmethod
    def index_files(cls, folder: Path) -> list[Path]:
        """Returns the other files that `raw_examples` reads, such as a table of labels."""
        return []

    @classmethod
    def fingerprint_parts(
        cls, folder: Path, examples: Iterable[RawExample], digests: FileDigests
    ) -> Iterator[str]:
        """Yields the texts to fingerprint: by default path and digest of each file."""
        files = set(cls.index_files(folder))
        for example in examples:
            for content in (example.image, example.mask):
                files.update([split_page(content)[0]] if isinstance(content, Path) else ())
                files.update(content.source_files if isinstance(content, LazyBytes) else ())
        for name, digest in digests.of(files, folder).items():
            yield f"{name}\0{digest}"

    @classmethod
    def read_raw(
        cls, folder: Path, category: str | None, digests: FileDigests | None = None
    ) -> RawDataset:
        """Lists the examples of the raw folder and computes the fingerprint.

        Args:
          folder: raw folder.
          category: category of the data set, if it has categories.
          digests: known digests of the files; the others are computed and added.

        Raises:
          UserError: as `raw_examples`, or if files cannot be read.
        """
        with permission_errors():
            examples = sorted(cls.raw_examples(folder, category), key=lambda e: e.path)
        digest = hashlib.sha256(f"{cls.name} {category} {cls.VERSION}\n".encode())
        for e in examples:
            digest.update(_encode(f"{e.path}\0{e.split}\0{e.label}\0{e.defect}\n"))
        for text in cls.fingerprint_parts(folder, examples, digests or FileDigests()):
            digest.update(_encode(f"{text}\n"))
        name = "/".join(filter(None, (cls.name, category)))
        if cls.NEEDS_FOLDER:
            name += f" in '{folder}'"
        return RawDataset(
            name,
            examples,
            digest.hexdigest(),
            cls.PUBLISHED_COUNTS.get(category, {}),
            cls.NEEDS_TEST_IMAGES,
            cls.SKIPS_OTHER_FILES,
        )

    @classmethod
    def config_name(cls, folder: Path | None, category: str | None) -> str | None:
        """Returns the name of the TFDS config: by default the category."""
        return category

    @property
    def title(self) -> str:
        """Name for messages: "mvtec_ad/bottle"; the folder's or list's own, without its hash."""
        config = self.builder_config_name
        if config is None or self.NAME_IDENTIFIES_DATA:
            return "/".join(filter(None, (self.name, config)))
        return config.rpartition("-")[0]  # of `name_with_hash`

    def _info(self) -> tfds.core.DatasetInfo:
        file_bytes = tfds.features.Tensor(shape=(), dtype=np.bytes_)
        return _LocalDatasetInfo(
            builder=self,
            description=self.__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": file_bytes,
                    "mask": file_bytes,  # empty if there is no mask
                    "label": np.int64,
                    # As bytes: file names may not be valid text.
                    "defect": file_bytes,
                    "path": file_bytes,
                }
            ),
            metadata=tfds.core.MetadataDict(),
        )

    def _shard_iterators_per_split(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, list[Callable[[], Iterator[tuple[str, dict[str, Any]]]]]]:
        parts = {split: [e for e in self._examples if e.split == split] for split in SPLITS}
        return {
            split: [
                lambda shard=shard: map(self._record, shard)  # type: ignore[misc]
                for shard in _shards(part)
            ]
            for split, part in parts.items()
            if part  # TFDS cannot open a split without examples
        }

    def _record(self, example: RawExample) -> tuple[str, dict[str, Any]]:
        """Returns the key and the record of an example."""
        return example.path, {
            "image": read_content(example.image),
            "mask": b"" if example.mask is None else read_content(example.mask),
            "label": example.label,
            "defect": _encode(example.defect),
            "path": _encode(example.path),
        }

    def write(self, fingerprint: str, white_level: int) -> None:
        """Writes the examples and their index to this builder's `data_dir`.

        Args:
          fingerprint: `RawDataset.fingerprint`.
          white_level: value that is white in images of 16 bits; 0 if they use all.
        """
        self.info.metadata["fingerprint"] = fingerprint
        self.info.metadata["white_level"] = white_level
        self.info.metadata["examples"] = [
            [e.path, e.split, e.label, e.defect, e.digest, *e.size] for e in self._examples
        ]
        self.download_and_prepare(
            file_format="array_record",
            download_dir=self.data_dir_root / "downloads",
            download_config=tfds.download.DownloadConfig(try_download_gcs=False),
        )

    # TFDS prints these messages to stdout; we log our own.
    def _log_download_bytes(self) -> None: ...
    def _log_download_done(self) -> None: ...


class _LocalDatasetInfo(tfds.core.DatasetInfo):
    """A `DatasetInfo` that needs no network."""

    def initialize_from_bucket(self) -> None:
        """Does nothing: our data sets are not in TFDS's bucket."""


def name_with_hash(name: str, default: str, paths: Iterable[Path]) -> str:
    """Returns the name of a TFDS config for one's own data: a name, and a hash that tells it apart.

    Args:
      name: name of a folder or a list; characters that TFDS does not allow are replaced.
      default: name if no character is allowed.
      paths: full paths that identify the data.
    """
    digest = hashlib.sha256(b"\0".join(map(os.fsencode, paths))).hexdigest()
    allowed = re.sub(r"[^A-Za-z0-9_-]+", "_", name).strip("_") or default
    return f"{allowed}-{digest[:8]}"


def _encode(text: str) -> bytes:
    """Encodes text with file names in it as UTF-8; names that are not valid keep their bytes."""
    return text.encode("utf-8", "surrogateescape")


def read_content(content: Path | LazyBytes | bytes) -> bytes:
    """Returns the bytes of an image or a mask."""
    if isinstance(content, bytes):
        return content
    if isinstance(content, LazyBytes):
        return content.make()
    return read_file(content)


def _shards(
    examples: list[RawExample], max_bytes: int = _MAX_SHARD_BYTES
) -> Iterator[list[RawExample]]:
    """Yields consecutive examples: at most `max_bytes` of images each, or one larger image."""
    shard: list[RawExample] = []
    size = 0
    for example in examples:
        image = example.image
        length = file_state(image).size if isinstance(image, Path) else len(read_content(image))
        if shard and size + length > max_bytes:
            yield shard
            shard, size = [], 0
        shard.append(example)
        size += length
    yield shard
