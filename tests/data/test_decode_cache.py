"""Tests of the decode cache: reuse, damage, outdated files, and several processes."""

from __future__ import annotations

import errno
import io
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from devnet_jax.config import DatasetConfig
from devnet_jax.data import decode_cache
from devnet_jax.data.decode import load_image, load_images, loading
from devnet_jax.data.decode_cache import open_cache, slot_bytes
from devnet_jax.data.few_shot import FewShotDataset
from devnet_jax.data.preprocessing import Preprocessing
from devnet_jax.errors import UserError
from tests.conftest import REPOSITORY, make_parts

SIZE = 8
SQUARE, LARGER = Preprocessing(SIZE, SIZE), Preprocessing(2 * SIZE, 2 * SIZE)
SLOT = slot_bytes(SQUARE.n_bytes)
N_IMAGES = 5


class NoiseImages:
    """Five encoded noise images; records the indices of the images that were read."""

    def __init__(self) -> None:
        rng = np.random.default_rng(1)
        self.pixels = rng.integers(0, 256, (N_IMAGES, SIZE, SIZE, 3), dtype=np.uint8)
        self.read_indices: list[int] = []

    def image_bytes(self, i: int) -> bytes:
        self.read_indices.append(i)
        buffer = io.BytesIO()
        Image.fromarray(self.pixels[i]).save(buffer, "PNG")
        return buffer.getvalue()

    def image_name(self, i: int) -> str:
        return f"image {i}"


def load(folder: Path, indices=range(N_IMAGES), fingerprint: str = "a") -> list[int]:
    """Loads images with the folder's cache and checks their pixels; returns the decoded indices."""
    source = NoiseImages()
    cache = open_cache(folder, fingerprint, N_IMAGES, SQUARE)
    images = load_images(source, indices, SQUARE, cache=cache)
    np.testing.assert_array_equal(images, source.pixels[list(indices)])
    return sorted(source.read_indices)


def cached_file(folder: Path) -> Path:
    (file,) = (folder / "decoded").iterdir()
    return file


def test_decoded_images_are_read_from_the_cache(tmp_path: Path) -> None:
    assert load(tmp_path, [3, 0]) == [0, 3]
    assert load(tmp_path) == [1, 2, 4]
    assert load(tmp_path, [4, 4, 0]) == []


def damage(file: Path, kind: str) -> None:
    """Damages image 2 in a cache file, and for some kinds all that follows."""
    slot = SLOT
    content = bytearray(file.read_bytes())
    if kind == "torn":
        content[2 * slot + slot // 2 : 3 * slot] = bytes(slot - slot // 2)
    elif kind == "zeroed":
        content[2 * slot : 3 * slot] = bytes(slot)
    elif kind == "one bit":
        content[2 * slot + 7] ^= 1
    elif kind == "shifted":
        content[2 * slot : 3 * slot] = content[2 * slot + 1 : 3 * slot] + b"\0"
    elif kind == "truncated":
        del content[2 * slot + 5 :]
    elif kind == "emptied":
        content.clear()
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("kind", "lost"),
    [
        ("torn", [2]),
        ("zeroed", [2]),
        ("one bit", [2]),
        ("shifted", [2]),
        ("truncated", [2, 3, 4]),
        ("emptied", [0, 1, 2, 3, 4]),
    ],
)
def test_damaged_images_are_decoded_again_and_rewritten(
    tmp_path: Path, kind: str, lost: list[int]
) -> None:
    load(tmp_path)
    damage(cached_file(tmp_path), kind)
    assert load(tmp_path) == lost
    assert load(tmp_path) == []


def test_a_black_image_is_told_from_an_empty_slot(tmp_path: Path) -> None:
    cache = open_cache(tmp_path, "a", 2, SQUARE)
    assert cache is not None
    black, read = np.zeros((SIZE, SIZE, 3), np.uint8), np.empty((SIZE, SIZE, 3), np.uint8)
    cache.write(1, black)
    assert not cache.read(0, read)
    assert cache.read(1, read)
    np.testing.assert_array_equal(read, black)


def test_caches_of_other_data_and_other_decoders_are_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(tmp_path)
    assert load(tmp_path, fingerprint="b") == list(range(N_IMAGES))
    monkeypatch.setattr(decode_cache.PIL, "__version__", "99.0")
    assert load(tmp_path, fingerprint="b") == list(range(N_IMAGES))
    cached_file(tmp_path)  # earlier files of this size are deleted
    cache = open_cache(tmp_path, "b", N_IMAGES, LARGER)
    assert load_images(NoiseImages(), [0], LARGER, cache=cache).shape == (1, 16, 16, 3)
    assert load(tmp_path, fingerprint="b") == []  # a file of another size is not


class Usage(NamedTuple):
    free: int


def test_at_most_half_of_the_free_space_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    needed = N_IMAGES * SLOT
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(2 * needed - 2))
    assert open_cache(tmp_path, "a", N_IMAGES, SQUARE) is None
    assert "are not cached" in caplog.text
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(2 * needed))
    load(tmp_path)
    # A complete file needs no more space, so it is used even if the disk is full.
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0))
    assert load(tmp_path) == []


