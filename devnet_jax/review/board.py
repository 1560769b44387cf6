"""The board of a review: the label, score and place in the order of each picture."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from devnet_jax.inference.scores import Scores, as_written
from devnet_jax.review.journal import Label
from devnet_jax.review.order import Suggestion, teaching_order

_UNKNOWN = -1  # alarm of a picture without a score


class Board:
    """Labels and scores of N pictures. Not safe in threads.

    Attributes:
      names: name of each picture.
      labels: labels by number of the picture.
      errors: message for each picture that cannot be read.
      scores: float64 [N], NaN where there is none yet.
      threshold: threshold in force; `None` if there is none.
      generation: number of detectors so far.
    """

    def __init__(
        self, names: Sequence[str], labels: Mapping[int, Label], errors: Mapping[int, str]
    ) -> None:
        """Takes the labels that there are; nothing is scored yet."""
        self.names = names
        self.labels = dict(labels)
        self.errors = errors
        self.scores = np.full(len(names), np.nan)
        self.threshold: float | None = None
        self.generation = 0
        self._alarms = np.full(len(names), _UNKNOWN, np.int8)
        self._changed = np.zeros(len(names), np.int8)  # 1: now an alarm, -1: no alarm any more
        self._like_labelled = np.zeros(len(names), bool)
        self._reasons = [""] * len(names)
        self._labelled_in: dict[int, int] = {}  # generation of each picture's label
        self._pending = np.zeros(len(names), bool)

    def label(self, pictures: Iterable[int], label: Label) -> None:
        """Labels pictures; without a label they count as not looked at."""
        for i in pictures:
            self._labelled_in[i] = self.generation
            if label.label:
                self.labels[i] = label
            else:
                self.labels.pop(i, None)

    def begin(self, threshold: float | None) -> None:
        """Begins a generation: a new detector is in force, and all pictures are to be scored."""
        self.generation += 1
        self.threshold = threshold
        self._pending[:] = True
        self._changed[:] = 0

    def next_pending(self, n: int) -> list[int]:
        """Returns up to n pictures to score: those of which a detector is least sure come first."""
        pending = self._pending.copy()
        pending[self._errors()] = False
        waiting = np.flatnonzero(pending)
        if self.threshold is None or len(waiting) <= n:
            return waiting[:n].tolist()
        distance = np.abs(np.nan_to_num(self.scores[waiting], nan=np.inf) - self.threshold)
        return waiting[np.argsort(distance, kind="stable")[:n]].tolist()

    def take(self, pictures: Sequence[int], found: Scores) -> None:
        """Takes the scores of pictures by the detector in force."""
        scores = as_written(found.scores)
        for n, i in enumerate(pictures):
            self._pending[i] = False
            if i in self.errors:
                continue
            alarm = _UNKNOWN if found.is_anomaly is None else int(found.is_anomaly[n])
            known = _UNKNOWN not in (alarm, self._alarms[i])
            self._changed[i] = alarm - self._alarms[i] if known else 0
            self.scores[i], self._alarms[i] = scores[n], alarm
            self._reasons[i] = found.reasons[n]
            self._like_labelled[i] = bool(found.kinds) and found.kinds[n] is not None

    @property
    def n_scored(self) -> int:
        """Number of pictures that have a score, by any detector."""
        return int(np.isfinite(self.scores).sum())

    @property
    def n_pending(self) -> int:
        """Number of pictures that the detector in force has not scored yet."""
        return int(self._pending.sum()) - int(self._pending[self._errors()].sum())

    def summary(self) -> dict[str, Any]:
        """Returns the counts of the page's state."""
        labels = Counter(label.label for label in self.labels.values())
        kinds = Counter(label.defect for label in self.labels.values() if label.label == "anomaly")
        return {
            "n": len(self.names),
            "n_scored": self.n_scored,
            "n_pending": self.n_pending,
            "n_looked": labels.total(),
            "n_good": labels["good"],
            "n_skipped": labels["skip"],
            "kinds": dict(kinds.most_common()),
            "threshold": self.threshold,
            "n_alarms": int(np.sum(self._alarms == 1)),
            "generation": self.generation,
            "n_changed": int(np.count_nonzero(self._changed)),
        }

    def page(self, order: str, show: str, offset: int, limit: int) -> dict[str, Any]:
        """Returns a part of the pictures in an order, and how many there are.

        Args:
          order: "teach", "score" or "name".
          show: "all", "unseen", "good", "anomaly", "skipped", "changed" or "disagree".
          offset: number of pictures to pass over.
          limit: maximum number of pictures.
        """
        shown = self._shown(show)
        reasons: dict[int, str] = {}
        if order == "teach":
            suggestions = [s for s in self._suggestions() if shown[s.picture]]
            reasons = {s.picture: s.why for s in suggestions}
            rest = shown.copy()
            rest[list(reasons)] = False
            chain = itertools.chain(reasons, np.flatnonzero(rest).tolist())
            chosen = list(itertools.islice(chain, offset, offset + limit))
        else:
            pictures = np.flatnonzero(shown)
            if order == "score":  # NaN comes last
                pictures = pictures[np.argsort(-self.scores[pictures], kind="stable")]
            chosen = pictures[offset : offset + limit].tolist()
        return {
            "total": int(shown.sum()),
            "pictures": [self.picture(i) | {"why": reasons.get(i, "")} for i in chosen],
        }

    def picture(self, i: int) -> dict[str, Any]:
        """Returns a picture as the page shows it."""
        label = self.labels.get(i, Label(""))
        is_scored = bool(np.isfinite(self.scores[i]))
        # A labelled anomaly is most like itself.
        reason = "" if label.label == "anomaly" else self._reasons[i]
        return {
            "id": i,
            "name": self.names[i],
            "score": float(self.scores[i]) if is_scored else None,
            "alarm": None if self._alarms[i] == _UNKNOWN else bool(self._alarms[i]),
            "reason": self.errors.get(i, reason),
            "label": label.label,
            "defect": label.defect,
            "why": "",
            "changed": {0: "", 1: "now an alarm", -1: "no alarm any more"}[int(self._changed[i])],
        }

    def _errors(self) -> list[int]:
        # Those of the run's pictures have higher numbers.
        return [i for i in list(self.errors) if i < len(self.names)]

    def _shown(self, show: str) -> np.ndarray:
        """Returns the pictures of a filter, bool [N]."""
        if show == "all":
            return np.ones(len(self.names), bool)
        if show == "changed":
            return self._changed != 0
        if show == "disagree":
            return self._disagrees()
        shown = np.zeros(len(self.names), bool)
        wanted = "skip" if show == "skipped" else show
        shown[[i for i, label in self.labels.items() if wanted in (label.label, "unseen")]] = True
        return ~shown if show == "unseen" else shown

    def _disagrees(self) -> np.ndarray:
        """Returns the labelled pictures that the detector takes for the opposite, bool [N]."""
        result = np.zeros(len(self.names), bool)
        for i, label in self.labels.items():
            result[i] = self._alarms[i] == {"good": 1, "anomaly": 0}.get(label.label, 2)
        return result

    def _suggestions(self) -> Iterable[Suggestion]:
        seen = np.zeros(len(self.names), bool)
        seen[[*self.labels, *self._errors()]] = True
        again = self._disagrees()
        # Not at once again: the reviewer has just said it.
        just_labelled = [i for i, g in self._labelled_in.items() if g == self.generation]
        again[just_labelled] = False
        threshold = self.threshold
        if threshold is None:
            known = self.scores[np.isfinite(self.scores)]
            threshold = float(np.median(known)) if len(known) else 0.0
        return teaching_order(self.scores, seen, self._like_labelled, again, threshold)
