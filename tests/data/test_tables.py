"""Tests of reading tables as spreadsheets and annotation tools save them."""

from __future__ import annotations

from pathlib import Path, PurePath

import pytest
from etils import epath

from devnet_jax.data.tables import read_table
from devnet_jax.errors import UserError
from devnet_jax.runtime.io import write_csv


def rows_of(file: Path, content: str | bytes) -> list[tuple[int, dict[str, str]]]:
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return [(row.line, dict(row.cells)) for row in read_table(file).rows]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_what_spreadsheets_save(tmp_path: Path, separator: str, end: str, encoding: str) -> None:
    lines = ["", " Path ,LABEL,", '"ü, é; 1.png",good', ",,", "", "b.png", '"c""\n.png",bad,', ""]
    text = end.join(line.replace(",", separator) for line in lines)
    text = text.replace(f'"ü{separator}', '"ü,')  # in quotes
    assert rows_of(tmp_path / "a.csv", text.encode(encoding)) == [
        (3, {"path": "ü, é; 1.png", "label": "good", "": ""}),
        (6, {"path": "b.png", "label": "", "": ""}),
        (7, {"path": 'c"\n.png', "label": "bad", "": ""}),
    ]


def test_what_this_package_writes(tmp_path: Path) -> None:
    names = ["=a.png", "b, c.png", "'d.png", "e\udcff.png"]
    header = ["path", "score", "reason"]
    rows = [(PurePath(name), 0.5, "=like a scratch") for name in names]
    write_csv(epath.Path(tmp_path / "a.csv"), header, rows)
    read = read_table(tmp_path / "a.csv").rows
    assert [row.cells["path"] for row in read] == ["./=a.png", *names[1:]]
    assert read[0].cells["reason"] == "=like a scratch"


def test_long_cells_and_file_names_of_any_bytes(tmp_path: Path) -> None:
    outline = "1 2 " * 100_000
    (row,) = rows_of(tmp_path / "a.csv", b"path,outline\nm\xfcll.png," + outline.encode())
    assert row == (2, {"path": "m\udcfcll.png", "outline": outline})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty: give a table whose first line names the columns"),
        ("\n \n", "is empty"),
        ('path,label\n\na,good\n"b,good\nc,good\n', "begins in line 4 .*correct its double quotes"),
        ('path,label\n"a"b,good\n', "begins in line 2 .*correct"),
        ("path,label\na,b.png,good\nc.png,bad\nd,e,f", "2 rows have more .*in line 2, 4: put"),
        (b"PK\x03\x04\0\0", "no table of text: save it as CSV, in UTF-8"),
        ("path,label\n".encode("utf-16-le"), "no table of text"),
        (b"\xff\xfea", "no table of text"),
    ],
)
def test_tables_that_cannot_be_read(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        rows_of(tmp_path / "a.csv", content)
    assert "\n" not in str(error.value)
    assert "a.csv" in str(error.value)
