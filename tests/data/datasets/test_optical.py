"""Tests of Optical: the ten classes of DAGM 2007 as one data set."""

from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from devnet_jax.data.datasets.optical import Optical
from devnet_jax.data.datasets.verify import verify
from devnet_jax.errors import UserError


def save(path: Path, size=(4, 4)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, 255).save(path, "PNG")


def write_class(texture: Path) -> None:
    """Writes two images without and one with a defect to each part, numbered as published."""
    for part, first in (("Train", 576), ("Test", 1)):
        lines = ["1"]
        for number, defective in ((first, 0), (first + 1, 1), (first + 2, 0)):
            image, mask = f"{number:04d}.PNG", f"{number:04d}_label.PNG" if defective else "0"
            save(texture / part / image)
            if defective:
                save(texture / part / "Label" / mask)
            else:
                (texture / part / "Label").mkdir(exist_ok=True)
            lines.append(f"{number}\t{defective}\t{image}\t0\t{mask}")
        (texture / part / "Label/Labels.txt").write_text("\r\n".join(lines) + "\r\n")


def published(root: Path) -> list[Path]:
    return [root / f"Class{n}" for n in range(1, 11)]


def nested(root: Path) -> list[Path]:
    return [root / f"Class{n}" / f"Class{n}" for n in range(1, 11)]


def in_the_archives_folder(root: Path) -> list[Path]:
    return published(root / "DAGM_KaggleUpload")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for texture in published(tmp_path):
        write_class(texture)
    return tmp_path


@pytest.mark.parametrize("layout", [published, nested, in_the_archives_folder])
def test_ten_classes_are_pooled(tmp_path, layout):
    textures = layout(tmp_path)
    for texture in textures:
        write_class(texture)
    examples = Optical.read_raw(tmp_path, None).examples
    assert Counter((e.split, e.label, e.defect) for e in examples) == {
        (None, 0, "good"): 40,
        **{(None, 1, f"Class{n}"): 2 for n in range(1, 11)},
    }
    found = {e.path: e for e in examples}
    assert len(found) == 60
    anomaly, normal = found["Class10/Train/0577.PNG"], found["Class10/Test/0001.PNG"]
    assert anomaly.image == textures[9] / "Train/0577.PNG"
    assert anomaly.mask == textures[9] / "Train/Label/0577_label.PNG"
    assert normal.mask is None


def test_a_quarter_of_the_normal_images_is_tested(folder):
    verified = verify(Optical.read_raw(folder, None))
    assert Counter((e.split, e.label) for e in verified) == {
        ("train", 0): 30,
        ("test", 0): 10,
        ("test", 1): 20,
    }


def test_published_counts():
    (counts,) = Optical.PUBLISHED_COUNTS.values()
    assert counts["good"] == 10500 + 3500
    assert sum(counts.values()) == 6 * 1150 + 4 * 2300


def test_file_names_may_differ_from_the_table_in_case(folder):
    part = folder / "Class3/Test"
    (part / "0002.PNG").rename(part / "0002.png")
    (part / "Label/0002_label.PNG").rename(part / "Label/0002_label.png")
    found = {e.path: e for e in Optical.raw_examples(folder, None)}
    assert found["Class3/Test/0002.PNG"].image == part / "0002.png"
    assert found["Class3/Test/0002.PNG"].mask == part / "Label/0002_label.png"


def test_an_anomaly_may_have_no_mask(folder):
    table = folder / "Class1/Test/Label/Labels.txt"
    table.write_text("1\n2\t1\t0002.PNG\t0\t0\n")
    found = {e.path: e for e in Optical.raw_examples(folder, None)}
    assert found["Class1/Test/0002.PNG"].label == 1
    assert found["Class1/Test/0002.PNG"].mask is None


def test_the_fingerprint_depends_on_the_tables(folder):
    before = Optical.read_raw(folder, None).fingerprint
    with (folder / "Class7/Test/Label/Labels.txt").open("a") as file:
        file.write("\n")
    assert Optical.read_raw(folder, None).fingerprint != before


def write_table(text: str):
    return lambda folder: (folder / "Class2/Test/Label/Labels.txt").write_text(text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda f: (f / "Class7").rename(f / "class_7"),
            r"no file '.*Class7/Train/Label/Labels\.txt': expected Class1/ to Class10/.*zenodo",
        ),
        (
            lambda f: (f / "Class2/Test/0003.PNG").unlink(),
            r"Labels\.txt', line 4: no file '.*Class2/Test/0003\.PNG': restore it",
        ),
        (
            lambda f: (f / "Class2/Test/Label/0002_label.PNG").unlink(),
            r"line 3: no file '.*Class2/Test/Label/0002_label\.PNG': restore it",
        ),
        (
            write_table("1\n1\t2\t0001.PNG\t0\t0\n"),
            r"Labels\.txt', line 2: expected a number, 0 or",
        ),
        (write_table("1,0,0001.PNG\n1 0 0001.PNG\n"), r"line 2: .* not '1 0 0001\.PNG'"),
    ],
)
def test_errors_of_wrong_layouts(folder, change, message):
    change(folder)
    with pytest.raises(UserError, match=message):
        Optical.raw_examples(folder, None)
