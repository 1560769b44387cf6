"""Tests of listing and reading raw files, and of the names of files written after them."""

from __future__ import annotations

import inspect
import os
import sys
from pathlib import Path, PurePath

import pytest

from devnet_jax.data.paths import (
    FileState,
    UnreadableFileError,
    file_state,
    list_files,
    output_name,
    read_file,
    read_lines,
)
from devnet_jax.errors import UserError, printable


def make(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def names(folder: Path) -> list[str]:
    return [file.relative_to(folder).as_posix() for file in list_files(folder)]


def test_files_are_sorted_by_their_path(tmp_path: Path) -> None:
    make(tmp_path, "b/1", "b.1", "a\udcff", "é", "e\u0301", "A", "a", "new\nline", "-x", "a.png/1")
    assert names(tmp_path) == sorted(names(tmp_path))
    assert len(names(tmp_path)) == 10
    assert names(tmp_path / "none") == names(tmp_path / "a") == []


def test_links_are_followed_once_and_not_upwards(tmp_path: Path) -> None:
    make(tmp_path, "out.png", "top/a/1", "top/b/2")
    (tmp_path / "top/b/a").symlink_to("../a")
    (tmp_path / "top/b/top").symlink_to("../../top")
    (tmp_path / "top/b/up").symlink_to("../..")
    (tmp_path / "link").symlink_to("top")
    assert names(tmp_path / "top") == ["a/1", "b/2"]
    assert names(tmp_path / "link") == ["a/1", "b/2"]
    assert names(tmp_path / "top/b") == ["2", "a/1"]


def test_a_folder_may_be_deeper_than_python_may_recurse(tmp_path: Path) -> None:
    deep = tmp_path
    for _ in range(300):
        deep /= "d"
        deep.mkdir()
    (deep / "x").touch()
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + 200)
    try:
        assert list_files(tmp_path) == [deep / "x"]
    finally:
        sys.setrecursionlimit(limit)


def test_a_folder_that_leads_nowhere_or_cannot_be_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to("/nowhere/x")
    with pytest.raises(UserError, match="link': it is a link to '/nowhere/x'"):
        list_files(tmp_path / "link")

    def refuse(folder: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=rf"cannot list the folder '{tmp_path}': Permission denied"):
        list_files(tmp_path)


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "a.png")

    def refuse(file: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(UnreadableFileError, match=r"cannot read '.*a\.png': Permission denied"):
        read_file(tmp_path / "a.png")


def test_the_state_tells_a_file_that_was_replaced(tmp_path: Path) -> None:
    path, other = tmp_path / "a", tmp_path / "b"
    path.write_text("1")
    other.write_text("2")
    os.utime(path, ns=(1, 1))
    before = file_state(path)
    assert (before.size, before.mtime_ns) == (1, 1)
    os.utime(other, ns=(1, 1))
    other.rename(path)
    after = file_state(path)
    assert after[:2] == before[:2]
    assert after != before
    assert isinstance(after, FileState)


def test_lines_of_a_table_keep_the_bytes_of_names(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_bytes(b"\xef\xbb\xbfname\r\ngut_\xe4\rx\x0by\n")
    assert read_lines(table) == ["name", "gut_\udce4", "x\x0by", ""]


@pytest.mark.parametrize("suffix", [".jpg", ".npy"])
def test_each_output_has_its_own_valid_name(tmp_path: Path, suffix: str) -> None:
    long = "検" * 83  # 249 bytes
    inputs = [
        *("a.png", f"a.png{suffix}/b", f"a.png{suffix}_/b", f"A.PNG{suffix.upper()}/b"),
        *(f"{long}.png", f"{long}.bmp", f"{long}/1.png", f"{long}{suffix}/1.png", "\udcff.png"),
        *(f"{'d/' * 1900}1.png", f"{'d/' * 1900}2.png", f"{'d/' * 1899}1.png", "x" * 255),
        *("/a.png", "../a.png", "b/../../a.png", f"{tmp_path}/a.png"),
    ]
    outputs = [output_name(name, suffix) for name in inputs]
    assert outputs[0] == PurePath(f"a.png{suffix}")
    assert len(set(outputs)) == len(inputs)
    for output in outputs:
        assert output.name.endswith(suffix)
        assert not output.is_absolute()
        assert ".." not in output.parts
        (tmp_path / output).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / output).with_name(f".{output.name}.tmp").touch()
        (tmp_path / output).touch()


def test_printable_text_is_one_line() -> None:
    assert printable("a\nb\r\x1b[31m \udce4 \u2028 \u202egnp.exe") == (
        r"a\nb\r\x1b[31m \udce4 \u2028 \u202egnp.exe"
    )
    for name in ("é e\u0301 検 تلف می\u200cخواهم 👩\u200d🔧", "c:\\folder", "#1 100% {x} $HOME"):
        assert printable(name) == name
