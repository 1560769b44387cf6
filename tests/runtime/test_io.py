"""Tests of atomic files, and of tables that no spreadsheet runs."""

from __future__ import annotations

import csv
import errno
from pathlib import Path, PurePosixPath

import pytest
from etils import epath
from hypothesis import given
from hypothesis import strategies as st

from devnet_jax.runtime.io import (
    as_cell,
    atomic_write,
    from_cell,
    full_disk_message,
    read_csv,
    write_csv,
)

FORMULAS = (
    "=1+1",
    "=cmd|' /C calc'!A0",  # DDE
    "+1",
    "-1+2",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    "\n=1",
    "＝1+1",
    "'=1",
)
PLAIN = ("a=b.png", "./-a.png", "/=1", "'quoted", "it's", "", " x", "part 5", "'")


@pytest.mark.parametrize("text", FORMULAS)
def test_what_looks_like_a_formula_is_marked(text: str) -> None:
    assert as_cell(text) == f"'{text}"
    path = PurePosixPath(text)
    assert as_cell(path) == f"./{path}"
    for file in (path, PurePosixPath(f"'{text}")):
        assert PurePosixPath(from_cell(as_cell(file))) == file


@pytest.mark.parametrize("value", [*PLAIN, -1.5, -3, 0, None, float("-inf")])
def test_other_cells_stay_as_they_are(value: object) -> None:
    assert as_cell(value) is value


@given(st.text() | st.sampled_from(FORMULAS).map("'{}".format))
def test_marked_text_is_read_as_it_was(text: str) -> None:
    assert from_cell(as_cell(text)) == text


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    file = epath.Path(tmp_path / "scores.csv")
    rows = [(Path(text), text, -0.5) for text in FORMULAS if "\r" not in text]
    write_csv(file, ("path", "defect", "score"), rows)
    with (tmp_path / "scores.csv").open(newline="") as table:
        cells = [cell for row in csv.reader(table) for cell in row]
    assert not [cell for cell in cells if cell[:1] in ("=", "+", "@", "\t", "\r", "\n")]
    assert {cell for cell in cells if cell.startswith("-")} == {"-0.5"}
    for row, (path, defect, score) in zip(read_csv(file), rows, strict=True):
        assert Path(row["path"]) == path
        assert (row["defect"], float(row["score"])) == (defect, score)


def test_no_cell_begins_with_a_formula_where_semicolons_separate_cells(tmp_path: Path) -> None:
    name = "test/good/x;=1+1;.png"
    write_csv(epath.Path(tmp_path / "scores.csv"), ("path", "score"), [(Path(name), 0.5)])
    with (tmp_path / "scores.csv").open(newline="") as table:
        cells = [cell for row in csv.reader(table, delimiter=";") for cell in row]
    assert not [cell for cell in cells if cell.startswith("=")]


def test_a_full_disk_is_reported_with_the_file(tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")  # as by write(): without a file
    with (
        pytest.raises(OSError, match=r"No space left on device: '.*report\.html'") as raised,
        atomic_write(epath.Path(tmp_path / "report.html")),
    ):
        raise full
    assert raised.value.errno == errno.ENOSPC
    assert not list(tmp_path.iterdir())


def test_other_errors_are_left_as_they_are(tmp_path: Path) -> None:
    error = FileNotFoundError(errno.ENOENT, "No such file or directory", "/other/file")
    with (
        pytest.raises(FileNotFoundError) as raised,
        atomic_write(epath.Path(tmp_path / "report.html")),
    ):
        raise error
    assert raised.value is error


def test_a_full_disk_is_recognised_in_errors_of_libraries() -> None:
    assert full_disk_message(OSError(errno.EDQUOT, "quota")) == "Disk quota exceeded"
    error = RuntimeError("write() failed: No space left on device; writing /data/a; at byte 40960")
    assert full_disk_message(error) == "No space left on device"
    outer = RuntimeError("the writer failed")
    outer.__context__ = error
    assert full_disk_message(outer) == "No space left on device"
    assert full_disk_message(PermissionError(errno.EACCES, "Permission denied")) is None
    assert full_disk_message(ValueError("5")) is None
