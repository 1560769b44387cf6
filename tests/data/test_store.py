"""Three stores: the same images whichever it is, where they fit, and memory that does not grow."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from devnet_jax.config import DatasetConfig
from devnet_jax.data import store as store_module
from devnet_jax.data.store import (
    DeviceStore,
    HostStore,
    StreamedStore,
    host_memory,
    make_store,
    padded,
)
from devnet_jax.distributed.sharding import replicated
from tests.conftest import REPOSITORY

GIB = 2**30


class ArrayReader:
    """Images of an array, or zeros of a length and size; remembers what was read."""

    def __init__(self, images: np.ndarray, are_kept: bool = True) -> None:
        self._images = images
        self.image_size = images.shape[1]
        self.are_kept = are_kept
        self.read_indices: list[int] = []

    def __len__(self) -> int:
        return len(self._images)

    def read(self, indices: np.ndarray, description: str | None = None) -> np.ndarray:
        self.read_indices += indices.tolist()
        return self._images[indices]


def claim(n_bytes: float) -> ArrayReader:
    """Images that would take about so much memory, and take none."""
    one = np.zeros((1, 64, 64, 3), np.uint8)
    return ArrayReader(np.broadcast_to(one, (round(n_bytes / one.nbytes), 64, 64, 3)))


KINDS = {"device": DeviceStore, "host": HostStore, "stream": StreamedStore}


def test_all_stores_give_the_step_the_same_images() -> None:
    images = np.random.default_rng(0).integers(0, 256, (9, 4, 4, 3), dtype=np.uint8)
    indices = np.array([[[0, 3], [4, 4]]], np.int32)
    for place, kind in KINDS.items():
        store = make_store(ArrayReader(images), DatasetConfig(store=place), replicated())  # type: ignore[arg-type]
        assert type(store) is kind
        assert len(store) == 9
        call = store.per_call(indices)
        assert call.shape[:3] == indices.shape
        for device in range(2):
            batch = store.gather(store.resident, call[0, device])
            np.testing.assert_array_equal(batch, images[indices[0, device]])


def test_images_are_read_once_or_as_they_are_needed() -> None:
    images = np.zeros((6, 4, 4, 3), np.uint8)
    for place, at_first, then in (
        ("device", [0, 1, 2, 3, 4, 5], []),
        ("host", [0, 1, 2, 3, 4, 5], []),
        ("stream", [], [5, 0]),
    ):
        reader = ArrayReader(images)
        store = make_store(reader, DatasetConfig(store=place), replicated())  # type: ignore[arg-type]
        assert reader.read_indices == at_first
        store.per_call(np.array([[[5, 0]]]))
        assert reader.read_indices == at_first + then


def test_handed_over_pixels_are_bounded() -> None:
    store = HostStore(ArrayReader(np.zeros((2, 1024, 1024, 3), np.uint8)))
    assert store.max_steps(batch_size=16) == 5  # 256 MiB are 85 such images
    assert store.max_steps(batch_size=1000) == 1


@given(st.integers(1, 10**6))
def test_device_stores_waste_little(n: int) -> None:
    assert n <= padded(n) <= max(4, 1.25 * n)


def test_device_stores_have_few_sizes() -> None:
    assert len({padded(n) for n in range(200, 400)}) <= 5  # most of MVTec AD's categories
    assert len({padded(n) for n in range(1, 10_001)}) <= 50


@pytest.mark.parametrize(
    ("platform", "device_gib", "memory_gib", "images_gib", "place", "reason"),
    [
        # A CPU's device is the host.
        ("cpu", None, 0.0, 1.9, "host", "are kept in host memory\n"),
        ("cpu", None, 0.0, 2.1, "stream", "from disk: more than a quarter of the host's 8.00 GiB"),
        ("cpu", None, 3.0, 2.1, "host", "are kept in host memory\n"),
        ("cpu", None, 0.5, 0.6, "stream", "more than the 0.5 GiB of config.dataset.memory_gib"),
        ("gpu", 4.0, 0.5, 0.9, "device", "are kept in device memory\n"),
        ("gpu", 4.0, 0.0, 1.1, "host", "host memory: more than a quarter of the device's 4.00 GiB"),
        ("gpu", 4.0, 0.0, 2.1, "stream", "from disk: more than a quarter of the host's 8.00 GiB"),
        ("gpu", None, 0.0, 0.2, "host", "host memory: the device does not say"),
    ],
)
def test_images_are_kept_where_they_fit(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    platform: str,
    device_gib: float | None,
    memory_gib: float,
    images_gib: float,
    place: str,
    reason: str,
) -> None:
    caplog.set_level("INFO")
    stats = None if device_gib is None else {"bytes_limit": int(device_gib * GIB)}
    device = SimpleNamespace(platform=platform, memory_stats=lambda: stats)
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    monkeypatch.setattr(store_module, "host_memory", lambda: 8 * GIB)
    for name in ("DeviceStore", "HostStore", "StreamedStore"):
        monkeypatch.setattr(store_module, name, lambda *_, name=name: name)
    made = make_store(claim(images_gib * GIB), DatasetConfig(memory_gib=memory_gib), None)  # type: ignore[arg-type]
    assert made == KINDS[place].__name__
    assert reason in caplog.text
    assert f"training images ({images_gib:.2f} GiB)" in caplog.text


def test_streaming_without_a_cache_is_said_to_be_slow(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    reader = ArrayReader(np.zeros((1000, 4, 4, 3), np.uint8), are_kept=False)
    make_store(reader, DatasetConfig(memory_gib=1e-6), replicated())
    assert "1,000 training images (0.05 MiB) are decoded anew for each batch" in caplog.text


def test_the_memory_of_a_control_group_counts(tmp_path: Path) -> None:
    groups, mounts = tmp_path / "cgroup", tmp_path / "mounts"

    def limit(file: str, content: str) -> None:
        (mounts / file).parent.mkdir(parents=True, exist_ok=True)
        (mounts / file).write_text(content)

    physical = host_memory(tmp_path / "absent", mounts)
    assert physical >= GIB // 4
    groups.write_text("0::/user/job\n")
    limit("user/job/memory.max", "max\n")
    assert host_memory(groups, mounts) == physical
    limit("user/memory.max", "3000000\n")  # the group around it
    assert host_memory(groups, mounts) == 3_000_000
    # Version 1, in a container that sees its own group as the root.
    groups.write_text("3:cpu,cpuacct:/x\n5:memory:/docker/abc\n")
    assert host_memory(groups, mounts) == physical
    limit("memory/memory.limit_in_bytes", "2000000\n")
    assert host_memory(groups, mounts) == 2_000_000


STREAM = """
import sys, tracemalloc
from pathlib import Path
import numpy as np
from devnet_jax.config import DatasetConfig
from devnet_jax.data.few_shot import FewShotDataset
from devnet_jax.data.store import make_store

