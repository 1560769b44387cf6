"""Tests of SDD: thirds of images, labelled by their masks."""

import io
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from devnet_jax.data.datasets.sdd import Sdd
from devnet_jax.data.datasets.verify import verify
from devnet_jax.errors import UserError


def save(image: Path, height: int, *defective_rows: int, level: int = 255) -> None:
    """Writes an image of 6 columns and its mask, not black in columns 1 and 2 of some rows."""
    image.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(height).integers(0, 256, (height, 6), np.uint8)
    Image.fromarray(pixels).save(image, "JPEG")
    mask = np.zeros((height, 6), np.uint8)
    mask[list(defective_rows), 1:3] = level
    suffix = ".bmp" if image.suffix.islower() else ".BMP"
    Image.fromarray(mask).save(image.with_name(f"{image.stem}_label{suffix}"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(tmp_path / "kos01/Part0.jpg", 9)
    save(tmp_path / "kos01/Part1.jpg", 10, 2)  # cut into rows 0 to 2, 3 to 5 and 6 to 9
    save(tmp_path / "kos02/Part0.jpg", 11, 6, 7, level=1)  # 0 to 2, 3 to 6 and 7 to 10
    (tmp_path / "kos02/Thumbs.db").write_bytes(b"x")
    (tmp_path / "license.txt").write_text("x")
    return tmp_path


EXPECTED = [
    ("kos01/Part0_0.png", 0, "good"),
    ("kos01/Part0_1.png", 0, "good"),
    ("kos01/Part0_2.png", 0, "good"),
    ("kos01/Part1_0.png", 1, "defect"),
    ("kos01/Part1_1.png", 0, "good"),
    ("kos01/Part1_2.png", 0, "good"),
    ("kos02/Part0_0.png", 0, "good"),
    ("kos02/Part0_1.png", 1, "defect"),
    ("kos02/Part0_2.png", 1, "defect"),
]


def listed(folder: Path) -> list[tuple]:
    return [(e.path, e.label, e.defect) for e in Sdd.read_raw(folder, None).examples]


def pixels(part) -> np.ndarray:
    image = Image.open(io.BytesIO(part.make()))
    assert (image.format, image.mode) == ("PNG", "L")
    return np.asarray(image)


def test_thirds_are_labelled_by_the_mask(folder):
    assert listed(folder) == EXPECTED


def test_nested_folders_and_upper_case_extensions(folder, tmp_path):
    inner = tmp_path / "KolektorSDD"
    inner.mkdir()
    for name in ("kos01", "kos02"):
        (folder / name).rename(inner / name)
    (inner / "kos01/Part0.jpg").unlink()
    (inner / "kos01/Part0_label.bmp").unlink()
    save(inner / "kos01/Part0.JPG", 9)
    assert listed(tmp_path) == EXPECTED


def test_pixels_of_thirds_and_masks(folder):
    found = {e.path: e for e in Sdd.read_raw(folder, None).examples}
    image = np.asarray(Image.open(folder / "kos02/Part0.jpg"))
    for number, rows in enumerate((slice(0, 3), slice(3, 7), slice(7, 11))):
        np.testing.assert_array_equal(pixels(found[f"kos02/Part0_{number}.png"].image), image[rows])
    expected = np.zeros((4, 6), np.uint8)
    expected[3, 1:3] = 255
    np.testing.assert_array_equal(pixels(found["kos02/Part0_1.png"].mask), expected)
    expected = np.zeros((4, 6), np.uint8)
    expected[0, 1:3] = 255
    np.testing.assert_array_equal(pixels(found["kos02/Part0_2.png"].mask), expected)
    assert found["kos02/Part0_0.png"].mask is None


def test_a_quarter_of_the_normal_parts_is_tested(folder):
    verified = verify(Sdd.read_raw(folder, None))
    assert Counter((e.split, e.label) for e in verified) == {
        ("train", 0): 4,
        ("test", 0): 2,
        ("test", 1): 3,
    }


def test_the_fingerprint_depends_on_black_masks(folder):
    before = Sdd.read_raw(folder, None).fingerprint
    with (folder / "kos01/Part0_label.bmp").open("ab") as file:
        file.write(b"0")
    assert Sdd.read_raw(folder, None).fingerprint != before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda f: (f / "kos01/Part1_label.bmp").unlink(),
            r"no mask '.*kos01/Part1_label\.bmp' of '.*kos01/Part1\.jpg': restore it",
        ),
        (
            lambda f: Image.new("L", (6, 9)).save(f / "kos01/Part1_label.bmp"),
            r"mask '.*Part1_label\.bmp' is 6×9 pixels but its image '.*Part1\.jpg' is 6×10",
        ),
    ],
)
def test_errors_of_wrong_masks(folder, change, message):
    change(folder)
    with pytest.raises(UserError, match=message):
        Sdd.raw_examples(folder, None)


def test_the_error_of_an_empty_folder_has_the_url(tmp_path):
    Image.new("L", (6, 9)).save(tmp_path / "Part0.jpg")
    with pytest.raises(UserError, match=r"no images kos<NN>/Part<N>\.jpg in .*vicos\.si"):
        Sdd.raw_examples(tmp_path, None)
