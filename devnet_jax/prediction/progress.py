"""What has been done so far, kept on disk: a killed process loses nothing that it has finished."""

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

_TABLES = (
    "CREATE TABLE origin (text TEXT)",
    "CREATE TABLE results (name BLOB PRIMARY KEY, size INTEGER, mtime_ns INTEGER, score REAL, "
    "p_value REAL, error BLOB) WITHOUT ROWID",
)


class Result(NamedTuple):
    """What became of one image file.

    Attributes:
      name: of the file.
      size: its bytes when it was read.
      mtime_ns: when it had been changed last, in nanoseconds.
      score: the number that predictions.csv shows; `None` if it could not be read.
      p_value: of the score, if there is one.
      error: why it could not be read, else "".
    """

    name: str
    size: int
    mtime_ns: int
    score: float | None
    p_value: float | None
    error: str


class Progress:
    """Results by the names of their files, in an SQLite database.

    It does not keep other processes out.
    """

    def __init__(self, path: Path, origin: str) -> None:
        """Opens a database, or makes it anew where it is absent, damaged or of another origin.

        Args:
          path: its file.
          origin: what all results must have in common to stand side by side.

        Raises:
          UserError: it cannot be written.
        """
        self.path = path
        origin = f"{_TABLES}{origin}"
        with self._errors_for_people():
            self._database = _connect(path)
            known = self._origin()
            if known != origin:
                if known is not None:
                    logger.warning("begun with another detector, settings or input: starting anew")
                self.remove()
                self._database = _connect(path)
                with self._database:
                    for table in _TABLES:
                        self._database.execute(table)
                    self._database.execute("INSERT INTO origin VALUES (?)", (origin,))

    def add(self, results: Iterable[Result]) -> None:
        """Keeps results, all or none of them; they replace earlier ones of the same names.

        Raises:
          UserError: they cannot be written.
        """
        with self._errors_for_people(), self._database:
            self._database.executemany(
                "REPLACE INTO results VALUES (?, ?, ?, ?, ?, ?)",
                # As bytes: neither file names nor messages with them need be valid text.
                ((os.fsencode(one.name), *one[1:-1], os.fsencode(one.error)) for one in results),
            )

    def get(self, name: str) -> Result | None:
        """The result of a file."""
        query = "SELECT size, mtime_ns, score, p_value, error FROM results WHERE name = ?"
        with self._errors_for_people():
            found = self._database.execute(query, (os.fsencode(name),)).fetchone()
        if found is None:
            return None
        size, mtime_ns, score, p_value, error = found
        return Result(name, size, mtime_ns, score, p_value, os.fsdecode(error))

    def absorb(self, path: Path, origin: str) -> None:
        """Adds the results of another database, and deletes it; they replace those of their names.

        One of another origin, or damaged, adds nothing.

        Raises:
          UserError: they cannot be written.
        """
        other = Progress(path, origin)
        with self._errors_for_people():
            rows = other._database.execute("SELECT * FROM results")
            with self._database:
                self._database.executemany("REPLACE INTO results VALUES (?, ?, ?, ?, ?, ?)", rows)
        other.remove()

    def close(self) -> None:
        self._database.close()

    def remove(self) -> None:
        """Closes it and deletes its files."""
        self.close()
        for suffix in ("-journal", ""):  # an old journal would be applied to the next database
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)

    def _origin(self) -> str | None:
        """That of the results that are there; `None` if there are none, or they are damaged."""
        try:
            origin = self._database.execute("SELECT text FROM origin").fetchone()[0]
            (state,) = self._database.execute("PRAGMA quick_check(1)").fetchone()
        except (sqlite3.OperationalError, TypeError):  # new, or killed while it was made
            return None
        except sqlite3.DatabaseError as error:
            state = str(error)
        if state == "ok":
            return origin
        logger.warning("%s is damaged (%s): starting anew", self.path, " ".join(state.split()))
        return None

    @contextlib.contextmanager
    def _errors_for_people(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise UserError(f"{self.path}: {error}; make room there, or allow it") from error


def _connect(path: Path) -> sqlite3.Connection:
    # Without SQLite's own locks, which some network disks do not have.
    return sqlite3.connect(f"file:{urllib.parse.quote(os.fsencode(path))}?nolock=1", uri=True)
