"""A data set and its few-shot split."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from functools import cached_property

import numpy as np
from PIL import Image

from devnet_jax.config import DatasetConfig
from devnet_jax.data.datasets.builder import GOOD
from devnet_jax.data.decode import Batch, load_images, load_mask, open_picture
from devnet_jax.data.decode.values import FULL_16_BITS
from devnet_jax.data.decode_cache import DecodeCache, open_cache
from devnet_jax.data.example import Example
from devnet_jax.data.preprocessing import Preprocessing
from devnet_jax.data.source import Source, open_source
from devnet_jax.data.split import Split, few_shot_split, grown_split
from devnet_jax.errors import UserError

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class FewShotDataset:
    """An opened data set and its split.

    Attributes:
      source: the data set.
      split: its training, calibration and test images.
      preprocessing: settings of the way to the network's input.
      use_cache: if True, decoded images are cached on disk.
      has_grown: if True, the split has images that an earlier one of the run lacks, or another
        white level.
    """

    source: Source
    split: Split
    preprocessing: Preprocessing
    use_cache: bool = False
    has_grown: bool = False

    def __str__(self) -> str:
        """Returns a sentence with the number of images in each part of the split."""
        split = self.split
        normal = f"{len(split.train_unlabelled)} normal images"
        if split.train_contamination:
            normal += f" ({len(split.train_contamination)} of them are unlabelled anomalies)"
        test = f"{len(split.test)} images test"
        if self.test_duplicates:
            test += f" ({len(self.test_duplicates)} of them are also trained with)"
        labelled = f" and {len(split.train_anomaly)} labelled anomalies" * bool(split.train_anomaly)
        held_out = f"{len(self.calibration)} normal images calibrate, " if self.calibration else ""
        return f"{self.source.name}: {normal}{labelled} train, {held_out}{test}"

    def describe_kinds(self) -> str:
        """Returns the number of training and test images of each defect class, or ""."""
        trained, tested = self.split.trained_classes, self.split.tested_classes
        kinds = sorted({*trained, *tested} - {GOOD})
        return "; ".join(
            f"{kind}: {trained.get(kind, 0)} train, {tested.get(kind, 0)} test" for kind in kinds
        )

    @classmethod
    def draw(cls, settings: DatasetConfig, seed: int) -> FewShotDataset:
        """Opens the data set and draws its split.

        Raises:
          UserError: if the data set cannot be opened or has too few images for the settings.
        """
        source = _open(settings)
        split = few_shot_split(
            source.examples,
            n_anomaly=settings.n_to_draw,
            known_class=settings.known_class,
            contamination=settings.contamination,
            calibration=settings.calibration,
            seed=seed,
            own_data=source.is_own_data,
        )
        wanted, found = settings.n_to_draw, len(split.train_anomaly)
        # Of train/<defect> in a folder there may be fewer, with others to test.
        none_tests = not split.tested_classes.keys() - {GOOD}
        if wanted is not None and wanted > found and none_tests:
            logger.info(
                "%s: config.dataset.n_anomaly = %d, and there are %d anomalies: all train",
                source.name,
                wanted,
                found,
            )
        level = _white_level(settings, source)
        _log_white_level(source, level)
        split = dataclasses.replace(split, fingerprint=source.fingerprint, white_level=level)
        return cls._with_split(source, split, settings)

    @classmethod
    def _with_split(cls, source: Source, split: Split, settings: DatasetConfig) -> FewShotDataset:
        preprocessing = Preprocessing.from_settings(settings)
        # That of the run, also when that of the data set has changed since.
        preprocessing = dataclasses.replace(preprocessing, white_level=split.white_level)
        return cls(source, split, preprocessing, settings.cache)

    @classmethod
    def reopen(cls, settings: DatasetConfig, split: Split) -> FewShotDataset:
        """Opens the data set with a split drawn earlier.

        Logs a warning if the data has changed since. The white level stays that of the split, by
        which the run has learnt.

        Raises:
          UserError: if the data set cannot be opened, images of the split are missing, or labels
            of training or calibration images have changed.
        """
        dataset = cls._with_split(_open(settings), split, settings)
        dataset._require_images()
        if dataset.source.fingerprint != split.fingerprint:
            logger.warning(
                "data set %s has changed since the run began; only the images named in split.json "
                "are used, as they are now",
                dataset.source.name,
            )
        level = _white_level(settings, dataset.source)
        if level != split.white_level:
            logger.warning(
                "data set %s: images of 16 bits now use values up to %d, but %d stays white, as "
                "when the run began: train again, with devcore here, else in another workdir",
                dataset.source.name,
                level or FULL_16_BITS,
                split.white_level or FULL_16_BITS,
            )
        return dataset

    @classmethod
    def regrow(cls, settings: DatasetConfig, split: Split) -> FewShotDataset:
        """Opens the data set with a split drawn earlier, and adds the images that are new since.

        The white level is that of the data set as it is now: if it or the images have changed, the
        detector learns anew.

        Raises:
          UserError: as `reopen` and `grown_split`.
        """
        dataset = cls._with_split(_open(settings), split, settings)
        dataset._require_images()
        source = dataset.source
        grown = grown_split(split, source.examples, settings.n_to_draw, source.is_own_data)
        level = _white_level(settings, source)
        # Older split files do not count the test images.
        counted = dataclasses.replace(split, tested_classes=grown.tested_classes)
        if grown == counted and level == split.white_level:
            return dataset
        _log_white_level(source, level)
        grown = dataclasses.replace(grown, fingerprint=source.fingerprint, white_level=level)
        old, new = len(split.paths), len(grown.paths)
        if new > old:
            logger.info("data set %s has grown from %d to %d images", source.name, old, new)
        return dataclasses.replace(cls._with_split(source, grown, settings), has_grown=True)

    def _require_images(self) -> None:
        """Raises `UserError` unless all images of the split exist and have the same label."""
        missing = [path for path in self.split.paths if path not in self._index]
        if missing:
            raise UserError(
                f"{len(missing)} images named in split.json are no longer in data set "
                f"{self.source.name}, for example {missing[0]}; restore them, or train again in "
                "another workdir"
            )
        split = self.split
        for label, paths in (
            (0, split.train_normal + split.calibration),
            (1, split.train_contamination + split.train_anomaly),
        ):
            for path in paths:
                if self.example(path).label != label:
                    raise UserError(
                        f"{path} has another label in data set {self.source.name} than in "
                        "split.json; undo the change, or train again in another workdir"
                    )

    @cached_property
    def _index(self) -> dict[str, int]:
        """The index of each example by its path."""
        return {example.path: i for i, example in enumerate(self.source.examples)}

    def example(self, path: str) -> Example:
        """Returns the example of a picture by its path."""
        return self.source.examples[self._index[path]]

    @property
    def labelled_defects(self) -> list[str]:
        """The defect class of each labelled anomaly."""
        return [self.example(path).defect for path in self.split.train_anomaly]

    @property
    def normal_sizes(self) -> list[tuple[int, int]]:
        """Height and width of each normal training image itself."""
        examples = [self.source.examples[self._index[p]] for p in self.split.train_unlabelled]
        return [(example.height, example.width) for example in examples]

    @cached_property
    def test_examples(self) -> list[Example]:
        """The examples of the test images."""
        return [self.example(path) for path in self.split.test]

    @cached_property
    def test_duplicates(self) -> list[str]:
        """The test images that equal a training image, pixel by pixel."""
        return [path for path in self.split.test if self._digest(path) in self.train_digests]

    @cached_property
    def calibration(self) -> list[str]:
        """The held-out normal images that do not equal a training image, pixel by pixel.

        Copies of training images score too low and would make the threshold too low.
        """
        held_out = self.split.calibration
        return [path for path in held_out if self._digest(path) not in self.train_digests]

    @cached_property
    def train_digests(self) -> set[str]:
        """Digests of the pixels of the training images (`Example.digest`)."""
        return {self._digest(path) for path in self.split.train}

    @cached_property
    def calibration_digests(self) -> set[str]:
        """The digests of the held-out normal images."""
        return {self._digest(path) for path in self.split.calibration}

    def _digest(self, path: str) -> str:
        return self.example(path).digest

    def train_images(self) -> TrainImages:
        """Returns the training images, `split.train`; nothing is read yet."""
        indices = np.array([self._index[path] for path in self.split.train])
        return TrainImages(self.source, indices, self.preprocessing, self.decode_cache)

    def images(self, paths: Sequence[str], description: str | None = None) -> Batch:
        """Loads images of the data set by path, in that order.

        Args:
          paths: paths of the images.
          description: label of the progress bar; None shows no bar.

        Raises:
          UserError: if an image cannot be decoded.
        """
        indices = [self._index[path] for path in paths]
        pixels = load_images(
            self.source, indices, self.preprocessing, description, self.decode_cache
        )
        examples = [self.source.examples[i] for i in indices]
        sizes = [(example.height, example.width) for example in examples]
        return Batch(pixels, sizes, lambda i: self.picture(paths[i]))

    @cached_property
    def decode_cache(self) -> DecodeCache | None:
        """The cache of decoded images; None if there is none."""
        if not self.use_cache:
            return None
        source = self.source
        return open_cache(
            source.folder, source.fingerprint, len(source.examples), self.preprocessing
        )

    def picture(self, path: str) -> Image.Image:
        """Decodes an image of the data set at its own size."""
        i = self._index[path]
        data, name = self.source.image_bytes(i), self.source.image_name(i)
        return open_picture(data, name, white_level=self.split.white_level)

    def mask(self, path: str, original: bool = False) -> np.ndarray | None:
        """Loads a defect mask with `load_mask`: bool [h, w]; `None` if the image has none."""
        data = self.source.mask_bytes(self._index[path])
        return load_mask(data, f"{path} (mask)", self.preprocessing, original) if data else None


@dataclasses.dataclass(frozen=True)
class TrainImages:
    """The training images of a data set, read on demand in any order.

    Attributes:
      source: source of the encoded images.
      indices: index in the source of each training image.
      preprocessing: settings of the way to the network's input.
      cache: cache of decoded images; None if there is none.
    """

    source: Source
    indices: np.ndarray
    preprocessing: Preprocessing
    cache: DecodeCache | None

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def is_cached(self) -> bool:
        """True if decoded images are cached on disk."""
        return self.cache is not None

    def read(self, indices: np.ndarray, description: str | None = None) -> np.ndarray:
        """Reads images: uint8 [n, *preprocessing.shape].

        Args:
          indices: integers [n], positions in `split.train`.
          description: label of the progress bar; None shows no bar.

        Raises:
          UserError: if an image cannot be decoded.
        """
        chosen = self.indices[indices]
        return load_images(self.source, chosen, self.preprocessing, description, self.cache)


def _open(settings: DatasetConfig) -> Source:
    return open_source(
        settings.name,
        category=settings.category,
        manual_dir=settings.manual_dir,
        data_dir=settings.data_dir,
        labels=settings.labels,
    )


def _white_level(settings: DatasetConfig, source: Source) -> int:
    """Returns the white of images of 16 bits for a detector that learns now; 0 means 65535."""
    return settings.white_level or source.white_level


def _log_white_level(source: Source, level: int) -> None:
    if level:
        logger.info("%s: %d is taken as white in images of 16 bits", source.name, level)
