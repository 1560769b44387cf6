"""What all data sets share: from a raw layout to verified, versioned TFDS records.

A data set is described by a subclass of `AnomalyDatasetBuilder` that lists its raw examples; all
else is done here: noticing changes, verifying every file, holding out normal images, writing
ArrayRecord files with an index that is read without reading the images. TensorFlow is not needed.
"""

from __future__ import annotations

import abc
import hashlib
import io
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from sklearn.model_selection import train_test_split

from devnet_jax.data.decode import NotAnImageError, decode_image, decode_mask, map_in_threads
from devnet_jax.data.download import Download
from devnet_jax.data.paths import read_file
from devnet_jax.errors import UserError

logger = logging.getLogger(__name__)

SPLITS = ("train", "test")
NORMAL, ANOMALY = 0, 1
GOOD = "good"  # the defect class of normal images
_SHARD_BYTES = 128 << 20  # TFDS keeps a shard's examples in memory while it writes it


@dataclass(frozen=True)
class Produced:
    """Bytes that are made rather than read, such as a crop, and the raw files they come from."""

    make: Callable[[], bytes]
    files: tuple[Path, ...] = ()


def png(pixels: np.ndarray) -> bytes:
    """The pixels uint8 [H, W] or [H, W, 3] as a PNG file's bytes, quickly rather than small."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


@dataclass(frozen=True)
class RawExample:
    """One image of a raw data set, before it is read.

    Attributes:
      path: its name, unique in the data set: posix, relative to the raw folder.
      label: NORMAL or ANOMALY.
      defect: the defect's class; GOOD for a normal image.
      image: its file, or how its bytes are made.
      mask: the same for the defect's mask, where there is one.
      split: "train" (normal images only) or "test"; None where the data set has no such split:
        a quarter of its normal images, and all anomalies, become "test".
      digest: of the decoded image, whatever its file's type; set by `verify`.
    """

    path: str
    label: int
    defect: str
    image: Path | Produced | bytes
    mask: Path | Produced | bytes | None = None
    split: str | None = None
    digest: str = ""


@dataclass(frozen=True)
class RawDataset:
    """All examples of a raw data set, before they are read.

    Attributes:
      name: the data set and its folder, for messages.
      fingerprint: changes with the path, size or modification time of any file that is read.
      published_counts: images of each class as published, where that is known.
    """

    name: str
    examples: list[RawExample]
    fingerprint: str
    published_counts: Mapping[str, int] = field(default_factory=dict)


class AnomalyDatasetBuilder(tfds.core.ShardBasedBuilder, abc.ABC):
    """A data set for anomaly detection; a subclass says where its raw files are.

    Why shards: TFDS's GeneratorBasedBuilder shuffles, and needs TensorFlow beyond 1 GB.

    Attributes:
      CATEGORIES: the names of the data set's parts, each a data set of its own; () if undivided.
      LAYOUT: the raw folder's expected content, to end a message with.
      NEEDS_FOLDER: whether there is a raw folder.
      SHARED_NAME: whether the name stands for one data set, so that a copy prepared earlier can
        be used without the raw folder.
      PUBLISHED_COUNTS: images of each defect class, GOOD for the normal ones, by category (None
        for a data set without), as its publication says; {} where it is not known. Other counts
        are reported when the data set is prepared.
      DOWNLOAD: where the raw folder is fetched from, if anyone may, when it is not given.
    """

    VERSION = tfds.core.Version("1.1.0")
    CATEGORIES: ClassVar[tuple[str, ...]] = ()
    LAYOUT: ClassVar[str] = ""
    NEEDS_FOLDER: ClassVar[bool] = True
    SHARED_NAME: ClassVar[bool] = True
    PUBLISHED_COUNTS: ClassVar[Mapping[str | None, Mapping[str, int]]] = {}
    DOWNLOAD: ClassVar[Download | None] = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        # Not in TFDS's global registry, where names of its own (image_folder) would collide.
        super().__init_subclass__(skip_registration=True, **kwargs)
        cls.BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in cls.CATEGORIES]

    def __init__(self, *, examples: Iterable[RawExample] = (), **kwargs: Any) -> None:
        """Takes verified examples, to prepare them, beside what any TFDS builder takes."""
        self._examples = list(examples)
        super().__init__(**kwargs)

    @classmethod
    @abc.abstractmethod
    def raw_examples(cls, folder: Path, category: str | None) -> list[RawExample]:
        """Lists the raw folder's examples; reads no images.

        Raises:
          UserError: the folder is not laid out as LAYOUT says.
        """

    @classmethod
    def index_files(cls, folder: Path) -> list[Path]:
        """The files beside the images that `raw_examples` reads, such as a table of labels."""
        return []

    @classmethod
    def state(cls, folder: Path, examples: Iterable[RawExample]) -> Iterator[str]:
        """Yields what identifies the raw data: by default, of each file, path, size and time."""
        files = set(cls.index_files(folder))
        for example in examples:
            for part in (example.image, example.mask):
                files.update([part] if isinstance(part, Path) else ())
                files.update(part.files if isinstance(part, Produced) else ())
        for file in sorted(files):
            stat = file.stat()
            name = Path(os.path.relpath(file, folder)).as_posix()
            yield f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}"

    @classmethod
    def read_raw(cls, folder: Path, category: str | None) -> RawDataset:
        """Lists the raw folder's examples and takes their fingerprint; reads no images.

        Raises:
          UserError: as `raw_examples`.
        """
        examples = sorted(cls.raw_examples(folder, category), key=lambda e: e.path)
        digest = hashlib.sha256(f"{cls.name} {category} {cls.VERSION}\n".encode())
        for e in examples:
            digest.update(f"{e.path}\0{e.split}\0{e.label}\0{e.defect}\n".encode())
        for line in cls.state(folder, examples):
            digest.update(f"{line}\n".encode())
        place = f" in '{folder}'" if cls.NEEDS_FOLDER else ""
        name = "/".join(filter(None, (cls.name, category)))
        published = cls.PUBLISHED_COUNTS.get(category, {})
        return RawDataset(f"{name}{place}", examples, digest.hexdigest(), published)

    @classmethod
    def config_name(cls, folder: Path | None, category: str | None) -> str | None:
        """The name of the TFDS config that holds this data: by default the category's."""
        return category

    def _info(self) -> tfds.core.DatasetInfo:
        file_bytes = tfds.features.Tensor(shape=(), dtype=np.bytes_)
        return _LocalDatasetInfo(
            builder=self,
            description=self.__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": file_bytes,
                    "mask": file_bytes,  # empty where there is none
                    "label": np.int64,
                    "defect": tfds.features.Text(),
                    "path": tfds.features.Text(),
                }
            ),
            metadata=tfds.core.MetadataDict(),
        )

    def _shard_iterators_per_split(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, list[Callable[[], Iterator[tuple[str, dict[str, Any]]]]]]:
        return {
            split: [
                lambda shard=shard: map(self._record, shard)  # type: ignore[misc]
                for shard in _shards([e for e in self._examples if e.split == split])
            ]
            for split in SPLITS
        }

    def _record(self, example: RawExample) -> tuple[str, dict[str, Any]]:
        return example.path, {
            "image": _read(example.image),
            "mask": b"" if example.mask is None else _read(example.mask),
            "label": example.label,
            "defect": example.defect,
            "path": example.path,
        }

    def write(self, fingerprint: str) -> None:
        """Writes the examples and their index to this builder's `data_dir`."""
        self.info.metadata["fingerprint"] = fingerprint
        self.info.metadata["examples"] = [
            [e.path, e.split, e.label, e.defect, e.digest] for e in self._examples
        ]
        self.download_and_prepare(
            file_format="array_record",
            download_dir=self.data_dir_root / "downloads",
            download_config=tfds.download.DownloadConfig(try_download_gcs=False),
        )

    # TFDS prints these to stdout; what it does is logged by us.
    def _log_download_bytes(self) -> None: ...
    def _log_download_done(self) -> None: ...


