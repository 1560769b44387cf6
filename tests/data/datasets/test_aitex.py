"""Tests of AITEX: patches of strips, their classes and masks."""

import io
import os
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from devnet_jax.data.datasets import crops
from devnet_jax.data.datasets.aitex import Aitex
from devnet_jax.data.datasets.builder import RawExample
from devnet_jax.data.datasets.verify import verify
from devnet_jax.data.paths import list_files
from devnet_jax.errors import UserError

RAMP = (np.arange(600) % 251 + np.arange(8)[:, None]).astype(np.uint8)  # a strip of 8×600


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, "PNG")


def mask(**columns: int) -> np.ndarray:
    """Returns a mask of a strip; `c300=7` sets grey level 7 in column 300."""
    pixels = np.zeros((8, 600), np.uint8)
    for name, level in columns.items():
        pixels[2:4, int(name[1:])] = level
    return pixels


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two strips without and five with defects, as irregular as the published archives."""
    save(tmp_path / "NODefect_images/2306881-210020u/0001_000_05.png", RAMP[:, :512])
    save(tmp_path / "NODefect_images/2608691-202020u/0018_00_01.png", RAMP[:, :512])
    for name in (
        "0001_002_00.png",
        "0044_019_04.png",
        "0094_027_05.PNG",
        "0100_025_08.png",
        "0106_010_03.png",
    ):
        save(tmp_path / "Defect_images" / name, RAMP)
    save(tmp_path / "Mask_images/0001_002_00_mask.png", mask(c255=255, c256=255, c511=255))
    save(tmp_path / "Mask_images/0044_019_04_mask1.png", mask(c3=255, c300=9))
    save(tmp_path / "Mask_images/0044_019_04_mask2.png", mask(c301=255))
    save(tmp_path / "Mask_images/0094_027_05_mask.PNG", mask(c599=1))
    save(tmp_path / "Mask_images/0106_010_03_mask.png", mask())
    return tmp_path


EXPECTED = [
    ("Defect_images/0001_002_00_00.png", 1, "Broken_end"),
    ("Defect_images/0001_002_00_01.png", 1, "Broken_end"),
    ("Defect_images/0044_019_04_00.png", 1, "Fuzzyball"),
    ("Defect_images/0044_019_04_01.png", 1, "Fuzzyball"),
    ("Defect_images/0094_027_05_02.png", 1, "Knots"),
    ("NODefect_images/2306881-210020u/0001_000_05_00.png", 0, "good"),
    ("NODefect_images/2306881-210020u/0001_000_05_01.png", 0, "good"),
    ("NODefect_images/2608691-202020u/0018_00_01_00.png", 0, "good"),
    ("NODefect_images/2608691-202020u/0018_00_01_01.png", 0, "good"),
]


def examples(folder: Path) -> dict[str, RawExample]:
    return {e.path: e for e in Aitex.read_raw(folder, None).examples}


def decode(part) -> tuple[str, np.ndarray]:
    """Returns the mode and the pixels of a part."""
    image = Image.open(io.BytesIO(part.make()))
    assert image.format == "PNG"
    return image.mode, np.asarray(image)


def nest(folder: Path, name: str) -> None:
    """Moves a folder into a new folder of the same name."""
    (folder / name).rename(folder / "moved")
    (folder / name).mkdir()
    (folder / "moved").rename(folder / name / name)


@pytest.mark.parametrize(
    "nested", [(), ("Defect_images", "Mask_images"), ("NODefect_images", "Mask_images")]
)
def test_patches_have_the_label_of_the_mask_and_the_name_of_the_strip(folder, nested):
    for name in nested:
        nest(folder, name)
    found = [(e.path, e.label, e.defect) for e in Aitex.read_raw(folder, None).examples]
    assert found == EXPECTED


def test_pixels_of_patches_and_masks(folder):
    found = examples(folder)
    mode, pixels = decode(found["Defect_images/0044_019_04_01.png"].image)
    assert mode == "L"
    np.testing.assert_array_equal(pixels, RAMP[:, 256:512])
    expected = np.zeros((8, 256), np.uint8)
    expected[2:4, 300 - 256] = expected[2:4, 301 - 256] = 255  # the union of both masks
    mode, pixels = decode(found["Defect_images/0044_019_04_01.png"].mask)
    assert mode == "L"
    np.testing.assert_array_equal(pixels, expected)
    assert found["NODefect_images/2306881-210020u/0001_000_05_00.png"].mask is None


def test_the_last_patch_may_be_narrower(folder):
    knots = examples(folder)["Defect_images/0094_027_05_02.png"]
    np.testing.assert_array_equal(decode(knots.image)[1], RAMP[:, 512:])
    expected = np.zeros((8, 88), np.uint8)
    expected[2:4, 87] = 255
    np.testing.assert_array_equal(decode(knots.mask)[1], expected)


def test_colours_are_preserved(folder):
    strip = np.stack([RAMP, RAMP // 2, RAMP // 3], axis=-1)
    save(folder / "Defect_images/0001_002_00.png", strip)
    mode, pixels = decode(examples(folder)["Defect_images/0001_002_00_01.png"].image)
    assert mode == "RGB"
    np.testing.assert_array_equal(pixels, strip[:, 256:512])


def test_strips_without_a_usable_mask_are_skipped_with_a_warning(folder, caplog):
    Aitex.raw_examples(folder, None)
    (warning,) = caplog.messages
    assert warning.startswith("skipped 2 defective strips without a mask")
    assert warning.endswith("0100_025_08.png, 0106_010_03.png")


def test_preparing_decodes_every_strip_once(folder, monkeypatch):
    raw = Aitex.read_raw(folder, None)
    n_decoded: Counter = Counter()
    decode_image = crops.decode_image

    def counting(data: bytes, path: str) -> np.ndarray:
        n_decoded[Path(path).parent.relative_to(folder).parts[0]] += 1
        time.sleep(0.01)  # time for another thread to make the next patch of the strip
        return decode_image(data, path)

    monkeypatch.setattr(crops, "decode_image", counting)
    verified = verify(raw)
    assert Counter((e.split, e.label) for e in verified) == {
        ("train", 0): 3,
        ("test", 0): 1,
        ("test", 1): 5,
    }
    assert n_decoded["NODefect_images"] == 2
    assert n_decoded["Defect_images"] == 3  # the strips with anomalies


def test_a_changed_strip_is_read_again(folder):
    path = "Defect_images/0001_002_00_00.png"
    before = decode(examples(folder)[path].image)[1]
    strip = folder / "Defect_images/0001_002_00.png"
    save(strip, 255 - RAMP)
    os.utime(strip, (1, 1))
    np.testing.assert_array_equal(decode(examples(folder)[path].image)[1], 255 - before)


@pytest.mark.parametrize(
    "name",
    [
        "Defect_images/0001_002_00.png",
        "Mask_images/0044_019_04_mask2.png",
        "Mask_images/0106_010_03_mask.png",  # black, so it belongs to no example
    ],
)
def test_the_fingerprint_depends_on_strips_and_masks(folder, name):
    before = Aitex.read_raw(folder, None).fingerprint
    with (folder / name).open("ab") as file:
        file.write(b"0")
    assert Aitex.read_raw(folder, None).fingerprint != before


def remove_files(folder: Path) -> None:
    for file in list_files(folder):
        file.unlink()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda f: remove_files(f / "NODefect_images"),
            r"no PNG images in '.*NODefect_images': expec",
        ),
        (lambda f: (f / "Defect_images").rename(f / "defects"), r"in '.*Defect_images': expected"),
        (lambda f: remove_files(f / "Mask_images"), r"no PNG images in '.*Mask_images': expected"),
        (
            lambda f: save(f / "Defect_images/0107_000_03.png", RAMP),
            r"0107_000_03\.png': expected a name like 0001_002_00\.png.*belong in NODefect_images",
        ),
        (lambda f: save(f / "Defect_images/crack.png", RAMP), r"crack\.png': expected a name"),
        (
            lambda f: save(f / "Mask_images/0044_019_04_mask2.png", mask()[:, :500]),
            r"mask '.*_mask2\.png' is 500×8 pixels but its image '.*0044_019_04\.png' is 600×8",
        ),
        (
            lambda f: (f / "Mask_images/0001_002_00_mask.png").write_bytes(b""),
            r"0001_002_00_mask\.png' is empty",
        ),
        (
            lambda f: (f / "Defect_images/0001_002_00.png").write_text("no image"),
            r"0001_002_00\.png' is damaged",
        ),
    ],
)
def test_errors_of_wrong_layouts(folder, change, message):
    change(folder)
    with pytest.raises(UserError, match=message) as error:
        Aitex.raw_examples(folder, None)
    assert "\n" not in str(error.value)


def test_the_error_of_a_damaged_strip_names_it(folder):
    strip = folder / "Defect_images/0001_002_00.png"
    strip.write_bytes(strip.read_bytes()[:-40])
    with pytest.raises(UserError, match=r"Defect_images/0001_002_00\.png' is truncated"):
        verify(Aitex.read_raw(folder, None))
