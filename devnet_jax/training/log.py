"""The training log: progress, metrics.jsonl and TensorBoard."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

from devnet_jax.config import Config
from devnet_jax.runtime.events import EventWriter
from devnet_jax.runtime.io import write_json, write_text
from devnet_jax.runtime.progress import COMPILING, Phase
from devnet_jax.runtime.workdir import Workdir

logger = logging.getLogger(__name__)


class TrainingLog:
    """Logs calls and epochs of a run; a context manager."""

    def __init__(self, config: Config, workdir: Workdir, *, silent: bool) -> None:
        """Opens the log; nothing is written before `resume`.

        Args:
          config: settings of the run.
          workdir: destination of metrics.jsonl and TensorBoard's events.
          silent: True to neither write nor show anything, because another process does.
        """
        self._workdir = workdir
        self._epochs = config.train.epochs
        self._batch_size = config.train.batch_size
        self._silent = silent
        self._records: list[dict[str, Any]] = []
        self._history: dict[str, list[float]] = {}  # metrics of each step of this epoch
        self._seconds: list[tuple[int, float]] = []  # steps and duration of this epoch's calls
        self._compiled: set[int] = set()
        self._tensorboard: EventWriter | None = None
        self._steps = config.last_step
        self._phase: Phase | None = None  # begins when the run starts

    def __enter__(self) -> TrainingLog:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if self._phase is not None:
            self._phase.close(finished=error is None)
        if self._tensorboard is not None:
            # After another error, such as one of a full disk, that one is reported.
            with contextlib.nullcontext() if error is None else contextlib.suppress(OSError):
                self._tensorboard.close()

    def resume(self, step: int) -> None:
        """Starts at a step; drops later records, which a killed run has left behind."""
        if step:
            self._history = self._read_interrupted_epoch(step)
        if self._silent:
            return
        if step and self._workdir.metrics.exists():
            lines = self._workdir.metrics.read_text().splitlines()
            self._records = [r for r in map(json.loads, lines) if r["step"] <= step]
        self._phase = Phase("training", self._steps, "step", done=step, first=COMPILING)
        if self._workdir.is_local:  # tensorboardX cannot append to files in a bucket
            if not step:  # events of a run that was killed before its first checkpoint
                self._workdir.tensorboard.rmtree(missing_ok=True)
            self._tensorboard = EventWriter(
                self._workdir.tensorboard, purge_step=step + 1 if step else None
            )

    def log_call(self, step: int, metrics: Mapping[str, np.ndarray], seconds: float) -> None:
        """Logs a call to the devices, with metrics [steps]."""
        for name, values in metrics.items():
            self._history.setdefault(name, []).extend(values.tolist())
        count = len(metrics["loss"])
        if count in self._compiled:
            self._seconds.append((count, seconds))
        self._compiled.add(count)  # the first call of each length includes compilation
        if self._phase is not None:
            speed = "".join(f", {value:.1f} images/s" for value in self._speed("").values())
            self._phase.update(count, f"loss {metrics['loss'][-1]:.3f}{speed}")

    def epoch_means(self) -> dict[str, float]:
        """Returns the means of the metrics over this epoch so far."""
        return {name: float(np.mean(values)) for name, values in self._history.items()}

    def log_epoch(self, epoch: int, step: int, learning_rate: float) -> None:
        """Logs the end of an epoch."""
        record = {
            "epoch": epoch,
            "step": step,
            **self.epoch_means(),
            "learning_rate": learning_rate,
            **self._speed("images_per_second"),
        }
        self._seconds.clear()
        self._history.clear()
        if self._silent:
            return
        self._records.append(record)
        write_text(
            self._workdir.metrics, "".join(json.dumps(record) + "\n" for record in self._records)
        )
        self._workdir.interrupted_epoch.unlink(missing_ok=True)
        if self._tensorboard is not None:
            for name, value in record.items():
                if name not in ("epoch", "step"):
                    self._tensorboard.add_scalar(f"train/{name}", value, step)
            self._tensorboard.flush()
        if self._phase is not None and not self._phase.is_bar:
            logger.info(
                "epoch %d/%d: loss %.4f, %s images/s%s",
                epoch,
                self._epochs,
                record["loss"],
                record.get("images_per_second", "?"),
                self._phase.time_left if epoch < self._epochs else "",
            )

    def save_interrupted_epoch(self, step: int) -> None:
        """Saves the metrics of an unfinished epoch, so that a resumed run logs the whole epoch."""
        if not self._silent:
            write_json(self._workdir.interrupted_epoch, {"step": step, "history": self._history})

    def _read_interrupted_epoch(self, step: int) -> dict[str, list[float]]:
        """Returns the metrics of the unfinished epoch if training was stopped at this step."""
        with contextlib.suppress(OSError, ValueError, KeyError):
            saved = json.loads(self._workdir.interrupted_epoch.read_text())
            if saved["step"] == step:
                return saved["history"]
        return {}

    def _speed(self, name: str) -> dict[str, float]:
        """Returns {name: images per second in this epoch}; empty before the second call."""
        steps = sum(count for count, _ in self._seconds)
        seconds = sum(seconds for _, seconds in self._seconds)
        return {name: round(self._batch_size * steps / seconds, 2)} if seconds else {}
