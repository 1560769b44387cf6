"""What a run tells while it trains: a progress bar, metrics.jsonl and TensorBoard."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
from tensorboardX import SummaryWriter
from tqdm import tqdm

from devnet_jax.runtime.io import write_json, write_text
from devnet_jax.runtime.workdir import Workdir

logger = logging.getLogger(__name__)


class TrainingLog:
    """Told of every call and every epoch; use it as a context manager."""

    def __init__(
        self, workdir: Workdir, *, epochs: int, steps_per_epoch: int, batch_size: int, silent: bool
    ) -> None:
        """Writes nothing yet.

        Args:
          workdir: where it writes.
          epochs: of the run.
          steps_per_epoch: of the run.
          batch_size: images a step.
          silent: neither writes nor shows anything: another process does.
        """
        self._workdir = workdir
        self._epochs = epochs
        self._batch_size = batch_size
        self._silent = silent
        self._records: list[dict[str, Any]] = []
        self._history: dict[str, list[float]] = {}  # of the steps of this epoch
        self._seconds: list[tuple[int, float]] = []  # steps and time of each call of this epoch
        self._compiled: set[int] = set()
        self._tensorboard: SummaryWriter | None = None
        self._steps = epochs * steps_per_epoch
        self._bar = tqdm(disable=True)  # until the run starts

    def __enter__(self) -> TrainingLog:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        if self._tensorboard is not None:
            self._tensorboard.close()

    def resume(self, step: int) -> None:
        """Starts at a step: what was logged beyond it, before a kill, will be logged anew."""
        if step:
            self._history = self._interrupted_at(step)
        if self._silent:
            return
        if step and self._workdir.metrics.exists():
            lines = self._workdir.metrics.read_text().splitlines()
            self._records = [r for r in map(json.loads, lines) if r["step"] <= step]
        # disable=None: shown on a terminal, silent in a log file.
        self._bar = tqdm(
            total=self._steps, initial=step, unit="step", disable=None, desc="training"
        )
        if self._workdir.is_local:  # tensorboardX cannot append to files in a bucket
            if not step:  # a run that was killed before its first checkpoint is drawn over
                self._workdir.tensorboard.rmtree(missing_ok=True)
            self._tensorboard = SummaryWriter(
                str(self._workdir.tensorboard), purge_step=step + 1 if step else None
            )

    def call(self, step: int, metrics: Mapping[str, np.ndarray], seconds: float) -> None:
        """After each call to the devices; metrics are [steps of the call]."""
        for name, values in metrics.items():
            self._history.setdefault(name, []).extend(values.tolist())
        count = len(metrics["loss"])
        if count in self._compiled:
            self._seconds.append((count, seconds))
        self._compiled.add(count)  # the first call of each length compiles
        self._bar.set_postfix(
            {"loss": f"{metrics['loss'][-1]:.3f}", **self._speed("images/s")}, refresh=False
        )
        self._bar.update(count)

    def means(self) -> dict[str, float]:
        """The means of the metrics over the steps of this epoch so far."""
        return {name: float(np.mean(values)) for name, values in self._history.items()}

    def epoch(self, epoch: int, step: int, learning_rate: float) -> None:
        """After each epoch."""
        record = {
            "epoch": epoch,
            "step": step,
            **self.means(),
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
        if self._bar.disable:
            logger.info(
                "epoch %d/%d: loss %.4f, %s images/s",
                epoch,
                self._epochs,
                record["loss"],
                record.get("images_per_second", "?"),
            )

    def interrupt(self, step: int) -> None:
        """Before training stops within an epoch: whoever resumes it there logs all of the epoch."""
        if not self._silent:
            write_json(self._workdir.interrupted_epoch, {"step": step, "history": self._history})

    def _interrupted_at(self, step: int) -> dict[str, list[float]]:
        """The epoch so far, if training was stopped at this step."""
        with contextlib.suppress(OSError, ValueError, KeyError):
            found = json.loads(self._workdir.interrupted_epoch.read_text())
            if found["step"] == step:
                return found["history"]
        return {}

    def _speed(self, name: str) -> dict[str, float]:
        """Images a second in this epoch, under that name; nothing before it can be told."""
        steps = sum(count for count, _ in self._seconds)
        seconds = sum(seconds for _, seconds in self._seconds)
        return {name: round(self._batch_size * steps / seconds, 2)} if seconds else {}
