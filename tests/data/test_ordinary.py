"""Tests that pictures unlike the training pictures are named, and that others are not."""

from __future__ import annotations

import functools
import json

import numpy as np
import pytest

from devnet_jax.data.description import describe
from devnet_jax.data.ordinary import Ordinary
from tests.drawn import SIZE, blurred, defective, good, noise, stripes


@functools.cache
def ordinary(n: int, colour: bool = True) -> Ordinary:
    return Ordinary.of([describe(good(i, colour=colour)) for i in range(n)])


def made() -> dict[str, tuple[np.ndarray, str]]:
    """Returns odd pictures with their reasons, by name."""
    pixels = good(5000).astype(float)
    rng = np.random.default_rng(4)
    lens_cap = np.abs(rng.normal(0, 3, pixels.shape))
    odd = {
        "noise": (noise(SIZE, SIZE, 3), "noise"),
        "grey noise": (np.repeat(noise(SIZE, SIZE, 1), 3, axis=2), "noise"),
        "a noisy camera": (pixels + rng.normal(0, 40, pixels.shape), "grainy"),
        "black": (np.zeros_like(pixels), "nearly black"),
        "lens cap": (lens_cap, "nearly black"),
        "white": (np.full_like(pixels, 255), "nearly white"),
        "grey": (np.full_like(pixels, 128), "empty, of one colour"),
        "out of focus": (blurred(pixels.astype(np.uint8), 3), "blurred"),
        "dark": (pixels * 0.3, "darker than the training pictures"),
        "bright": (pixels * 1.8, "brighter than the training pictures"),
        "another part": (stripes(), "unlike the training pictures"),
        "another ground": (255 - pixels, "unlike the training pictures"),
    }
    return {name: (np.clip(p, 0, 255).astype(np.uint8), why) for name, (p, why) in odd.items()}


@pytest.mark.parametrize("n", [10, 100])
@pytest.mark.parametrize("name", made())
def test_odd_pictures_are_named(name: str, n: int) -> None:
    pixels, reason = made()[name]
    assert ordinary(n).reason(describe(pixels)) == reason


@pytest.mark.parametrize("n", [10, 100])
def test_good_and_defective_pictures_are_not_named(n: int) -> None:
    named = [ordinary(n).reason(describe(good(i))) for i in range(1000, 1400)]
    assert sum(map(bool, named)) <= 2  # 1 in 200
    named = [ordinary(n).reason(describe(defective(i))) for i in range(2000, 2100)]
    assert sum(map(bool, named)) <= 2


@pytest.mark.parametrize("n", [1, 2, 5])
def test_few_training_pictures_still_tell_noise_and_black(n: int) -> None:
    assert ordinary(n).reason(describe(noise(SIZE, SIZE, 3))) == "noise"
    assert ordinary(n).reason(describe(np.zeros((SIZE, SIZE, 3), np.uint8))) == "nearly black"
    named = [ordinary(n).reason(describe(good(i))) for i in range(1000, 1100)]
    assert sum(map(bool, named)) <= (10 if n == 1 else 1)


def test_no_training_picture_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Ordinary.of([])


def test_coloured_pictures_are_unlike_grey_ones() -> None:
    pixels = good(5000, colour=False)
    assert ordinary(50, colour=False).reason(describe(pixels)) == ""
    red = np.clip(pixels * np.array([1.5, 0.8, 0.7]), 0, 255).astype(np.uint8)
    assert ordinary(50, colour=False).reason(describe(red)) == "unlike the training pictures"


def test_a_data_set_of_two_products_knows_both_and_nothing_between() -> None:
    def second(i: int) -> np.ndarray:
        return 255 - good(i)

    both = [describe(f(i)) for i in range(30) for f in (good, second)]
    summary = Ordinary.of(both)
    assert [summary.reason(describe(f(700))) for f in (good, second)] == ["", ""]
    between = (good(701).astype(int) + second(702)) // 2
    assert summary.reason(describe(between.astype(np.uint8))) != ""


