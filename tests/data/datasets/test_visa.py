"""Tests of VisA: examples of its folders, masks and split table."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from devnet_jax.data.datasets.verify import verify
from devnet_jax.data.datasets.visa import Visa
from devnet_jax.data.decode import decode_mask
from devnet_jax.errors import UserError

NORMAL, ANOMALY = "Data/Images/Normal", "Data/Images/Anomaly"
TABLE = f"""object,split,label,image,mask
candle,train,normal,candle/{NORMAL}/0002.JPG,
candle,train,normal,candle/{NORMAL}/0000.JPG,
candle,test,normal,candle/{NORMAL}/0001.JPG,
candle,test,anomaly,candle/{ANOMALY}/000.JPG,candle/Data/Masks/Anomaly/000.png
candle,test,anomaly,candle/{ANOMALY}/001.JPG,candle/Data/Masks/Anomaly/001.png
pcb1,train,normal,pcb1/{NORMAL}/0000.JPG,
"""


@pytest.fixture
def visa(tmp_path: Path) -> Path:
    """The category candle in the published layout: 3 normal images, 2 anomalies with masks."""
    for folder in (NORMAL, ANOMALY, "Data/Masks/Anomaly"):
        (tmp_path / "candle" / folder).mkdir(parents=True)
    for name in ("Normal/0000", "Normal/0001", "Normal/0002", "Anomaly/000", "Anomaly/001"):
        Image.new("RGB", (3, 2)).save(tmp_path / f"candle/Data/Images/{name}.JPG")
    for i in range(2):
        mask = np.zeros((2, 3), np.uint8)
        mask[i, :2] = (1, 8)  # numbers of the defect kinds, as published
        Image.fromarray(mask).save(tmp_path / f"candle/Data/Masks/Anomaly/{i:03}.png")
    (tmp_path / "candle/image_anno.csv").write_text("image,label,mask\n")
    (tmp_path / "split_csv").mkdir()
    (tmp_path / "split_csv/1cls.csv").write_text(TABLE)
    return tmp_path


def test_the_split_of_the_table_is_used(visa):
    raw = Visa.read_raw(visa, "candle")
    assert [(e.path, e.label, e.defect, e.split) for e in raw.examples] == [
        (f"candle/{ANOMALY}/000.JPG", 1, "anomaly", "test"),
        (f"candle/{ANOMALY}/001.JPG", 1, "anomaly", "test"),
        (f"candle/{NORMAL}/0000.JPG", 0, "good", "train"),
        (f"candle/{NORMAL}/0001.JPG", 0, "good", "test"),
        (f"candle/{NORMAL}/0002.JPG", 0, "good", "train"),
    ]
    assert len(verify(raw)) == 5


def test_without_the_table_there_is_no_split(visa):
    (visa / "split_csv/1cls.csv").unlink()
    examples = Visa.read_raw(visa, "candle").examples
    assert [e.split for e in examples] == [None] * 5


def test_all_numbers_in_a_mask_are_defect(visa):
    masks = [e.mask for e in Visa.read_raw(visa, "candle").examples]
    assert masks[2:] == [None] * 3
    decoded = [decode_mask(mask.read_bytes(), mask.name) for mask in masks[:2]]
    np.testing.assert_array_equal(decoded[0], [[True, True, False], [False] * 3])
    np.testing.assert_array_equal(decoded[1], [[False] * 3, [True, True, False]])


def test_published_counts():
    counts = Visa.PUBLISHED_COUNTS
    assert list(counts) == list(Visa.CATEGORIES)
    assert sum(classes["good"] for classes in counts.values()) == 9621
    assert sum(classes["anomaly"] for classes in counts.values()) == 1200


def test_the_fingerprint_depends_on_the_table(visa):
    before = Visa.read_raw(visa, "candle").fingerprint
    (visa / "split_csv/1cls.csv").unlink()
    assert Visa.read_raw(visa, "candle").fingerprint != before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda f: (f / "candle").rename(f / "Candle"),
            r"no images in '.*Normal': expected .*VisA",
        ),
        (lambda f: (f / "candle" / NORMAL / "0001.JPG").unlink(), r"no file '.*0001\.JPG', which"),
        (lambda f: (f / "split_csv/1cls.csv").write_text("a,b\n1,2\n"), r"1cls\.csv', line 2: exp"),
        (
            lambda f: (f / "split_csv/1cls.csv").write_text(TABLE.replace("train", "val", 1)),
            r"1cls\.csv', line 2: expected object, split \(train or test\)",
        ),
    ],
)
def test_errors_of_wrong_layouts(visa, change, message):
    change(visa)
    with pytest.raises(UserError, match=message) as error:
        Visa.raw_examples(visa, "candle")
    assert "\n" not in str(error.value)
