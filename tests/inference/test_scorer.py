"""Tests of `ImageScorer`: accepted images, results, overlays and decisions."""

from __future__ import annotations

import copy
import io
import pickle
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import matplotlib
import numpy as np
import pytest
from PIL import Image

from devnet_jax.config import Config
from devnet_jax.data.decode import load_image
from devnet_jax.data.preprocessing import Preprocessing
from devnet_jax.errors import UserError
from devnet_jax.inference.overlay import lay_over
from devnet_jax.inference.scorer import ImageScorer, as_batch
from devnet_jax.inference.scores import RawScores
from devnet_jax.inference.thresholds import Threshold
from devnet_jax.prior import Prior


class Brightness(ImageScorer):
    """Scores images by their mean, and explains them by their pixels."""

    name = "brightness"
    date = None
    preprocessing = Preprocessing(16, 16)
    original_maps = False
    thresholds = (Threshold("calibrated", 100.0, 0.05, 19),)
    prior = Prior()
    margin = 5.0
    explanation = "gradient"
    kinds = ()
    ordinary = None
    good_scores = np.arange(81.0, 100.0)

    def with_threshold(self, value: float) -> Brightness:
        raise NotImplementedError

    def _score(self, images: np.ndarray) -> RawScores:
        maps = images.mean(axis=-1, dtype=np.float32)
        return RawScores(maps.mean(axis=(1, 2)), maps)

    def _explain(
        self, images: np.ndarray, method: str | None, maps: np.ndarray | None
    ) -> np.ndarray:
        return images.mean(axis=-1, dtype=np.float32) / 255


class Kinds(Brightness):
    """Returns what `raw` says of its images."""

    kinds = ("scratch", "stain")
    raw = RawScores(np.full(4, 200, np.float32), np.zeros((4, 1, 1), np.float32))

    def _score(self, images: np.ndarray) -> RawScores:
        return self.raw


def test_reasons_name_the_kind_and_the_likeness_of_each_alarm() -> None:
    scorer, images = Kinds(), np.zeros((4, 16, 16, 3), np.uint8)
    assert scorer.score(images).reasons == [""] * 4  # the deviation network
    scores = np.array([200, 200, 99, 100], np.float32)
    found = RawScores(scores, scorer.raw.maps, np.array([1, -1, 0, 0], np.int32))
    scorer.raw = found  # of an exported file of an earlier version
    assert scorer.score(images).reasons == [
        "like the labelled stain", "like no labelled kind", "", "like the labelled scratch",
    ]  # fmt: skip
    scorer.raw = found._replace(likeness=np.array([0.834, 0.2, 0.5, 1], np.float32))
    result = scorer.score(images)
    assert result.reasons == [
        "like the labelled stain (83%)", "like no labelled kind", "",
        "like the labelled scratch (100%)",
    ]  # fmt: skip
    assert result.kinds == ["stain", None, "scratch", "scratch"]
    scorer.kinds = ()  # without labels
    result = scorer.score(images)
    assert result.reasons == ["unlike the good parts", "unlike the good parts", "",
                              "unlike the good parts"]  # fmt: skip
    assert result.kinds == []


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(5).integers(0, 255, (40, 30, 3), dtype=np.uint8)
    turned = Image.Exif()
    turned[0x0112] = 6  # rotated by 90 degrees
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=turned)
    return tmp_path / "a.png"


def test_all_kinds_of_images_give_equal_batches(picture: Path) -> None:
    expected = load_image(picture.read_bytes(), "a.png", Preprocessing(16, 16))
    with Image.open(picture) as opened:
        upright = np.rot90(np.asarray(opened), 3)
        ways: list[Any] = [
            picture, str(picture), opened, upright, [picture], [opened], (upright,),
            upright[None], upright / 255, [upright.astype(np.uint16) * 257],
            np.array([str(picture)]), np.array([picture]), (p for p in [picture]),
            picture.read_bytes(), [memoryview(picture.read_bytes())],
            io.BytesIO(picture.read_bytes()), [picture.open("rb")], jnp.asarray(upright),
            upright.astype(">f4") / 255, upright.astype(">u2") * 257,
        ]  # fmt: skip
        for way in ways:
            batch = as_batch(way, Preprocessing(16, 16))
            assert batch.pixels.dtype == np.uint8
            np.testing.assert_array_equal(batch.pixels, expected[None])
            assert list(batch.sizes) == [(30, 40)]
            assert batch.original(0).size == (40, 30)
    mixed = as_batch([picture, upright], Preprocessing(16, 16))
    np.testing.assert_array_equal(mixed.pixels, np.stack([expected, expected]))
    assert as_batch(mixed, Preprocessing(16, 16)) is mixed


