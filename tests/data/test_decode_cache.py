"""Decoded images on disk: read again, by any process, and never when they could be wrong."""

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
from devnet_jax.data import decode
from devnet_jax.data import decode_cache as decoded
from devnet_jax.data.decode import load_image, load_images
from devnet_jax.data.decode_cache import open_cache, slot_bytes
from devnet_jax.data.few_shot import FewShotDataset
from devnet_jax.errors import UserError
from tests.conftest import REPOSITORY, make_parts

SIZE = 8
N_IMAGES = 5


class Pictures:
    """Five noisy pictures; remembers which of their files were read."""

    def __init__(self) -> None:
        rng = np.random.default_rng(1)
        self.pixels = rng.integers(0, 256, (N_IMAGES, SIZE, SIZE, 3), dtype=np.uint8)
        self.asked: list[int] = []

    def image_bytes(self, i: int) -> bytes:
        self.asked.append(i)
        buffer = io.BytesIO()
        Image.fromarray(self.pixels[i]).save(buffer, "PNG")
        return buffer.getvalue()

    def image_name(self, i: int) -> str:
        return f"picture {i}"


def load(folder: Path, indices=range(N_IMAGES), fingerprint: str = "a") -> list[int]:
    """Loads through the folder's cache, checks every pixel, and says which images were decoded."""
    pictures = Pictures()
    cache = open_cache(folder, fingerprint, N_IMAGES, SIZE)
    images = load_images(pictures, indices, SIZE, cache=cache)
    np.testing.assert_array_equal(images, pictures.pixels[list(indices)])
    return sorted(pictures.asked)


def cached_file(folder: Path) -> Path:
    (file,) = (folder / "decoded").iterdir()
    return file


def test_what_was_decoded_is_read_again(tmp_path: Path) -> None:
    assert load(tmp_path, [3, 0]) == [0, 3]
    assert load(tmp_path) == [1, 2, 4]
    assert load(tmp_path, [4, 4, 0]) == []


def spoil(file: Path, what: str) -> None:
    slot = slot_bytes(SIZE)
    content = bytearray(file.read_bytes())
    if what == "torn":
        content[2 * slot + slot // 2 : 3 * slot] = bytes(slot - slot // 2)
    elif what == "zeroed":
        content[2 * slot : 3 * slot] = bytes(slot)
    elif what == "one bit":
        content[2 * slot + 7] ^= 1
    elif what == "shifted":
        content[2 * slot : 3 * slot] = content[2 * slot + 1 : 3 * slot] + b"\0"
    elif what == "truncated":
        del content[2 * slot + 5 :]
    elif what == "emptied":
        content.clear()
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("what", "lost"),
    [
        ("torn", [2]),
        ("zeroed", [2]),
        ("one bit", [2]),
        ("shifted", [2]),
        ("truncated", [2, 3, 4]),
        ("emptied", [0, 1, 2, 3, 4]),
    ],
)
def test_what_is_damaged_is_decoded_again_and_made_good(
    tmp_path: Path, what: str, lost: list[int]
) -> None:
    load(tmp_path)
    spoil(cached_file(tmp_path), what)
    assert load(tmp_path) == lost
    assert load(tmp_path) == []


def test_a_black_image_is_not_taken_for_one_that_was_never_written(tmp_path: Path) -> None:
    cache = open_cache(tmp_path, "a", 2, SIZE)
    assert cache is not None
    black, read = np.zeros((SIZE, SIZE, 3), np.uint8), np.empty((SIZE, SIZE, 3), np.uint8)
    cache.write(1, black)
    assert not cache.read(0, read)
    assert cache.read(1, read)
    np.testing.assert_array_equal(read, black)


def test_other_files_and_other_decoders_share_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(tmp_path)
    assert load(tmp_path, fingerprint="b") == list(range(N_IMAGES))
    monkeypatch.setattr(decoded.PIL, "__version__", "99.0")
    assert load(tmp_path, fingerprint="b") == list(range(N_IMAGES))
    cached_file(tmp_path)  # the earlier ones of this size are gone
    cache = open_cache(tmp_path, "b", N_IMAGES, 2 * SIZE)
    assert load_images(Pictures(), [0], 2 * SIZE, cache=cache).shape == (1, 16, 16, 3)
    assert load(tmp_path, fingerprint="b") == []  # one of another size is not


class Usage(NamedTuple):
    free: int


def test_no_more_than_half_of_the_free_space_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    needed = N_IMAGES * slot_bytes(SIZE)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(2 * needed - 2))
    assert open_cache(tmp_path, "a", N_IMAGES, SIZE) is None
    assert "are not kept" in caplog.text
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(2 * needed))
    load(tmp_path)
    # What is written already needs no space: it is read, whatever is free by now.
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0))
    assert load(tmp_path) == []