def test_a_full_disk_stops_writing_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    load(tmp_path, [0])

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwritev", full)
    for _ in range(2):
        assert load(tmp_path) == [1, 2, 3, 4]
    assert caplog.text.count("No space left on device") == 2  # once per run


def test_a_read_only_folder_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    load(tmp_path, [0, 1])
    (tmp_path / "new" / "decoded").mkdir(parents=True)
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    for _ in range(2):
        assert load(tmp_path) == [2, 3, 4]
    assert caplog.text.count("read-only") == 2
    assert open_cache(tmp_path / "new", "a", N_IMAGES, SQUARE) is None


def test_a_folder_that_is_unusable_or_missing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    (tmp_path / "decoded").write_text("")
    assert load(tmp_path) == list(range(N_IMAGES))
    # A missing folder is not created: another process may be replacing the prepared data.
    assert load(tmp_path / "missing") == list(range(N_IMAGES))
    assert not (tmp_path / "missing").exists()
    assert caplog.text.count("are not cached") == 2


SECOND_PROCESS = """
import sys
from pathlib import Path
import numpy as np
from devnet_jax.data.decode import load_images
from devnet_jax.data.decode_cache import open_cache
from devnet_jax.data.preprocessing import Preprocessing

class NoImages:
    def image_bytes(self, i): raise AssertionError(f"image {i} is decoded")
    def image_name(self, i): return str(i)

cache = open_cache(Path(sys.argv[1]), "a", 5, Preprocessing(8, 8))
images = load_images(NoImages(), range(5), Preprocessing(8, 8), cache=cache)
sys.stdout.buffer.write(images.tobytes())
"""


def test_two_processes_use_the_cache_at_once(tmp_path: Path) -> None:
    source = NoiseImages()
    cache = open_cache(tmp_path, "a", N_IMAGES, SQUARE)
    load_images(source, range(N_IMAGES), SQUARE, cache=cache)
    second = subprocess.run(
        [sys.executable, "-c", SECOND_PROCESS, str(tmp_path)], cwd=REPOSITORY, capture_output=True
    )
    assert second.returncode == 0, second.stderr.decode()
    assert second.stdout == source.pixels.tobytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_parts(tmp_path / "parts")


@pytest.fixture
def decoded_paths(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths of the images that were decoded."""
    paths: list[str] = []

    def recording_load_image(data: bytes, name: str, preprocessing: Preprocessing) -> np.ndarray:
        paths.append(name.partition("/")[2])  # without the name of the data set
        return load_image(data, name, preprocessing)

    monkeypatch.setattr(loading, "load_image", recording_load_image)
    return paths


def draw(folder: Path, seed: int = 0, **settings: object) -> FewShotDataset:
    config = DatasetConfig(
        name="image_folder",
        manual_dir=str(folder),
        data_dir=str(folder.parent / "prepared"),
        n_anomaly=3,
        image_size=16,
        **settings,  # type: ignore[arg-type]
    )
    return FewShotDataset.draw(config, seed)


def test_a_run_uses_the_images_decoded_by_earlier_runs(
    folder: Path, decoded_paths: list[str]
) -> None:
    dataset = draw(folder)
    train = dataset.train_images()
    images = train.read(np.arange(len(train)))
    dataset.images(dataset.split.test)
    assert sorted(decoded_paths) == sorted(dataset.split.paths)
    decoded_paths.clear()
    again = draw(folder).train_images()
    np.testing.assert_array_equal(again.read(np.arange(len(again))), images)
    other = draw(folder, seed=1)
    assert other.split.train_anomaly != dataset.split.train_anomaly
    other.images(other.split.paths)
    assert decoded_paths == []
    uncached = draw(folder, cache=False).train_images()
    np.testing.assert_array_equal(uncached.read(np.arange(len(uncached))), images)
    assert len(decoded_paths) == len(images)


def test_a_changed_raw_file_is_decoded_again(folder: Path, decoded_paths: list[str]) -> None:
    before = draw(folder)
    first = before.split.train_normal[0]
    before.images(before.split.paths)
    Image.new("RGB", (48, 40), (1, 2, 3)).save(folder / first)
    (prepared,) = folder.parent.glob("prepared/image_folder/*/[0-9]*")
    assert (prepared / "decoded").exists()
    after = draw(folder)
    assert not (prepared / "decoded").exists()
    assert (after.images([first]).pixels == [1, 2, 3]).all()
    # The data set opened earlier still uses the files that it has opened.
    decoded_paths.clear()
    assert (before.images([first]).pixels != [1, 2, 3]).any()
    assert decoded_paths == []


def test_a_damaged_image_is_an_error_with_a_cache_too(tmp_path: Path) -> None:
    class Damaged(NoiseImages):
        def image_bytes(self, i: int) -> bytes:
            return super().image_bytes(i)[: 40 if i == 3 else None]

    cache = open_cache(tmp_path, "a", N_IMAGES, SQUARE)
    for _ in range(2):
        with pytest.raises(UserError, match=r"image 3.*damaged"):
            load_images(Damaged(), range(N_IMAGES), SQUARE, cache=cache)
