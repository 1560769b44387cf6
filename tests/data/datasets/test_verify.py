"""Tests of the verification of raw data sets: pages, masks, depths, and the naming of faults."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from devnet_jax.config import DatasetConfig
from devnet_jax.data.datasets.builder import RawDataset, RawExample, read_content
from devnet_jax.data.datasets.image_folder import ImageFolder
from devnet_jax.data.datasets.verify import verify, white_level
from devnet_jax.data.decode import decode_image, decode_mask
from devnet_jax.data.few_shot import FewShotDataset
from devnet_jax.errors import UserError
from tests.conftest import make_parts


def example(path: Path, mask: Path | None = None, label: int = 0) -> RawExample:
    return RawExample(path.name, label, "dent" if label else "good", path, mask, "test")


def verify_all(*examples: RawExample) -> list[RawExample]:
    train = RawExample("t", 0, "good", examples[0].image, split="train")
    raw = RawDataset("set", [train, *examples], "", needs_test_images=False)
    return [found for found in verify(raw) if found.split == "test"]


def save(array: np.ndarray, path: Path, **options: object) -> Path:
    Image.fromarray(array).save(path, **options)
    return path


def save_pages(arrays: list[np.ndarray], path: Path) -> Path:
    first, *others = map(Image.fromarray, arrays)
    first.save(path, save_all=True, append_images=others)
    return path


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_each_page_is_an_example_with_its_mask(tmp_path: Path, dtype: type) -> None:
    pages = [np.full((4, 6), value, dtype) for value in (10, 20, 30)]
    masks = [np.zeros((4, 6), np.uint8) for _ in pages]
    masks[1][2, 3] = 255
    image = save_pages(pages, tmp_path / "stack.tif")
    found = verify_all(example(image, save_pages(masks, tmp_path / "masks.tif"), 1))
    assert [e.path for e in found] == ["stack.tif#1", "stack.tif#2", "stack.tif#3"]
    assert len({e.digest for e in found}) == 3  # although 16 bits of so small values are all black
    for e, page, mask in zip(found, pages, masks, strict=True):
        assert isinstance(e.image, bytes)
        assert isinstance(e.mask, bytes)
        level = 0 if dtype == np.uint8 else 255
        assert (decode_image(e.image, "a", white_level=level) == page[..., None]).all()
        assert (decode_mask(e.mask, "a") == (mask > 0)).all()
    with pytest.raises(UserError, match=r"mask '.*one\.png' has 1 pages but .*stack\.tif' has 3"):
        verify_all(example(image, save(masks[0], tmp_path / "one.png"), 1))


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("size", [(6, 4), (6, 6)])
def test_masks_that_may_lie_otherwise_than_their_image(
    tmp_path: Path, orientation: int, size: tuple[int, int]
) -> None:
    """A mask without the orientation of its image is taken only if its size tells that it fits."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.zeros((*size[::-1], 3), np.uint8)
    image = save(stored, tmp_path / "a.jpg", exif=exif)
    upright = stored.swapaxes(0, 1) if orientation >= 5 else stored
    same = example(image, save(stored[..., 0], tmp_path / "same.png", exif=exif), 1)
    assert len(verify_all(same)) == 1
    message = rf"EXIF orientation {orientation} and its mask .*plain\.png"
    with pytest.raises(UserError, match=message):
        verify_all(example(image, save(stored[..., 0], tmp_path / "plain.png"), 1))
    drawn = example(image, save(upright[..., 0], tmp_path / "plain.png"), 1)
    if orientation >= 5 and size == (6, 4):
        assert len(verify_all(drawn)) == 1
    else:
        with pytest.raises(UserError, match=message):
            verify_all(drawn)


def test_all_faults_are_named_at_once(tmp_path: Path) -> None:
    good = save(np.zeros((4, 4), np.uint8), tmp_path / "good.png")
    pointer, zeros, phone = (tmp_path / name for name in ("a.png", "b.png", "c.heic"))
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    zeros.write_bytes(bytes(3000))
    phone.write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    with pytest.raises(UserError) as raised:
        verify_all(example(good), *map(example, (pointer, zeros, phone)))
    for part in (
        r"^3 files cannot be used: ",
        r"a\.png' is a Git LFS pointer.*git lfs pull",
        r"b\.png' contains only zeros",
        r"c\.heic' is a HEIC image, which cannot be read: convert it",
    ):
        assert re.search(part, str(raised.value))
    many = [example(pointer)] * 12
    with pytest.raises(UserError, match=r"^12 files .*(; .*){9}; and 2 more$"):
        verify_all(example(good), *many)


def test_a_page_with_the_name_of_another_file_is_an_error(tmp_path: Path) -> None:
    pages = [np.full((4, 6), value, np.uint8) for value in (10, 20)]
    image = example(save_pages(pages, tmp_path / "stack.tif"))
    other = example(save(pages[0], tmp_path / "stack.tif#1", format="PNG"))
    with pytest.raises(
        UserError, match=r"^'stack\.tif#1' is a file, and .* page 1 of 'stack\.tif'"
    ):
        verify_all(image, other)


