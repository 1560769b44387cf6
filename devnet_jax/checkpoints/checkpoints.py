"""The checkpoints of a run: saves in the background, keeps the newest and the best, restores."""

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
    INCOMPLETE,
    Checksums,
    find_fault,
    read_checksums,
    write_checksums,
)
from devnet_jax.checkpoints.orbax_io import (
    TEMPORARY_MARKER,
    CheckpointFiles,
    copy_to_host,
    delete_checkpoint,
    system_error_message,
)
from devnet_jax.config import Config
from devnet_jax.data.paths import require_utf8
from devnet_jax.distributed.cluster import broadcast, is_rank_zero
from devnet_jax.errors import UserError
from devnet_jax.runtime.accounts import do_without_accounts

logger = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of a run, numbered by training step and saved in a background thread.

    A checkpoint is complete once the checksums of its files are written, and intact as long as its
    files match them. Reading uses the newest intact checkpoint, logs a warning for each one that it
    skips, and deletes nothing.

    Use it as a context manager: on exit it waits for a save in progress. In a run of several
    processes, all of them call the same methods. Only rank zero saves, and all use the checkpoint
    that rank zero chooses.
    """

    def __init__(
        self,
        folder: epath.Path,
        *,
        keep: int = 2,
        keep_best: str | None = None,
        for_training: bool = False,
    ) -> None:
        """Opens the folder, which need not exist yet.

        Args:
          folder: folder of all checkpoints; each is a subfolder, named by its step.
          keep: number of newest checkpoints to keep, at least one.
          keep_best: name of a metric; the checkpoint with its lowest value is kept, too.
          for_training: if True, deletes at once the temporary folders of interrupted saves.

        Raises:
          UserError: if the path of the folder is not valid UTF-8.
        """
        if keep < 1:
            raise ValueError(f"keep must be 1 or more: {keep}")
        require_utf8(folder, "--workdir")
        self.folder = folder
        self._keep = keep
        self._keep_best = keep_best
        self._faults: dict[int, str | None] = {}  # by step, for the checkpoints verified so far
        do_without_accounts()  # before the first checksum
        self._files = CheckpointFiles()
        self._background = concurrent.futures.ThreadPoolExecutor(1, "save_checkpoint")
        self._saving: concurrent.futures.Future[None] | None = None
        self._save_was_called = False
        if for_training and is_rank_zero():
            self._delete_temporary_folders()

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
                if self._save_was_called:
                    self.wait()
            elif self._saving is not None and (failure := self._saving.exception()):
                logger.error("%s", failure)  # logged only: `error` is the one to raise
        finally:
            self._background.shutdown()
            self._files.close()

    def latest_step(self) -> int | None:
        """Returns the step of the newest intact checkpoint, `None` if none is complete.

        Raises:
          UserError: if there are complete checkpoints and all of them are damaged.
        """
        return _decide_on_rank_zero(self._find_latest)

    def best_step(self) -> int | None:
        """Returns the step of the intact checkpoint with the lowest `keep_best`, `None` if no
        checkpoint has this metric."""
        return _decide_on_rank_zero(self._find_best)

    def wait(self) -> None:
        """Waits until the save in progress, if any, is complete.

        Raises:
          UserError: if the save failed.
        """
        _decide_on_rank_zero(self._finish_save)

    def save(
        self,
        step: int,
        variables: Any,
        optimizer: Any,
        settings: dict[str, Any],
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Starts to save a checkpoint, unless one of this step or a later one exists.

        Waits for the previous save first. Deletes incomplete and damaged checkpoints that are newer
        than the newest intact one.

        Args:
          step: number of training steps done.
          variables: tree of arrays, each fully replicated on a device of this process.
          optimizer: tree of arrays, replicated likewise.
          settings: settings of the run.
          metrics: finite values by name, such as the one of `keep_best`.

        Raises:
          UserError: if the previous save failed.
        """
        metrics = {name: float(value) for name, value in (metrics or {}).items()}
        if not all(map(math.isfinite, metrics.values())):
            raise ValueError(f"metrics must be finite: {metrics}")
        self._save_was_called = True
        latest = _decide_on_rank_zero(self._finish_save_and_find_latest)
        if (latest is not None and step <= latest) or not is_rank_zero():
            return
        content = (*copy_to_host((variables, optimizer)), settings)
        self._saving = self._background.submit(self._save, step, content, metrics, latest)

    def restore(self, config: Config, step: int | None = None, **abstract: Any) -> dict[str, Any]:
        """Restores trees of one checkpoint.

        Args:
          config: settings of the run; the checkpoint must have been saved with the same, except for
            those that may change when a run is resumed.
          step: step of the checkpoint, such as the best one; by default the newest intact one.
          **abstract: for `variables`, `optimizer` or both, a tree of `jax.ShapeDtypeStruct`
            (with shardings for arrays that shall not be on the default device).

        Returns:
          The named trees, as arrays of this process.

        Raises:
          UserError: if no checkpoint is intact, or its settings or shapes differ.
        """
        chosen = _decide_on_rank_zero(
            self._require_latest if step is None else lambda: self._require_intact(step)
        )
        assert chosen is not None  # neither function returns None
        path = self._path(chosen)
        trees = self._files.read(path, config, abstract)
        logger.info("restored checkpoint %s", path)
        return trees

    def date(self, step: int) -> str | None:
        """Returns the day on which a checkpoint was saved; `None` if it was not recorded."""
        checksums = read_checksums(self._path(step))
        return None if checksums is None else checksums.date

    def _path(self, step: int) -> epath.Path:
        return self.folder / str(step)

    # The following methods run on rank zero only.

    def _list_steps(self) -> list[int]:
        """Returns the steps of all checkpoints in the folder, damaged or not, newest first."""
        if not self.folder.exists():
            return []
        names = (path.name for path in self.folder.iterdir() if path.is_dir())
        return sorted((int(name) for name in names if re.fullmatch("[0-9]+", name)), reverse=True)

    def _fault(self, step: int) -> str | None:
        """Returns what is wrong with a checkpoint, `None` if it is intact.

        Verifies the files and logs the warning on the first call only.
        """
        if step not in self._faults:
            fault = self._faults[step] = find_fault(self._path(step))
            if fault is not None:
                logger.warning("%s: checkpoint skipped: %s", self._path(step), fault)
        return self._faults[step]

    def _first_intact(self, steps: Sequence[int]) -> int | None:
        return next((step for step in steps if self._fault(step) is None), None)

    def _find_latest(self) -> int | None:
        self._wait_for_save()
        steps = self._list_steps()
        latest = self._first_intact(steps)
        if latest is None and any(self._fault(step) != INCOMPLETE for step in steps):
            raise self._none_intact(steps[0])
        return latest

    def _require_latest(self) -> int:
        latest = self._find_latest()
        if latest is not None:
            return latest
        if steps := self._list_steps():
            raise self._none_intact(steps[0])
        raise UserError(
            f"{self.folder}: no checkpoint: the run ended before its first one; train again"
        )

    def _find_best(self) -> int | None:
        self._wait_for_save()
        checksums = {step: read_checksums(self._path(step)) for step in self._list_steps()}
        return self._first_intact(_sort_by_metric(checksums, self._keep_best))

    def _require_intact(self, step: int) -> int:
        self._wait_for_save()
        if fault := self._fault(step):
            raise UserError(f"{self._path(step)}: the checkpoint is damaged ({fault})")
        return step

    def _none_intact(self, newest: int) -> UserError:
        return UserError(
            f"{self._path(newest)}: the checkpoint is damaged ({self._fault(newest)}) and no other "
            f"one is intact; restore it from a copy, or delete {self.folder} and train again"
        )

    def _wait_for_save(self) -> None:
        if self._saving is not None:
            concurrent.futures.wait([self._saving])

    def _finish_save(self) -> None:
        """Waits for the save in progress and raises its error."""
        if self._saving is None:
            return
        failure = self._saving.exception()
        self._saving = None
        if failure is not None:
            raise failure

    def _finish_save_and_find_latest(self) -> int | None:
        self._finish_save()
        return self._find_latest()

    # The following methods run in the background thread (`_delete_temporary_folders` in both).

    def _save(
        self,
        step: int,
        content: tuple[Any, Any, dict[str, Any]],
        metrics: Mapping[str, float],
        latest: int | None,
    ) -> None:
        path = self._path(step)
        try:
            self._delete_unusable(latest)
            self._files.write(path, *content)
            write_checksums(path, metrics)
        except Exception as error:
            for leftover in (path, self.folder / f"{step}{TEMPORARY_MARKER}"):
                with contextlib.suppress(OSError):
                    delete_checkpoint(leftover)
            reason = system_error_message(error)
            if reason is None:
                raise
            kept = "none was saved before" if latest is None else f"that of step {latest} is intact"
            raise UserError(
                f"{path}: the checkpoint could not be saved ({reason}); {kept}; free disk space or "
                "fix the permissions, then run the same command again"
            ) from error
        self._faults[step] = None
        try:
            self._delete_old()
        except OSError as error:
            logger.warning("%s: cannot delete old checkpoints (%s)", self.folder, error)

    def _delete_unusable(self, latest: int | None) -> None:
        """Deletes temporary folders, and all checkpoints after the newest intact one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._delete_temporary_folders()
        for step in self._list_steps():
            if latest is None or step > latest:
                logger.warning(
                    "%s: checkpoint deleted: its steps are trained again", self._path(step)
                )
                delete_checkpoint(self._path(step))
                self._faults.pop(step, None)

    def _delete_temporary_folders(self) -> None:
        if self.folder.exists():
            for path in self.folder.iterdir():
                if TEMPORARY_MARKER in path.name and path.is_dir():
                    path.rmtree()

    def _delete_old(self) -> None:
        """Deletes all checkpoints but the newest and the best of those not known to be damaged."""
        steps = self._list_steps()
        checksums = {
            step: read_checksums(self._path(step))
            for step in steps
            if self._faults.get(step) is None
        }
        newest = [step for step in steps if checksums.get(step) is not None][: self._keep]
        best = _sort_by_metric(checksums, self._keep_best)[:1]
        for step in set(steps) - {*newest, *best}:
            delete_checkpoint(self._path(step))


def _decide_on_rank_zero(decide: Callable[[], int | None]) -> int | None:
    """Calls `decide` on rank zero; in all processes, returns its step or raises its `UserError`."""
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


def _sort_by_metric(checksums: Mapping[int, Checksums | None], metric: str | None) -> list[int]:
    """Returns the steps that have the metric, lowest value first; of equal values the later step
    first."""
    if metric is None:
        return []
    values = {
        step: found.metrics[metric]
        for step, found in checksums.items()
        if found is not None and metric in found.metrics
    }
    return sorted(values, key=lambda step: (values[step], -step))