def test_grey_images_and_stacks_of_them() -> None:
    grey = np.full((20, 20), 7, np.uint8)
    assert np.unique(as_batch(grey, Preprocessing(8, 8)).pixels).tolist() == [7]
    stack = as_batch(np.zeros((3, 20, 20, 1), np.uint8), Preprocessing(8, 8))
    assert stack.pixels.shape == (3, 8, 8, 3)


class NeedsGradient:
    """An array that refuses to be converted, as tensors of PyTorch do."""

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        raise RuntimeError("Can't call numpy() on Tensor; use tensor.detach().numpy() instead.")


def closed() -> io.BytesIO:
    file = io.BytesIO(b"x")
    file.close()
    return file


@pytest.mark.parametrize("suffix", ["png", "tif", "gif", "jpg"])
def test_a_closed_pillow_image_is_rejected(tmp_path: Path, suffix: str) -> None:
    Image.new("L", (20, 20)).save(tmp_path / f"a.{suffix}")
    with Image.open(tmp_path / f"a.{suffix}") as image:
        pass
    with pytest.raises(UserError, match=r"^image number 0 cannot be read: .*closed"):
        as_batch([image], Preprocessing(16, 16))


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ([], "no image is given"),
        (np.zeros((0, 16, 16, 3), np.uint8), "no image is given"),
        (["absent.png"], r"cannot read 'absent\.png': No such file"),
        ([np.zeros((16, 16, 2), np.uint8)], r"'number 0' has the shape \(16, 16, 2\)"),
        ([np.full((16, 16, 3), 200.0)], "outside 0 to 1"),
        ([np.zeros((16, 16), np.uint8), 5], "number 1 is a int"),
        (np.zeros((1, 16, 16, 3), np.int64), "is of type int64"),
        (np.zeros((3, 16, 20), np.uint8), r"channels first.*transpose\(1, 2, 0\)"),
        (np.zeros((2, 3, 16, 16), np.uint8), "number 0.*channels first"),
        (np.zeros((1, 16, 16), np.uint8), "channels first"),
        (np.zeros((9, 40, 40), np.uint8), r"40 channels.*\[N, H, W, 1\]"),
        (io.StringIO("text"), "open as text"),
        (b"GIF89a", "'number 0' is damaged"),
        (7, "the images are a int"),
        (["a\0.png"], "cannot be read"),
        (np.array(5, np.uint8), r"has the shape \(\)"),
        ({"a.png": 1}, "are a dict; give a list"),
        ({"a.png", "b.png"}, "are a set; give a list"),
        (closed(), r"closed file\): open it again"),
        ([closed()], r"closed file\): open it again"),
        (NeedsGradient(), r"the images cannot be converted .*detach\(\)"),
        ([NeedsGradient()], r"image number 0 cannot be converted .*detach\(\)"),
    ],
)
def test_other_values_than_images_are_rejected(images: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        as_batch(images, Preprocessing(16, 16))


def test_result() -> None:
    dark, bright = np.full((16, 16, 3), 3, np.uint8), np.full((16, 16, 3), 100, np.uint8)
    scorer = Brightness()
    result = scorer.score([dark, bright])
    assert result.scores.tolist() == [3, 100]
    assert result.is_anomaly is not None
    assert result.is_anomaly.tolist() == [False, True]
    assert result.p_values is not None
    assert result.p_values.tolist() == [1, 1 / 20]  # 19 good images score higher, and none
    assert result.maps.shape == (2, 16, 16)
    explanation = scorer.explain(bright)
    assert explanation.maps.shape == (1, 16, 16)
    assert explanation.overlay.size == (16, 16)
    with pytest.raises(ValueError, match="unpack"):
        _ = scorer.explain([dark, bright]).overlay


def test_an_unreadable_picture_costs_the_others_nothing_and_never_looks_good(
    picture: Path, tmp_path: Path
) -> None:
    scorer, missing, broken = Kinds(), tmp_path / "missing.png", tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    scores = np.array([200, 5, 5, 5], np.float32)
    scorer.raw = scorer.raw._replace(
        scores=scores, kinds=np.zeros(4, np.int32), likeness=np.ones(4, np.float32)
    )
    given = [picture, missing, picture, broken]
    with pytest.raises(UserError, match=r"missing\.png"):
        scorer.score(given)
    found = scorer.score(given, errors="coerce")
    assert found.scores.dtype == np.float32
    np.testing.assert_array_equal(found.scores, [200, np.nan, 5, np.nan])
    assert np.isnan(found.p_values).tolist() == [False, True, False, True]
    assert np.isnan(found.maps).all(axis=(1, 2)).tolist() == [False, True, False, True]
    assert found.is_anomaly.tolist() == [True, True, False, True]
    assert found.reasons == [
        "like the labelled scratch (100%)", "cannot be read", "", "cannot be read",
    ]  # fmt: skip
    assert found.kinds == ["scratch", None, "scratch", None]
    assert [bool(text) for text in found.errors] == [False, True, False, True]
    assert "missing.png" in found.errors[1]
    assert "broken.png" in found.errors[3]

    scorer = Brightness()
    assert np.isnan(scorer.score(missing, errors="coerce").scores).tolist() == [True]
    with picture.open("rb") as file:
        found = scorer.score([closed(), file, io.StringIO("text")], errors="coerce")
    assert np.isnan(found.scores).tolist() == [True, False, True]
    assert "closed file" in found.errors[0]
    assert "open as text" in found.errors[2]
    assert scorer.score(picture, errors="coerce").errors == [""]
    with pytest.raises(UserError, match=r"errors='ignore': give \"raise\" or \"coerce\""):
        scorer.score(picture, errors="ignore")


def test_results_can_be_sent_to_other_processes() -> None:
    scorer = Brightness()
    images = np.stack([np.full((16, 16, 3), v, np.uint8) for v in (3, 150)])
    explanation = scorer.explain(images)
    for again in (pickle.loads(pickle.dumps(explanation)), copy.deepcopy(explanation)):
        np.testing.assert_array_equal(again.maps, explanation.maps)
        for ours, theirs in zip(again.overlays, explanation.overlays, strict=True):
            np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))
    scores = scorer.score(images)
    for value in (scores, scorer.threshold, scorer.prior):
        assert str(pickle.loads(pickle.dumps(value))) == str(copy.deepcopy(value)) == str(value)
    assert pickle.loads(pickle.dumps(Config())) == copy.deepcopy(Config()) == Config()


def test_colours_are_those_of_yellow_to_red() -> None:
    heat = np.linspace(0, 1, 256)[None]
    painted = lay_over(np.zeros((1, 256, 3), np.uint8), heat, 1.0)
    expected = 255 * matplotlib.colormaps["YlOrRd"](np.arange(256))[None, :, :3] * heat[..., None]
    np.testing.assert_allclose(painted, expected, atol=1.5)


def test_signs_are_those_of_scikit_learn() -> None:
    images = np.stack([np.full((16, 16, 3), v, np.uint8) for v in (40, 100, 130)])
    detector = Brightness()
    np.testing.assert_array_equal(detector.decision_function(images), [60, 0, -30])
    assert detector.predict(images).tolist() == [1, -1, -1]  # the threshold itself is an alarm
    assert (detector.predict(images) == -1).tolist() == detector.score(images).is_anomaly.tolist()


def test_without_a_threshold_there_is_no_prediction() -> None:
    class Undecided(Brightness):
        thresholds = ()
        prior = None

    images = np.zeros((1, 16, 16, 3), np.uint8)
    assert Undecided().score(images).is_anomaly is None
    with pytest.raises(UserError, match="no prior"):
        Undecided().predict(images)
