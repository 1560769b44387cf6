"""Tests of the paper's protocols on the real data sets: the images of each part."""

import dataclasses
import hashlib
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from devnet_jax.config import DatasetConfig
from devnet_jax.data.decode import load_image
from devnet_jax.data.few_shot import FewShotDataset
from devnet_jax.data.preprocessing import Preprocessing
from tests.conftest import make_parts


@pytest.fixture(scope="module")
def draw(shared: Path, tmp_path_factory: pytest.TempPathFactory):
    data_dir = str(tmp_path_factory.mktemp("prepared"))

    def draw(name: str, seed: int = 0, **settings) -> FewShotDataset:
        manual_dir = str(shared / "data" / name)
        return FewShotDataset.draw(
            DatasetConfig(
                name=name,
                manual_dir=manual_dir,
                data_dir=data_dir,
                **{"image_size": 16, **settings},
            ),
            seed,
        )

    return draw


@pytest.mark.parametrize(
    ("known", "other", "n_other"), [("mono", "poly", 402), ("poly", "mono", 313)]
)
def test_elpv_hard_setting_tests_the_other_class_only(draw, known, other, n_other):
    dataset = draw("elpv", known_class=known)
    defect = {example.path: example.defect for example in dataset.source.examples}
    assert Counter(defect[path] for path in dataset.split.train_anomaly) == {known: 10}
    assert Counter(e.defect for e in dataset.test_examples) == {"good": 377, other: n_other}
    assert dataset.split.protocol["known_class"] == known


@pytest.mark.parametrize(("fraction", "count"), [(0.0, 0), (0.05, 59), (0.1, 125)])
def test_elpv_contamination_is_exact(draw, fraction, count):
    # 1131 normal training images: 1131·0.05/0.95 = 59.5, 1131·0.1/0.9 = 125.7.
    dataset = draw("elpv", contamination=fraction)
    split = dataset.split
    label = {example.path: example.label for example in dataset.source.examples}
    assert Counter(label[path] for path in split.train_unlabelled) == Counter(
        {0: 1131, **({1: count} if count else {})}
    )
    assert Counter(e.label for e in dataset.test_examples) == {0: 377, 1: 715 - 10 - count}
    assert len(set(split.paths)) == len(split.paths) == 2223
    assert split.protocol["contamination"] == fraction
    assert ("unlabelled anomalies" in str(dataset)) == bool(count)


def test_contamination_trains_as_normal_images(draw):
    dataset = draw("brain_mri", contamination=0.1)
    split = dataset.split
    assert len(split.train_contamination) == 8  # 73·0.1/0.9 = 8.1
    train = dataset.train_images()
    assert len(train) == 73 + 8 + 10
    images = train.read(np.arange(len(train)))
    for position, path in enumerate(split.train_contamination, start=73):
        index = [example.path for example in dataset.source.examples].index(path)
        image = load_image(dataset.source.image_bytes(index), path, Preprocessing(16, 16))
        np.testing.assert_array_equal(images[position], image)


def test_brain_mri_test_images_that_equal_training_images_are_listed(draw, shared):
    dataset = draw("brain_mri", seed=1, image_size=128)
    split, duplicates = dataset.split, set(dataset.test_duplicates)

    def content(path: str) -> str:
        return hashlib.sha256((shared / "data/brain_mri" / path).read_bytes()).hexdigest()

    train_files = {content(path) for path in split.train_unlabelled + split.train_anomaly}
    equal_files = {path for path in split.test if content(path) in train_files}
    assert equal_files
    assert equal_files <= duplicates
    # The other duplicates are equal images in different files.
    train_images = {image.tobytes() for image in dataset.images(split.train).pixels}
    for path in duplicates:
        index = [example.path for example in dataset.source.examples].index(path)
        assert (
            load_image(dataset.source.image_bytes(index), path, Preprocessing(128, 128)).tobytes()
            in train_images
        )


def test_brain_mri_calibration_images_do_not_equal_training_images(draw):
    dataset = draw("brain_mri", calibration=0.4, image_size=128)
    assert len(dataset.split.calibration) == 29  # of 73
    images = {path: dataset.images([path]).pixels.tobytes() for path in dataset.split.calibration}
    train_images = {image.tobytes() for image in dataset.images(dataset.split.train).pixels}
    assert dataset.calibration == [
        path for path, image in images.items() if image not in train_images
    ]
    assert len(dataset.calibration) < 29


def test_good_images_alone_make_a_split(tmp_path):
    folder = make_parts(tmp_path / "parts")
    shutil.rmtree(folder / "test")
    settings = DatasetConfig(
        name="image_folder",
        manual_dir=str(folder),
        data_dir=str(tmp_path / "prepared"),
        n_anomaly=0,
        calibration=0.2,
        image_size=16,
    )
    dataset = FewShotDataset.draw(settings, 0)
    described = "7 normal images train, 2 normal images calibrate, 0 images test"
    assert str(dataset) == f"{dataset.source.name}: {described}"
    assert dataset.test_examples == dataset.test_duplicates == []
    assert dataset.images(dataset.split.test).pixels.shape == (0, 16, 16, 3)
    assert len(dataset.train_images()) == 7
    again = FewShotDataset.reopen(settings, dataset.split)
    assert again.calibration == dataset.calibration
    wanted = FewShotDataset.draw(dataclasses.replace(settings, n_anomaly=10), 0)
    assert wanted.split.train == dataset.split.train