def test_a_disk_that_fills_up_ends_the_writing_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    load(tmp_path, [0])

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwritev", full)
    for _ in range(2):
        assert load(tmp_path) == [1, 2, 3, 4]
    assert caplog.text.count("No space left on device") == 2  # once a run


def test_a_folder_that_is_read_only_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    load(tmp_path, [0, 1])
    (tmp_path / "new" / "decoded").mkdir(parents=True)
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    for _ in range(2):
        assert load(tmp_path) == [2, 3, 4]
    assert caplog.text.count("read-only") == 2
    assert open_cache(tmp_path / "new", "a", N_IMAGES, SIZE) is None


def test_a_place_that_cannot_be_used_or_is_gone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    (tmp_path / "decoded").write_text("")
    assert load(tmp_path) == list(range(N_IMAGES))
    # Not made again: prepared data may be about to be put there.
    assert load(tmp_path / "gone") == list(range(N_IMAGES))
    assert not (tmp_path / "gone").exists()
    assert caplog.text.count("are not kept") == 2


SECOND = """
import sys
from pathlib import Path
import numpy as np
from devnet_jax.data.decode import load_images
from devnet_jax.data.decode_cache import open_cache

class Nothing:
    def image_bytes(self, i): raise AssertionError(f"image {i} is decoded")
    def image_name(self, i): return str(i)

cache = open_cache(Path(sys.argv[1]), "a", 5, 8)
sys.stdout.buffer.write(load_images(Nothing(), range(5), 8, cache=cache).tobytes())
"""


def test_a_second_process_reads_it_while_the_first_has_it_open(tmp_path: Path) -> None:
    pictures = Pictures()
    cache = open_cache(tmp_path, "a", N_IMAGES, SIZE)
    load_images(pictures, range(N_IMAGES), SIZE, cache=cache)
    second = subprocess.run(
        [sys.executable, "-c", SECOND, str(tmp_path)], cwd=REPOSITORY, capture_output=True
    )
    assert second.returncode == 0, second.stderr.decode()
    assert second.stdout == pictures.pixels.tobytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_parts(tmp_path / "parts")


@pytest.fixture
def decodings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the images that were decoded."""
    names: list[str] = []

    def counted(data: bytes, name: str, image_size: int) -> np.ndarray:
        names.append(name.partition("/")[2].partition("/")[2])
        return load_image(data, name, image_size)

    monkeypatch.setattr(decode, "load_image", counted)
    return names


def draw(folder: Path, seed: int = 0, **settings: object) -> FewShotDataset:
    chosen = DatasetConfig(
        name="image_folder",
        manual_dir=str(folder),
        data_dir=str(folder.parent / "prepared"),
        n_anomaly=3,
        **settings,  # type: ignore[arg-type]
    )
    return FewShotDataset.draw(chosen, seed)


def test_the_next_run_decodes_nothing_that_an_earlier_one_has(
    folder: Path, decodings: list[str]
) -> None:
    dataset = draw(folder)
    train = dataset.train_images(16)
    images = train.read(np.arange(len(train)))
    dataset.images(dataset.split.test, 16)
    assert sorted(decodings) == sorted(dataset.split.paths)
    decodings.clear()
    again = draw(folder).train_images(16)
    np.testing.assert_array_equal(again.read(np.arange(len(again))), images)
    other = draw(folder, seed=1)
    assert other.split.train_anomaly != dataset.split.train_anomaly
    other.images(other.split.paths, 16)
    assert decodings == []
    without = draw(folder, cache=False).train_images(16)
    np.testing.assert_array_equal(without.read(np.arange(len(without))), images)
    assert len(decodings) == len(images)


def test_a_raw_file_that_changes_is_decoded_anew(folder: Path, decodings: list[str]) -> None:
    before = draw(folder)
    first = before.split.train_normal[0]
    before.images(before.split.paths, 16)
    Image.new("RGB", (48, 40), (1, 2, 3)).save(folder / first)
    (prepared,) = folder.parent.glob("prepared/image_folder/*/[0-9]*")
    assert (prepared / "decoded").exists()
    after = draw(folder)
    assert not (prepared / "decoded").exists()
    assert (after.images([first], 16) == [1, 2, 3]).all()
    # The earlier one goes on with what it has opened.
    decodings.clear()
    assert (before.images([first], 16) != [1, 2, 3]).any()
    assert decodings == []


def test_a_damaged_image_is_named_as_without_a_cache(tmp_path: Path) -> None:
    class Damaged(Pictures):
        def image_bytes(self, i: int) -> bytes:
            return super().image_bytes(i)[: 40 if i == 3 else None]

    cache = open_cache(tmp_path, "a", N_IMAGES, SIZE)
    for _ in range(2):
        with pytest.raises(UserError, match=r"picture 3.*damaged"):
            load_images(Damaged(), range(N_IMAGES), SIZE, cache=cache)
