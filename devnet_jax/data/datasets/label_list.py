"""Reads a list of labelled pictures: a table of paths, labels, defects, splits and masks."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from devnet_jax.data.datasets.builder import ANOMALY, GOOD, NORMAL, SPLITS, RawExample
from devnet_jax.data.pages import page_paths, split_page
from devnet_jax.data.paths import name_some
from devnet_jax.data.tables import Row, Table, read_table
from devnet_jax.errors import UserError, nearest

logger = logging.getLogger(__name__)

COLUMNS = ("path", "label", "defect", "split", "mask")
GOOD_WORDS = (GOOD, "normal", "ok")
_BAD_WORDS = ("anomaly", "defect", "bad", "ng")
# Of pictures that nobody has looked at, and that train as normal, as in the paper.
UNLABELLED = "unlabelled"
# With numbers as spreadsheets and data frames write them.
_LABELS: Mapping[str, int] = {
    **dict.fromkeys((*GOOD_WORDS, "0", "0.0"), NORMAL),
    **dict.fromkeys((*_BAD_WORDS, "1", "1.0"), ANOMALY),
    UNLABELLED: NORMAL,
}
UNNAMED = "anomaly"  # the class of anomalies of which the list names none


class _Entry(NamedTuple):
    """A labelled row of the list.

    Attributes:
      line: number of the row's line.
      path: path of the picture as in the list, without "./" before it.
      file: path of the picture, or of a page.
      label: NORMAL or ANOMALY.
      defect: kind of the defect as in the list, or "".
      split: "train", "test" or `None`.
      mask: path of the mask, or of a page; `None` without one.
    """

    line: int
    path: str
    file: Path
    label: int
    defect: str
    split: str | None
    mask: Path | None


def read_list(table_file: Path, folder: Path, *, trains: bool = True) -> list[RawExample]:
    """Lists the labelled pictures of a table; reads no images, except to count pages.

    Rows without a label and a defect are left out, and counted in the log.

    Args:
      table_file: table with the columns `COLUMNS`, of which only the first is needed; further
        columns are ignored.
      folder: folder that relative paths start from.
      trains: True if the list must have a good picture to train with; else the unlabelled rows,
        which train as normal, are left out, too.

    Raises:
      UserError: if the table cannot be read or has no paths, a label, a split or a path is wrong,
        two rows are for one picture, or no good picture is left to train with.
    """
    table = read_table(table_file)
    n_rows = len(table.rows)
    if not trains:
        looked_at = [row for row in table.rows if _word(row, "label") != UNLABELLED]
        table = table._replace(rows=looked_at)
    _require_columns(table_file, table.columns)
    refuse = functools.partial(_refuse, table_file)
    entries = _entries(table, folder, refuse)
    setting = "config.dataset.manual_dir" if trains else "the folder of the list"
    _require_files(entries, f"'{folder}' ({setting})", refuse)
    _require_one_row_each(entries, refuse)
    _compare_labels_with_defects(table_file, entries, refuse)
    n_left_out = n_rows - len(entries)
    if trains and not any(e.label == NORMAL and e.split != "test" for e in entries):
        raise UserError(
            f"'{table_file}': no picture is labelled good to train with (of {len(table.rows)} rows,"
            f" {n_left_out} have no label): label some good, with the split train or none"
        )
    n_unlabelled = sum(_word(row, "label") == UNLABELLED for row in table.rows)
    if n_unlabelled:
        logger.info(
            "'%s': %d rows are unlabelled: they train as normal, as in the paper",
            table_file,
            n_unlabelled,
        )
    if n_left_out:
        logger.info("'%s': %d rows without a label are left out", table_file, n_left_out)
    return [
        RawExample(
            path=entry.path,
            label=entry.label,
            defect=GOOD if entry.label == NORMAL else entry.defect or UNNAMED,
            image=entry.file,
            mask=entry.mask,
            split=entry.split,
        )
        for entry in entries
    ]


def _refuse(table_file: Path, rows: Sequence[str], mistake: str, advice: str) -> None:
    """Raises one `UserError` for all rows that have the same mistake, if there are any.

    Args:
      table_file: path of the table.
      rows: names of these rows.
      mistake: noun phrase.
      advice: sentence that says what to do.
    """
    if rows:
        number = "1 row" if len(rows) == 1 else f"{len(rows)} rows"
        raise UserError(f"'{table_file}': {number} with {mistake}: {name_some(rows)}: {advice}")


_Refuse = Callable[[Sequence[str], str, str], None]  # `_refuse` for one table


def _at(line: int, text: object) -> str:
    """Returns the name of a row in messages: its wrong cell, and its line."""
    return f"'{text}' (line {line})"


def _require_columns(table_file: Path, columns: Sequence[str]) -> None:
    """Raises `UserError` unless there is a column of paths, and each column that is read once."""
    if COLUMNS[0] not in columns:
        quoted = name_some([f"'{name}'" for name in columns if name])
        near = nearest("path", columns)
        raise UserError(
            f"'{table_file}': the first line names no column 'path', but {quoted}: rename that of"
            " the pictures' paths" + (f"; {near}" if near.startswith("did") else "")
        )
    for name in COLUMNS:
        if columns.count(name) > 1:
            raise UserError(f"'{table_file}': two columns are named '{name}': rename one")


def _entries(table: Table, folder: Path, refuse: _Refuse) -> list[_Entry]:
    """Returns the labelled rows; refuses labels and splits that are not known."""
    words = [(row.line, _word(row, "label")) for row in table.rows]
    refuse(
        [_at(line, word) for line, word in words if word and word not in _LABELS],
        "an unknown label",
        f"write {', '.join(GOOD_WORDS)} or 0, {', '.join(_BAD_WORDS)} or 1, {UNLABELLED}, or"
        " nothing",
    )
    labelled = [(row, label) for row in table.rows if (label := _label(row)) is not None]
    splits = [(row.line, _word(row, "split")) for row, _ in labelled]
    refuse(
        [_at(line, split) for line, split in splits if split and split not in SPLITS],
        "an unknown split",
        f"write {' or '.join(SPLITS)}, or nothing",
    )
    refuse(
        [f"line {row.line}" for row, _ in labelled if not row.cells["path"].strip()],
        "a label but no path",
        "add the paths, or remove the labels",
    )
    return [
        _Entry(
            line=row.line,
            path=PurePosixPath(row.cells["path"]).as_posix(),
            file=folder / row.cells["path"],
            label=label,
            defect=row.cells.get("defect", "").strip(),
            split=_word(row, "split") or None,
            mask=folder / mask if (mask := row.cells.get("mask", "")).strip() else None,
        )
        for row, label in labelled
    ]


def _word(row: Row, column: str) -> str:
    """Returns a cell in lower case, without spaces around it; "" if there is no such column."""
    return row.cells.get(column, "").strip().lower()


def _label(row: Row) -> int | None:
    """Returns the label of a row, which its defect may imply; `None` without both."""
    word, defect = _word(row, "label"), _word(row, "defect")
    if not word and not defect:
        return None
    return _LABELS[word] if word else NORMAL if defect in GOOD_WORDS else ANOMALY


def _require_files(entries: Sequence[_Entry], start: str, refuse: _Refuse) -> None:
    """Refuses pictures and masks that are not there; `start` names where their paths start."""
    pages = functools.cache(lambda file: frozenset(page_paths(file)))

    def is_missing(path: Path) -> bool:
        file, page = split_page(path)
        if not os.path.exists(file):  # noqa: PTH110 (Path.exists may raise)
            return True
        return page is not None and path not in pages(file)

    pictures = [_at(e.line, e.path) for e in entries if is_missing(e.file)]
    masks = [_at(e.line, e.mask) for e in entries if e.mask is not None and is_missing(e.mask)]
    for missing, kind in ((pictures, "file"), (masks, "mask")):
        texts = "".join(missing)
        advice = f"restore the files, or correct the paths, which start from {start}"
        if "\\" in texts:
            advice += ", with / between folders"
        if any("\udc80" <= char <= "\udcff" for char in texts):
            advice += "; the list is not in UTF-8: save it as CSV in UTF-8"
        refuse(missing, f"a label for a {kind} that is gone", advice)


def _require_one_row_each(entries: Sequence[_Entry], refuse: _Refuse) -> None:
    """Refuses several rows for one picture, and rows for a file and for one of its pages."""
    resolve = functools.cache(os.path.realpath)  # a folder may contain a million pictures
    lines: dict[str, dict[int | None, int]] = {}
    repeated = []
    for entry in entries:
        file, page = split_page(entry.file)
        is_link = os.path.islink(file)  # noqa: PTH114 (may not raise)
        real = os.path.realpath(file) if is_link else f"{resolve(file.parent)}/{file.name}"
        known = lines.setdefault(real, {})
        whole_or_any = known.get(None) if page is not None else next(iter(known.values()), None)
        if (first := known.get(page, whole_or_any)) is not None:
            repeated.append(f"'{entry.path}' (lines {first} and {entry.line})")
        known.setdefault(page, entry.line)
    refuse(repeated, "a picture that another row has, too", "keep one row for each picture")


def _compare_labels_with_defects(
    table_file: Path, entries: Sequence[_Entry], refuse: _Refuse
) -> None:
    """Refuses anomalies with the defect "good"; warns of good pictures with a defect."""
    named_good = [(e, e.defect.lower() in GOOD_WORDS) for e in entries if e.defect]
    refuse(
        [_at(e.line, e.defect) for e, is_good in named_good if is_good and e.label == ANOMALY],
        "an anomaly whose defect means good",
        "correct the label or the defect",
    )
    defects = [e for e, is_good in named_good if not is_good and e.label == NORMAL]
    if defects:
        logger.warning(
            "'%s': %d rows have the label good and a defect, for example line %d ('%s'): they count"
            " as good",
            table_file,
            len(defects),
            defects[0].line,
            defects[0].defect,
        )
