"""The journal of a review: every label with its time, on the disk before it is acknowledged.

A line is one action, as JSON. Nothing is ever changed or removed; undoing is an action, too. So the
labels are those of the lines, read from the first to the last.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import os
import re
import threading
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from devnet_jax.data.datasets.label_list import GOOD_WORDS
from devnet_jax.errors import UserError, printable
from devnet_jax.runtime.workdir import Workdir

logger = logging.getLogger(__name__)

LABELS = ("good", "anomaly", "skip", "")
_ACTIONS = ("label", "undo", "mask")
_MAX_NAME = 80  # characters of a kind and of a reviewer's name


class Label(NamedTuple):
    """A label that a reviewer gives.

    Attributes:
      label: "good", "anomaly", "skip", or "" to take a label away.
      defect: kind of the defect, or "".
    """

    label: str
    defect: str = ""


class Entry(NamedTuple):
    """A line of the journal.

    Attributes:
      time: local time with its zone, ISO 8601.
      reviewer: name of the reviewer, or "".
      action: "label", "undo" or "mask".
      pictures: names of the pictures.
      label: label of the action "label", see `Label`.
      defect: its kind of defect.
      mask: file of the action "mask", or "" if the mask was removed.
    """

    time: str
    reviewer: str
    action: str
    pictures: Sequence[str]
    label: str = ""
    defect: str = ""
    mask: str = ""


def checked_label(label: str, defect: str) -> Label:
    """Returns a label, its kind without spaces around it; raises `UserError` if one is wrong."""
    if label not in LABELS:
        raise UserError(f"label {label!r}: give good, anomaly, skip or nothing")
    defect = checked_name(defect, "kind")
    if defect and label != "anomaly":
        raise UserError(f"kind '{defect}': only anomalies have a kind")
    if defect.lower() in GOOD_WORDS:
        raise UserError(f"kind '{defect}': this word means good; choose another name")
    return Label(label, defect)


def checked_name(name: str, what: str) -> str:
    """Returns a kind's or reviewer's name without spaces around it.

    Args:
      name: text that a reviewer has typed.
      what: noun for the message, such as "kind".

    Raises:
      UserError: if it is too long, or has line ends, control characters or marks that reverse text.
    """
    name = name.strip()
    if len(name) > _MAX_NAME:
        raise UserError(f"{what} of {len(name)} characters: give at most {_MAX_NAME}")
    # Bytes that are not valid UTF-8 stay: a folder of known defects may have such a name.
    rest = re.sub("[\udc80-\udcff]", "", name)
    if printable(rest) != rest:
        raise UserError(f"{what} '{printable(name)}': leave control characters out")
    return name


class Journal:
    """The labels of a review, and the file that keeps them. All methods are safe in threads.

    Two reviewers may label one picture: the last label counts, both stay in the file.
    """

    def __init__(self, path: Path) -> None:
        """Opens the journal, or creates it and its folder, and locks the folder until `close`.

        A last line that was cut, by a kill or a full disk, is dropped: it was not acknowledged.

        Args:
          path: path of the file, such as review/journal.jsonl.

        Raises:
          UserError: if another process has locked the folder, or a line is damaged.
        """
        self.path = path
        self._lock = threading.Lock()
        self._by_picture: dict[str, list[int]] = defaultdict(list)  # entries, the earliest first
        self._given: dict[str, list[int]] = defaultdict(list)  # labels by reviewer, not taken back
        self._withdrawn: set[int] = set()
        self._entries: list[Entry] = []
        self._labels: dict[str, Label] = {}
        self._masks: dict[str, str] = {}
        folder = Workdir(path.parent, "--output")
        folder.require_writable()
        with contextlib.ExitStack() as stack:
            stack.enter_context(folder.lock())
            self._file = _open(path)
            stack.callback(os.close, self._file)
            self._end = self._replay(path.read_bytes())
            self._until_closed = stack.pop_all()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def labels(self) -> dict[str, Label]:
        """A copy of the labels by name of the picture; pictures without a label are not in it."""
        with self._lock:
            return dict(self._labels)

    @property
    def masks(self) -> dict[str, str]:
        """A copy of the masks' files by name of the picture."""
        with self._lock:
            return dict(self._masks)

    @property
    def names(self) -> list[str]:
        """The names of all pictures that the journal has actions on."""
        with self._lock:
            return list(self._by_picture)

    def history(self, name: str) -> list[Entry]:
        """Returns the actions on a picture, the earliest first."""
        with self._lock:
            return [self._entries[i] for i in self._by_picture.get(name, ())]

    def append(self, names: Sequence[str], label: Label, reviewer: str = "") -> None:
        """Labels pictures. When it returns, the label is on the disk.

        Raises:
          UserError: if it cannot be written; the labels are then as they were.
        """
        with self._lock:
            self._write(Entry(_now(), reviewer, "label", tuple(names), *label))

    def append_mask(self, name: str, file: str, reviewer: str = "") -> None:
        """Notes the mask of a picture, or with the file "" that it was removed; see `append`."""
        with self._lock:
            self._write(Entry(_now(), reviewer, "mask", (name,), mask=file))

    def undo(self, reviewer: str = "") -> list[str]:
        """Takes back a reviewer's last label that is not taken back yet; see `append`.

        The pictures get the labels that were given before, by whomever. A later label of another
        reviewer stays.

        Returns:
          Names of the pictures; empty if there is nothing to take back.
        """
        with self._lock:
            if not self._given.get(reviewer):
                return []
            names = list(self._entries[self._given[reviewer][-1]].pictures)
            self._write(Entry(_now(), reviewer, "undo", tuple(names)))
            return names

    def close(self) -> None:
        """Closes the file and releases the lock."""
        with self._lock:
            self._until_closed.close()

    def _replay(self, content: bytes) -> int:
        """Takes in the lines of the file; returns the number of bytes of those that are whole."""
        *lines, tail = content.split(b"\n")
        for number, line in enumerate(lines, 1):
            entry = _parse(line)
            if entry is None:
                raise UserError(
                    f"'{self.path}', line {number}: damaged; correct or remove the line"
                )
            self._take_in(entry)
        if not tail:
            return len(content)
        entry = _parse(tail)
        if entry is None:
            logger.warning("'%s': the last line was cut, and is left out", self.path)
            return len(content) - len(tail)
        self._take_in(entry)  # an editor has removed the last line end
        self._append(b"\n", len(content))
        return len(content) + 1

    def _write(self, entry: Entry) -> None:
        line = _line(entry)
        self._append(line, self._end)
        self._end += len(line)
        self._take_in(entry)

    def _append(self, data: bytes, end: int) -> None:
        """Writes to the disk what follows the first `end` bytes of the file."""
        try:
            if os.fstat(self._file).st_size != end:
                os.ftruncate(self._file, end)
            rest = memoryview(data)
            while rest:  # a nearly full disk takes a part
                rest = rest[os.write(self._file, rest) :]
            os.fsync(self._file)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, end)  # now, as the process may be killed
            raise UserError(
                f"{self.path}: {error.strerror}; the label is not taken: free disk space, or see "
                "what is wrong with the disk, and label again"
            ) from error

    def _take_in(self, entry: Entry) -> None:
        i = len(self._entries)
        self._entries.append(entry)
        for name in entry.pictures:
            self._by_picture[name].append(i)
        if entry.action == "mask":
            for name in entry.pictures:
                self._masks[name] = entry.mask
                if not entry.mask:
                    del self._masks[name]
            return
        if entry.action == "label":
            self._given[entry.reviewer].append(i)
        elif self._given[entry.reviewer]:
            self._withdrawn.add(self._given[entry.reviewer].pop())
        for name in entry.pictures:
            self._labels[name] = self._label(name)
            if not self._labels[name].label:
                del self._labels[name]

    def _label(self, name: str) -> Label:
        """Returns the last label of a picture that is not taken back."""
        for i in reversed(self._by_picture[name]):
            if self._entries[i].action == "label" and i not in self._withdrawn:
                return Label(self._entries[i].label, self._entries[i].defect)
        return Label("")


