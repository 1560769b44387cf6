"""Stores the results of a prediction on disk, so that an interrupted prediction can be resumed."""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import urllib.parse
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from devnet_jax.errors import UserError

logger = logging.getLogger(__name__)

# Part of the fingerprint of a database: a database with other tables is not used.
_TABLES = (
    "CREATE TABLE origin (text TEXT)",
    "CREATE TABLE results (name BLOB PRIMARY KEY, state TEXT, score REAL, "
    "reason BLOB, error BLOB, odd BLOB) WITHOUT ROWID",
)
_REPLACE = "REPLACE INTO results VALUES (?, ?, ?, ?, ?, ?)"


class FileResult(NamedTuple):
    """The result of one image file.

    Attributes:
      name: name of the image, as `Inputs.name` returns it.
      state: `FileState` of the file when it was read, as text; "" if it could not be read.
      score: anomaly score, as written to predictions.csv; `None` if the file could not be read.
      reason: reason of the alarm (`Scores.reasons`), "" without one.
      error: error message if the file could not be read, else "".
      odd: reason why the image is unlike the training images (`Scores.odd`), or "".
    """

    name: str
    state: str
    score: float | None
    reason: str
    error: str
    odd: str = ""


class Progress:
    """An SQLite database of results, by file name.

    It has no lock: only one process may use it at a time.
    """

    def __init__(self, path: Path, fingerprint: str) -> None:
        """Opens or creates a database; replaces a damaged one, or one with another fingerprint.

        Args:
          path: file of the database.
          fingerprint: text that is the same for all results that may be in one table: detector,
            settings and input folder.

        Raises:
          UserError: if the database cannot be written.
        """
        self.path = path
        fingerprint = f"{_TABLES}{fingerprint}"
        with self._raise_user_errors():
            self._database = _connect(path)
            stored = self._read_fingerprint()
            if stored != fingerprint:
                if stored is not None:
                    logger.warning(
                        "the unfinished prediction there used another detector, other settings or "
                        "another input: starting again"
                    )
                self.remove()
                self._database = _connect(path)
                with self._database:
                    for table in _TABLES:
                        self._database.execute(table)
                    self._database.execute("INSERT INTO origin VALUES (?)", (fingerprint,))

    def add(self, results: Iterable[FileResult]) -> None:
        """Stores results in one transaction; they replace earlier ones of the same names.

        Raises:
          UserError: if the database cannot be written.
        """
        with self._raise_user_errors(), self._database:
            self._database.executemany(
                _REPLACE,
                # As bytes: names of files and classes, and errors that quote them, may not be
                # valid text.
                (
                    (
                        *(os.fsencode(result.name), result.state, result.score),
                        os.fsencode(result.reason),
                        os.fsencode(result.error),
                        os.fsencode(result.odd),
                    )
                    for result in results
                ),
            )

    def get(self, name: str) -> FileResult | None:
        """Returns the result of a file; `None` if there is none."""
        query = "SELECT state, score, reason, error, odd FROM results WHERE name = ?"
        with self._raise_user_errors():
            row = self._database.execute(query, (os.fsencode(name),)).fetchone()
        if row is None:
            return None
        state, score, *texts = row
        return FileResult(name, state, score, *map(os.fsdecode, texts))

    def merge(self, path: Path, fingerprint: str) -> None:
        """Moves the results of another database to this one; they replace those of the same names.

        Args:
          path: file of the other database, which is deleted. If it is damaged, or its fingerprint
            differs, its results are dropped.
          fingerprint: as for the constructor.

        Raises:
          UserError: if the database cannot be written.
        """
        other = Progress(path, fingerprint)
        with self._raise_user_errors():
            rows = other._database.execute("SELECT * FROM results")
            with self._database:
                self._database.executemany(_REPLACE, rows)
        other.remove()

    def close(self) -> None:
        self._database.close()

    def remove(self) -> None:
        """Closes the database and deletes its files."""
        self.close()
        for suffix in ("-journal", ""):  # SQLite would apply an old journal to the next database
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)

    def _read_fingerprint(self) -> str | None:
        """Returns the fingerprint of the database; `None` if it is new or damaged."""
        try:
            fingerprint = self._database.execute("SELECT text FROM origin").fetchone()[0]
            (state,) = self._database.execute("PRAGMA quick_check(1)").fetchone()
        except (sqlite3.OperationalError, TypeError):  # new, or its creation was interrupted
            return None
        except sqlite3.DatabaseError as error:
            state = str(error)
        if state == "ok":
            return fingerprint
        logger.warning("%s is damaged (%s): starting again", self.path, " ".join(state.split()))
        return None

    @contextlib.contextmanager
    def _raise_user_errors(self) -> Iterator[None]:
        """Raises errors of SQLite as `UserError`."""
        try:
            yield
        except sqlite3.Error as error:
            raise UserError(
                f"{self.path}: {error}; free disk space or fix the permissions"
            ) from error


def _connect(path: Path) -> sqlite3.Connection:
    # nolock: some network file systems do not support SQLite's locks.
    return sqlite3.connect(f"file:{urllib.parse.quote(os.fsencode(path))}?nolock=1", uri=True)
