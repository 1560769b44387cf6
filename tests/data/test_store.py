"""Tests of the image stores: equal images, automatic choice, and memory use."""

from __future__ import annotations

import os
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
from devnet_jax.data.preprocessing import Preprocessing
from devnet_jax.data.store import (
    DeviceStore,
    HostStore,
    StreamedStore,
    host_memory,
    make_store,
    padded_length,
)
from devnet_jax.distributed.sharding import replicated
from tests import fork_server

GIB = 2**30


class ArrayReader:
    """An `ImageReader` of an array; records the indices that were read."""

    def __init__(self, images: np.ndarray, is_cached: bool = True) -> None:
        self._images = images
        self.preprocessing = Preprocessing(*images.shape[1:3])
        self.is_cached = is_cached
        self.read_indices: list[int] = []

    def __len__(self) -> int:
        return len(self._images)

    def read(self, indices: np.ndarray, description: str | None = None) -> np.ndarray:
        self.read_indices += indices.tolist()
        return self._images[indices]


def virtual_reader(n_bytes: float) -> ArrayReader:
    """Returns a reader of about `n_bytes` of images that takes no memory."""
    one = np.zeros((1, 64, 64, 3), np.uint8)
    return ArrayReader(np.broadcast_to(one, (round(n_bytes / one.nbytes), 64, 64, 3)))


STORES = {"device": DeviceStore, "host": HostStore, "stream": StreamedStore}


def test_all_stores_gather_the_same_images() -> None:
    images = np.random.default_rng(0).integers(0, 256, (9, 4, 4, 3), dtype=np.uint8)
    indices = np.array([[0, 3, 4, 4]], np.int32)
    for location, store_class in STORES.items():
        store = make_store(ArrayReader(images), DatasetConfig(store=location), replicated())  # type: ignore[arg-type]
        assert type(store) is store_class
        assert len(store) == 9
        batches = store.call_input(indices)
        assert batches.shape[:2] == indices.shape
        batch = store.gather(store.resident, batches[0])
        np.testing.assert_array_equal(batch, images[indices[0]])


def test_images_are_read_once_or_on_demand() -> None:
    images = np.zeros((6, 4, 4, 3), np.uint8)
    for location, read_at_first, read_by_call in (
        ("device", [0, 1, 2, 3, 4, 5], []),
        ("host", [0, 1, 2, 3, 4, 5], []),
        ("stream", [], [5, 0]),
    ):
        reader = ArrayReader(images)
        store = make_store(reader, DatasetConfig(store=location), replicated())  # type: ignore[arg-type]
        assert reader.read_indices == read_at_first
        store.call_input(np.array([[5, 0]]))
        assert reader.read_indices == read_at_first + read_by_call


def test_pixels_of_a_call_are_limited() -> None:
    store = HostStore(ArrayReader(np.zeros((2, 1024, 1024, 3), np.uint8)))
    assert store.max_steps_per_call(batch_size=16) == 5  # 256 MiB hold 85 such images
    assert store.max_steps_per_call(batch_size=1000) == 1


@given(st.integers(1, 10**6))
def test_padding_is_small(n: int) -> None:
    assert n <= padded_length(n) <= max(4, 1.25 * n)


def test_padded_lengths_are_few() -> None:
    assert len({padded_length(n) for n in range(200, 400)}) <= 5  # most categories of MVTec AD
    assert len({padded_length(n) for n in range(1, 10_001)}) <= 50


