"""A review at work: takes labels, scores pictures and learns, the latter two in a thread."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from devnet_jax.config import Config
from devnet_jax.data.datasets.label_list import UNLABELLED
from devnet_jax.data.paths import name_some
from devnet_jax.data.preprocessing import Preprocessing
from devnet_jax.errors import UserError, printable
from devnet_jax.inference.detector import TrainedDetector
from devnet_jax.prediction.inputs import Inputs, find_inputs
from devnet_jax.review.board import Board
from devnet_jax.review.finishing import finish, restore_replaced
from devnet_jax.review.journal import Journal, Label
from devnet_jax.review.learning import named_estimate
from devnet_jax.review.masks import read_mask, write_mask
from devnet_jax.review.pictures import Pictures
from devnet_jax.review.results import Results, Row, commands, relative_path, write_labels
from devnet_jax.review.taught import Taught, taught_pictures
from devnet_jax.review.teacher import Teacher, settings_to_learn
from devnet_jax.runtime.progress import showing
from devnet_jax.runtime.workdir import Workdir

logger = logging.getLogger(__name__)

_CHUNK = 64  # pictures that are scored before the thread looks for other work
_TABLE_SECONDS = 5.0  # between a label and the table's next writing
_SAVING = "saving"
_CONTAMINATED = (
    "No run is in this workdir. The first detector takes all pictures for good, also the defects"
    " among them, until you label some."
)


class ReviewSession:
    """A `Session` (`devnet_jax.review.protocol`) over a `Board`, a `Teacher` and a `Journal`.

    One thread learns, scores and finishes; the methods take labels meanwhile.
    """

    def __init__(
        self,
        config: Config,
        inputs: Sequence[str],
        results: Results,
        pictures: Pictures,
        teacher: Teacher,
        journal: Journal,
        taught: Mapping[int, Taught],
    ) -> None:
        """Starts the thread.

        Args:
          config: settings to learn with.
          inputs: files, folders and patterns of `--input`.
          results: paths of the results folder.
          pictures: pictures to look at, followed by those of the run.
          teacher: detector in force, and those that follow.
          journal: labels given so far.
          taught: pictures of the run by their numbers.
        """
        self.n = len(pictures.names)
        self._config, self._inputs, self._results = config, inputs, results
        self._pictures, self._teacher, self._journal = pictures, teacher, journal
        self._taught = taught
        self._has_run = teacher.detector is not None
        self._numbers = {name: i for i, name in enumerate(pictures.names)}
        known = {i: Label(t.label, t.defect) for i, t in taught.items() if i < self.n}
        given = {self._numbers[k]: v for k, v in journal.labels.items() if k in self._numbers}
        self._board = Board(pictures.names, known | given, pictures.errors)
        self._known = known
        self._version = len(given)
        self._expected: Mapping[str, float] = {}
        self._expected_before: Mapping[str, float] = {}
        self._working: dict[str, Any] | None = None
        self._error: str | None = None
        self._disk_error = ""
        self._finished: dict[str, Any] | None = None
        self._wants_learning = not self._has_run or bool(given)
        self._wants_refinement = not self._has_run
        self._wants_finish = False
        self._table_due: float | None = time.monotonic()
        self._ends = False
        self._condition = threading.Condition(threading.RLock())
        if self._has_run:
            self._board.begin(teacher.threshold)
        self._thread = threading.Thread(target=self._work, name="review", daemon=True)
        self._thread.start()

    def state(self) -> dict[str, Any]:
        """Returns what the page always shows; see `Session`."""
        with self._condition:
            return self._board.summary() | {
                "version": self._version,
                "known_kinds": self._teacher.kinds,
                "working": self._working,
                "estimate": named_estimate(self._expected),
                "estimate_before": named_estimate(self._expected_before),
                "note": "" if self._has_run or self._has_labels() else _CONTAMINATED,
                "error": self._error,
                "finished": self._finished,
                "input": str(self._pictures.folder),
                "has_run": self._has_run,
            }

    def list(self, order: str, show: str, offset: int, limit: int) -> dict[str, Any]:
        """Returns a part of the pictures; see `Session`."""
        with self._condition:
            page = self._board.page(order, show, offset, limit)
        masks = self._journal.masks
        for picture in page["pictures"]:
            picture["mask"] = picture["name"] in masks
        return page

    def picture(self, i: int) -> dict[str, Any]:
        """Returns a picture with its size and history; see `Session`."""
        with self._condition:
            picture = self._board.picture(i)
        name = self._pictures.names[i]
        height, width = 0, 0
        with contextlib.suppress(UserError):  # its reason says so
            height, width = self._pictures.shown_size(i)
        entries = [entry for entry in self._journal.history(name) if entry.action != "mask"]
        history = [
            {"time": e.time, "reviewer": e.reviewer, "label": e.label, "defect": e.defect}
            for e in entries
        ]
        has_mask = name in self._journal.masks
        return picture | {"width": width, "height": height, "history": history, "mask": has_mask}

    def label(self, ids: Sequence[int], label: str, defect: str, reviewer: str) -> None:
        """Labels pictures; see `Session`."""
        given = Label(label, defect)
        with self._condition:
            self._journal.append([self._pictures.names[i] for i in ids], given, reviewer)
            self._board.label(ids, given)
            self._changed()

    def undo(self, reviewer: str) -> Sequence[int]:
        """Takes back the reviewer's last label; see `Session`."""
        with self._condition:
            names = self._journal.undo(reviewer)
            labels = self._journal.labels
            ids = [self._numbers[name] for name in names if name in self._numbers]
            for i in ids:
                before = self._known.get(i, Label(""))
                self._board.label([i], labels.get(self._pictures.names[i], before))
            self._changed()
            return ids

    def image(self, i: int, size: int | None) -> tuple[bytes, str]:
        """Returns an image file and its media type; see `Session`."""
        return self._pictures.image(i, size)

    def map(self, i: int) -> bytes | None:
        """Returns a heat map; see `Session`."""
        return None if i in self._pictures.errors else self._teacher.heat_map(i)

    def mask(self, i: int) -> bytes | None:
        """Returns a painted mask; see `Session`."""
        file = self._journal.masks.get(self._pictures.names[i])
        if file is None:
            return None
        return read_mask(self._results.path / file, self._pictures.shown_size(i))

    def set_mask(self, i: int, png: bytes | None, reviewer: str) -> None:
        """Keeps or removes a mask; see `Session`."""
        name, file = self._pictures.names[i], ""
        if png is not None:
            sizes = self._pictures.shown_size(i), self._pictures.size(i)
            try:
                written = write_mask(self._results.masks, name, png, *sizes)
            except OSError as error:
                raise UserError(
                    f"{self._results.masks}: {error.strerror}; the mask is not taken: free disk"
                    " space, and save it again"
                ) from error
            file = f"{self._results.masks.name}/{written}"
        with self._condition:
            self._journal.append_mask(name, file, reviewer)
            self._changed()

    def learn(self) -> None:
        """Begins to learn from the labels; see `Session`."""
        with self._condition:
            self._wants_learning = True
            self._error = None
            self._condition.notify()

    def finish(self) -> None:
        """Begins to write the table, the detector and its report; see `Session`."""
        with self._condition:
            self._wants_finish = True
            self._finished = None
            self._error = None
            self._condition.notify()

    def close(self) -> None:
        """Ends the thread after the work in hand, and writes the table of labels."""
        with self._condition:
            self._ends = True
            self._condition.notify()
            if self._working is not None:
                logger.info("review: %s comes to its end first", self._working["task"])
        self._thread.join()
        self._write_table()
        self._journal.close()

    def _has_labels(self) -> bool:
        return any(label.label != "skip" for label in self._board.labels.values())

    def _changed(self) -> None:
        self._version += 1
        if self._table_due is None:
            self._table_due = time.monotonic() + _TABLE_SECONDS
        self._condition.notify()

    @showing(False)  # the page shows the progress
    def _work(self) -> None:
        """Does what there is to do until the review ends."""
        while True:
            with self._condition:
                if self._ends:  # under the lock: else `close` may notify before the wait begins
                    return
                due = self._due()
                if due is None:
                    wait = self._table_due and max(self._table_due - time.monotonic(), 0.01)
                    self._condition.wait(wait)
                    continue
                task, work = due
                if task != _SAVING:  # takes no time
                    done = self.n - self._board.n_pending if task == "scoring" else 0
                    self._working = {"task": task, "done": done, "of": self.n if done else 0}
            try:
                work()
                if task == _SAVING and self._error == self._disk_error:
                    self._error = None
            except UserError as error:
                self._error = str(error)
            except OSError as error:
                self._error = self._disk_error = (
                    f"{error.filename}: {error.strerror}; labels are kept: free disk space, or"
                    " see what is wrong with the disk"
                )
                if task == _SAVING:
                    self._table_due = time.monotonic() + _TABLE_SECONDS
            except Exception:
                logger.exception("review: internal error")
                self._error = "Internal error of the review; see its terminal. Labels are kept."
            finally:
                self._working = None

    def _due(self) -> tuple[str, Any] | None:
        """Returns the name and function of the next work; `None` if there is none."""
        if self._table_due is not None and time.monotonic() >= self._table_due:
            return _SAVING, self._write_table
        if self._wants_learning:  # before the end, which leaves out what cannot be read
            return "learning", self._learn
        if self._wants_finish:
            return "finishing", self._finish
        # Only when the first, contaminated detector has scored what the second learns from.
        enough = self._board.n_scored >= 2 * self._config.devcore.learning_images
        if self._wants_refinement and (enough or not self._board.n_pending):
            self._wants_refinement = False
            return "learning", self._learn
        if self._board.n_pending and self._teacher.detector is not None:
            return "scoring", self._score
        return None

    def _report(self, done: int, of: int) -> None:
        working = self._working
        if working is not None:
            self._working = working | {"done": done, "of": of}

    def _learn(self) -> None:
        with self._condition:
            self._wants_learning = False
            labels, scores = dict(self._board.labels), self._board.scores.copy()
        learned = self._teacher.learn(labels, scores, self._report)
        with self._condition:
            self._expected_before, self._expected = self._expected, learned.expected
            self._board.begin(self._teacher.threshold)

    def _score(self) -> None:
        with self._condition:
            chosen = self._board.next_pending(_CHUNK)
        for batch, found in self._teacher.score(chosen):
            with self._condition:
                self._board.take(batch, found)
            self._report(self.n - self._board.n_pending, self.n)

    def _finish(self) -> None:
        self._wants_finish = False
        self._write_table()
        names, labelled = self._pictures.names, list(self._board.labels)
        lost = [f"'{names[i]}'" for i in labelled if not self._pictures.is_there(i)]
        end = finish(self._config, self._results, self._pictures.folder, self._inputs, self.n)
        self._finished = {
            "csv": str(self._results.labels),
            "detector": str(self._results.detector),
            "report": "" if end.report is None else str(end.report),
            "note": end.shortage,
            "commands": commands(self._results),
        }
        if lost:
            self._error = printable(
                f"All is written, but nothing is learned from {len(lost)} labelled pictures that"
                f" cannot be read or are gone: {name_some(lost)}"
            )

    @functools.cached_property
    def _table_paths(self) -> Sequence[str]:
        """Paths of all pictures as in the table; those of 100,000 take a second."""
        return [relative_path(path, self._pictures.folder) for path in self._pictures.paths]

    def _write_table(self) -> None:
        _ = self._table_paths  # before the lock, for which the page waits
        with self._condition:
            self._table_due = None
            rows = list(self._rows())
        write_labels(self._results, self._pictures.folder, rows)

    def _rows(self) -> Iterable[Row]:
        """Yields the rows of the table: the pictures to look at, and those of the run."""
        folder, masks = self._pictures.folder, self._journal.masks
        labels, scores = self._board.labels, self._board.scores
        presumed = set(self._teacher.presumed(labels, scores))
        for i, name in enumerate(self._pictures.names):
            path = self._table_paths[i]
            label = labels.get(i, Label(""))
            split = "test" if i in self._taught and self._taught[i].part == "test" else "train"
            mask = masks.get(name, "")
            if mask:
                mask = relative_path(self._results.path / mask, folder)
            trains = label.label in ("good", "anomaly") or i in presumed
            if not trains or not self._pictures.is_there(i):
                yield Row(path)
            elif i in presumed:
                yield Row(path, UNLABELLED, split="train")
            else:
                yield Row(path, label.label, label.defect, split, mask)
        for i, taught in self._taught.items():
            if i >= self.n:
                split = "test" if taught.part == "test" else "train"
                yield Row(relative_path(taught.path, folder), taught.label, taught.defect, split)


