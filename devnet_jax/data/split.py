"""Few-shot protocols: the split into training and test images (section 4.1 of the paper)."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeVar

from devnet_jax.data.example import Example
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
      tested_classes: number of test images of each class, also of "good".
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
    tested_classes: Mapping[str, int] = dataclasses.field(default_factory=dict)

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
                tested_classes=dict(values.get("tested_classes", {})),
            )
        except (KeyError, TypeError, ValueError):
            raise UserError("split.json: not a split; restore the file or train again") from None


def few_shot_split(
    examples: Sequence[Example],
    *,
    n_anomaly: int | None,
    known_class: str | None,
    contamination: float,
    calibration: float,
    seed: int,
    own_data: bool = False,
) -> Split:
    """Draws the labelled anomalies, the contamination and the calibration images.

    All other images of the test part are test images. The draws depend on the seed and the sorted
    paths only. Anomalies of the part "train" are labelled anomalies; if there are any, none is
    drawn from the test part.

    Args:
      examples: all images.
      n_anomaly: number of labelled anomalies to draw; `None` for all. With the same seed, a smaller
        number draws a subset of a larger one. With 0, the data set needs no anomalies and no test
        images.
      known_class: `None` draws from all defect classes (the paper's general setting). A class name
        draws from that class only, and its other images are not tested (the hard setting).
      contamination: fraction c of anomalies among the images that train as normal ones: ⌊N·c/(1-c)⌋
        anomalies of any class are added to N normal images.
      calibration: fraction of the normal training images to hold out.
      seed: seed of the draws.
      own_data: True for the user's own pictures. The draw is even over the defect classes, and all
        anomalies train if there are no more than `n_anomaly`.

    Raises:
      UserError: if the class does not exist, or no normal image is left for training, or the
        labelled or unlabelled anomalies leave none for the test.
    """
    all_normal = sorted(e.path for e in examples if e.split == "train" and e.label == 0)
    held_out = hold_out(all_normal, calibration, seed)
    normal = [path for path in all_normal if path not in held_out]
    if not normal:
        raise UserError(
            f"config.dataset.calibration = {calibration}: none of the {len(all_normal)} normal "
            "images would be left for training; use a smaller value"
        )
    test = [example for example in examples if example.split == "test"]
    anomalies = [example for example in test if example.label == 1]
    labelled = {e.path for e in examples if e.split == "train" and e.label == 1}
    if labelled and known_class is not None:
        raise UserError(
            f"config.dataset.known_class = {known_class!r}: it chooses among anomalies to draw, but"
            " the data set says which ones train; leave known_class unset"
        )
    if not labelled and own_data and known_class is None:
        labelled = draw_evenly(anomalies, n_anomaly, seed)
    elif not labelled:
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
        trained_classes=_count_classes(examples, labelled),
        tested_classes=_count_classes(examples, set(remaining)),
        protocol={
            "n_anomaly": n_anomaly,
            "known_class": known_class,
            "contamination": contamination,
            "calibration": calibration,
            "seed": seed,
        },
    )


def grown_split(
    split: Split, examples: Sequence[Example], n_anomaly: int | None, own_data: bool = False
) -> Split:
    """Adds new images to a split; every image that it has keeps its part.

    New normal training images are divided as before between training and calibration. New anomalies
    of the part "train" train. If the data set has no such part, as many of the other new ones are
    drawn as `n_anomaly` asks for beyond those that train already. All other new images test.

    Args:
      split: split of the data set before it grew.
      examples: all images of the data set, as for `few_shot_split`.
      n_anomaly: number of labelled anomalies to train with; `None` for all.
      own_data: as for `few_shot_split`; there may be fewer new anomalies than asked for.

    Raises:
      UserError: if there are more labelled anomalies already, or too few new ones.
    """
    protocol = split.protocol
    known, known_class = set(split.paths), protocol["known_class"]
    new = [example for example in examples if example.path not in known]
    new_normal = sorted(e.path for e in new if e.split == "train" and e.label == 0)
    held_out = hold_out(new_normal, protocol["calibration"], protocol["seed"])
    labelled = {e.path for e in new if e.split == "train" and e.label == 1}
    if not any(e.split == "train" and e.label == 1 for e in examples):
        n_labelled = len(split.train_anomaly)
        labelled = _draw_new(new, n_labelled, n_anomaly, split, own_data)
    tested = {
        e.path
        for e in new
        if e.split == "test"
        and e.path not in labelled
        and not (e.label == 1 and e.defect == known_class)
    }
    train_anomaly = tuple(sorted({*split.train_anomaly, *labelled}))
    test = tuple(sorted({*split.test, *tested}))
    return dataclasses.replace(
        split,
        train_normal=tuple(sorted({*split.train_normal, *new_normal} - held_out)),
        train_anomaly=train_anomaly,
        calibration=tuple(sorted({*split.calibration, *held_out})),
        test=test,
        trained_classes=_count_classes(examples, set(train_anomaly)),
        tested_classes=_count_classes(examples, set(test)),
        protocol={**protocol, "n_anomaly": n_anomaly},
    )


def _draw_new(
    new: Sequence[Example], n_labelled: int, n_anomaly: int | None, split: Split, own_data: bool
) -> set[str]:
    """Draws the paths of the new labelled anomalies; see `grown_split`.

    Args:
      new: the new images.
      n_labelled: number of labelled anomalies that train already.
      n_anomaly: as for `grown_split`.
      split: the split before.
      own_data: as for `grown_split`.
    """
    known_class, seed = split.protocol["known_class"], split.protocol["seed"]
    candidates = [e for e in new if e.label == 1 and known_class in (None, e.defect)]
    missing = None if n_anomaly is None else n_anomaly - n_labelled
    if own_data and known_class is None and (missing is None or missing >= 0):
        return draw_evenly(candidates, missing, seed, split.trained_classes)
    if missing is None:
        missing = len(candidates)
    if not 0 <= missing <= len(candidates):
        raise UserError(
            f"config.dataset.n_anomaly = {n_anomaly}: {n_labelled} labelled "
            f"anomalies train already, and {len(candidates)} are new; ask for "
            f"{n_labelled} to {n_labelled + len(candidates)}"
        )
    paths = sorted(example.path for example in candidates)
    return _draw(paths, missing, seed, "new labelled anomalies")


def draw_evenly(
    anomalies: Sequence[Example],
    count: int | None,
    seed: int,
    trained: Mapping[str, int] | None = None,
) -> set[str]:
    """Draws the paths of labelled anomalies evenly over the defect classes.

    One of each class, then a second of each, and so on. A smaller count draws a subset of a larger
    one.

    Args:
      anomalies: anomalies to draw from.
      count: number to draw, or all if there are fewer; `None` for all.
      seed: seed of the draw.
      trained: number of labelled anomalies of each class that there are already.
    """
    ranked: list[tuple[int, int, str]] = []
    classes = sorted({example.defect for example in anomalies})
    order = generator(seed, "defect classes").permutation(len(classes))
    for turn, i in enumerate(order.tolist()):
        paths = sorted(example.path for example in anomalies if example.defect == classes[i])
        first = (trained or {}).get(classes[i], 0)
        shuffled = generator(seed, f"labelled anomalies of {classes[i]}").permutation(len(paths))
        ranked += [(first + rank, turn, paths[j]) for rank, j in enumerate(shuffled.tolist())]
    return {path for _, _, path in sorted(ranked)[:count]}


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
    anomalies: Sequence[Example], n_anomaly: int | None, known_class: str | None, seed: int
) -> set[str]:
    """Draws the paths of the labelled anomalies."""
    if n_anomaly == 0 and known_class is None:
        return set()
    if not anomalies:
        setting = "n_anomaly" if known_class is None else "known_class"
        value = _as_setting(n_anomaly) if known_class is None else repr(known_class)
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
    if n_anomaly is None and known_class is not None:
        n_anomaly = max_anomaly
    if n_anomaly is None or n_anomaly > max_anomaly:
        reserve = "" if known_class else " and one must stay for the test"
        raise UserError(
            f"config.dataset.n_anomaly = {_as_setting(n_anomaly)}: there are {len(candidates)} "
            f"anomalies {which}{reserve}; ask for {max_anomaly} at most"
            if max_anomaly
            else f"the data set has {len(candidates)} anomalies {which}{reserve}; "
            "at least two anomalies are needed, one to train and one to test"
        )
    paths = sorted(example.path for example in candidates)
    return _draw(paths, n_anomaly, seed, "labelled anomalies")


def _count_classes(examples: Sequence[Example], paths: Collection[str]) -> dict[str, int]:
    """Returns the number of images of each class among some paths."""
    return dict(sorted(Counter(e.defect for e in examples if e.path in paths).items()))


def _as_setting(n_anomaly: int | None) -> int | str:
    return "all" if n_anomaly is None else n_anomaly
