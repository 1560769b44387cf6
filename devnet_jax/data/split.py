"""Few-shot protocols: which images train and which test (section 4.1 of the paper)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from devnet_jax.data.source import Example
from devnet_jax.errors import UserError, nearest
from devnet_jax.randomness import generator


@dataclasses.dataclass(frozen=True)
class Split:
    """Paths of the images of each part, as in the source data, each part sorted.

    Attributes:
      train_normal: normal images to train with.
      train_anomaly: labelled anomalies to train with.
      test: the images that test.
      fingerprint: of the data set that was split (`Source.fingerprint`).
    """

    train_normal: tuple[str, ...]
    train_anomaly: tuple[str, ...]
    test: tuple[str, ...]
    fingerprint: str = ""

    @property
    def paths(self) -> tuple[str, ...]:
        """Every image that plays a part."""
        return self.train_normal + self.train_anomaly + self.test

    def to_dict(self) -> dict[str, Any]:
        """The split as written to split.json."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Split:
        """The split as read from split.json; raises `UserError` if it is not one."""
        try:
            return cls(
                train_normal=tuple(values["train_normal"]),
                train_anomaly=tuple(values["train_anomaly"]),
                test=tuple(values["test"]),
                fingerprint=values["fingerprint"],
            )
        except (KeyError, TypeError):
            raise UserError("split.json: not a split; restore it or train anew") from None


def few_shot_split(
    examples: Sequence[Example], *, n_anomaly: int, known_class: str | None, seed: int
) -> Split:
    """Draws the labelled anomalies; all other images of the test part test.

    Args:
      examples: all images; those of the part "train" are the normal training images.
      n_anomaly: labelled anomalies to draw.
      known_class: `None` draws from all defect classes (the paper's general setting); a class
        draws from it alone, and its other images are left out of the test (the hard setting).
      seed: the draw is a function of it and of the sorted paths.

    Raises:
      UserError: no such class, or no anomaly would be left for the test.
    """
    normal = [example.path for example in examples if example.split == "train"]
    test = [example for example in examples if example.split == "test"]
    anomalies = [example for example in test if example.label == 1]
    classes = sorted({example.defect for example in anomalies})
    if known_class is None:
        candidates, where = anomalies, "in all defect classes together"
        spare = len(candidates) - 1
    elif known_class in classes:
        candidates = [example for example in anomalies if example.defect == known_class]
        where = f"of class {known_class}"
        spare = len(candidates)
        if len(classes) == 1:
            raise UserError(
                f"config.dataset.known_class = {known_class!r}: it is the only defect class, "
                "so none would be left for the test; leave known_class out"
            )
    else:
        raise UserError(
            f"config.dataset.known_class = {known_class!r}: no such defect class; "
            + nearest(known_class, classes)
        )
    if n_anomaly > spare:
        reserve = "" if known_class else " and one must stay for the test"
        raise UserError(
            f"config.dataset.n_anomaly = {n_anomaly}: there are {len(candidates)} anomalies "
            f"{where}{reserve}; ask for {spare} at most"
            if spare
            else f"the data set has {len(candidates)} anomalies {where}{reserve}; "
            "at least two anomalies are needed, one to train and one to test"
        )
    paths = sorted(example.path for example in candidates)
    order = generator(seed, "labelled anomalies").permutation(len(paths))
    drawn = {paths[i] for i in order[:n_anomaly]}
    return Split(
        train_normal=tuple(sorted(normal)),
        train_anomaly=tuple(sorted(drawn)),
        test=tuple(
            sorted(
                example.path
                for example in test
                if example.path not in drawn
                and not (example.label == 1 and example.defect == known_class)
            )
        ),
    )