@pytest.mark.parametrize("n", [10, 100])
def test_a_black_picture_in_the_training_folder_does_not_make_black_ordinary(n: int) -> None:
    black = describe(np.zeros((SIZE, SIZE, 3), np.uint8))
    summary = Ordinary.of([black, *(describe(good(i)) for i in range(n))])
    assert summary.reason(black) == "nearly black"
    assert summary.reason(describe(noise(SIZE, SIZE, 3))) == "noise"


def test_order_and_copies_of_training_pictures_change_nothing() -> None:
    described = [describe(good(i)) for i in range(80)]
    expected = Ordinary.of(described).to_dict()
    assert Ordinary.of(described[::-1]).to_dict() == expected
    assert Ordinary.of(described + described[:40]).to_dict() == expected


def test_training_pictures_that_are_all_the_same_allow_a_little() -> None:
    summary = Ordinary.of([describe(good(0))] * 20)
    assert summary.reason(describe(good(0))) == ""
    assert summary.reason(describe(np.clip(good(0) + 2.0, 0, 255).astype(np.uint8))) == ""
    assert summary.reason(describe(noise(SIZE, SIZE, 3))) == "noise"


def test_the_saved_summary_is_small_and_gives_the_same_reasons() -> None:
    described = [describe(good(i)) for i in range(200)]
    summary = Ordinary.of(described, [(90, 96)] * 200)
    text = json.dumps(summary.to_dict())
    loaded = Ordinary.from_dict(json.loads(text))
    assert len(text) < 2**16
    assert loaded.to_dict() == summary.to_dict()
    for pixels, _ in made().values():
        description = describe(pixels)
        assert loaded.excess(description) == summary.excess(description)
        for size in ((90, 96), (480, 640), None):
            assert loaded.reason(description, size) == summary.reason(description, size)
    assert Ordinary.from_dict(json.loads(json.dumps(ordinary(10).to_dict()))).aspects is None


def of_sizes(sizes: list[tuple[int, int]]) -> Ordinary:
    return Ordinary.of([describe(good(i)) for i in range(len(sizes))], sizes)


@pytest.mark.parametrize("n", [1, 10, 60])
def test_another_size_is_named_where_sizes_are_fixed(n: int) -> None:
    description, summary = describe(good(500)), of_sizes([(900, 900)] * n)
    reason = "another size (640×480; the training pictures are 900×900)"
    assert summary.reason(describe(good(0)), (480, 640)) == reason
    for size in ((900, 900), (896, 905)):  # a few pixels cut
        assert summary.reason(describe(good(0)), size) == ""
    black = describe(np.zeros((SIZE, SIZE, 3), np.uint8))
    assert summary.reason(black, (480, 640)) == f"nearly black; {reason}"
    assert summary.reason(description, None) == summary.reason(description, (900, 900))


def test_pictures_of_two_cameras_have_two_sizes() -> None:
    summary = of_sizes([(900, 900)] * 8 + [(768, 1024)] * 4)
    assert [summary.reason(describe(good(500)), s) for s in ((900, 900), (768, 1024))] == ["", ""]
    assert summary.reason(describe(good(500)), (1024, 768)) == (
        "another size (768×1024; the training pictures are 900×900 or 1024×768)"
    )


def test_sizes_that_vary_are_not_named() -> None:
    rng = np.random.default_rng(5)
    sizes = [(int(height), int(width)) for height, width in rng.integers(200, 400, (30, 2))]
    summary = of_sizes(sizes)
    for size in ((480, 640), (251, 333), (1000, 1000)):
        assert summary.reason(describe(good(500)), size) == ""
    assert summary.reason(describe(good(500)), (100, 900)).startswith(
        "another aspect ratio (900×100; the training pictures' width is 0."
    )


