"""Tests of the journal: what is acknowledged stays, whatever happens to process and disk."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from devnet_jax.errors import UserError
from devnet_jax.review.journal import Journal, Label, checked_label, checked_name

SCRATCH, DENT, GOOD = Label("anomaly", "scratch"), Label("anomaly", "dent"), Label("good")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "review" / "journal.jsonl"


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_a_review_goes_on_where_it_ended(path: Path) -> None:
    with Journal(path) as journal:
        journal.append(["a/1.png"], GOOD, "Ada")
        journal.append(["a/1.png", "b.png"], SCRATCH, "Ada")
        journal.append(["c.png"], Label("skip"))
        journal.append_mask("b.png", "masks/b.png.png")
    with Journal(path) as again:
        assert again.labels == journal.labels
        assert again.labels == {"a/1.png": SCRATCH, "b.png": SCRATCH, "c.png": ("skip", "")}
        assert again.masks == {"b.png": "masks/b.png.png"}
        again.append_mask("b.png", "")
        again.append(["c.png"], Label(""))
        assert not again.masks
        assert "c.png" not in again.labels


def test_lines_say_who_labelled_what_and_when(path: Path) -> None:
    with Journal(path) as journal:
        journal.append(["a.png", "b.png"], DENT, "Ada")
    (entry,) = lines(path)
    time = datetime.datetime.fromisoformat(entry.pop("time"))
    assert abs(datetime.datetime.now(datetime.UTC) - time) < datetime.timedelta(minutes=1)
    assert entry == {
        "reviewer": "Ada",
        "action": "label",
        "pictures": ["a.png", "b.png"],
        "label": "anomaly",
        "defect": "dent",
    }


NAMES = ["ü/写真.png", "a\nb.png", os.fsdecode(b"\xff\xfe.png"), '"\\udc80\\.png', "a\u2028b.png"]


def test_names_of_any_bytes_survive(path: Path) -> None:
    with Journal(path) as journal:
        for name in NAMES:
            journal.append([name], Label("anomaly", f"kind of {name}"))
    assert len(path.read_bytes().splitlines()) == len(NAMES)
    with Journal(path) as again:
        assert list(again.labels) == NAMES
        assert [os.fsencode(name) for name in again.labels] == list(map(os.fsencode, NAMES))


def test_undo_takes_back_ones_own_labels_from_the_last_to_the_first(path: Path) -> None:
    with Journal(path) as journal:
        journal.append(["a"], GOOD, "Ada")
        journal.append(["a", "b"], SCRATCH, "Ada")
        assert journal.undo("Ada") == ["a", "b"]
        assert journal.labels == {"a": GOOD}
    with Journal(path) as again:  # also after a restart
        assert again.labels == {"a": GOOD}
        assert again.undo("Ada") == ["a"]
        assert again.undo("Ada") == []
        assert again.undo("nobody") == []
        assert again.labels == {}
    assert [entry["action"] for entry in lines(path)] == ["label", "label", "undo", "undo"]


def test_the_last_of_two_reviewers_wins_and_both_stay(path: Path) -> None:
    with Journal(path) as journal:
        journal.append(["a"], GOOD, "Ada")
        journal.append(["a"], SCRATCH, "Bob")
        assert journal.labels == {"a": SCRATCH}
        assert journal.undo("Ada") == ["a"]
        assert journal.labels == {"a": SCRATCH}, "Bob's later label stays"
        journal.append(["a"], DENT, "Ada")
        assert journal.undo("Bob") == ["a"]
        assert journal.labels == {"a": DENT}
        assert journal.undo("Ada") == ["a"]
        assert journal.labels == {}
        seen = [(entry.reviewer, entry.action, entry.defect) for entry in journal.history("a")]
        assert seen[:2] == [("Ada", "label", ""), ("Bob", "label", "scratch")]
        assert len(seen) == len(lines(path)) == 6
        assert journal.history("b") == []


def test_threads_do_not_mix_their_lines(path: Path) -> None:
    with Journal(path) as journal:

        def label(reviewer: str) -> None:
            for i in range(25):
                journal.append([f"{reviewer}{i}"], SCRATCH, reviewer)

        threads = [threading.Thread(target=label, args=(name,)) for name in "abcd"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(lines(path)) == 100
    with Journal(path) as again:
        assert len(again.labels) == 100


def test_a_cut_last_line_is_dropped(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Journal(path) as journal:
        journal.append(["a"], GOOD)
        whole = path.read_bytes()
        journal.append(["b"], GOOD)
    content = path.read_bytes()
    for n in range(len(whole) + 1, len(content) - 1):
        path.write_bytes(content[:n])
        with Journal(path) as journal:
            assert journal.labels == {"a": GOOD}
            journal.append(["c"], SCRATCH)
        with Journal(path) as journal:
            assert journal.labels == {"a": GOOD, "c": SCRATCH}
    assert "cut" in caplog.text


def test_a_line_end_that_an_editor_removed_is_added(path: Path) -> None:
    with Journal(path) as journal:
        journal.append(["a"], GOOD)
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    for name in "bc":
        with Journal(path) as journal:
            journal.append([name], GOOD)
    with Journal(path) as journal:
        assert journal.labels == {"a": GOOD, "b": GOOD, "c": GOOD}


@pytest.mark.parametrize(
    "line",
    [
        b"\0\0\0",
        b"{}",
        b"[]",
        b"",
        b'{"time": "", "reviewer": "", "action": "erase", "pictures": []}',
        b'{"time": "", "reviewer": "", "action": "label", "pictures": "a", "label": "good"}',
        b'{"time": "", "reviewer": "", "action": "label", "pictures": [1], "label": "good"}',
        b'{"time": "", "reviewer": "", "action": "label", "pictures": ["a"], "label": "fine"}',
    ],
)
def test_a_damaged_line_is_named(path: Path, line: bytes) -> None:
    with Journal(path) as journal:
        journal.append(["a"], GOOD)
        journal.append(["b"], GOOD)
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + line + b"\n" + second)
    with pytest.raises(UserError, match=r"journal\.jsonl', line 2: damaged"):
        Journal(path)
    path.write_bytes(first + second)
    with Journal(path) as journal:  # the lock was released
        assert len(journal.labels) == 2


def test_one_process_at_a_time(path: Path) -> None:
    with Journal(path), pytest.raises(UserError, match="another process is at work"):
        Journal(path)
    with Journal(path):
        pass


def test_a_file_in_place_of_the_folder_is_named(path: Path) -> None:
    path.parent.write_text("")
    with pytest.raises(UserError, match="is a file"):
        Journal(path)
    path.parent.unlink()
    path.mkdir(parents=True)
    with pytest.raises(UserError, match="Is a directory"):
        Journal(path)


@contextlib.contextmanager
def disk_of(n_bytes: int) -> Iterator[None]:
    """No file can grow beyond this size: a write beyond it is cut, and the next one fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_takes_no_label_and_loses_none(path: Path) -> None:
    with Journal(path) as journal:
        journal.append(["a"], GOOD)
        size = path.stat().st_size
        with disk_of(size + 20):
            for attempt in (
                lambda: journal.append(["b"], GOOD),
                lambda: journal.append_mask("b", "masks/b.png"),
                lambda: journal.undo(),
            ):
                with pytest.raises(UserError, match="the label is not taken"):
                    attempt()
                assert (journal.labels, journal.masks) == ({"a": GOOD}, {})
        assert path.stat().st_size == size
        journal.append(["b"], GOOD)
    with Journal(path) as again:
        assert again.labels == {"a": GOOD, "b": GOOD}


