"""Tests of labelled pictures to evaluate on: the layouts of folders, and lists."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from devnet_jax.data.labelled import LabelledPictures, read_labelled
from devnet_jax.data.preprocessing import Preprocessing
from devnet_jax.errors import UserError


def save(path: Path, value: int = 0, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(value).integers(0, 256, (6, 5, 3), np.uint8)
    Image.fromarray(pixels).save(path, **options)


def listed(folder: Path) -> dict[str, str]:
    return {example.path: example.defect for example in read_labelled(str(folder))}


def test_class_folders_alone(tmp_path: Path) -> None:
    for i, path in enumerate(
        ("OK/1.png", "normal/2.png", "good/3.png", "NG/4.png", "dent/a/5.png")
    ):
        save(tmp_path / path, i)
    Image.new("L", (5, 6), 255).save(tmp_path / "mask.png")
    (tmp_path / "ground_truth" / "dent" / "a").mkdir(parents=True)
    (tmp_path / "mask.png").rename(tmp_path / "ground_truth" / "dent" / "a" / "5_mask.png")
    assert listed(tmp_path) == {
        "OK/1.png": "good",
        "normal/2.png": "good",
        "good/3.png": "good",
        "NG/4.png": "NG",
        "dent/a/5.png": "dent",
    }
    pictures = LabelledPictures(read_labelled(str(tmp_path)), Preprocessing(6, 5))
    assert [example.path for example in pictures.examples if example.label == 0] == [
        "OK/1.png",
        "good/3.png",
        "normal/2.png",
    ]
    mask = pictures.mask("dent/a/5.png")
    assert mask is not None
    assert mask.all()
    assert pictures.mask("NG/4.png") is None


def test_train_and_test_both_count_and_nothing_beside_them(tmp_path: Path) -> None:
    for i, path in enumerate(("train/good/1.png", "train/dent/1.png", "test/dent/1.png")):
        save(tmp_path / path, i)
    save(tmp_path / "other" / "9.png", 9)
    # The mask belongs to the picture in test, as in training.
    (tmp_path / "ground_truth" / "dent").mkdir(parents=True)
    Image.new("L", (5, 6), 255).save(tmp_path / "ground_truth" / "dent" / "1_mask.png")
    examples = {example.path: example for example in read_labelled(str(tmp_path))}
    assert examples.keys() == {"train/good/1.png", "train/dent/1.png", "test/dent/1.png"}
    assert [path for path, one in examples.items() if one.mask] == ["test/dent/1.png"]


def test_pages_are_pictures_and_pixels_are_those_of_the_file(tmp_path: Path) -> None:
    pages = [
        Image.fromarray(np.random.default_rng(i).integers(0, 4096, (6, 5), np.uint16))
        for i in range(2)
    ]
    (tmp_path / "good").mkdir()
    pages[0].save(tmp_path / "good" / "stack.tif", save_all=True, append_images=pages[1:])
    preprocessing = Preprocessing(6, 5, white_level=4095)
    pictures = LabelledPictures(read_labelled(str(tmp_path)), preprocessing)
    paths = [example.path for example in pictures.examples]
    assert paths == ["good/stack.tif#1", "good/stack.tif#2"]
    batch = pictures.images(paths)
    for page, pixels, i in zip(pages, batch.pixels, range(2), strict=True):
        shown = np.asarray(page) / 4095 * 255
        np.testing.assert_allclose(pixels[..., 0], shown, atol=0.51)
        np.testing.assert_array_equal(np.asarray(batch.original(i)), pixels)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["1.png", "2.png"], "2 pictures lie directly in"),
        (["Test/good/1.png"], "differs from 'test' in case only"),
        ([], "no folder of good parts or of a defect: expected good/ and <defect>/"),
        (["good/1.png", "masks/1.png"], "holds masks by its name"),
    ],
)
def test_another_layout_is_refused(tmp_path: Path, files: list[str], message: str) -> None:
    for file in files:
        save(tmp_path / file)
    with pytest.raises(UserError, match=message):
        read_labelled(str(tmp_path))


def test_an_empty_class_folder_and_a_damaged_picture_are_named(tmp_path: Path) -> None:
    save(tmp_path / "good" / "1.png")
    (tmp_path / "dent").mkdir()
    with pytest.raises(UserError, match=r"no images in '.*dent'"):
        read_labelled(str(tmp_path))
    (tmp_path / "dent" / "2.png").write_bytes((tmp_path / "good" / "1.png").read_bytes()[:60])
    with pytest.raises(UserError, match=r"dent/2\.png"):
        read_labelled(str(tmp_path))


def test_a_list_counts_all_labelled_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(5):
        save(tmp_path / "pictures" / f"{i}.png", i)
    table = tmp_path / "labels.csv"
    rows = [
        "0.png,good,,train",
        "1.png,good,,test",
        "2.png,,dent,train",
        "3.png,,,",
        "4.png,unlabelled,,train",
    ]
    table.write_text("\n".join(["path,label,defect,split", *(f"pictures/{row}" for row in rows)]))
    expected = {"pictures/0.png": "good", "pictures/1.png": "good", "pictures/2.png": "dent"}
    assert listed(table) == expected
    # A list elsewhere, with paths from the current folder, as predictions.csv has.
    (tmp_path / "predicted").mkdir()
    elsewhere = table.rename(tmp_path / "predicted" / "labels.csv")
    monkeypatch.chdir(tmp_path)
    assert listed(elsewhere) == expected
    elsewhere.write_text("path,label\npictures/0.png,anomaly")
    assert listed(elsewhere) == {"pictures/0.png": "anomaly"}  # no good picture is needed


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("file,label\n1.png,good", "names no column 'path'"),
        ("path,label\n1.png,goood", "unknown label"),
        ("path,label\n1.png,\n", "no picture of the list has a label"),
        (
            "path,label\ngone.png,good",
            r"gone.png.*which start from '.*' \(the folder of the list\)",
        ),
    ],
)
def test_a_wrong_list_is_refused(tmp_path: Path, content: str, message: str) -> None:
    save(tmp_path / "1.png")
    (tmp_path / "labels.csv").write_text(content)
    with pytest.raises(UserError, match=message):
        read_labelled(str(tmp_path / "labels.csv"))


def test_neither_folder_nor_list(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder or list"):
        read_labelled(str(tmp_path / "no"))
    save(tmp_path / "1.png")
    with pytest.raises(UserError, match="no table of text"):
        read_labelled(str(tmp_path / "1.png"))
