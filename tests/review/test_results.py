"""Tests of what a review leaves: the table of labels, and folders laid out by it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from devnet_jax.data.datasets.builder import RawExample
from devnet_jax.data.datasets.image_folder import read_class_folders
from devnet_jax.data.datasets.label_list import read_list
from devnet_jax.errors import UserError
from devnet_jax.review.journal import Journal, Label
from devnet_jax.review.results import (
    Results,
    Row,
    commands,
    export_folders,
    read_labels,
    relative_path,
    safe_name,
    write_labels,
)
from devnet_jax.runtime.workdir import Workdir

NAMES = (
    "a.png",
    "sub/b, c.png",
    "sub/line\nend.png",
    "=cmd|calc.png",
    "'=marked.png",
    "+sum/-x.png",
    '"quoted".png',
    "写真 ü;.png",
    os.fsdecode(b"\xff\xfe.png"),
)

PLAIN = [name for name in NAMES if "\n" not in name]  # kept as they are when laid out


def draw(path: Path, value: int = 90) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 6), value, np.uint8)).save(path, "PNG")
    return path


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return Results(tmp_path / "work" / "review")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    for i, name in enumerate(NAMES):
        draw(folder / name, i)
    return folder


def by_path(examples: Sequence[RawExample]) -> dict[str, tuple[int, str, str | None, object]]:
    return {e.path: (e.label, e.defect, e.split, e.mask) for e in examples}


def test_the_table_is_read_as_it_was_written(results: Results, pictures: Path) -> None:
    mask = draw(results.masks / "=b,\n.png", 255)
    outside = draw(pictures.parent / "run" / "t.png")
    kinds = ("=1+1", "Kratzer, groß", "x\ty", "'", "<b>", "-5", "@", "'=x")
    rows = [Row(NAMES[0], "good", split="train")]
    rows += [
        Row(name, "anomaly", kind, "", str(mask))
        for name, kind in zip(NAMES[1:], kinds, strict=True)
    ]
    rows.append(Row(relative_path(outside, pictures), "good", split="test"))
    write_labels(results, pictures, [*rows, Row("gone.png")])
    assert not {path.name for path in results.path.iterdir()} - {
        "labels.csv",
        "pictures.json",
        "masks",
    }

    expected = {row.path: (1, row.defect, None, mask) for row in rows[1:-1]}
    expected[NAMES[0]] = (0, "good", "train", None)
    expected[str(outside)] = (0, "good", "test", None)
    assert by_path(read_list(results.labels, pictures)) == expected

    assert read_labels(results) == (pictures, [*rows, Row("gone.png")])
    Journal(results.journal).close()
    os.utime(results.labels)
    assert read_labels(results) == (pictures, [*rows, Row("gone.png")])


def test_labels_that_a_kill_kept_out_of_the_table_come_from_the_journal(
    results: Results, pictures: Path
) -> None:
    write_labels(results, pictures, [Row("a.png", "good"), Row("b.png", split="test")])
    with Journal(results.journal) as journal:
        journal.append(["a.png", "b.png"], Label("anomaly", "dent"))
        journal.append_mask("b.png", "masks/b.png.png")
        journal.append(["c.png"], Label("skip"))
        journal.append(["d.png"], Label("good"))
        journal.undo()
    os.utime(results.labels, ns=(0, 0))
    assert read_labels(results) == (
        pictures,
        [
            Row("a.png", "anomaly", "dent"),
            Row("b.png", "anomaly", "dent", "test", str(results.masks / "b.png.png")),
            Row("c.png"),
            Row("d.png"),
        ],
    )


def test_without_a_review_one_line_says_so(results: Results) -> None:
    with pytest.raises(UserError, match=r"no labels are there \(no labels\.csv\)"):
        read_labels(results)


def test_the_results_are_in_the_workdir_unless_told_otherwise(tmp_path: Path) -> None:
    workdir = Workdir(tmp_path / "run")
    assert Results.of(workdir, None).path == tmp_path / "run" / "review"
    assert Results.of(workdir, str(tmp_path / "elsewhere")).path == tmp_path / "elsewhere"
    with pytest.raises(UserError, match="--output"):
        Results.of(Workdir("gs://bucket/run"), None)


def test_folders_are_those_that_training_reads(pictures: Path, tmp_path: Path) -> None:
    mask = draw(tmp_path / "masks" / "m.png", 255)
    rows = [
        *(Row(name, "good") for name in PLAIN[:4]),
        Row(PLAIN[4], "good", split="test"),
        Row(PLAIN[5], "anomaly", "scratch"),
        Row(PLAIN[6], "anomaly", "scratch", "test", str(mask)),
        Row(PLAIN[7], "anomaly"),
        Row(NAMES[1]),
        Row("gone.png", "good"),
    ]
    out = tmp_path / "out"
    out.mkdir()  # an empty folder is taken
    before = {path: path.read_bytes() for path in pictures.rglob("*") if path.is_file()}
    line = export_folders(out, pictures, rows)
    assert "8 pictures" in line
    assert "train/good (4)" in line

    examples = by_path(read_class_folders(out, needs_test_images=False))
    assert examples == {
        **{f"train/good/{name}": (0, "good", "train", None) for name in PLAIN[:4]},
        f"test/good/{PLAIN[4]}": (0, "good", "test", None),
        f"train/scratch/{PLAIN[5]}": (1, "scratch", "train", None),
        f"test/scratch/{PLAIN[6]}": (
            1,
            "scratch",
            "test",
            out / "ground_truth/scratch" / PLAIN[6].replace(".png", "_mask.png"),
        ),
        f"train/anomaly/{PLAIN[7]}": (1, "anomaly", "train", None),
    }
    assert all(path.is_symlink() for path in out.rglob("*") if path.is_file())
    assert {path: path.read_bytes() for path in pictures.rglob("*") if path.is_file()} == before


def test_copies_are_independent_of_the_pictures(pictures: Path, tmp_path: Path) -> None:
    export_folders(tmp_path / "out", pictures, [Row("a.png", "good")], copies=True)
    copy = tmp_path / "out" / "train" / "good" / "a.png"
    assert not copy.is_symlink()
    assert copy.read_bytes() == (pictures / "a.png").read_bytes()
    copy.write_bytes(b"")
    assert (pictures / "a.png").stat().st_size


def test_pictures_on_another_file_system_are_copied(tmp_path: Path) -> None:
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK) or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs a second file system")
    picture = draw(memory / f"devnet_jax_test_{os.getpid()}.png")
    try:
        export_folders(tmp_path / "out", memory, [Row(picture.name, "good")])
    finally:
        picture.unlink()
    assert Image.open(tmp_path / "out" / "train" / "good" / picture.name).size == (6, 4)


HOSTILE_KINDS = (
    "../../escape",
    "/etc",
    "..",
    ".",
    "a/b",
    "a\\b",
    "a\nb",
    "\ud800",
    "\u202ecod",
    "good ",
    "Good",
    "CON",
    "nul.txt",
    ".hidden",
    "@eaDir",
    "lost+found",
    "~$x",
    "trailing.",
    "\U0001f9ff" * 80,
    "x" * 5000,
)


def test_hostile_kinds_and_names_stay_inside(tmp_path: Path) -> None:
    folder = tmp_path / "in" / "pictures"
    names = ["one.png", "../outside.png", str(tmp_path / "absolute.png"), "sub/../../up.png"]
    names += [".hidden.png", "Thumbs.db", "con.png", "a\\..\\b.png", "\n.png", "x" * 251 + ".png"]
    (folder / "sub").mkdir(parents=True)
    for name in names:
        draw(folder / name)
    rows = [Row("one.png", "good")]
    rows += [Row(name, "anomaly", kind) for name in names for kind in HOSTILE_KINDS]
    rows += [Row(name, "good", "", "../../../split") for name in names[1:]]
    before = sorted(tmp_path.rglob("*"))
    export_folders(tmp_path / "out", folder, rows)
    assert [
        path for path in sorted(tmp_path.rglob("*")) if tmp_path / "out" not in path.parents
    ] == [
        *before,
        tmp_path / "out",
    ]
    laid_out = read_class_folders(tmp_path / "out", needs_test_images=False)
    assert len(laid_out) == len(rows)
    assert len({e.defect for e in laid_out if e.label}) == len(HOSTILE_KINDS)
    assert sum(e.label == 0 for e in laid_out) == len(names)
    for example in laid_out:
        assert isinstance(example.image, Path)
        assert Image.open(example.image).size == (6, 4)


def test_pictures_that_differ_in_suffix_or_case_keep_their_own_masks(tmp_path: Path) -> None:
    names = ("a.png", "a.bmp.png", "A.png", "a.bmp")
    rows = []
    for i, name in enumerate(names):
        draw(tmp_path / "in" / name, i)
        mask = draw(tmp_path / "masks" / f"{i}.png", 100 + i)
        rows.append(Row(name, "anomaly", "dent", "test", str(mask)))
    draw(tmp_path / "in" / "good.png")
    rows.append(Row("good.png", "good"))
    export_folders(tmp_path / "out", tmp_path / "in", rows)
    found = [e for e in read_class_folders(tmp_path / "out", needs_test_images=False) if e.label]
    values = set()
    for example in found:
        assert isinstance(example.image, Path)
        assert isinstance(example.mask, Path)
        pixels = [np.asarray(Image.open(path))[0, 0] for path in (example.image, example.mask)]
        values.add((int(pixels[0]), int(pixels[1])))
    assert values == {(i, 100 + i) for i in range(4)}


def test_a_folder_that_is_not_empty_stays_as_it_is(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").touch()
    with pytest.raises(UserError, match=r"--export_folders=\S+: the folder is not empty"):
        export_folders(out, pictures, [Row("a.png", "good")])
    assert [path.name for path in out.iterdir()] == ["mine"]
    with pytest.raises(UserError, match="is a file"):
        export_folders(out / "mine", pictures, [Row("a.png", "good")])


def test_an_export_that_fails_leaves_nothing(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device", "x")

    monkeypatch.setattr(Path, "symlink_to", fail)
    with pytest.raises(UserError, match="No space left"):
        export_folders(tmp_path / "out", pictures, [Row("a.png", "good")])
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]


def test_plain_names_stay() -> None:
    for name in ("scratch", "Kratzer, groß", "写真", "<b>", "a.b c", os.fsdecode(b"\xff")):
        assert safe_name(name, is_kind=True) == name


def test_commands_can_be_pasted(tmp_path: Path) -> None:
    results = Results(tmp_path / "it's mine" / "review")
    for command in commands(results):
        assert f"""'--workdir={tmp_path}/it'"'"'s mine/review/detector'""" in command