class _LocalDatasetInfo(tfds.core.DatasetInfo):
    def initialize_from_bucket(self) -> None:
        """Looks nowhere: our data sets are not in TFDS's bucket."""


def verify(raw: RawDataset) -> list[RawExample]:
    """Decodes every file once and settles the splits: all of train, then all of test.

    Files that are no images are left out and counted in the log; their names are logged at
    verbosity 1. Other counts than the published ones are reported there too. Produced images come
    back as bytes.

    Raises:
      UserError: a file is empty or damaged, a mask is not of its image's size, a class or a
        split is left without images.
    """
    examples, where = raw.examples, raw.name
    checked = list(map_in_threads(_checked, examples, "verifying"))
    kept = [e for e in checked if e is not None]
    skipped = [e.path for e, result in zip(examples, checked, strict=True) if result is None]
    if skipped:
        logger.info("%s: %d files skipped that are no images", where, len(skipped))
        logger.debug("%s: skipped %s", where, ", ".join(skipped))
    for split, defect in sorted({(e.split or "", e.defect) for e in examples}):
        if not any((e.split or "", e.defect) == (split, defect) for e in kept):
            raise UserError(
                f"{where}: none of the files of class '{defect}'{f' in {split}' * bool(split)}"
                " is an image of a known type: convert them to PNG"
            )
    _report_counts(kept, raw)
    return _with_splits(kept, where)