def _now() -> str:
    return datetime.datetime.now().astimezone().isoformat(timespec="milliseconds")


def _line(entry: Entry) -> bytes:
    fields = entry._asdict()
    if entry.action != "mask":
        del fields["mask"]
    # Surrogates, bytes of names that are not valid UTF-8, become \\udc80, which JSON reads back.
    text = json.dumps(fields, ensure_ascii=False) + "\n"
    return text.encode("utf-8", "backslashreplace")


def _parse(line: bytes) -> Entry | None:
    """Returns the entry of a line, or `None` if it is damaged."""
    try:
        fields: Any = json.loads(line)
        entry = Entry(**fields)
    except (ValueError, TypeError, RecursionError):
        return None
    texts = (entry.time, entry.reviewer, entry.label, entry.defect, entry.mask)
    names = entry.pictures
    is_whole = (
        all(isinstance(text, str) for text in texts)
        and isinstance(names, list)
        and all(isinstance(name, str) for name in names)
        and entry.action in _ACTIONS
        and entry.label in LABELS
    )
    return entry if is_whole else None


def _open(path: Path) -> int:
    """Opens a file to append to, or creates it so that it survives a loss of power."""
    try:
        file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    except OSError as error:
        raise UserError(f"'{path}': {error.strerror}; choose another --output") from error
    folder = os.open(path.parent, os.O_RDONLY)
    with contextlib.suppress(OSError):  # some file systems cannot
        os.fsync(folder)
    os.close(folder)
    return file
