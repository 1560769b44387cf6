"""Tests of the way from a picture to the network's input and back."""

import dataclasses
import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from devnet_jax.config import Config, DatasetConfig
from devnet_jax.data.decode import decode_image, fit_image
from devnet_jax.data.preprocessing import (
    PADDING,
    Box,
    Preprocessing,
    network_input,
    normalise,
)
from devnet_jax.errors import UserError
from devnet_jax.notation import parse_region, parse_size


def test_normalisation_is_that_of_torchvision() -> None:
    pixel = np.array([[0, 128, 255]], np.uint8)
    expected = [[-0.485 / 0.229, (128 / 255 - 0.456) / 0.224, (1 - 0.406) / 0.225]]
    np.testing.assert_allclose(normalise(pixel), expected, rtol=1e-6)


def test_padding_is_zero_after_normalisation() -> None:
    pixels = np.array([[[0, 0, 0, 255], [9, 9, 9, 0]]], np.uint8)
    inputs, inside = network_input(pixels)
    assert np.all(np.abs(inputs[0, 0]) > 1)
    assert not np.any(inputs[0, 1])
    assert inside is not None
    assert inside.tolist() == [[1, 0]]
    assert network_input(pixels[..., :3])[1] is None
    assert np.abs(normalise(np.array(PADDING, np.uint8))).max() < 0.01


@pytest.mark.parametrize(
    ("settings", "seen", "canvas"),
    [
        ({}, Box(0, 0, 4000, 200), Box(0, 0, 100, 50)),
        # 4000×200 scaled by 1/40 is 100×5.
        ({"fit": "letterbox"}, Box(0, 0, 4000, 200), Box(0, 22, 100, 27)),
        # 2:1 of height 200 is 400 wide.
        ({"fit": "crop"}, Box(1800, 0, 2200, 200), Box(0, 0, 100, 50)),
        ({"region": "0,0,400,100"}, Box(0, 0, 400, 100), Box(0, 0, 100, 50)),
        ({"region": "50%,0,100%,200"}, Box(2000, 0, 4000, 200), Box(0, 0, 100, 50)),
        ({"region": "0,0,400,100", "fit": "crop"}, Box(100, 0, 300, 100), Box(0, 0, 100, 50)),
        # Four tiles of 100, each beginning 90 after the one before: 370.
        (
            {"columns": 4, "overlap": 0.1, "fit": "letterbox"},
            Box(0, 0, 4000, 200),
            Box(0, 16, 370, 34),
        ),
    ],
)
def test_placement_of_a_strip(settings: dict, seen: Box, canvas: Box) -> None:
    assert Preprocessing(50, 100, **settings).place(4000, 200) == (seen, canvas)


def test_a_hair_thin_picture_keeps_a_pixel() -> None:
    assert Preprocessing(64, 64, fit="letterbox").place(5000, 10).canvas == Box(0, 31, 64, 32)


@given(
    st.integers(1, 4), st.integers(1, 4), st.integers(2, 9), st.integers(2, 9), st.floats(0, 0.5)
)
def test_joined_tiles_are_the_canvas(
    rows: int, columns: int, height: int, width: int, overlap: float
) -> None:
    settings = Preprocessing(height, width, rows=rows, columns=columns, overlap=overlap)
    canvas = np.random.default_rng(0).random((*settings.canvas_size, 1)).astype(np.float32)
    tiles = settings.split(canvas).reshape(-1, height, width)
    assert len(tiles) == rows * columns
    np.testing.assert_allclose(settings.join(tiles), canvas[..., 0], rtol=1e-5)


def test_joined_tiles_have_no_seams() -> None:
    """Two tiles that disagree by 1 meet in steps of no more than 1/20, as their overlap is 20."""
    settings = Preprocessing(40, 40, columns=2, overlap=0.5)
    joined = settings.join(np.stack([np.zeros((40, 40)), np.ones((40, 40))]))
    assert joined.shape == (40, 60)
    assert joined[0, 0] == 0
    assert joined[0, -1] == 1
    assert np.abs(np.diff(joined, axis=1)).max() < 1 / 19


