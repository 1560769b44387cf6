"""The checkpoints of a run: which there are, which count, and saving the next one."""

from __future__ import annotations

import concurrent.futures
import contextlib
import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

import jax
from etils import epath

from devnet_jax.checkpoints.checksums import (
    UNCONFIRMED,
    Checksums,
    find_fault,
    read_checksums,
    write_checksums,
)
from devnet_jax.checkpoints.orbax_io import (
    TEMPORARY,
    CheckpointFiles,
    copied,
    delete_checkpoint,
    reason_of,
)
from devnet_jax.config import Config
from devnet_jax.distributed.cluster import broadcast, is_rank_zero
from devnet_jax.errors import UserError

logger = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of a run, numbered by the steps done; saved in the background.

    A checkpoint counts once it is confirmed, by the checksums of its files, and as long as they
    fit. Reading takes the newest that counts, warns of those it passes over, and deletes nothing.

    Use it as a context manager: leaving it waits for a save under way. Of several processes all
    call the same methods; the first one saves, and decides for all which checkpoints count.
    """

    def __init__(
        self,
        folder: epath.Path,
        *,
        keep: int = 2,
        keep_best: str | None = None,
        for_training: bool = False,
    ) -> None:
        """Opens the folder, which need not be there.

        Args:
          folder: of all checkpoints; each is a folder in it.
          keep: how many of the newest stay, at least one.
          keep_best: the name of a metric; the checkpoint that has the lowest stays besides.
          for_training: whether to delete at once what killed saves have left half-written.
        """
        if keep < 1:
            raise ValueError(f"keep must be 1 or more: {keep}")
        self.folder = folder
        self._keep = keep
        self._keep_best = keep_best
        self._faults: dict[int, str | None] = {}  # what is wrong with the checkpoints looked at
        self._files = CheckpointFiles()
        self._background = concurrent.futures.ThreadPoolExecutor(1, "save_checkpoint")
        self._saving: concurrent.futures.Future[None] | None = None
        self._saves = False  # whether anything was to be saved yet
        if for_training and is_rank_zero():
            self._delete_temporaries()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                if self._saves:
                    self.wait()
            elif self._saving is not None and (failure := self._saving.exception()):
                logger.error("%s", failure)  # the error under way goes on
        finally:
            self._background.shutdown()
            self._files.close()

    def latest_step(self) -> int | None:
        """Steps done in the newest checkpoint that counts, or `None` if none was confirmed yet.

        Raises:
          UserError: some were, but all of them are damaged.
        """
        return _agreed(self._latest)

    def best_step(self) -> int | None:
        """The step of the lowest `keep_best` among the checkpoints that count, or `None` if none
        of them tells it."""
        return _agreed(self._best)

    def wait(self) -> None:
        """Waits until the save under way, if any, is confirmed; raises `UserError` if it failed."""
        _agreed(self._confirm)

    def save(
        self,
        step: int,
        variables: Any,
        optimizer: Any,
        settings: dict[str, Any],
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Starts to save the checkpoint of `step`, unless it or a later one is there.

        Waits for the save before. What was passed over as damaged or unconfirmed is deleted now.

        Args:
          step: training steps done.
          variables: arrays, each whole on a device of this process.
          optimizer: likewise.
          settings: of the run.
          metrics: finite values that it may be judged by.

        Raises:
          UserError: the save before could not be completed.
        """
        metrics = {name: float(value) for name, value in (metrics or {}).items()}
        if not all(map(math.isfinite, metrics.values())):
            raise ValueError(f"metrics must be finite: {metrics}")
        self._saves = True
        latest = _agreed(self._confirm_and_look)
        if (latest is not None and step <= latest) or not is_rank_zero():
            return
        content = (*copied((variables, optimizer)), settings)
        self._saving = self._background.submit(self._save, step, content, metrics, latest)

    def restore(self, config: Config, step: int | None = None, **abstract: Any) -> dict[str, Any]:
        """Restores trees of one checkpoint.

        Args:
          config: the settings it must have been saved with, but for those that may change.
          step: which one, such as the best; by default the newest that counts.
          **abstract: for `variables`, `optimizer` or both, a tree of `jax.ShapeDtypeStruct`
            (with shardings where the arrays shall not lie on the default device).

        Returns:
          The named trees, as arrays of this process.

        Raises:
          UserError: there is no checkpoint that counts, or it is of other settings or shapes.
        """
        chosen = _agreed(self._newest if step is None else lambda: self._whole(step))
        assert chosen is not None  # neither returns None
        path = self._path(chosen)
        trees = self._files.read(path, config, abstract)
        logger.info("restored checkpoint %s", path)
        return trees

    def _path(self, step: int) -> epath.Path:
        return self.folder / str(step)

    # What follows is done in the first process only.

    def _steps(self) -> list[int]:
        """The steps of all checkpoints in the folder, whole or not, the newest first."""
        if not self.folder.exists():
            return []
        names = (path.name for path in self.folder.iterdir() if path.is_dir())
        return sorted((int(name) for name in names if re.fullmatch("[0-9]+", name)), reverse=True)

    def _fault(self, step: int) -> str | None:
        """What is wrong with a checkpoint; looked for once, and told in a warning."""
        if step not in self._faults:
            fault = self._faults[step] = find_fault(self._path(step))
            if fault is not None:
                logger.warning("%s: this checkpoint is passed over: %s", self._path(step), fault)
        return self._faults[step]

    def _first_whole(self, steps: Sequence[int]) -> int | None:
        return next((step for step in steps if self._fault(step) is None), None)

    def _latest(self) -> int | None:
        self._settle()
        steps = self._steps()
        latest = self._first_whole(steps)
        if latest is None and any(self._fault(step) != UNCONFIRMED for step in steps):
            raise self._none_whole(steps[0])
        return latest

    def _newest(self) -> int:
        latest = self._latest()
        if latest is not None:
            return latest
        if steps := self._steps():
            raise self._none_whole(steps[0])
        raise UserError(
            f"{self.folder}: no checkpoint; the run ended before its first one, train again"
        )

    def _best(self) -> int | None:
        self._settle()
        checksums = {step: read_checksums(self._path(step)) for step in self._steps()}
        return self._first_whole(_best_first(checksums, self._keep_best))

    def _whole(self, step: int) -> int:
        self._settle()
        if fault := self._fault(step):
            raise UserError(f"{self._path(step)}: the checkpoint is damaged ({fault})")
        return step

    def _none_whole(self, newest: int) -> UserError:
        return UserError(
            f"{self._path(newest)}: the checkpoint is damaged ({self._fault(newest)}), and there "
            f"is no whole one; put back a copy of it, or delete {self.folder} and train again"
        )

    def _settle(self) -> None:
        if self._saving is not None:
            concurrent.futures.wait([self._saving])

    def _confirm(self) -> None:
        if self._saving is None:
            return
        failure = self._saving.exception()
        self._saving = None
        if failure is not None:
            raise failure

    def _confirm_and_look(self) -> int | None:
        self._confirm()
        return self._latest()

    # What follows is done in the background.

    def _save(
        self,
        step: int,
        content: tuple[Any, Any, dict[str, Any]],
        metrics: Mapping[str, float],
        last: int | None,
    ) -> None:
        path = self._path(step)
        try:
            self._make_way(last)
            self._files.write(path, *content)
            write_checksums(path, metrics)
        except Exception as error:
            for remains in (path, self.folder / f"{step}{TEMPORARY}"):
                with contextlib.suppress(OSError):
                    delete_checkpoint(remains)
            reason = reason_of(error)
            if reason is None:
                raise
            kept = "none was saved before it" if last is None else f"that of step {last} is whole"
            raise UserError(
                f"{path}: the checkpoint could not be saved ({reason}); {kept}; make room there, "
                "or allow it, and run the same command again"
            ) from error
        self._faults[step] = None
        try:
            self._delete_old()
        except OSError as error:
            logger.warning("%s: old checkpoints could not be deleted (%s)", self.folder, error)

    def _make_way(self, last: int | None) -> None:
        """Deletes what killed saves have left, and whatever lies after the last whole one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._delete_temporaries()
        for step in self._steps():
            if last is None or step > last:
                logger.warning("%s: deleted, as its steps are done again", self._path(step))
                delete_checkpoint(self._path(step))
                self._faults.pop(step, None)

    def _delete_temporaries(self) -> None:
        if self.folder.exists():
            for path in self.folder.iterdir():
                if TEMPORARY in path.name and path.is_dir():
                    path.rmtree()

    def _delete_old(self) -> None:
        """Deletes all but the newest and the best of those that are not known to be damaged."""
        steps = self._steps()
        checksums = {
            step: read_checksums(self._path(step))
            for step in steps
            if self._faults.get(step) is None
        }
        newest = [step for step in steps if checksums.get(step) is not None][: self._keep]
        best = _best_first(checksums, self._keep_best)[:1]
        for step in set(steps) - {*newest, *best}:
            delete_checkpoint(self._path(step))


def _agreed(decide: Callable[[], int | None]) -> int | None:
    """What the first process decides, in all of them; raises the same `UserError`, too."""
    decision: dict[str, Any] = {}
    if is_rank_zero():
        try:
            decision["step"] = decide()
        except UserError as error:
            if jax.process_count() == 1:
                raise
            decision["error"] = str(error)
    decision = broadcast(decision)
    if "error" in decision:
        raise UserError(decision["error"])
    return decision["step"]


def _best_first(checksums: Mapping[int, Checksums | None], metric: str | None) -> list[int]:
    """The steps whose metric is known, by its value and, where it is equal, the later first."""
    if metric is None:
        return []
    values = {
        step: found.metrics[metric]
        for step, found in checksums.items()
        if found is not None and metric in found.metrics
    }
    return sorted(values, key=lambda step: (values[step], -step))
