"""Tests of Mastcam: examples of its folders, images of its arrays."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from devnet_jax.data.datasets.builder import LazyBytes
from devnet_jax.data.datasets.mastcam import Mastcam
from devnet_jax.data.datasets.verify import verify
from devnet_jax.data.decode import decode_image
from devnet_jax.errors import UserError


def save(file: Path, array: np.ndarray | None = None) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    np.save(file, np.full((4, 5, 6), 7.0) if array is None else array)


@pytest.fixture
def mars(tmp_path: Path) -> Path:
    """Unpacked archives: 3 + 2 typical, 2 novel classes that share an image, all/, validation."""
    for name in ("train_typical/a", "train_typical/b", "train_typical/c", "validation_typical/v"):
        save(tmp_path / f"{name}.npy")
    for name in ("test_typical/d", "test_typical/e"):
        save(tmp_path / f"{name}.npy")
    for name in ("drt/f", "drt/g", "dump-pile/f", "all/f", "all/g"):
        save(tmp_path / f"test_novel/{name}.npy")
    return tmp_path


LISTED = [
    ("test_novel/drt/f.npy", "test", 1, "drt"),
    ("test_novel/drt/g.npy", "test", 1, "drt"),
    ("test_novel/dump-pile/f.npy", "test", 1, "dump-pile"),
    ("test_typical/d.npy", "test", 0, "good"),
    ("test_typical/e.npy", "test", 0, "good"),
    ("train_typical/a.npy", "train", 0, "good"),
    ("train_typical/b.npy", "train", 0, "good"),
    ("train_typical/c.npy", "train", 0, "good"),
]


def listed(folder: Path) -> list[tuple]:
    return [(e.path, e.split, e.label, e.defect) for e in Mastcam.read_raw(folder, None).examples]


def as_unpacked(folder: Path) -> Path:
    return folder


def in_train_and_test(folder: Path) -> Path:
    for name in ("trainval/train_typical", "test/test_typical", "test/test_novel"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / Path(name).name).rename(folder / name)
    return folder


def one_folder_down(folder: Path) -> Path:
    for part in ("train_typical", "test_typical", "test_novel"):
        (folder / part).rename(folder / "part")
        (folder / part).mkdir()
        (folder / "part").rename(folder / part / part)
    return folder


def with_macos_files(folder: Path) -> Path:
    save(folder / "__MACOSX/train_typical/._a.npy")
    (folder / "mars").mkdir()
    for part in ("train_typical", "test_typical", "test_novel"):
        (folder / part).rename(folder / "mars" / part)
    return folder


@pytest.mark.parametrize(
    "change_layout", [as_unpacked, in_train_and_test, one_folder_down, with_macos_files]
)
def test_all_layouts_have_the_same_examples(mars, change_layout):
    assert listed(change_layout(mars)) == LISTED
    assert len(verify(Mastcam.read_raw(mars, None))) == len(LISTED)


def test_all_is_a_class_if_there_is_no_other(mars):
    for name in ("drt", "dump-pile"):
        (mars / "test_novel" / name).rename(mars / name)
    assert listed(mars)[:2] == [
        ("test_novel/all/f.npy", "test", 1, "all"),
        ("test_novel/all/g.npy", "test", 1, "all"),
    ]


def test_published_counts_are_those_of_the_archives():
    counts = Mastcam.PUBLISHED_COUNTS[None]
    assert counts["good"] == 9302 + 426
    assert sum(counts.values()) - counts["good"] == 451


def first_image(mars: Path, array: np.ndarray) -> np.ndarray:
    file = mars / "train_typical/a.npy"
    save(file, array)
    example = next(e for e in Mastcam.raw_examples(mars, None) if e.path.endswith("/a.npy"))
    assert isinstance(example.image, LazyBytes)
    assert example.image.source_files == (file,)
    data = example.image.make()
    assert data.startswith(b"\x89PNG")
    return decode_image(data, "a.png")


@pytest.mark.parametrize("dtype", ["uint8", "float64", "float32", "uint16"])
def test_the_first_three_bands_are_used(mars, dtype):
    bands = np.array([[[0, 100, 255, 9, 8, 7], [1, 2, 3, 6, 5, 4]]], dtype)
    np.testing.assert_array_equal(first_image(mars, bands), [[[0, 100, 255], [1, 2, 3]]])


def test_fractions_are_truncated_as_in_the_official_code(mars):
    np.testing.assert_array_equal(
        first_image(mars, np.array([[[1.4, 1.6, 254.9]]])), [[[1, 1, 254]]]
    )


def test_an_almost_black_array_is_not_taken_as_rescaled(mars):
    np.testing.assert_array_equal(first_image(mars, np.array([[[0.0, 1.0, 0.0]]])), [[[0, 1, 0]]])


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full((2, 2, 6), 0.5), r"a\.npy' has values from 0\.5 to 0\.5; .* 0 to 255"),
        (np.full((2, 2, 6), 256.0), r"a\.npy' has values from 256 to 256"),
        (np.full((2, 2, 6), -1), r"a\.npy' has values from -1 to -1"),
        (np.full((2, 2, 6), np.nan), r"a\.npy' has values from nan"),
        (np.zeros((2, 2)), r"a\.npy' has the shape \(2, 2\)"),
        (np.zeros((2, 2, 2)), r"a\.npy' has the shape \(2, 2, 2\)"),
        (np.zeros((2, 2, 3), bool), r"a\.npy' has the shape .* type bool"),
        (np.full((2, 2, 6), None), r"a\.npy' cannot be read"),
    ],
)
def test_errors_of_arrays_that_are_not_images(mars, array, message):
    np.save(mars / "train_typical/a.npy", array)
    with pytest.raises(UserError, match=message):
        verify(Mastcam.read_raw(mars, None))


@pytest.mark.parametrize("content", [b"", b"text", b"\x93NUMPY\x01\x00"])
def test_errors_of_damaged_arrays(mars, content):
    (mars / "train_typical/a.npy").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.npy' cannot be read"):
        verify(Mastcam.read_raw(mars, None))


def test_errors_of_truncated_arrays(mars):
    file = mars / "train_typical/a.npy"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(UserError, match=r"a\.npy' cannot be read"):
        verify(Mastcam.read_raw(mars, None))


def test_image_files_are_used_as_they_are(mars):
    image = io.BytesIO()
    Image.new("RGB", (5, 4), (9, 8, 7)).save(image, "PNG")
    (mars / "test_novel/drt/h.PNG").write_bytes(image.getvalue())
    example = next(e for e in Mastcam.raw_examples(mars, None) if e.path.endswith("h.PNG"))
    assert example.image == mars / "test_novel/drt/h.PNG"


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("train_typical", "no folder 'train_typical' .*zenodo"),
        ("test_typical", "no folder 'test_typical'"),
        ("test_novel", "no folder 'test_novel'"),
    ],
)
def test_errors_of_wrong_layouts(mars, part, message):
    (mars / part).rename(mars / "elsewhere")
    with pytest.raises(UserError, match=message):
        Mastcam.raw_examples(mars, None)


def test_novelties_without_a_class_are_an_error(mars):
    (mars / "test_novel").rename(mars / "elsewhere")
    save(mars / "test_novel/f.npy")
    with pytest.raises(UserError, match=r"no folder of images in '.*test_novel': expected"):
        Mastcam.raw_examples(mars, None)