def masked(folder: Path, *shares: float) -> list[RawExample]:
    """Returns anomalies whose masks cover these shares of them."""
    examples = []
    for n, share in enumerate(shares):
        mask = np.zeros((10, 10), np.uint8)
        mask.flat[: round(100 * share)] = 255
        image = save(np.full((10, 10, 3), n, np.uint8), folder / f"{n}.png")
        examples.append(example(image, save(mask, folder / f"{n}_mask.png"), 1))
    return examples


@pytest.mark.parametrize(
    ("shares", "words"),
    [
        ((0.9, 0.8, 0.1), "cover 80 % of their pictures (median), for example that of '0.png'"),
        ((0.1, 0.0, 0.0), "2 masks of anomalies are empty, for example that of '1.png'"),
        ((1.0, 0.3, 0.01), None),
    ],
)
def test_inverted_and_empty_masks_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, shares: tuple[float, ...], words: str | None
) -> None:
    verify_all(*masked(tmp_path, *shares))
    assert len(caplog.messages) == (words is not None)
    assert words is None or words in caplog.text


def test_grey_levels_of_masks_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    image = save(np.zeros((8, 24, 3), np.uint8), tmp_path / "a.png")
    levels = np.repeat(np.array([[0, 85, 255]], np.uint8), 8, axis=0).repeat(8, axis=1)
    levels[4:] = 0
    verify_all(example(image, save(levels, tmp_path / "m.png"), 1))
    (message,) = caplog.messages
    assert "1 masks have areas of several grey levels (85)" in message
    assert "'a.png'" in message


@pytest.mark.parametrize(
    ("highest", "white"),
    [(200, 255), (1023, 1023), (1024, 4095), (4095, 4095), (16383, 16383), (16384, 0), (65535, 0)],
)
def test_the_white_level_is_that_of_the_smallest_camera_depth(highest: int, white: int) -> None:
    examples = [RawExample("a", 0, "good", b"", highest=h) for h in (None, 7, highest)]
    assert white_level(examples) == white
    assert white_level(examples[:1]) == 0


