"""The detector of a review: the run's, or one learned from the pictures, and each that follows."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from PIL import Image

from devnet_jax.config import Config, with_settings
from devnet_jax.data.datasets.label_list import UNNAMED
from devnet_jax.data.decode import Batch
from devnet_jax.data.store import host_memory
from devnet_jax.errors import UserError
from devnet_jax.inference.detector import TrainedDetector
from devnet_jax.inference.overlay import coloured
from devnet_jax.inference.scores import RawScores, Scores
from devnet_jax.review.features import FeatureStore
from devnet_jax.review.journal import Label
from devnet_jax.review.learning import LearnedDetector, LearningSet, learn, scores_of
from devnet_jax.review.pictures import Pictures, reduced
from devnet_jax.review.taught import Taught
from devnet_jax.rng import generator
from devnet_jax.training.devcore import frozen_network

_MEMORY_SHARE = 8  # of the host's memory, for features
_MAX_MEMORY = 2 << 30
_MAX_MAP = 512  # pixels of the longer side of a heat map
_OPACITY = 0.8
# Scores from which a picture that nobody has looked at is not taken for good: those of the first
# detector, which has learned from the defects, too, and those of later ones. With 1.645 for all,
# each learning leaves more good parts out: on bottle and pill a third after three (2026-11-30).
_SUSPICIOUS = (1.645, 3.0)


def settings_to_learn(config: Config, detector: TrainedDetector | None) -> Config:
    """Returns the settings of the detectors that a review learns: DevCore's.

    Args:
      config: settings of the run, or those that a run would have.
      detector: detector of the run, whose held-out images calibrate the threshold. Without one, no
        picture is known to be good at first.
    """
    changes: dict[str, object] = {"evaluation.batch_size": 8, "dataset.n_anomaly": 0}
    if config.model.detector != "devcore":
        changes |= {"model.detector": "devcore", "dataset.image_size": 0}
    if detector is None:
        changes["dataset.calibration"] = 0.0
    elif detector.white_level:
        changes["dataset.white_level"] = detector.white_level
    return with_settings(config, changes)


class Teacher:
    """Learns detectors from labels, and scores pictures with the newest.

    Attributes:
      detector: the detector in force; `None` before the first.
      learned: the detector with its own scores; `None` while the run's is in force.
    """

    def __init__(
        self,
        config: Config,
        pictures: Pictures,
        taught: Mapping[int, Taught],
        detector: TrainedDetector | None,
    ) -> None:
        """Loads the backbone.

        Args:
          config: settings to learn with.
          pictures: pictures to look at, followed by those of the run.
          taught: pictures of the run by their numbers.
          detector: detector of the run, if there is one.
        """
        self.detector = self._first = detector
        self.learned: LearnedDetector | None = None
        self._config = config
        self._pictures = pictures
        # The paper's network may have an input of another size.
        self._first_pictures = pictures
        if detector is not None:
            self._first_pictures = pictures.fitted(detector.preprocessing)
        self._taught = taught
        self._has_run = detector is not None
        self._network = frozen_network(config)
        memory = min(host_memory() // _MEMORY_SHARE, _MAX_MEMORY)
        self._store = FeatureStore(config, self._network, pictures, memory)

    @property
    def threshold(self) -> float | None:
        """The threshold in force."""
        threshold = None if self.detector is None else self.detector.threshold
        return None if threshold is None else threshold.value

    @property
    def kinds(self) -> Sequence[str]:
        """Kinds of defects of the run."""
        return sorted({taught.defect for taught in self._taught.values() if taught.defect})

    def learn(
        self,
        labels: Mapping[int, Label],
        scores: np.ndarray,
        report: Callable[[int, int], None],
    ) -> LearnedDetector:
        """Learns a detector, which then is in force.

        Args:
          labels: labels by number of the picture.
          scores: float [N], scores by the detector in force, NaN where there is none.
          report: function that is told how many pictures of how many are read.

        Raises:
          UserError: if too few pictures are good.
        """
        chosen = self._learning_set(labels, scores)
        everything = [*chosen.good, *chosen.presumed, *chosen.anomalous, *chosen.calibration]
        self._store.pin(everything)
        n_read = 0
        for batch, _ in self._store.batches(everything):
            n_read += len(batch)
            report(n_read, len(everything))
        if self._pictures.errors.keys() & set(everything):  # found to be unreadable just now
            chosen = self._learning_set(labels, scores)
        if len(chosen.good) + len(chosen.presumed) < 2:
            raise UserError(
                "there are fewer than two pictures to learn good parts from: label some as good, or"
                " give more pictures"
            )
        step = 1 if self.detector is None else self.detector.step + 1
        self.learned = learn(self._config, self._network, self._store, chosen, step)
        self.detector = self.learned.detector
        return self.learned

    def _learning_set(self, labels: Mapping[int, Label], scores: np.ndarray) -> LearningSet:
        """Chooses the pictures to learn from: those of the run, and the labelled ones.

        Without a run, pictures that nobody has looked at count as good, as in the paper, unless
        their score is suspicious.
        """
        unreadable = self._pictures.errors
        given = {i: Label(t.label, t.defect) for i, t in self._taught.items() if t.part == "train"}
        given |= labels
        known = {
            i: label
            for i, label in given.items()
            if i not in unreadable and self._part(i) != "test"  # what tested tests
        }
        anomalous = [i for i, label in known.items() if label.label == "anomaly"]
        n = len(self._pictures.names)
        return LearningSet(
            good=[i for i, label in known.items() if label.label == "good"],
            presumed=self.presumed(labels, scores),
            anomalous=anomalous,
            kinds=[known[i].defect or UNNAMED for i in anomalous],
            calibration=[i for i, t in self._taught.items() if i >= n and t.part == "calibration"],
        )

    def presumed(self, labels: Mapping[int, Label], scores: np.ndarray) -> list[int]:
        """Returns the pictures without a label that count as good, the least suspicious first.

        Of many, a sample: `devcore.learning_images`.
        """
        if self._has_run:
            return []
        unreadable = self._pictures.errors
        unseen = [i for i in range(len(scores)) if i not in labels and i not in unreadable]
        if self.detector is not None:
            limit = _SUSPICIOUS[self.detector.step > 1]
            unseen = [i for i in unseen if scores[i] < limit]  # False for NaN
        order = generator(self._config.seed, "presumed good").permutation(len(unseen))
        some = [unseen[i] for i in order[: self._config.devcore.learning_images]]
        return sorted(some, key=lambda i: (scores[i], i))

    def _part(self, i: int) -> str:
        return self._taught[i].part if i in self._taught else ""

    def score(self, pictures: Sequence[int]) -> Iterator[tuple[Sequence[int], Scores]]:
        """Yields pictures in batches, and their scores by the detector in force.

        Pictures that it has learned from have cross-validated scores.
        """
        detector, learned = self.detector, self.learned
        assert detector is not None
        if learned is not None:
            known = learned.quiet(pictures)
            if known:
                yield known, learned.own(known)
            pictures = [i for i in pictures if i not in known]
        for batch, raw in self._raw_scores(detector, pictures):
            yield batch, detector.interpret(learned.with_own(batch, raw) if learned else raw)

    def _raw_scores(
        self, detector: TrainedDetector, pictures: Sequence[int]
    ) -> Iterator[tuple[Sequence[int], RawScores]]:
        if detector.config.model.detector == "devcore":
            yield from scores_of(detector, self._store, pictures)
            return
        pixels = self._first_pictures.read(np.array(pictures, int))
        found = detector.score(Batch.of_pixels(pixels, detector.preprocessing))
        yield pictures, RawScores(found.scores, found.maps)

    def heat_map(self, i: int) -> bytes | None:
        """Returns the heat map of a picture, a PNG file with transparency that covers it."""
        detector = self.detector
        if detector is None:
            return None
        ((_, raw),) = self._raw_scores(detector, [i])
        shown = self._pictures if detector is not self._first else self._first_pictures
        pixels = shown.read(np.array([i]))
        maps = raw.maps if pixels.ndim == 5 else raw.maps.reshape(1, *raw.maps.shape[-2:])
        batch = Batch.of_pixels(pixels, detector.preprocessing)
        (laid,) = detector.input_maps(batch, "score_map", maps=maps)
        heat = detector.heat(detector.lay(laid, self._pictures.size(i)), "score_map")
        alpha = 255 * _OPACITY * heat[..., None]
        pixels = np.rint(np.concatenate([coloured(heat), alpha], axis=-1)).astype(np.uint8)
        # Maps may be square where pictures are not.
        height, width = reduced(self._pictures.shown_size(i), _MAX_MAP)
        image = Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)
        file = io.BytesIO()
        image.save(file, "PNG")
        return file.getvalue()