def _report_counts(examples: list[RawExample], raw: RawDataset) -> None:
    counts = Counter(e.defect for e in examples)
    differences = [
        f"{counts[defect]} of class '{defect}' where {published} are published"
        for defect, published in raw.published_counts.items()
        if counts[defect] != published
    ]
    if differences:
        logger.warning(
            "%s: not the published data set, or not all of it: %s", raw.name, ", ".join(differences)
        )


def _with_splits(examples: list[RawExample], where: str) -> list[RawExample]:
    """All of train, then all of test, each in the given order."""
    held_out = {e.path for e in examples if e.split is None and e.label == ANOMALY}
    unsplit = [e.path for e in examples if e.split is None and e.label == NORMAL]
    if len(unsplit) >= 2:
        held_out.update(train_test_split(unsplit, test_size=0.25, random_state=42)[1])
    examples = [
        replace(e, split=e.split or ("test" if e.path in held_out else "train")) for e in examples
    ]
    for split, label, need in (
        ("train", NORMAL, "normal images to train with"),
        ("test", NORMAL, "normal images to test with"),
        ("test", ANOMALY, "anomalous images"),
    ):
        if not any((e.split, e.label) == (split, label) for e in examples):
            raise UserError(f"{where}: there are no {need}: add some")
    return sorted(examples, key=lambda e: SPLITS.index(str(e.split)))


def _checked(example: RawExample) -> RawExample | None:
    """The example with its produced parts as bytes; None if its file is no image."""
    image_name, image = _name(example, example.image), _read(example.image)
    try:
        pixels = decode_image(image, image_name)
    except NotAnImageError:
        return None
    example = replace(example, digest=_digest(pixels))
    if isinstance(example.image, Produced):
        example = replace(example, image=image)
    if example.mask is None:
        return example
    mask_name, mask = _name(example, example.mask), _read(example.mask)
    mask_shape = decode_mask(mask, mask_name).shape
    require_equal_sizes(mask_name, mask_shape, image_name, pixels.shape[:2])
    return replace(example, mask=mask) if isinstance(example.mask, Produced) else example


def require_equal_sizes(
    mask: str, mask_shape: tuple[int, ...], image: str, shape: tuple[int, ...]
) -> None:
    """Raises `UserError` unless a mask and its image, both by name, are of one height and width."""
    if mask_shape != shape:
        raise UserError(
            f"mask '{mask}' is {mask_shape[1]}×{mask_shape[0]} pixels but its image"
            f" '{image}' is {shape[1]}×{shape[0]}: they must be equal"
        )


def _digest(pixels: np.ndarray) -> str:
    """Equal for images that are equal once decoded, and for no others."""
    digest = hashlib.blake2b(repr(pixels.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def _name(example: RawExample, part: Path | Produced | bytes) -> str:
    return str(part) if isinstance(part, Path) else example.path


def _read(part: Path | Produced | bytes) -> bytes:
    if isinstance(part, bytes):
        return part
    if isinstance(part, Produced):
        return part.make()
    return read_file(part)


def _shards(examples: list[RawExample], most: int = _SHARD_BYTES) -> Iterator[list[RawExample]]:
    """Consecutive examples of at most `most` bytes of images, or one."""
    shard: list[RawExample] = []
    size = 0
    for example in examples:
        image = example.image
        length = image.stat().st_size if isinstance(image, Path) else len(_read(image))
        if shard and size + length > most:
            yield shard
            shard, size = [], 0
        shard.append(example)
        size += length
    yield shard
