"""Tests of the stored digests: which files are read again, and which changes are noticed."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from devnet_jax.data import digests as digests_module
from devnet_jax.data.digests import FileDigests


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were read; files count as settled at once."""
    names: list[str] = []
    read_file = digests_module.read_file

    def counting(file: Path) -> bytes:
        names.append(file.name)
        return read_file(file)

    monkeypatch.setattr(digests_module, "read_file", counting)
    monkeypatch.setattr(digests_module, "_SETTLED_NS", -1)
    return names


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "raw"
    folder.mkdir()
    for name in ("a", "b", "c\udcff"):
        (folder / name).write_text(name[0])
    return folder


def digest_all(folder: Path, store: Path) -> dict[str, str]:
    """Returns the digests of all files in a folder, as a new process computes them."""
    digests = FileDigests(store)
    result = digests.of(folder.iterdir(), folder)
    digests.save(store)
    return result


def test_unchanged_files_are_read_once(folder: Path, tmp_path: Path, reads: list[str]) -> None:
    store = tmp_path / "digests.json"
    first = digest_all(folder, store)
    assert list(first) == ["a", "b", "c\udcff"]
    assert len({*first.values()}) == 3
    written = store.stat()
    assert digest_all(folder, store) == first
    assert sorted(reads) == ["a", "b", "c\udcff"]
    assert store.stat().st_mtime_ns == written.st_mtime_ns


def test_a_file_replaced_with_its_size_and_time_is_noticed(
    folder: Path, tmp_path: Path, reads: list[str]
) -> None:
    store = tmp_path / "digests.json"
    first = digest_all(folder, store)
    status = (folder / "a").stat()
    (folder / "a").write_text("x")  # in place: the same inode
    os.utime(folder / "a", ns=(status.st_atime_ns, status.st_mtime_ns))
    shutil.copy2(folder / "b", tmp_path / "b")
    (tmp_path / "b").write_text("y")
    shutil.copystat(folder / "b", tmp_path / "b")
    (tmp_path / "b").rename(folder / "b")
    reads.clear()
    second = digest_all(folder, store)
    assert [name for name in first if first[name] != second[name]] == ["a", "b"]
    assert sorted(reads) == ["a", "b"]


def test_copies_and_touched_files_are_read_and_have_their_digest(
    folder: Path, tmp_path: Path, reads: list[str]
) -> None:
    store = tmp_path / "digests.json"
    first = digest_all(folder, store)
    (folder / "a").touch()
    (folder / "b").chmod(0o600)
    reads.clear()
    assert digest_all(folder, store) == first
    assert sorted(reads) == ["a", "b"]
    assert digest_all(folder, store) == first
    assert len(reads) == 2
    # New inodes and change times, as on a network drive that numbers its files anew.
    shutil.copytree(folder, tmp_path / "copy")
    assert digest_all(tmp_path / "copy", store) == first
    assert len(reads) == 2 + 3


def test_a_file_that_has_just_changed_is_read_again(
    folder: Path, tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests_module, "_SETTLED_NS", 10**15)
    store = tmp_path / "digests.json"
    assert digest_all(folder, store) == digest_all(folder, store)
    assert len(reads) == 6


@pytest.mark.parametrize("content", ["", "[]", "{", '{"a": 1}', '{"a": [[1], "x"]}', "\0"])
def test_a_damaged_store_is_replaced(
    folder: Path, tmp_path: Path, reads: list[str], content: str
) -> None:
    store = tmp_path / "digests.json"
    store.write_text(content)
    first = digest_all(folder, store)
    assert len(json.loads(store.read_text())) == 3
    assert digest_all(folder, store) == first
    assert len(reads) == 3


def test_a_store_that_cannot_be_written_is_no_error(
    folder: Path, tmp_path: Path, reads: list[str]
) -> None:
    for _ in range(2):
        digest_all(folder, tmp_path / "none" / "digests.json")
    assert len(reads) == 6
    assert not (tmp_path / "none").exists()