def test_10_bits_in_16_keep_their_grey_levels(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scale is taken from the data set, logged, and kept with the split when the set grows."""
    monkeypatch.setattr("devnet_jax.data.decode.rgb._has_warned", threading.Event())
    caplog.set_level("INFO")
    folder = make_parts(tmp_path / "parts")
    for file in folder.rglob("*.png"):
        grey = np.asarray(Image.open(file).convert("L")).astype(np.uint16) * 4
        Image.fromarray(grey).save(file)
    settings = DatasetConfig(
        name="image_folder",
        manual_dir=str(folder),
        data_dir=str(tmp_path / "prepared"),
        image_size="40x48",
        n_anomaly=2,
    )
    dataset = FewShotDataset.draw(settings, 0)
    assert dataset.split.white_level == 1023
    assert any("1023 is taken as white" in message for message in caplog.messages)
    assert not any("looks dark" in message for message in caplog.messages)
    (path,) = dataset.split.train_anomaly[:1]
    pixels = dataset.images([path]).pixels[0, ..., 0]
    stored = np.asarray(Image.open(folder / path))
    np.testing.assert_array_equal(pixels, np.rint(stored * (255 / 1023)))
    bright = np.full((40, 48), 4000, np.uint16)
    Image.fromarray(bright).save(folder / "train/good/bright.png")
    caplog.clear()
    # A run that goes on, or is evaluated, keeps its level and says so; not that another is used.
    again = FewShotDataset.reopen(settings, dataset.split)
    assert again.preprocessing.white_level == 1023
    np.testing.assert_array_equal(again.images([path]).pixels[0, ..., 0], pixels)
    assert any("up to 4095, but 1023 stays white" in message for message in caplog.messages)
    assert not any("taken as white" in message for message in caplog.messages)
    # A detector that learns anew takes the new one.
    grown = FewShotDataset.regrow(settings, dataset.split)
    assert grown.has_grown
    assert grown.split.white_level == grown.preprocessing.white_level == 4095
    expected = np.rint(stored * (255 / 4095))
    np.testing.assert_array_equal(grown.images([path]).pixels[0, ..., 0], expected)
    assert any("4095 is taken as white" in message for message in caplog.messages)


def test_learning_anew_keeps_a_white_level_that_is_set(tmp_path: Path) -> None:
    folder = make_parts(tmp_path / "parts")
    settings = DatasetConfig(
        name="image_folder",
        manual_dir=str(folder),
        data_dir=str(tmp_path / "prepared"),
        image_size=8,
        n_anomaly=2,
        white_level=255,
    )
    split = FewShotDataset.draw(settings, 0).split
    save(np.full((40, 48), 4000, np.uint16), folder / "train/good/bright.png")
    assert FewShotDataset.regrow(settings, split).preprocessing.white_level == 255


def test_inverted_10_bits_show_their_levels(tmp_path: Path) -> None:
    """X-ray films of 10 bits in 16, 0 as white: in one file each, and as pages of one file."""
    stored = np.array([[0, 1023, 512, 100]], np.uint16)
    expected = np.array([[255, 0, 127, 230]])  # 255 - stored * 255 / 1023
    pages = tmp_path / "stack.tif"
    tifffile.imwrite(pages, np.stack([stored, stored[:, ::-1]]), photometric="miniswhite")
    single = tmp_path / "one.tif"
    tifffile.imwrite(single, stored, photometric="miniswhite")
    found = verify_all(example(single), example(pages))
    level = white_level(found)
    assert level == 1023
    for e, values in zip(found, (expected, expected, expected[:, ::-1]), strict=True):
        content = e.image if isinstance(e.image, bytes) else Path(str(e.image)).read_bytes()
        assert (decode_image(content, "a.tif", white_level=level)[..., 0] == values).all()


def test_pages_keep_their_depth_and_their_transparency(tmp_path: Path) -> None:
    colours = np.array([[[0] * 3, [1023] * 3, [512] * 3, [0] * 3]], np.uint16)
    alpha = np.array([[65535, 65535, 65535, 0]], np.uint16)[..., None]
    file = tmp_path / "stack.tif"
    pixels = np.stack([np.concatenate([colours, alpha], -1)] * 2)
    tifffile.imwrite(file, pixels, photometric="rgb", extrasamples=["unassalpha"])
    found = verify_all(example(file))
    assert white_level(found) == 1023
    for e in found:
        decoded = decode_image(e.image, "a", white_level=1023)
        assert decoded[0, :, 0].tolist() == [0, 255, 128, 255]


def test_a_white_level_of_the_settings_is_used(tmp_path: Path) -> None:
    settings = DatasetConfig(
        name="image_folder",
        manual_dir=str(make_parts(tmp_path / "parts")),
        data_dir=str(tmp_path / "prepared"),
        image_size=8,
        n_anomaly=2,
        white_level=4095,
    )
    assert FewShotDataset.draw(settings, 0).preprocessing.white_level == 4095


def test_a_folder_of_pages_trains(tmp_path: Path) -> None:
    folder = make_parts(tmp_path / "parts")
    pages = [np.full((8, 8), value, np.uint8) for value in range(3)]
    save_pages(pages, folder / "train/good/stack.tif")
    paths = [e.path for e in verify(ImageFolder.read_raw(folder, None)) if "stack" in e.path]
    assert paths == [f"train/good/stack.tif#{n}" for n in (1, 2, 3)]


def test_single_pages_are_examples_with_masks_of_their_own(tmp_path: Path) -> None:
    pages = [np.full((4, 6), value, np.uint8) for value in (10, 20, 30)]
    masks = [np.zeros((4, 6), np.uint8) for _ in pages]
    masks[0][2, 3] = masks[1][1, 1] = 255
    stack = save_pages(pages, tmp_path / "stack.tif")
    drawn = save_pages(masks, tmp_path / "masks.tif")
    third, second = (stack.with_name(f"stack.tif#{n}") for n in (3, 2))
    alone = save(pages[0], tmp_path / "alone.png")
    found = verify_all(
        example(third, drawn.with_name("masks.tif#1"), 1),
        example(second),
        example(alone, drawn.with_name("masks.tif#2"), 1),
    )
    assert [e.path for e in found] == ["stack.tif#3", "stack.tif#2", "alone.png"]
    assert [decode_image(read_content(e.image), "a")[0, 0, 0] for e in found] == [30, 20, 10]
    assert [e.mask and np.argwhere(decode_mask(e.mask, "a")).tolist() for e in found] == [
        [[2, 3]],
        None,
        [[1, 1]],
    ]
    with pytest.raises(UserError, match=r"mask '.*masks\.tif' has 3 pages but .*tif#3' has 1"):
        verify_all(example(third, drawn))


def test_files_that_are_no_images_are_errors_where_each_is_named(tmp_path: Path) -> None:
    image = save(np.zeros((4, 6), np.uint8), tmp_path / "a.png")
    (tmp_path / "notes.txt").write_text("no image")
    examples = [example(image), RawExample("t", 0, "good", tmp_path / "notes.txt", split="train")]
    raw = RawDataset("set", examples, "", needs_test_images=False, skips_other_files=False)
    with pytest.raises(UserError, match=r"notes\.txt' is not an image .*: convert"):
        verify(raw)


def test_masks_of_normal_images_that_show_defects_are_named(tmp_path: Path, caplog) -> None:
    mask = np.zeros((4, 6), np.uint8)
    image, empty = save(mask, tmp_path / "a.png"), save(mask, tmp_path / "empty.png")
    mask[1:3] = 255
    drawn = save(mask, tmp_path / "mask.png")
    verify_all(example(image, empty))
    assert caplog.messages == []
    verify_all(example(image, drawn))
    (message,) = caplog.messages
    assert "1 masks of normal images show defects, for example that of 'a.png'" in message
