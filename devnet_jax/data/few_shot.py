"""A data set together with its split: the images that train and the images that test."""

from __future__ import annotations

import dataclasses
from functools import cached_property

import numpy as np

from devnet_jax.config import DatasetConfig
from devnet_jax.data.decode import load_images
from devnet_jax.data.source import Example, Source, open_source
from devnet_jax.data.split import Split, few_shot_split
from devnet_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class FewShotDataset:
    """An opened data set and the part that each of its images plays."""

    source: Source
    split: Split

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
            seed=seed,
        )
        return cls(source, split)

    @classmethod
    def reopen(cls, settings: DatasetConfig, split: Split) -> FewShotDataset:
        """Opens the data set of the settings for a split drawn earlier.

        Raises:
          UserError: the data set cannot be opened, or images of the split are gone.
        """
        dataset = cls(_open(settings), split)
        gone = [path for path in split.paths if path not in dataset._index]
        if gone:
            raise UserError(
                f"{len(gone)} images named in split.json are no longer in data set "
                f"{settings.name}, {gone[0]} among them; put them back, or train anew in "
                "another workdir"
            )
        return dataset

    @cached_property
    def _index(self) -> dict[str, int]:
        return {example.path: i for i, example in enumerate(self.source.examples)}

    @cached_property
    def test_examples(self) -> list[Example]:
        """The test images: path, label and defect class of each."""
        return [self.source.examples[self._index[path]] for path in self.split.test]

    def train_images(self, image_size: int) -> np.ndarray:
        """uint8 [N, S, S, 3]: the normal training images, then the labelled anomalies."""
        paths = self.split.train_normal + self.split.train_anomaly
        return self._load(paths, image_size, "decoding training images")

    def test_images(self, image_size: int, start: int, stop: int) -> np.ndarray:
        """uint8 [≤ stop - start, S, S, 3]: a part of the test images, in their order."""
        return self._load(self.split.test[start:stop], image_size)

    def _load(
        self, paths: tuple[str, ...], image_size: int, description: str | None = None
    ) -> np.ndarray:
        indices = [self._index[path] for path in paths]
        return load_images(self.source, indices, image_size, description)


def _open(settings: DatasetConfig) -> Source:
    return open_source(
        settings.name,
        category=settings.category,
        manual_dir=settings.manual_dir,
        data_dir=settings.data_dir,
    )