def test_square_pictures_of_many_sizes_have_one_aspect_ratio() -> None:
    summary = of_sizes([(200 + i, 200 + i) for i in range(20)])
    assert summary.reason(describe(good(500)), (777, 777)) == ""
    assert summary.reason(describe(good(500)), (480, 640)) == (
        "another aspect ratio (640×480; the training pictures' width is 1.00 of the height)"
    )


def letterboxed(pixels: np.ndarray, side: int) -> np.ndarray:
    """Returns a picture in the middle of padding, as `Preprocessing` makes it with letterbox."""
    height, width = pixels.shape[:2]
    result = np.zeros((side, side, 4), np.uint8)
    result[..., :3] = (124, 116, 104)
    top, left = (side - height) // 2, (side - width) // 2
    result[top : top + height, left : left + width, :3] = pixels
    result[top : top + height, left : left + width, 3] = 255
    return result


def test_padding_does_not_count() -> None:
    flat, tall = good(0, height=60), good(1, width=40)
    for pixels in (flat, tall):
        np.testing.assert_array_equal(describe(letterboxed(pixels, SIZE)), describe(pixels))
    shapes = [(60, SIZE), (SIZE, 70), (SIZE, SIZE), (48, SIZE)]
    described = [
        describe(letterboxed(good(i, height=height, width=width), SIZE))
        for i in range(20)
        for height, width in shapes
    ]
    summary = Ordinary.of(described)
    assert summary.reason(describe(letterboxed(good(900, height=54), SIZE))) == ""
    assert summary.reason(describe(letterboxed(noise(54, SIZE, 3), SIZE))) == "noise"
    black = np.zeros((54, SIZE, 3), np.uint8)
    assert summary.reason(describe(letterboxed(black, SIZE))) == "nearly black"


@pytest.mark.parametrize("shape", [(1, 1), (1, 96), (96, 1), (3, 50), (7, 9)])
def test_slivers_are_described(shape: tuple[int, int]) -> None:
    description = describe(letterboxed(noise(*shape, 3), SIZE))
    assert description.shape == (8, 8, 7)
    assert ordinary(10).reason(description) != ""


def in_tiles(pixels: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Cuts a picture into tiles, [T, H, W, C]."""
    return np.stack(
        [tile for row in np.split(pixels, rows) for tile in np.split(row, columns, axis=1)]
    )


def test_tiles_are_described_as_one_picture() -> None:
    def tiled(pixels: np.ndarray) -> np.ndarray:
        return describe(in_tiles(pixels, 2, 3), columns=3)

    def large(seed: int) -> np.ndarray:
        return good(seed, height=128, width=144)

    apart = np.abs(tiled(large(0)).astype(int) - describe(large(0)))
    assert apart[..., :3].max() <= 1  # colours
    assert apart[..., 3].mean() < 4  # detail, but for differences across the edges of tiles
    summary = Ordinary.of([tiled(large(i)) for i in range(20)])
    assert summary.reason(tiled(large(900))) == ""
    assert summary.reason(tiled(noise(128, 144, 3))) == "noise"
    assert summary.reason(tiled(blurred(large(901), 4))) == "blurred"
    scratched = large(902).copy()
    scratched[10:40, 20:30] = 255
    assert summary.reason(tiled(scratched)) == ""


def test_padding_of_tiles_does_not_count() -> None:
    pixels = letterboxed(good(0, height=60), SIZE)
    tiles = in_tiles(pixels, 4, 2)  # the first and the last row of tiles are partly padding
    apart = np.abs(describe(tiles, columns=2).astype(int) - describe(pixels))
    assert apart[..., :3].mean() < 4
    empty = np.zeros((4, 8, 8, 4), np.uint8)
    assert not describe(empty, columns=2).any()


def test_many_tiles_are_described() -> None:
    tiles = noise(192, 32, 48, 3)
    description = describe(tiles, columns=16)
    np.testing.assert_allclose(description[..., :3], 127.5, atol=12)