_LABELLER = """
import sys
from pathlib import Path
from devnet_jax.review.journal import Journal, Label
with Journal(Path(sys.argv[1])) as journal:
    for i in range(int(sys.argv[2]), 1_000_000):
        journal.append([f"{i}.png"] * 40, Label("anomaly", "scratch"))
        sys.stdout.write(f"{i}\\n")
        sys.stdout.flush()
"""


def test_a_kill_loses_no_label_that_was_acknowledged(path: Path) -> None:
    acknowledged = 0
    for round_ in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", _LABELLER, path, str(acknowledged)], stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        for _ in range(20 + 7 * round_):
            assert process.stdout.readline()
        process.kill()
        out = process.stdout.read().decode()
        process.wait()
        process.stdout.close()
        whole = [line for line in out.splitlines(keepends=True) if line.endswith("\n")]
        with Journal(path) as journal:
            n = len(journal.labels)
        assert n >= acknowledged + 20 + 7 * round_ + len(whole)
        assert set(journal.labels) == {f"{i}.png" for i in range(n)}
        acknowledged = n


@pytest.mark.parametrize(
    ("label", "defect", "message"),
    [
        ("bad", "", "give good, anomaly"),
        ("good", "scratch", "only anomalies"),
        ("anomaly", " OK ", "means good"),
        ("anomaly", "x" * 81, "81 characters"),
        ("anomaly", "a\nb", "control"),
        ("anomaly", "a\x1bb", "control"),
        ("anomaly", "a\u202eb", "control"),
        ("anomaly", "\ud800", "control"),
    ],
)
def test_wrong_labels_and_kinds_are_refused(label: str, defect: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as refused:
        checked_label(label, defect)
    str(refused.value).encode()  # can be printed
    assert "\n" not in str(refused.value)


def test_kinds_in_any_script_are_taken_without_spaces_around_them() -> None:
    assert checked_label("anomaly", "  Kratzer, groß ") == ("anomaly", "Kratzer, groß")
    assert checked_label("anomaly", "<b>खरोंच</b>").defect == "<b>खरोंच</b>"
    assert checked_label("anomaly", "\udcff").defect == "\udcff"
    assert checked_name("Ada", "reviewer") == "Ada"
