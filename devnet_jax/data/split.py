"""Few-shot protocols: the split into training and test images (section 4.1 of the paper)."""

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
    """Image paths of each part of a split, as in the source data; each part is sorted.

    Attributes:
      train_normal: normal training images.
      train_contamination: unlabelled anomalies that train as normal images.
      train_anomaly: labelled anomalies.
      calibration: normal images held out from training, for calibrating the threshold.
      test: test images.
      trained_classes: number of labelled anomalies of each defect class.
      protocol: the arguments of `few_shot_split`.
      fingerprint: fingerprint of the data set (`Source.fingerprint`).
      white_level: value that is white in images of 16 bits; 0 means 65535.
    """

    train_normal: tuple[str, ...]
    train_contamination: tuple[str, ...]
    train_anomaly: tuple[str, ...]
    calibration: tuple[str, ...]
    test: tuple[str, ...]
    trained_classes: Mapping[str, int]
    protocol: Mapping[str, Any]
    fingerprint: str = ""
    white_level: int = 0

    @property
    def train_unlabelled(self) -> tuple[str, ...]:
        """The images that train as normal ones: normal images, then contamination."""
        return self.train_normal + self.train_contamination

    @property
    def train(self) -> tuple[str, ...]:
        """All training images: `train_unlabelled`, then the labelled anomalies."""
        return self.train_unlabelled + self.train_anomaly

    @property
    def paths(self) -> tuple[str, ...]:
        """All images of the split: training, calibration and test."""
        return self.train + self.calibration + self.test

    def to_dict(self) -> dict[str, Any]:
        """Returns the split as written to split.json."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Split:
        """Returns the split read from split.json; raises `UserError` if it is not a split."""
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
                white_level=int(values.get("white_level", 0)),
            )
        except (KeyError, TypeError, ValueError):
            raise UserError("split.json: not a split; restore the file or train again") from None


def few_shot_split(
    examples: Sequence[Example],
    *,
    n_anomaly: int,
    known_class: str | None,
    contamination: float,
    calibration: float,
    seed: int,
) -> Split:
    """Draws the labelled anomalies, the contamination and the calibration images.

    All other images of the test part are test images. The draws depend on the seed and the sorted
    paths only.

    Args:
      examples: all images; those of the part "train" are the normal training images.
      n_anomaly: number of labelled anomalies. With the same seed, a smaller number draws a subset
        of a larger one. With 0, the data set needs no anomalies and no test images.
      known_class: `None` draws from all defect classes (the paper's general setting). A class name
        draws from that class only, and its other images are not tested (the hard setting).
      contamination: fraction c of anomalies among the images that train as normal ones: ⌊N·c/(1-c)⌋
        anomalies of any class are added to N normal images.
      calibration: fraction of the normal training images to hold out.
      seed: seed of the draws.

    Raises:
      UserError: if the class does not exist, or no normal image is left for training, or the
        labelled or unlabelled anomalies leave none for the test.
    """
    all_normal = sorted(example.path for example in examples if example.split == "train")
    held_out = hold_out(all_normal, calibration, seed)
    normal = [path for path in all_normal if path not in held_out]
    if not normal:
        raise UserError(
            f"config.dataset.calibration = {calibration}: none of the {len(all_normal)} normal "
            "images would be left for training; use a smaller value"
        )
    test = [example for example in examples if example.split == "test"]
    anomalies = [example for example in test if example.label == 1]
    labelled = _draw_labelled(anomalies, n_anomaly, known_class, seed)
    # 1e-9: an exact product must not be rounded down.
    n_contaminating = math.floor(len(normal) * contamination / (1 - contamination) + 1e-9)
    candidates = sorted({example.path for example in anomalies} - labelled)
    contaminating = _draw(candidates, n_contaminating, seed, "contamination")
    remaining = [
        example.path
        for example in test
        if example.path not in labelled | contaminating
        and not (example.label == 1 and example.defect == known_class)
    ]
    n_good = sum(example.label == 0 for example in test)
    if n_contaminating and (n_contaminating > len(candidates) or len(remaining) == n_good):
        raise UserError(
            f"config.dataset.contamination = {contamination}: it adds {n_contaminating} unlabelled "
            f"anomalies to the {len(normal)} normal images; of the {len(candidates)} available, "
            "none would be left for the test; use a smaller value"
        )
    return Split(
        train_normal=tuple(normal),
        train_contamination=tuple(sorted(contaminating)),
        train_anomaly=tuple(sorted(labelled)),
        calibration=tuple(sorted(held_out)),
        test=tuple(sorted(remaining)),
        trained_classes=dict(
            sorted(Counter(e.defect for e in anomalies if e.path in labelled).items())
        ),
        protocol={
            "n_anomaly": n_anomaly,
            "known_class": known_class,
            "contamination": contamination,
            "calibration": calibration,
            "seed": seed,
        },
    )


def grown_split(split: Split, examples: Sequence[Example], n_anomaly: int) -> Split:
    """Adds new images to a split; every image that it has keeps its part.

    New normal training images are divided as before between training and calibration. Of the new
    anomalies, as many are drawn for training as `n_anomaly` asks for beyond those that train
    already. All other new images test.

    Args:
      split: split of the data set before it grew.
      examples: all images of the data set, as for `few_shot_split`.
      n_anomaly: number of labelled anomalies to train with.

    Raises:
      UserError: if there are more labelled anomalies already, or too few new ones.
    """
    protocol = split.protocol
    known, known_class = set(split.paths), protocol["known_class"]
    new = [example for example in examples if example.path not in known]
    new_normal = sorted(example.path for example in new if example.split == "train")
    held_out = hold_out(new_normal, protocol["calibration"], protocol["seed"])
    candidates = [e for e in new if e.label == 1 and known_class in (None, e.defect)]
    missing = n_anomaly - len(split.train_anomaly)
    if not 0 <= missing <= len(candidates):
        raise UserError(
            f"config.dataset.n_anomaly = {n_anomaly}: {len(split.train_anomaly)} labelled "
            f"anomalies train already, and {len(candidates)} are new; ask for "
            f"{len(split.train_anomaly)} to {len(split.train_anomaly) + len(candidates)}"
        )
    paths = sorted(example.path for example in candidates)
    labelled = _draw(paths, missing, protocol["seed"], "new labelled anomalies")
    tested = {
        e.path
        for e in new
        if e.split == "test"
        and e.path not in labelled
        and not (e.label == 1 and e.defect == known_class)
    }
    defects = {example.path: example.defect for example in examples}
    train_anomaly = tuple(sorted({*split.train_anomaly, *labelled}))
    return dataclasses.replace(
        split,
        train_normal=tuple(sorted({*split.train_normal, *new_normal} - held_out)),
        train_anomaly=train_anomaly,
        calibration=tuple(sorted({*split.calibration, *held_out})),
        test=tuple(sorted({*split.test, *tested})),
        trained_classes=dict(sorted(Counter(defects[path] for path in train_anomaly).items())),
        protocol={**protocol, "n_anomaly": n_anomaly},
    )


def hold_out(images: Sequence[T], fraction: float, seed: int) -> set[T]:
    """Draws the fraction of the normal images that is held out to calibrate the threshold."""
    return _draw(images, round(fraction * len(images)), seed, "calibration")


def _draw(images: Sequence[T], count: int, seed: int, purpose: str) -> set[T]:
    """Draws `count` images; a smaller count draws a subset of a larger one.

    The result depends on the seed, the purpose and the order of the images only.
    """
    order = generator(seed, purpose).permutation(len(images))
    return {images[i] for i in order[:count]}


def _draw_labelled(
    anomalies: Sequence[Example], n_anomaly: int, known_class: str | None, seed: int
) -> set[str]:
    """Draws the paths of the labelled anomalies."""
    if not n_anomaly and known_class is None:
        return set()
    if not anomalies:
        setting = "n_anomaly" if known_class is None else "known_class"
        value = n_anomaly if known_class is None else repr(known_class)
        raise UserError(
            f"config.dataset.{setting} = {value}: the data set has no anomalies; add some, or "
            "train from good images alone, with config.dataset.n_anomaly=0 and "
            "config.model.detector=devcore" + " and known_class unset" * (known_class is not None)
        )
    classes = sorted({example.defect for example in anomalies})
    if known_class is None:
        candidates, which = anomalies, "in all defect classes together"
        max_anomaly = len(candidates) - 1
    elif known_class in classes:
        candidates = [example for example in anomalies if example.defect == known_class]
        which = f"of class {known_class}"
        max_anomaly = len(candidates)
        if len(classes) == 1:
            raise UserError(
                f"config.dataset.known_class = {known_class!r}: it is the only defect class, "
                "so no anomaly would be left for the test; leave known_class unset"
            )
    else:
        raise UserError(
            f"config.dataset.known_class = {known_class!r}: no such defect class; "
            + nearest(known_class, classes)
        )
    if n_anomaly > max_anomaly:
        reserve = "" if known_class else " and one must stay for the test"
        raise UserError(
            f"config.dataset.n_anomaly = {n_anomaly}: there are {len(candidates)} anomalies "
            f"{which}{reserve}; ask for {max_anomaly} at most"
            if max_anomaly
            else f"the data set has {len(candidates)} anomalies {which}{reserve}; "
            "at least two anomalies are needed, one to train and one to test"
        )
    paths = sorted(example.path for example in candidates)
    return _draw(paths, n_anomaly, seed, "labelled anomalies")
