"""Few-shot protocols: which images train and which test (section 4.1 of the paper)."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from devnet_jax.data.source import Example
from devnet_jax.errors import UserError, nearest
from devnet_jax.rng import generator

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Split:
    """Paths of the images of each part, as in the source data, each part sorted.

    Attributes:
      train_normal: normal images to train with.
      train_contamination: anomalies that nobody has noticed: they train as if they were normal.
      train_anomaly: labelled anomalies to train with.
      calibration: normal images held out from training, to calibrate the threshold on.
      test: the images that test.
      trained_classes: how many labelled anomalies of each defect class there are.
      protocol: how they were drawn: the arguments of `few_shot_split`.
      fingerprint: of the data set that was split (`Source.fingerprint`).
    """

    train_normal: tuple[str, ...]
    train_contamination: tuple[str, ...]
    train_anomaly: tuple[str, ...]
    calibration: tuple[str, ...]
    test: tuple[str, ...]
    trained_classes: Mapping[str, int]
    protocol: Mapping[str, Any]
    fingerprint: str = ""

    @property
    def train_unlabelled(self) -> tuple[str, ...]:
        """The images that train as normal ones."""
        return self.train_normal + self.train_contamination

    @property
    def train(self) -> tuple[str, ...]:
        """The images that train: those as normal ones, then the labelled anomalies."""
        return self.train_unlabelled + self.train_anomaly

    @property
    def paths(self) -> tuple[str, ...]:
        """Every image that plays a part."""
        return self.train + self.calibration + self.test

    def to_dict(self) -> dict[str, Any]:
        """The split as written to split.json."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Split:
        """The split as read from split.json; raises `UserError` if it is not one."""
        try:
            return cls(
                train_normal=tuple(values["train_normal"]),
                train_contamination=tuple(values["train_contamination"]),
                train_anomaly=tuple(values["train_anomaly"]),
                calibration=tuple(values["calibration"]),
                test=tuple(values["test"]),
                trained_classes=dict(values["trained_classes"]),
                protocol=dict(values["protocol"]),
                fingerprint=values["fingerprint"],
            )
        except (KeyError, TypeError, ValueError):
            raise UserError("split.json: not a split; restore it or train anew") from None


def few_shot_split(
    examples: Sequence[Example],
    *,
    n_anomaly: int,
    known_class: str | None,
    contamination: float,
    calibration: float,
    seed: int,
) -> Split:
    """Draws the labelled anomalies and the unnoticed ones; the rest of the test part tests.

    Args:
      examples: all images; those of the part "train" are the normal training images.
      n_anomaly: labelled anomalies to draw. Those of fewer shots are among those of more.
      known_class: `None` draws from all defect classes (the paper's general setting); a class
        draws from it alone, and its other images are left out of the test (the hard setting).
      contamination: the share c of unnoticed anomalies among the images that train as normal
        ones: to N normal images, ⌊N·c/(1-c)⌋ anomalies of any class are added.
      calibration: the share of the normal training images that are held out from training.
      seed: the draws are a function of it and of the sorted paths.

    Raises:
      UserError: no such class, no anomaly would be left for the test, or no normal image for the
        training.
    """
    all_normal = sorted(example.path for example in examples if example.split == "train")
    held_out = hold_out(all_normal, calibration, seed)
    normal = [path for path in all_normal if path not in held_out]
    if not normal:
        raise UserError(
            f"config.dataset.calibration = {calibration}: none of the {len(all_normal)} normal "
            "images would be left for the training; ask for less"
        )
    test = [example for example in examples if example.split == "test"]
    anomalies = [example for example in test if example.label == 1]
    drawn = _draw_labelled(anomalies, n_anomaly, known_class, seed)
    n_unnoticed = math.floor(len(normal) * contamination / (1 - contamination) + 1e-9)
    candidates = sorted({example.path for example in anomalies} - drawn)
    unnoticed = _draw(candidates, n_unnoticed, seed, "contamination")
    left = [
        example.path
        for example in test
        if example.path not in drawn | unnoticed
        and not (example.label == 1 and example.defect == known_class)
    ]
    n_good = sum(example.label == 0 for example in test)
    if n_unnoticed > len(candidates) or len(left) == n_good:
        raise UserError(
            f"config.dataset.contamination = {contamination}: {n_unnoticed} anomalies would train "
            f"unnoticed beside {len(normal)} normal images, and of the {len(candidates)} that "
            "there are none would be left for the test; ask for less"
        )
    return Split(
        train_normal=tuple(normal),
        train_contamination=tuple(sorted(unnoticed)),
        train_anomaly=tuple(sorted(drawn)),
        calibration=tuple(sorted(held_out)),
        test=tuple(sorted(left)),
        trained_classes=dict(
            sorted(Counter(e.defect for e in anomalies if e.path in drawn).items())
        ),
        protocol={
            "n_anomaly": n_anomaly,
            "known_class": known_class,
            "contamination": contamination,
            "calibration": calibration,
            "seed": seed,
        },
    )


def hold_out(images: Sequence[T], share: float, seed: int) -> set[T]:
    """The share of the normal images that does not train, but calibrates the threshold."""
    return _draw(images, round(share * len(images)), seed, "calibration")


def _draw(images: Sequence[T], count: int, seed: int, purpose: str) -> set[T]:
    """So many of the images; fewer are among more. A function of seed, purpose and their order."""
    order = generator(seed, purpose).permutation(len(images))
    return {images[i] for i in order[:count]}


def _draw_labelled(
    anomalies: Sequence[Example], n_anomaly: int, known_class: str | None, seed: int
) -> set[str]:
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
    return _draw(paths, n_anomaly, seed, "labelled anomalies")
