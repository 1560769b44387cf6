"""Tests of the estimator: scikit-learn's checks, its tools, and agreement with the detector."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import joblib
import numpy as np
import pytest
from PIL import Image
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import (
    GridSearchCV,
    StratifiedKFold,
    cross_val_score,
    cross_validate,
)
from sklearn.pipeline import Pipeline
from sklearn.utils import estimator_checks, get_tags

from devnet_jax.config import for_folder
from devnet_jax.distributed.sharding import replicated
from devnet_jax.errors import UserError
from devnet_jax.inference.sklearn import DevNet, _is_alone, _is_anomaly
from devnet_jax.runtime import progress
from tests.conftest import BACKBONE, IMAGE_SIZE

SEED = 3


def tiny(**parameters: Any) -> DevNet:
    """Returns an estimator that trains fast; it shares compiled programs with other tests."""
    defaults = {
        "pretrained": "none",
        "backbone": BACKBONE,
        "image_size": IMAGE_SIZE,
        "n_scales": 1,
        "epochs": 2,
        "steps_per_epoch": 2,
        "batch_size": 8,
        "false_alarm_rate": 0.5,
        "random_state": SEED,
        "settings": {"evaluation.batch_size": 4},
    }
    return DevNet(**{**defaults, **parameters})


@pytest.fixture(scope="module")
def paths(parts: Path) -> np.ndarray:
    """object [22]: 14 normal images, then 8 anomalies."""
    kinds = "train/good", "test/good", "test/scratch", "test/stain"
    return np.array([p for kind in kinds for p in sorted((parts / kind).iterdir())], object)


@pytest.fixture(scope="module")
def pixels(paths: np.ndarray) -> np.ndarray:
    """The same images, uint8 [22, 40, 48, 3]."""
    return np.stack([np.asarray(Image.open(path)) for path in paths])


@pytest.fixture(scope="module")
def y() -> np.ndarray:
    return np.repeat([1, -1], [14, 8])


@pytest.fixture(scope="module")
def fitted(paths: np.ndarray, y: np.ndarray) -> DevNet:
    """A fitted estimator, calibrated on three of the fourteen normal images; read only."""
    return tiny().fit(paths, y)


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Phases say that they begin at their first update, however short they are."""
    monkeypatch.setattr(progress, "_SAID_AFTER", 0.0)