@pytest.mark.parametrize(
    ("platform", "device_gib", "memory_gib", "images_gib", "location", "reason"),
    [
        # A CPU device uses the host's memory.
        ("cpu", None, 0.0, 1.9, "host", "are kept in host memory\n"),
        ("cpu", None, 0.0, 2.1, "stream", "from disk: more than a quarter of the host's 8.00 GiB"),
        ("cpu", None, 3.0, 2.1, "host", "are kept in host memory\n"),
        ("cpu", None, 0.5, 0.6, "stream", "more than the 0.5 GiB of config.dataset.memory_gib"),
        ("gpu", 4.0, 0.5, 0.9, "device", "are kept in device memory\n"),
        ("gpu", 4.0, 0.0, 1.1, "host", "host memory: more than a quarter of the device's 4.00 GiB"),
        ("gpu", 4.0, 0.0, 2.1, "stream", "from disk: more than a quarter of the host's 8.00 GiB"),
        ("gpu", None, 0.0, 0.2, "host", "host memory: the device does not report"),
    ],
)
def test_automatic_choice_of_the_store(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    platform: str,
    device_gib: float | None,
    memory_gib: float,
    images_gib: float,
    location: str,
    reason: str,
) -> None:
    caplog.set_level("INFO")
    stats = None if device_gib is None else {"bytes_limit": int(device_gib * GIB)}
    device = SimpleNamespace(platform=platform, memory_stats=lambda: stats)
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    monkeypatch.setattr(store_module, "host_memory", lambda: 8 * GIB)
    for name in ("DeviceStore", "HostStore", "StreamedStore"):
        monkeypatch.setattr(store_module, name, lambda *_, name=name: name)
    reader, config = virtual_reader(images_gib * GIB), DatasetConfig(memory_gib=memory_gib)
    chosen = make_store(reader, config, None)  # type: ignore[arg-type]
    assert chosen == STORES[location].__name__
    assert reason in caplog.text
    assert f"training images ({images_gib:.2f} GiB)" in caplog.text


def test_streaming_without_a_cache_is_logged_as_slow(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    reader = ArrayReader(np.zeros((1000, 4, 4, 3), np.uint8), is_cached=False)
    make_store(reader, DatasetConfig(memory_gib=1e-6), replicated())
    assert "1,000 training images (0.05 MiB) are decoded again for each batch" in caplog.text


def test_host_memory_respects_control_groups(tmp_path: Path) -> None:
    groups, mounts = tmp_path / "cgroup", tmp_path / "mounts"

    def limit(file: str, content: str) -> None:
        (mounts / file).parent.mkdir(parents=True, exist_ok=True)
        (mounts / file).write_text(content)

    physical = host_memory(tmp_path / "absent", mounts)
    assert physical >= GIB // 4
    groups.write_text("0::/user/job\n")
    limit("user/job/memory.max", "max\n")
    assert host_memory(groups, mounts) == physical
    limit("user/memory.max", "3000000\n")  # of the parent group
    assert host_memory(groups, mounts) == 3_000_000
    # cgroups version 1, in a container that sees its own group as the root.
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
    n_anomaly=1, store=sys.argv[2], image_size=64,
)
reader = FewShotDataset.draw(settings, 0).train_images()
reader.read(np.arange(4))
tracemalloc.start()
store = make_store(reader, settings, None)
for first in range(0, len(store) - 8, 8):
    store.call_input(np.arange(first, first + 8).reshape(1, 8))
print(len(store), tracemalloc.get_traced_memory()[1])
"""


def test_memory_of_streaming_does_not_grow_with_the_images(tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    for kind in ("train/good", "test/good", "test/dent"):
        (folder / kind).mkdir(parents=True)
        for i in range(2):
            Image.new("L", (8, 8), i).save(folder / kind / f"{i}.png")
    peaks = {}
    for n_images, location in ((40, "stream"), (400, "stream"), (400, "host")):
        for i in range(n_images):
            Image.new("L", (8, 8), i % 256).save(folder / "train/good" / f"{i:04}.png")
        child = fork_server.run(["-c", STREAM, folder, location], os.environ)
        assert child.returncode == 0, child.stderr
        length, peaks[n_images, location] = map(int, child.stdout.split())
        assert length >= n_images
    image_nbytes = 64 * 64 * 3
    assert peaks[400, "host"] > 400 * image_nbytes
    # 360 more images take less memory than 30 images.
    assert peaks[400, "stream"] < peaks[40, "stream"] + 30 * image_nbytes
