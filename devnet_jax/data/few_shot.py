"""A data set together with its split: the images that train and the images that test."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from functools import cache, cached_property

import numpy as np

from devnet_jax.config import DatasetConfig
from devnet_jax.data.decode import load_images, load_mask
from devnet_jax.data.decode_cache import DecodedCache, open_cache
from devnet_jax.data.source import Example, Source, open_source
from devnet_jax.data.split import Split, few_shot_split
from devnet_jax.errors import UserError

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class FewShotDataset:
    """An opened data set and the part that each of its images plays.

    Attributes:
      source: the data set.
      split: which of its images play which part.
      keep_decoded: whether decoded images are kept on disk, for the next run.
    """

    source: Source
    split: Split
    keep_decoded: bool = False

    def __str__(self) -> str:
        """How many images play which part, in words."""
        split = self.split
        normal = f"{len(split.train_unlabelled)} normal images"
        if split.train_contamination:
            normal += f" ({len(split.train_contamination)} of them are unlabelled anomalies)"
        test = f"{len(split.test)} images test"
        if self.test_duplicates:
            test += f" ({len(self.test_duplicates)} of them are also trained with)"
        labelled = f"{len(split.train_anomaly)} labelled anomalies"
        held_out = f"{len(self.calibration)} normal images calibrate, " if self.calibration else ""
        return f"{self.source.name}: {normal} and {labelled} train, {held_out}{test}"

    @classmethod
    def draw(cls, settings: DatasetConfig, seed: int) -> FewShotDataset:
        """Opens the data set of the settings and draws its labelled anomalies.

        Raises:
          UserError: the data set cannot be opened, or has not the anomalies asked for.
        """
        source = _open(settings)
        split = few_shot_split(
            source.examples,
            n_anomaly=settings.n_anomaly,
            known_class=settings.known_class,
            contamination=settings.contamination,
            calibration=settings.calibration,
            seed=seed,
        )
        split = dataclasses.replace(split, fingerprint=source.fingerprint)
        return cls(source, split, settings.cache)

    @classmethod
    def reopen(cls, settings: DatasetConfig, split: Split) -> FewShotDataset:
        """Opens the data set of the settings for a split drawn earlier.

        Data that has changed since, if only by being copied, gives a warning.

        Raises:
          UserError: the data set cannot be opened, images of the split are gone, or training
            images have another label now.
        """
        dataset = cls(_open(settings), split, settings.cache)
        dataset._require_images()
        if dataset.source.fingerprint != split.fingerprint:
            logger.warning(
                "data set %s has changed, or was copied, since the run began; the images named in "
                "split.json are used as they are now, and no others",
                dataset.source.name,
            )
        return dataset

    def _require_images(self) -> None:
        gone = [path for path in self.split.paths if path not in self._index]
        if gone:
            raise UserError(
                f"{len(gone)} images named in split.json are no longer in data set "
                f"{self.source.name}, {gone[0]} among them; put them back, or train anew in "
                "another workdir"
            )
        split = self.split
        for label, paths in (
            (0, split.train_normal + split.calibration),
            (1, split.train_contamination + split.train_anomaly),
        ):
            for path in paths:
                if self.source.examples[self._index[path]].label != label:
                    raise UserError(
                        f"{path} has another label in data set {self.source.name} than in "
                        "split.json; undo the change, or train anew in another workdir"
                    )

    @cached_property
    def _index(self) -> dict[str, int]:
        return {example.path: i for i, example in enumerate(self.source.examples)}

    @cached_property
    def test_examples(self) -> list[Example]:
        """The test images: path, label and defect class of each."""
        return [self.source.examples[self._index[path]] for path in self.split.test]

    @cached_property
    def test_duplicates(self) -> list[str]:
        """The test images that are also among the training images, pixel by pixel."""
        return [path for path in self.split.test if self._digest(path) in self._trained]

    @cached_property
    def calibration(self) -> list[str]:
        """The normal images to calibrate with: of those held out, the ones that no training image
        equals, pixel by pixel. Others would score too low, and the threshold promise too much."""
        return [path for path in self.split.calibration if self._digest(path) not in self._trained]

    @cached_property
    def _trained(self) -> set[str]:
        return {self._digest(path) for path in self.split.train}

    def _digest(self, path: str) -> str:
        return self.source.examples[self._index[path]].digest

    def train_images(self, image_size: int) -> TrainImages:
        """Those that train as normal images, then the labelled anomalies; none is read yet."""
        return TrainImages(self, image_size)

    def images(
        self, paths: Sequence[str], image_size: int, description: str | None = None
    ) -> np.ndarray:
        """uint8 [N, S, S, 3]: images of the split by their paths, in that order."""
        indices = [self._index[path] for path in paths]
        return load_images(self.source, indices, image_size, description, self.decoded(image_size))

    @cached_property
    def decoded(self) -> Callable[[int], DecodedCache | None]:
        """The cache of decoded images of a size; None where there is none."""

        @cache
        def opened(image_size: int) -> DecodedCache | None:
            source = self.source
            if not self.keep_decoded:
                return None
            return open_cache(source.folder, source.fingerprint, len(source.examples), image_size)

        return opened

    def mask(self, path: str, image_size: int) -> np.ndarray | None:
        """bool [S, S], True on the defect; `None` for an anomaly whose mask nobody has drawn."""
        i = self._index[path]
        if self.source.examples[i].label == 0:
            return np.zeros((image_size, image_size), bool)
        data = self.source.mask_bytes(i)
        return load_mask(data, f"{path} (mask)", image_size) if data else None


@dataclasses.dataclass(frozen=True)
class TrainImages:
    """The training images of a data set, to be read in any order: at once, or as they are needed.

    Attributes:
      dataset: whose they are.
      image_size: S, of images uint8 [S, S, 3].
    """

    dataset: FewShotDataset
    image_size: int

    @cached_property
    def _paths(self) -> tuple[str, ...]:
        return self.dataset.split.train

    def __len__(self) -> int:
        return len(self._paths)

    @property
    def are_kept(self) -> bool:
        """Whether what is decoded once is on disk when it is read again."""
        return self.dataset.decoded(self.image_size) is not None

    def read(self, indices: np.ndarray, description: str | None = None) -> np.ndarray:
        """uint8 [n, S, S, 3], for integers [n]; a description comes with a progress bar.

        Raises:
          UserError: an image cannot be decoded.
        """
        paths = [self._paths[i] for i in indices]
        return self.dataset.images(paths, self.image_size, description)


def _open(settings: DatasetConfig) -> Source:
    return open_source(
        settings.name,
        category=settings.category,
        manual_dir=settings.manual_dir,
        data_dir=settings.data_dir,
    )
