"""Tests of lists of labelled pictures: their rows, their mistakes, and when they are prepared."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from devnet_jax.data import source as source_module
from devnet_jax.data.datasets.label_list import read_list
from devnet_jax.data.datasets.verify import verify as verify_dataset
from devnet_jax.data.source import Source, is_available, open_source
from devnet_jax.errors import UserError


def write_image(path: Path, value: int = 90, size: tuple[int, int] = (6, 4)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, value).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures a.png to f.png, a mask of f, and a file of three pages."""
    folder = tmp_path / "pictures"
    for n, name in enumerate("abcdef"):
        write_image(folder / f"{name}.png", 50 + n)
    mask = np.zeros((4, 6), np.uint8)
    mask[1, 2] = 255
    Image.fromarray(mask).save(folder / "masks.png")
    first, *others = (Image.new("L", (6, 4), 100 + n) for n in range(3))
    first.save(folder / "stack.tif", save_all=True, append_images=others)
    return folder


def write_list(folder: Path, *rows: str, header: str = "path,label,defect,split,mask") -> Path:
    file = folder / "labels.csv"
    file.write_text("\n".join([header, *rows, ""]))
    return file


def listed(folder: Path, *rows: str, **options: str) -> list[tuple]:
    examples = read_list(write_list(folder, *rows, **options), folder)
    return [(e.path, e.label, e.defect, e.split) for e in examples]


@pytest.fixture
def open_list(tmp_path: Path) -> Callable[..., Source]:
    def open_it(labels: Path, **arguments: str) -> Source:
        given = {"labels": str(labels), "data_dir": str(tmp_path / "prepared"), **arguments}
        return open_source("image_list", **given)

    return open_it