@pytest.mark.usefixtures("lines")
def test_shows_its_progress(
    fitted: DevNet, paths: np.ndarray, y: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    """The estimator is not silent, in a program that has not set up logging."""
    estimator = clone(fitted).fit(paths, y)
    estimator.score_samples(paths)
    error = capsys.readouterr().err
    for line in ("training: 4 steps", "calibrating: 3 images", "scoring: 22 images"):
        assert line in error
    estimator.set_params(verbose=False).fit(paths, y).score_samples(paths)
    assert capsys.readouterr() == ("", "")


@pytest.mark.usefixtures("lines")
def test_jobs_show_nothing(
    fitted: DevNet, paths: np.ndarray, y: np.ndarray, capfd: pytest.CaptureFixture[str]
) -> None:
    """The lines of parallel jobs would mix."""
    with joblib.parallel_backend("threading", n_jobs=2):
        cross_val_score(clone(fitted), paths, y, cv=StratifiedKFold(2))
    names = joblib.Parallel(n_jobs=2)(joblib.delayed(_is_alone)() for _ in range(2))
    assert names == [False, False]
    assert "images" not in capfd.readouterr().err


@pytest.mark.parametrize(
    "check",
    [
        estimator_checks.check_estimator_cloneable,
        estimator_checks.check_estimator_tags_renamed,
        estimator_checks.check_valid_tag_types,
        estimator_checks.check_estimator_repr,
        estimator_checks.check_no_attributes_set_in_init,
        estimator_checks.check_do_not_raise_errors_in_init_or_set_params,
        estimator_checks.check_mixin_order,
        estimator_checks.check_parameters_default_constructible,
        estimator_checks.check_get_params_invariance,
        estimator_checks.check_set_params,
        estimator_checks.check_estimators_unfitted,
        estimator_checks.check_requires_y_none,
    ],
)
def test_conventions_of_scikit_learn(check: Callable[[str, DevNet], None]) -> None:
    check("DevNet", DevNet())


def test_tags() -> None:
    tags = get_tags(DevNet())
    assert tags.estimator_type == "outlier_detector"
    assert tags.target_tags.required
    assert not tags.input_tags.two_d_array


def test_default_calibration_equals_that_of_for_folder() -> None:
    assert DevNet().calibration == for_folder("any").dataset.calibration


def test_agrees_with_its_detector(fitted: DevNet, paths: np.ndarray, pixels: np.ndarray) -> None:
    result = fitted.detector_.score(list(paths))
    np.testing.assert_allclose(fitted.score_samples(paths), -result.scores, rtol=1e-6)
    np.testing.assert_array_equal(fitted.predict(paths) == -1, result.is_anomaly)
    decisions = fitted.decision_function(paths)
    np.testing.assert_array_equal(decisions, fitted.score_samples(paths) - fitted.offset_)
    np.testing.assert_array_equal(decisions, fitted.decision_function(pixels))
    mixed = [str(paths[0]), Image.fromarray(pixels[1]), pixels[2]]
    np.testing.assert_array_equal(decisions[:3], fitted.decision_function(mixed))
    assert set(fitted.predict(paths).tolist()) == {1, -1}


def test_the_settings_are_those_given(fitted: DevNet) -> None:
    config = fitted.detector_.config
    assert fitted.detector_.step == 4
    assert len(fitted.loss_curve_) == 2
    assert (config.seed, config.dataset.n_anomaly, config.dataset.calibration) == (SEED, 8, 0.2)
    assert (config.train.batch_size, config.evaluation.batch_size) == (8, 4)


def is_held_out(fitted: DevNet, paths: np.ndarray) -> np.ndarray:
    scores = -fitted.score_samples(paths)
    return np.isin(scores.astype(np.float32), fitted.detector_.calibration_scores)


@pytest.fixture(scope="module")
def undecided(fitted: DevNet, paths: np.ndarray, pixels: np.ndarray) -> DevNet:
    """An estimator without a threshold, trained like `fitted`, but from arrays and bool labels.

    Its held-out images equal training images.
    """
    held_out = is_held_out(fitted, paths)
    changed = pixels.copy()
    changed[held_out] = pixels[np.flatnonzero(~held_out)[0]]
    estimator = tiny(false_alarm_rate=0.05)
    with pytest.MonkeyPatch.context() as patch:
        # As with a loss without a prior, whose step would have to be compiled.
        patch.setattr("devnet_jax.inference.detector.prior_threshold", lambda *_: None)
        with pytest.warns(UserWarning, match="needs 19 normal images held out, not 0"):
            estimator.fit(list(changed), np.repeat([False, True], [14, 8]))
    return estimator


def test_images_held_out_calibrate(fitted: DevNet, paths: np.ndarray) -> None:
    held_out = is_held_out(fitted, paths)
    assert held_out.sum() == 3  # round(0.2·14)
    assert not held_out[14:].any()
    # k = ⌊0.5·(3+1)⌋ = 2: the second largest raises no alarm, the largest does.
    assert (fitted.predict(paths[held_out]) == -1).sum() == 1
    second = float(np.sort(fitted.detector_.calibration_scores)[1])
    assert second < -fitted.offset_ <= np.nextafter(np.float32(second), np.float32(np.inf))


def test_images_held_out_do_not_train(fitted: DevNet, undecided: DevNet, paths: np.ndarray) -> None:
    np.testing.assert_array_equal(undecided.score_samples(paths), fitted.score_samples(paths))


def test_images_that_equal_trained_ones_do_not_calibrate(undecided: DevNet) -> None:
    assert len(undecided.detector_.calibration_scores) == 0


def test_without_a_threshold_it_scores_but_does_not_predict(
    undecided: DevNet, pixels: np.ndarray, y: np.ndarray
) -> None:
    assert 0 <= undecided.score(pixels, y) <= 1
    assert np.isnan(undecided.offset_)
    with pytest.raises(UserError, match="no threshold is in force"):
        undecided.predict(pixels)


def test_cross_validation(paths: np.ndarray, y: np.ndarray) -> None:
    def score(estimator: DevNet, images: Any, labels: np.ndarray) -> float:
        return estimator.score(images, (labels == -1).astype(int))

    found = cross_validate(
        tiny(),
        paths,
        y,
        cv=StratifiedKFold(2, shuffle=True, random_state=0),
        scoring={"roc_auc": "roc_auc", "score": score},
        return_estimator=True,
        return_indices=True,
        error_score="raise",
    )
    np.testing.assert_array_equal(found["test_roc_auc"], found["test_score"])
    tested = found["indices"]["test"][0]
    scores = found["estimator"][0].detector_.score(list(paths[tested])).scores
    assert found["test_roc_auc"][0] == pytest.approx(roc_auc_score(y[tested] == -1, scores))


@pytest.mark.filterwarnings("ignore:the threshold is not calibrated.*there are 3")  # in a fold
def test_search_in_a_pipeline(pixels: np.ndarray, y: np.ndarray) -> None:
    detect = tiny(false_alarm_rate=0.05, random_state=np.random.RandomState(0))
    search = GridSearchCV(
        Pipeline([("detect", detect)]),
        {"detect__calibration": np.array([0.4]), "detect__epochs": np.array([1])},
        cv=[(np.arange(0, 22, 2), np.arange(1, 22, 2))],
        error_score="raise",
    )
    with pytest.warns(UserWarning, match=r"14\.3% .* 5% needs 19 normal images held out, not 6"):
        search.fit(pixels, (y == -1).astype(int))
    estimator = search.best_estimator_["detect"]
    good = estimator.detector_.calibration_scores
    assert estimator.offset_ == pytest.approx(-good.max(), rel=1e-5)  # above all six
    expected = estimator.detector_.score(pixels).is_anomaly
    np.testing.assert_array_equal(search.predict(pixels), np.where(expected, -1, 1))


def test_pickle_and_joblib_round_trips(fitted: DevNet, pixels: np.ndarray, tmp_path: Path) -> None:
    expected = fitted.decision_function(pixels)
    again = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(again.decision_function(pixels), expected)
    assert again.get_params() == fitted.get_params()
    joblib.dump(fitted, tmp_path / "devnet.joblib")
    again = joblib.load(tmp_path / "devnet.joblib")
    np.testing.assert_array_equal(again.decision_function(pixels), expected)
    maps = again.detector_.explain(pixels[20]).maps
    np.testing.assert_array_equal(maps, fitted.detector_.explain(pixels[20]).maps)


def test_a_clone_is_not_fitted(fitted: DevNet, paths: np.ndarray) -> None:
    other = clone(fitted)
    assert other.get_params() == fitted.get_params()
    assert repr(other) == repr(fitted)
    assert f"image_size={IMAGE_SIZE}" in repr(other)
    for method in (other.predict, other.decision_function, other.score_samples):
        with pytest.raises(NotFittedError):
            method(paths)


@pytest.mark.parametrize(
    ("n", "labels", "words"),
    [
        (22, [1] * 22, "all labels in y are 1: .* StratifiedKFold"),
        (22, [0] * 22, "all labels in y are 0"),
        (22, [-1, 0] * 11, r"y contains the labels -1, 0; give 1 for normal images and -1"),
        (22, ["good", "bad"] * 11, "y contains the labels 'bad', 'good'"),
        (22, [1.0, np.nan] * 11, "y contains the labels 1.0, nan"),
        (22, np.ones((22, 2)), "y should be a 1d array"),
        (22, [1, -1] * 10, r"inconsistent numbers of samples: \[22, 20\]"),
        (0, [], "X contains no image"),
    ],
)
def test_wrong_labels_are_rejected(pixels: np.ndarray, n: int, labels: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        tiny().fit(pixels[:n], labels)


CORE = {
    "detector": "devcore",
    "settings": {
        "evaluation.batch_size": 4,
        "memory_size": 64,
        "memory_samples": 400,
        "head_steps": 5,
    },
}


@pytest.fixture(scope="module")
def core(paths: np.ndarray, y: np.ndarray) -> DevNet:
    """A fitted DevCore, calibrated on three of the fourteen normal images; read only."""
    return tiny(**CORE).fit(paths, y)


@pytest.fixture(scope="module")
def core_of_good(paths: np.ndarray) -> DevNet:
    """A DevCore fitted to the fourteen normal images alone; read only."""
    return tiny(**CORE).fit(paths[:14], np.ones(14, int))


def test_devcore_agrees_with_its_detector(core: DevNet, paths: np.ndarray, y: np.ndarray) -> None:
    detector = core.detector_
    assert (detector.step, detector.kinds, core.loss_curve_) == (5, ("anomaly",), [])
    assert (detector.config.dataset.n_anomaly, detector.config.model.detector) == (8, "devcore")
    assert len(detector.calibration_scores) == 3
    result = detector.score(list(paths))
    np.testing.assert_allclose(core.score_samples(paths), -result.scores, rtol=1e-6)
    np.testing.assert_array_equal(core.predict(paths) == -1, result.is_anomaly)
    assert core.score(paths, y) == pytest.approx(roc_auc_score(y == -1, result.scores))
    assert detector.explain(paths[-1]).maps.shape == (1, IMAGE_SIZE, IMAGE_SIZE)
    for leaf in jax.tree.leaves(detector.variables):
        assert leaf.sharding == replicated()


def test_devcore_learns_from_normal_images_alone(
    core_of_good: DevNet, paths: np.ndarray, y: np.ndarray
) -> None:
    assert (core_of_good.detector_.step, core_of_good.detector_.kinds) == (1, ())
    assert core_of_good.detector_.config.dataset.n_anomaly == 0
    assert 0 <= core_of_good.score(paths, y) <= 1
    with pytest.raises(ValueError, match="all labels in y are 1: training needs normal images and"):
        core_of_good.score(paths[:14], y[:14])


@pytest.mark.parametrize("label", [1, 0, False])
def test_labels_of_normal_images_alone(label: int) -> None:
    assert _is_anomaly([label] * 3, needs_anomalies=False).tolist() == [False] * 3


@pytest.mark.parametrize("label", [-1, True])
def test_devcore_needs_normal_images(pixels: np.ndarray, label: int) -> None:
    with pytest.raises(ValueError, match=f"all labels in y are {label}: training needs normal im"):
        tiny(**CORE).fit(pixels[:4], [label] * 4)
    with pytest.raises(
        UserError, match="normal images for training: 1; the memory needs at least two"
    ):
        tiny(**CORE).fit(pixels[-2:], [1, -1])


def test_devcore_in_cross_validation(paths: np.ndarray, y: np.ndarray) -> None:
    folds = StratifiedKFold(2, shuffle=True, random_state=0)
    found = cross_val_score(tiny(**CORE), paths, y, cv=folds, error_score="raise")
    assert found.shape == (2,)
    assert ((found >= 0) & (found <= 1)).all()


def test_devcore_pickles_and_clones(core: DevNet, pixels: np.ndarray) -> None:
    again = pickle.loads(pickle.dumps(core))
    expected = core.decision_function(pixels)
    np.testing.assert_array_equal(again.decision_function(pixels), expected)
    assert again.detector_.kinds == core.detector_.kinds
    other = clone(core)
    assert other.get_params() == core.get_params()
    assert "detector='devcore'" in repr(other)
    with pytest.raises(NotFittedError):
        other.predict(pixels)


def test_the_image_size_is_the_detector_s_own() -> None:
    for detector, size in (("devnet", 448), ("devcore", 224)):
        assert DevNet(detector=detector)._config(n_anomaly=1).dataset.image_size == size


def test_other_values_than_sequences_of_images_are_rejected(
    fitted: DevNet, pixels: np.ndarray
) -> None:
    for one in ("part.png", Path("part.png"), Image.fromarray(pixels[0])):
        with pytest.raises(ValueError, match="X is a single image"):
            fitted.predict(one)
    with pytest.raises(ValueError, match=r"shape \(40, 48, 3\); give images as an array \[N"):
        fitted.predict(pixels[0])
    with pytest.raises(UserError, match=r"X\[1\]: cannot read 'absent\.png'"):
        fitted.predict([pixels[0], "absent.png"])


def test_an_unreadable_image_is_named_by_its_index_in_x(pixels: np.ndarray, y: np.ndarray) -> None:
    images = [*pixels[:16], "absent.png", *pixels[17:]]
    with pytest.raises(UserError, match=r"X\[16\]: cannot read 'absent\.png'"):
        tiny().fit(images, y)


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"epochs": 0}, r"config\.train\.epochs = 0"),
        ({"backbone": "resnet19"}, "did you mean resnet18"),
        ({"detector": "devcoer"}, "did you mean devcore"),
        ({"settings": {"detector": "devcore"}}, "model.detector is the parameter detector"),
        ({"random_state": -1}, r"config\.seed = -1"),
        ({"n_scales": 9}, "n_scales"),
        ({"settings": {"topkk": 0.1}}, "did you mean model.topk"),
        ({"settings": {"epochs": 3}}, "train.epochs is the parameter epochs"),
        ({"settings": {"seed": 3}}, "seed is the parameter random_state"),
        ({"settings": {"known_class": "stain"}}, "chooses images, which X and y do here"),
    ],
)
def test_wrong_parameters_are_rejected(
    pixels: np.ndarray, y: np.ndarray, parameters: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        tiny(**parameters).fit(pixels, y)


def test_a_normal_image_must_be_left_for_training(pixels: np.ndarray, y: np.ndarray) -> None:
    with pytest.raises(ValueError, match="none of the 1 normal images would be left"):
        tiny(calibration=0.9).fit(pixels[13:], y[13:])