SETTINGS = [
    Preprocessing(60, 60),
    Preprocessing(40, 120),
    Preprocessing(60, 60, fit="letterbox"),
    Preprocessing(60, 60, fit="crop"),
    Preprocessing(60, 60, region="20%,10%,80%,100%"),
    Preprocessing(60, 60, region="60,10,250,95", fit="letterbox"),
    Preprocessing(60, 60, rows=2, columns=3, overlap=0.2),
    Preprocessing(40, 40, rows=2, columns=4, overlap=0.25, fit="letterbox"),
    Preprocessing(40, 40, rows=2, columns=2, overlap=0.1, fit="crop", region="10,0,290,100"),
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("original", [True, False], ids=["original", "input"])
def test_a_map_lies_on_its_picture(settings: Preprocessing, original: bool) -> None:
    """The brightest place of a picture is the brightest of the map that it makes of itself."""
    picture = np.zeros((100, 300, 3), np.uint8)
    picture[50:58, 140:148] = 255
    fitted = fit_image(picture, "a", settings)
    assert fitted.shape == settings.shape
    laid = settings.unfit(fitted[..., 0].astype(np.float32), (100, 300), original)
    assert laid.shape == settings.frame_size((100, 300), original)
    assert not original or laid.shape == (100, 300)
    row, column = (
        (np.mean(where) + 0.5) * full / n
        for where, full, n in zip(
            np.nonzero(laid > 0.7 * laid.max()), (100, 300), laid.shape, strict=True
        )
    )
    assert abs(row - 54) < 3
    assert abs(column - 144) < 4
    box = settings.frame_box((100, 300), original)
    outside = laid.copy()
    outside[box.slices] = 0
    assert not outside.any()


def test_letterbox_marks_its_padding() -> None:
    fitted = fit_image(np.full((10, 40, 3), 200, np.uint8), "a", Preprocessing(8, 8, "letterbox"))
    assert fitted[..., 3].tolist() == [[0] * 8] * 3 + [[255] * 8] * 2 + [[0] * 8] * 3
    assert (fitted[3:5, :, :3] == 200).all()
    assert fitted[0, 0, :3].tolist() == list(PADDING)


def test_stretching_equals_pillow() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (30, 70, 3), dtype=np.uint8)
    expected = Image.fromarray(picture).resize((24, 12), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(fit_image(picture, "a", Preprocessing(12, 24)), expected)


@pytest.mark.parametrize(
    ("text", "size"), [(224, (224, 224)), ("96", (96, 96)), ("256x1024", (256, 1024))]
)
def test_sizes(text: int | str, size: tuple[int, int]) -> None:
    assert parse_size(text, "s") == size


@pytest.mark.parametrize("text", ["", "0x0", "axb", "3x", "-3", "2x0", "1x2x3", "2.5"])
def test_wrong_sizes_are_named(text: str) -> None:
    with pytest.raises(UserError, match=r"config\.dataset\.image_size = .*HEIGHTxWIDTH"):
        Config(dataset=DatasetConfig(image_size=text))
    with pytest.raises(UserError, match=r"config\.dataset\.tiles = .*2x3"):
        Config(dataset=DatasetConfig(tiles=text))


def test_equal_sizes_are_equal_settings() -> None:
    settings = [
        Config(dataset=DatasetConfig(image_size=size, tiles=tiles))
        for size, tiles in ((64, "2x2"), ("64", "2"), ("64x64", "2×2"))
    ]
    assert settings[0] == settings[1] == settings[2]
    assert settings[0].dataset.image_size == 64
    assert Config(dataset=DatasetConfig(image_size="32×64")).dataset.image_size == "32x64"


@pytest.mark.parametrize("size", [7, "7x64"])
def test_images_too_small_for_any_network_are_refused(size: int | str) -> None:
    with pytest.raises(UserError, match="give at least 8"):
        Config(dataset=DatasetConfig(image_size=size))


def test_more_tiles_than_any_image_has_pixels_are_refused() -> None:
    settings = Config(dataset=DatasetConfig(image_size=64, tiles="600x600")).dataset
    with pytest.raises(UserError, match=r"tiles = 600x600.*give fewer tiles"):
        Preprocessing.from_settings(settings)


@pytest.mark.parametrize(
    "text", ["1,2,3", "1,2,3,4,5", "a,0,1,1", "10,0,10,5", "0,9,5,3", "0,0,110%,50%", "0 0 1 1"]
)
def test_wrong_regions_are_named(text: str) -> None:
    with pytest.raises(UserError, match=r"config\.dataset\.region = "):
        parse_region(text)
    with pytest.raises(UserError, match=r"config\.dataset\.region = "):
        Config(dataset=DatasetConfig(region=text))


def test_a_program_may_lift_the_limit_of_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert Preprocessing.from_settings(Config().dataset).n_tiles == 1
    file = io.BytesIO()
    np.save(file, np.full((4, 4), 9, np.uint8))
    assert (decode_image(file.getvalue(), "a.npy") == 9).all()


def test_a_region_beyond_a_picture_is_named_with_it() -> None:
    settings = Preprocessing(8, 8, region="0,0,400,100")
    with pytest.raises(UserError, match=r"'part\.png' is 300×100 pixels.*'0,0,400,100'"):
        fit_image(np.zeros((100, 300, 3), np.uint8), "part.png", settings)
    settings = Preprocessing(8, 8, region="10,10%,5%,90%")
    with pytest.raises(UserError, match=r"is empty there, from 10,10 to 8,86"):
        fit_image(np.zeros((96, 160, 3), np.uint8), "part.png", settings)


def test_settings_become_a_preprocessing() -> None:
    config = DatasetConfig(
        image_size="64x128", fit="crop", region="0,0,50%,50%", tiles="2x3", overlap=0.25
    )
    expected = Preprocessing(64, 128, "crop", "0,0,50%,50%", 2, 3, 0.25)
    assert Preprocessing.from_settings(config) == expected
    assert expected.shape == (6, 64, 128, 3)
    single = dataclasses.replace(config, tiles="1x1")
    assert Preprocessing.from_settings(single).overlap == 0