@pytest.fixture
def preparations(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    names: list[str] = []

    def verify(raw):
        names.append(raw.name)
        return verify_dataset(raw)

    monkeypatch.setattr(source_module, "verify", verify)
    return names


def test_rows_become_examples(folder: Path, caplog) -> None:
    caplog.set_level("INFO")
    assert listed(
        folder,
        "a.png,good,,train,",
        "./b.png, OK ,,TEST,",
        "c.png,Anomaly,,,masks.png",
        "d.png,,scratch,train,",
        "e.png,,good,,",
        "f.png,,,,",
        "gone.png,,,,",
        "stack.tif#2,1.0,dent,,",
        f"{folder / 'stack.tif#3'},0,,,",
    ) == [
        ("a.png", 0, "good", "train"),
        ("b.png", 0, "good", "test"),
        ("c.png", 1, "anomaly", None),
        ("d.png", 1, "scratch", "train"),
        ("e.png", 0, "good", None),
        ("stack.tif#2", 1, "dent", None),
        (f"{folder}/stack.tif#3", 0, "good", None),
    ]
    (message,) = caplog.messages
    assert message.endswith("labels.csv': 2 rows without a label are left out")


@pytest.mark.parametrize(
    "word", ["good", "Normal", "ok", "0", "anomaly", "defect", "bad", "NG", "1"]
)
def test_words_for_labels(folder: Path, word: str) -> None:
    (first, second) = listed(folder, "a.png,0", f"b.png,{word}", header="path,label")
    assert first[1] == 0
    assert second[1] == int(word in ("anomaly", "defect", "bad", "NG", "1"))


def test_columns_in_any_order_among_others(folder: Path) -> None:
    rows = ("x;ok;7;a.png", 'y;bad;"8;9";b.png')
    assert listed(folder, *rows, header="note;Label;score;PATH") == [
        ("a.png", 0, "good", None),
        ("b.png", 1, "anomaly", None),
    ]


GOOD = "a.png,good,,,"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [GOOD, "b.png,maybe,,,", "c.png,?,,,"],
            r"2 rows with an unknown label: 'maybe' \(line 3\), '\?' .*write",
        ),
        (
            [GOOD, "b.png,ok,,val,"],
            r"1 row with an unknown split: 'val' \(line 3\): write train or",
        ),
        ([GOOD, ",ok,,,"], "1 row with a label but no path: line 3: add"),
        (
            [GOOD, "z.png,ok,,,"],
            r"a file that is gone: 'z\.png' \(line 3\): .* from '.*pictures' \(config",
        ),
        (
            [GOOD, *(f"z{n}.png,ok,,," for n in range(12))],
            r"12 rows .*'z9\.png' \(line 12\) and 2 more",
        ),
        ([GOOD, f"{'x' * 300}.tif#2,ok,,,"], r"gone: 'x+\.tif#2' \(line 3\)"),
        ([GOOD, "x\\b.png,ok,,,"], r"gone: .*with / between folders$"),
        ([GOOD, "stack.tif#4,ok,,,"], r"gone: 'stack\.tif#4'"),
        ([GOOD, "b.png#1,ok,,,"], r"gone: 'b\.png#1'"),
        ([GOOD, "b.png,bad,,,m.png"], r"for a mask that is gone: '.*/m\.png' \(line 3\)"),
        (
            [GOOD, "b.png,ok,,,", GOOD],
            r"1 row with a picture .*: 'a\.png' \(lines 2 and 4\): keep one",
        ),
        ([GOOD, "../pictures/./a.png,bad,,,"], r"\(lines 2 and 3\)"),
        ([GOOD, "link.png,ok,,,"], r"'link\.png' \(lines 2 and 3\)"),
        (["stack.tif#2,ok,,,", "stack.tif,ok,,,"], r"'stack\.tif' \(lines 2 and 3\)"),
        (["stack.tif,ok,,,", "stack.tif#2,ok,,,"], r"'stack\.tif#2' \(lines 2 and 3\)"),
        ([GOOD, "b.png,bad,Good,,"], r"an anomaly whose defect means good: 'Good' \(line 3\)"),
        (
            ["a.png,ok,,test,", "b.png,bad,,train,", "c.png,,,,"],
            r"is labelled good to train with \(of 3 rows, 1 have no label",
        ),
        ([], "no picture is labelled good to train with"),
    ],
)
def test_mistakes_are_one_line(folder: Path, rows: list[str], message: str) -> None:
    (folder / "link.png").symlink_to("a.png")
    with pytest.raises(UserError, match=message) as error:
        listed(folder, *rows)
    assert "\n" not in str(error.value)
    assert "labels.csv'" in str(error.value)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("paths,label", "line names no column 'path', but 'paths', 'label': .*did you mean paths"),
        ("x,y", "but 'x', 'y': rename that of the pictures' paths$"),
        ("path,Path", "two columns are named 'path': rename one"),
    ],
)
def test_columns_that_are_not_there(folder: Path, header: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        listed(folder, "a.png,ok", header=header)


def test_a_list_that_is_not_in_utf8_says_so(folder: Path) -> None:
    write_image(folder / "ü.png")
    file = folder / "labels.csv"
    file.write_bytes("path,label\nü.png,ok\n".encode("cp1252"))
    with pytest.raises(UserError, match="is not in UTF-8: save it as CSV in UTF-8"):
        read_list(file, folder)


def test_good_pictures_with_a_defect_are_a_warning(folder: Path, caplog) -> None:
    listed(folder, "a.png,ok,scratch,,", "b.png,ok,good,,")
    (message,) = caplog.messages
    assert "1 rows have the label good and a defect, for example line 2 ('scratch')" in message


def test_prepared_pictures_are_those_of_the_list(
    folder: Path, tmp_path: Path, open_list: Callable[..., Source]
) -> None:
    outside = write_image(tmp_path / "outside.png", 200)
    rows = [GOOD, "../outside.png,good,,test,", "f.png,bad,,,masks.png", "stack.tif#2,bad,,train,"]
    source = open_list(write_list(folder, *rows))
    assert [(e.path, e.split, e.label, e.defect) for e in source.examples] == [
        ("a.png", "train", 0, "good"),
        ("stack.tif#2", "train", 1, "anomaly"),
        ("../outside.png", "test", 0, "good"),
        ("f.png", "test", 1, "anomaly"),
    ]
    assert source.image_bytes(2) == outside.read_bytes()
    assert source.mask_bytes(3) == (folder / "masks.png").read_bytes()
    with_pages = write_list(folder, "stack.tif,good,,train,")
    assert [e.path for e in open_list(with_pages).examples] == [f"stack.tif#{n}" for n in (1, 2, 3)]


def test_paths_start_from_the_given_folder(
    folder: Path, tmp_path: Path, open_list: Callable[..., Source]
) -> None:
    labels = shutil.move(write_list(folder, GOOD), tmp_path)
    with pytest.raises(UserError, match=r"'a\.png' \(line 2\)"):
        open_list(labels)
    assert len(open_list(labels, manual_dir=str(folder)).examples) == 1


BAD = "f.png,bad,,,masks.png"


@pytest.mark.parametrize(
    ("rows", "is_prepared_anew"),
    [
        ([GOOD, "b.png,good,,,", BAD], False),
        (["b.png,0,,,", "./a.png,ok,,,", BAD, "e.png,,,,"], False),
        ([GOOD, "b.png,bad,,,", BAD], True),
        ([GOOD, "b.png,good,,test,", BAD], True),
        ([GOOD, "b.png,good,,,", "f.png,bad,dent,,masks.png"], True),
        ([GOOD, "b.png,good,,,masks.png", "f.png,bad,,,"], True),
        ([GOOD, "b.png,good,,,", BAD, "e.png,ok,,,"], True),
    ],
)
def test_data_is_prepared_anew_when_the_list_says_something_else(
    folder: Path,
    open_list: Callable[..., Source],
    preparations: list[str],
    rows: list[str],
    is_prepared_anew: bool,
) -> None:
    open_list(write_list(folder, GOOD, "b.png,good,,,", BAD))
    open_list(write_list(folder, *rows))
    assert len(preparations) == 1 + is_prepared_anew


@pytest.mark.parametrize(
    ("name", "is_prepared_anew"), [("a.png", True), ("masks.png", True), ("e.png", False)]
)
def test_data_is_prepared_anew_when_a_file_of_the_list_changes(
    folder: Path,
    open_list: Callable[..., Source],
    preparations: list[str],
    name: str,
    is_prepared_anew: bool,
) -> None:
    labels = write_list(folder, GOOD, BAD)
    open_list(labels)
    write_image(folder / name, 250)
    open_list(labels)
    assert len(preparations) == 1 + is_prepared_anew


def test_lists_of_one_folder_are_kept_apart(
    folder: Path, open_list: Callable[..., Source], preparations: list[str]
) -> None:
    first = write_list(folder, GOOD).rename(folder / "first.csv")
    second = write_list(folder, GOOD, "b.png,bad,,,").rename(folder / "second.csv")
    for _ in range(2):
        assert [len(open_list(labels).examples) for labels in (first, second)] == [1, 2]
    assert len(preparations) == 2


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([GOOD, "notes.txt,bad,,,"], r"notes\.txt' is not an image of a known type"),
        ([GOOD, "f.png,bad,,,wide.png"], r"mask '.*wide\.png' is 9×4 .* '.*f\.png' is 6×4"),
        ([GOOD, "empty.png,ok,,,"], r"empty\.png' is empty"),
    ],
)
def test_files_that_cannot_be_used(
    folder: Path, open_list: Callable[..., Source], rows: list[str], message: str
) -> None:
    (folder / "notes.txt").write_text("no image")
    (folder / "empty.png").touch()
    write_image(folder / "wide.png", size=(9, 4))
    with pytest.raises(UserError, match=message) as error:
        open_list(write_list(folder, *rows))
    assert "\n" not in str(error.value)


def test_a_list_is_never_prepared_without_its_table(tmp_path: Path) -> None:
    assert not is_available("image_list", None, str(tmp_path))


def test_settings_that_do_not_fit_together(folder: Path, tmp_path: Path) -> None:
    labels = str(write_list(folder, GOOD))
    for name, given, message in (
        ("image_list", None, "'image_list' needs a list: set config.dataset.labels to a CSV file"),
        ("image_list", str(tmp_path / "none.csv"), "labels = '.*none.csv': no such file"),
        ("image_list", str(folder), "it is a folder, not a file"),
        ("image_list", "gs://bucket/labels.csv", "labels = .*copy it to a local disk"),
        ("image_folder", labels, "labels of its own; leave it unset, or set .*name=image_list"),
    ):
        with pytest.raises(UserError, match=re.compile(message)):
            open_source(name, labels=given, data_dir=str(tmp_path / "prepared"))