def open_session(
    config: Config, workdir: Workdir, inputs: Sequence[str], output: Path
) -> ReviewSession:
    """Opens the pictures, the run if there is one, and the labels given so far.

    Args:
      config: settings of the run, or to begin with.
      workdir: workdir of the run; it may be missing.
      inputs: files, folders and patterns of `--input`.
      output: path of the results folder.

    Raises:
      UserError: if there is no picture, the run cannot be used, or another review is at work.
    """
    results = Results(output)
    found = find_inputs(inputs, output)
    real_paths = {path: os.path.realpath(path) for path in found.paths}
    inside = f"{os.path.realpath(output)}{os.sep}"  # masks are no pictures
    paths = [path for path in found.paths if not real_paths[path].startswith(inside)]
    if not paths:
        raise UserError(f"--input={inputs[0]}: contains no image beside those of the review")
    detector, taught = None, list[Taught]()
    if workdir.config.exists():
        taught = taught_pictures(config, workdir)
        detector = TrainedDetector.restore(workdir.path, config)
    numbers = {real_paths[path]: i for i, path in enumerate(paths)}
    own = {numbers[real]: t for t in taught if (real := os.path.realpath(t.path)) in numbers}
    others = [t for t in taught if os.path.realpath(t.path) not in numbers]
    by_number = own | {len(paths) + i: t for i, t in enumerate(others)}
    settings = settings_to_learn(config, detector)
    preprocessing = Preprocessing.from_settings(settings.dataset)
    pictures = Pictures(Inputs(paths, found.folder), [t.path for t in others], preprocessing)
    journal = Journal(results.journal)
    restore_replaced(results)
    try:
        teacher = Teacher(settings, pictures, by_number, detector)
    except BaseException:
        journal.close()
        raise
    return ReviewSession(settings, inputs, results, pictures, teacher, journal, by_number)