folder = Path(sys.argv[1])
settings = DatasetConfig(
    name="image_folder", manual_dir=str(folder), data_dir=str(folder.parent / "prepared"),
    n_anomaly=1, store=sys.argv[2],
)
reader = FewShotDataset.draw(settings, 0).train_images(64)
reader.read(np.arange(4))
tracemalloc.start()
store = make_store(reader, settings, None)
for first in range(0, len(store) - 8, 8):
    store.per_call(np.arange(first, first + 8).reshape(1, 1, 8))
print(len(store), tracemalloc.get_traced_memory()[1])
"""


def test_streaming_takes_no_more_memory_for_more_images(tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    for kind in ("train/good", "test/good", "test/dent"):
        (folder / kind).mkdir(parents=True)
        for i in range(2):
            Image.new("L", (8, 8), i).save(folder / kind / f"{i}.png")
    peaks = {}
    for n_images, place in ((40, "stream"), (400, "stream"), (400, "host")):
        for i in range(n_images):
            Image.new("L", (8, 8), i % 256).save(folder / "train/good" / f"{i:04}.png")
        child = subprocess.run(
            [sys.executable, "-c", STREAM, str(folder), place],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
        )
        assert child.returncode == 0, child.stderr
        length, peaks[n_images, place] = map(int, child.stdout.split())
        assert length >= n_images
    image = 64 * 64 * 3
    assert peaks[400, "host"] > 400 * image
    assert peaks[400, "stream"] < peaks[40, "stream"] + 30 * image  # of 360 more
