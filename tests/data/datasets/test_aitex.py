"""AITEX: strips of fabric → patches, their classes and masks."""

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
from devnet_jax.data.datasets.builder import RawExample, verify
from devnet_jax.data.paths import list_files
from devnet_jax.errors import UserError

RAMP = (np.arange(600) % 251 + np.arange(8)[:, None]).astype(np.uint8)  # a strip of 8×600


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, "PNG")


def mask(**columns: int) -> np.ndarray:
    """A mask of a strip: `c300=7` is the grey level 7 in column 300."""
    pixels = np.zeros((8, 600), np.uint8)
    for name, level in columns.items():
        pixels[2:4, int(name[1:])] = level
    return pixels


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two clean strips and five defective ones, with what is odd in the published archives."""
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


def decoded(part) -> tuple[str, np.ndarray]:
    image = Image.open(io.BytesIO(part.make()))
    assert image.format == "PNG"
    return image.mode, np.asarray(image)


def nest(folder: Path, name: str) -> None:
    (folder / name).rename(folder / "moved")
    (folder / name).mkdir()
    (folder / "moved").rename(folder / name / name)


@pytest.mark.parametrize(
    "nested", [(), ("Defect_images", "Mask_images"), ("NODefect_images", "Mask_images")]
)
def test_patches_are_labelled_by_the_masks_and_named_after_the_strip(folder, nested):
    for name in nested:
        nest(folder, name)
    found = [(e.path, e.label, e.defect) for e in Aitex.read_raw(folder, None).examples]
    assert found == EXPECTED


def test_patches_hold_the_strips_pixels_and_masks_the_union(folder):
    found = examples(folder)
    mode, pixels = decoded(found["Defect_images/0044_019_04_01.png"].image)
    assert mode == "L"
    np.testing.assert_array_equal(pixels, RAMP[:, 256:512])
    expected = np.zeros((8, 256), np.uint8)
    expected[2:4, 300 - 256] = expected[2:4, 301 - 256] = 255  # of both masks, grey or white
    mode, pixels = decoded(found["Defect_images/0044_019_04_01.png"].mask)
    assert mode == "L"
    np.testing.assert_array_equal(pixels, expected)
    assert found["NODefect_images/2306881-210020u/0001_000_05_00.png"].mask is None


def test_what_remains_at_the_right_end_is_a_narrower_patch(folder):
    knots = examples(folder)["Defect_images/0094_027_05_02.png"]
    np.testing.assert_array_equal(decoded(knots.image)[1], RAMP[:, 512:])
    expected = np.zeros((8, 88), np.uint8)
    expected[2:4, 87] = 255
    np.testing.assert_array_equal(decoded(knots.mask)[1], expected)


def test_colours_are_kept(folder):
    strip = np.stack([RAMP, RAMP // 2, RAMP // 3], axis=-1)
    save(folder / "Defect_images/0001_002_00.png", strip)
    mode, pixels = decoded(examples(folder)["Defect_images/0001_002_00_01.png"].image)
    assert mode == "RGB"
    np.testing.assert_array_equal(pixels, strip[:, 256:512])


def test_strips_without_a_usable_mask_are_named(folder, caplog):
    Aitex.raw_examples(folder, None)
    (warning,) = caplog.messages
    assert warning.startswith("2 defective strips are left out")
    assert warning.endswith("0100_025_08.png, 0106_010_03.png")


def test_prepared_with_every_strip_decoded_once(folder, monkeypatch):
    raw = Aitex.read_raw(folder, None)
    seen: Counter = Counter()
    decode = crops.decode_image

    def counting(data: bytes, path: str) -> np.ndarray:
        seen[Path(path).parent.relative_to(folder).parts[0]] += 1
        time.sleep(0.01)  # another thread asks for the next patch of the same strip
        return decode(data, path)

    monkeypatch.setattr(crops, "decode_image", counting)
    verified = verify(raw)
    assert Counter((e.split, e.label) for e in verified) == {
        ("train", 0): 3,
        ("test", 0): 1,
        ("test", 1): 5,
    }
    assert seen["NODefect_images"] == 2
    assert seen["Defect_images"] == 3  # those with anomalies


def test_a_changed_strip_is_read_again(folder):
    path = "Defect_images/0001_002_00_00.png"
    before = decoded(examples(folder)[path].image)[1]
    strip = folder / "Defect_images/0001_002_00.png"
    save(strip, 255 - RAMP)
    os.utime(strip, (1, 1))
    np.testing.assert_array_equal(decoded(examples(folder)[path].image)[1], 255 - before)


@pytest.mark.parametrize(
    "name",
    [
        "Defect_images/0001_002_00.png",
        "Mask_images/0044_019_04_mask2.png",
        "Mask_images/0106_010_03_mask.png",  # black: in no example, until it is mended
    ],
)
def test_the_fingerprint_follows_strips_and_masks(folder, name):
    before = Aitex.read_raw(folder, None).fingerprint
    os.utime(folder / name, (1, 1))
    assert Aitex.read_raw(folder, None).fingerprint != before


def remove(folder: Path) -> None:
    for file in list_files(folder):
        file.unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: remove(f / "NODefect_images"), r"no PNG images in '.*NODefect_images': expec"),
        (lambda f: (f / "Defect_images").rename(f / "defects"), r"in '.*Defect_images': expected"),
        (lambda f: remove(f / "Mask_images"), r"no PNG images in '.*Mask_images': expected"),
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
            r"0001_002_00\.png' is no image",
        ),
    ],
)
def test_wrong_layouts_say_what_to_do(folder, spoil, message):
    spoil(folder)
    with pytest.raises(UserError, match=message) as error:
        Aitex.raw_examples(folder, None)
    assert "\n" not in str(error.value)


def test_a_damaged_strip_is_named_when_it_is_prepared(folder):
    strip = folder / "Defect_images/0001_002_00.png"
    strip.write_bytes(strip.read_bytes()[:-40])
    with pytest.raises(UserError, match=r"Defect_images/0001_002_00\.png' is truncated"):
        verify(Aitex.read_raw(folder, None))
