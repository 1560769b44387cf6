"""Tests of TensorBoard's events on a full disk."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from tensorboardX.record_writer import RecordWriter

from devnet_jax.runtime.events import EventWriter


def test_a_full_disk_neither_stops_the_thread_nor_goes_unnoticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    writer = EventWriter(tmp_path)
    writer.add_scalar("train/loss", 1.0, 1)
    writer.flush()

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(RecordWriter, "write", fail)
    monkeypatch.setattr(RecordWriter, "flush", fail)
    for step in range(40):  # more than tensorboardX's queue holds
        writer.add_scalar("train/loss", 1.0, step)
    with pytest.raises(OSError, match=f"No space left on device: '{tmp_path}'"):
        writer.flush()
    with pytest.raises(OSError, match="No space left"):
        writer.close()
    assert "Traceback" not in capfd.readouterr().err


def test_events_are_written(tmp_path: Path) -> None:
    with EventWriter(tmp_path, filename_suffix=".step5") as writer:
        writer.add_scalar("eval/image_auroc", 1.0, 5)
    (file,) = tmp_path.iterdir()
    assert file.name.endswith(".step5")
    assert b"eval/image_auroc" in file.read_bytes()
