"""What a run tells while it trains: a progress bar, metrics.jsonl and TensorBoard."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
from tensorboardX import SummaryWriter
from tqdm import tqdm

from devnet_jax.workdir import Workdir, write_text

logger = logging.getLogger(__name__)


class TrainingLog:
    """Told of every call and every epoch; use it as a context manager."""

    def __init__(
        self, workdir: Workdir, *, epochs: int, steps_per_epoch: int, batch_size: int
    ) -> None:
        self._workdir = workdir
        self._epochs = epochs
        self._batch_size = batch_size
        self._records: list[dict[str, Any]] = []
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
        count = len(metrics["loss"])
        if count in self._compiled:
            self._seconds.append((count, seconds))
        self._compiled.add(count)  # the first call of each length compiles
        self._bar.set_postfix(
            {"loss": f"{metrics['loss'][-1]:.3f}", **self._speed("images/s")}, refresh=False
        )
        self._bar.update(count)

    def epoch(
        self, epoch: int, step: int, metrics: Mapping[str, np.ndarray], learning_rate: float
    ) -> None:
        """After each epoch; metrics are [steps of the epoch]."""
        record = {
            "epoch": epoch,
            "step": step,
            **{name: float(np.mean(values)) for name, values in metrics.items()},
            "learning_rate": learning_rate,
            **self._speed("images_per_second"),
        }
        self._seconds.clear()
        self._records.append(record)
        write_text(
            self._workdir.metrics, "".join(json.dumps(record) + "\n" for record in self._records)
        )
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

    def _speed(self, name: str) -> dict[str, float]:
        """Images a second in this epoch, under that name; nothing before it can be told."""
        steps = sum(count for count, _ in self._seconds)
        seconds = sum(seconds for _, seconds in self._seconds)
        return {name: round(self._batch_size * steps / seconds, 2)} if seconds else {}
