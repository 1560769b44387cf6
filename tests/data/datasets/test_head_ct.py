"""Tests of Head CT: examples of its table and images."""

from pathlib import Path

import pytest
from PIL import Image

from devnet_jax.data.datasets.head_ct import HeadCt
from devnet_jax.data.datasets.verify import verify
from devnet_jax.errors import UserError


def write_images(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(5):
        Image.new("L", (6, 4), i).save(folder / f"{i:03}.png")


# As published, with a space after each comma and without leading zeros.
TABLE = "id, hemorrhage\n0, 1\n1, 1\n2, 0\n3, 0\n4, 0\n"


@pytest.mark.parametrize(
    ("images", "table"),
    [
        ("head_ct/head_ct", "labels.csv"),
        ("head_ct", "labels.csv"),
        ("", "labels.csv"),
        ("head_ct", "head_ct/labels.csv"),
    ],
)
@pytest.mark.parametrize(
    "text", [TABLE, TABLE.replace(" ", ""), "\ufeff" + TABLE.replace("\n", "\r\n")]
)
def test_all_layouts_have_the_same_examples(tmp_path, images, table, text):
    write_images(tmp_path / images)
    (tmp_path / table).write_text(text, newline="")
    raw = HeadCt.read_raw(tmp_path, None)
    assert [(e.path, e.label, e.defect, e.split) for e in raw.examples] == [
        ("000.png", 1, "hemorrhage", None),
        ("001.png", 1, "hemorrhage", None),
        ("002.png", 0, "good", None),
        ("003.png", 0, "good", None),
        ("004.png", 0, "good", None),
    ]
    assert raw.examples[2].image == tmp_path / images / "002.png"
    examples = verify(raw)
    assert [e.split for e in examples].count("train") == 2


@pytest.fixture
def head(tmp_path: Path) -> Path:
    write_images(tmp_path / "head_ct/head_ct")
    (tmp_path / "labels.csv").write_text(TABLE)
    return tmp_path


def rewrite(folder: Path, old: str, new: str) -> None:
    (folder / "labels.csv").write_text(TABLE.replace(old, new))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "labels.csv").unlink(), r"no file '.*labels\.csv': expected .*kaggle"),
        (lambda f: (f / "head_ct/head_ct/002.png").unlink(), r"line 4: id 2 has no image"),
        (lambda f: rewrite(f, "4, 0", "3, 0"), r"line 6: id 3 .* has an earlier line"),
        (lambda f: rewrite(f, "4, 0\n", ""), r"1 images have no line in .* '.*004\.png'"),
        (lambda f: rewrite(f, "1, 1", "1, 2"), r"labels\.csv', line 3: expected .* 0 or 1"),
        (lambda f: rewrite(f, "1, 1", "1"), r"labels\.csv', line 3: expected"),
        (lambda f: rewrite(f, "1, 1", "one, 1"), r"labels\.csv', line 3: expected"),
        (lambda f: rewrite(f, "id, hemorrhage", "a;b"), r"labels\.csv', line 2: expected an id"),
        (lambda f: write_images(f / "copy"), r"two images with the same id, '.*000\.png' and '"),
    ],
)
def test_errors_of_tables_and_images_that_disagree(head, change, message):
    change(head)
    with pytest.raises(UserError, match=message) as error:
        HeadCt.raw_examples(head, None)
    assert "\n" not in str(error.value)


def test_the_fingerprint_depends_on_the_table(head):
    before = HeadCt.read_raw(head, None).fingerprint
    (head / "labels.csv").write_text(TABLE + "\n")
    assert HeadCt.read_raw(head, None).fingerprint != before
