"""Tables that people make, as spreadsheets and annotation tools save them, with line numbers."""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from devnet_jax.data.paths import name_some, read_file
from devnet_jax.errors import UserError
from devnet_jax.runtime.io import from_cell

_SEPARATORS = ",;\t"
# Marks at the beginning of a file, which name its encoding.
_ENCODINGS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_MAX_CELL = 1 << 30  # characters; annotation tools write outlines of any length into a cell


class Row(NamedTuple):
    """A row of a table.

    Attributes:
      line: number of its first line in the file, from 1.
      cells: texts by column; "" where the row ends early.
    """

    line: int
    cells: Mapping[str, str]


class Table(NamedTuple):
    """A table with a header.

    Attributes:
      columns: names of the columns in lower case, without spaces around them.
      rows: the rows that are not blank.
    """

    columns: Sequence[str]
    rows: Sequence[Row]


def read_table(file: Path) -> Table:
    """Reads a CSV file whose first row names the columns.

    Cells are separated by commas, semicolons or tabs, whichever divides the first row most often.
    The encoding is UTF-8, with or without a mark, or UTF-16 with one; file names that are not valid
    UTF-8 keep their bytes. Cells that `as_cell` has marked lose the mark.

    Raises:
      UserError: if the file cannot be read, is no text, is empty, has a quote that does not end, or
        a row with more cells than the header.
    """
    text = _decode(file)
    rows = _rows(text, _separator(text, file), file, strict=True)
    _, header = next(rows, (1, []))
    if not header:
        raise UserError(f"'{file}' is empty: give a table whose first line names the columns")
    columns = [name.strip().lower() for name in header]
    others = list(rows)
    long = [str(line) for line, cells in others if any(map(str.strip, cells[len(columns) :]))]
    if long:
        raise UserError(
            f"'{file}': {len(long)} rows have more cells than the header, in line"
            f" {name_some(long)}: put cells that contain a separator in double quotes"
        )
    empty = dict.fromkeys(columns, "")
    return Table(
        columns,
        [Row(line, empty | dict(zip(columns, cells, strict=False))) for line, cells in others],
    )


def _decode(file: Path) -> str:
    """Returns the text of a file."""
    data = read_file(file)
    marks = ((mark, name) for mark, name in _ENCODINGS if data.startswith(mark))
    mark, encoding = next(marks, (b"", "utf-8"))
    try:
        text = data.removeprefix(mark).decode(encoding, "surrogateescape")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:  # a workbook, a picture, or UTF-16 without a mark
        raise UserError(f"'{file}' is no table of text: save it as CSV, in UTF-8")
    return text


def _separator(text: str, file: Path) -> str:
    """Returns the separator that divides the first row most often."""

    def width(separator: str) -> int:
        _, cells = next(_rows(text, separator, file, strict=False), (1, []))
        return len(cells)

    return max(_SEPARATORS, key=width)


def _rows(
    text: str, separator: str, file: Path, *, strict: bool
) -> Iterator[tuple[int, list[str]]]:
    """Yields the rows that are not blank, each with the number of its first line.

    Args:
      text: content of the table.
      separator: character between cells.
      file: path of the table, for messages.
      strict: False to accept wrong quotes, as there may be if the separator is another.
    """
    csv.field_size_limit(_MAX_CELL)  # that of the process
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=strict)
    line = 1
    try:
        for cells in reader:
            if any(map(str.strip, cells)):
                yield line, [from_cell(cell) for cell in cells]
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(
            f"'{file}': the row that begins in line {line} cannot be read ({error}): correct its"
            " double quotes"
        ) from None
