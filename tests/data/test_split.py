"""Tests of the few-shot protocols."""

import functools
import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devnet_jax.data.example import Example
from devnet_jax.data.split import Split, grown_split
from devnet_jax.data.split import few_shot_split as full_split
from devnet_jax.errors import UserError

few_shot_split = functools.partial(full_split, contamination=0.0, calibration=0.0)


def examples(train: int, good: int, **defects: int) -> list[Example]:
    rows = [Example(f"train/good/{i}.png", "train", 0, "good", "") for i in range(train)]
    rows += [Example(f"test/good/{i}.png", "test", 0, "good", "") for i in range(good)]
    for defect, count in defects.items():
        rows += [Example(f"test/{defect}/{i}.png", "test", 1, defect, "") for i in range(count)]
    return rows


@given(
    seed=st.integers(0, 2**31 - 1),
    hole=st.integers(1, 9),
    scratch=st.integers(1, 9),
    data=st.data(),
)
def test_general_setting(seed: int, hole: int, scratch: int, data: st.DataObject) -> None:
    n = data.draw(st.integers(1, hole + scratch - 1))
    rows = examples(5, 4, hole=hole, scratch=scratch)
    split = few_shot_split(rows, n_anomaly=n, known_class=None, seed=seed)
    assert len(split.train_anomaly) == n
    assert not set(split.train_anomaly) & set(split.test)
    assert sorted(split.paths) == sorted(row.path for row in rows)  # every image is in one part
    assert split == few_shot_split(rows[::-1], n_anomaly=n, known_class=None, seed=seed)
    assert Split.from_dict(split.to_dict()) == split


@pytest.mark.parametrize("defects", [{"hole": 6, "scratch": 3}, {"hole": 1}, {}])
@pytest.mark.parametrize("good", [0, 4])
def test_without_labels_all_anomalies_are_tested(defects: dict[str, int], good: int) -> None:
    rows = examples(10, good, **defects)
    split = full_split(
        rows, n_anomaly=0, known_class=None, contamination=0.0, calibration=0.2, seed=3
    )
    assert split.train_anomaly == split.train_contamination == ()
    assert (len(split.train), len(split.calibration)) == (8, 2)
    assert set(split.test) == {row.path for row in rows if row.split == "test"}
    assert len(split.test) == good + sum(defects.values())
    assert split.trained_classes == {}
    assert Split.from_dict(split.to_dict()) == split


def test_without_labels_the_known_class_leaves_the_test() -> None:
    rows = examples(5, 4, hole=6, scratch=3)
    split = few_shot_split(rows, n_anomaly=0, known_class="hole", seed=0)
    assert split.train_anomaly == ()
    assert {path.split("/")[1] for path in split.test} == {"good", "scratch"}
    assert len(split.test) == 4 + 3


def test_without_labels_contamination_still_leaves_anomalies_for_the_test() -> None:
    protocol = {"n_anomaly": 0, "known_class": None, "calibration": 0.0, "seed": 0}
    # 10·0.2/0.8 = 2.5.
    split = full_split(examples(10, 4, hole=3), contamination=0.2, **protocol)
    assert (len(split.train_contamination), len(split.test)) == (2, 4 + 1)
    for n_holes in (0, 1, 2):
        with pytest.raises(UserError, match="none would be left for the test"):
            full_split(examples(10, 4, hole=n_holes), contamination=0.2, **protocol)


@pytest.mark.parametrize(
    ("n_anomaly", "known_class", "message"),
    [
        (10, None, r"n_anomaly = 10: the data set has no anomalies; add some"),
        (0, "hole", r"known_class = 'hole': the data set has no anomalies; add some"),
    ],
)
def test_labels_need_anomalies(n_anomaly: int, known_class: str | None, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        few_shot_split(examples(5, 4), n_anomaly=n_anomaly, known_class=known_class, seed=0)
    assert "\n" not in str(error.value)


def test_hard_setting_does_not_test_the_known_class() -> None:
    rows = examples(5, 4, hole=6, scratch=3)
    split = few_shot_split(rows, n_anomaly=2, known_class="hole", seed=0)
    assert all("hole" in path for path in split.train_anomaly)
    assert not any("hole" in path for path in split.test)
    assert len(split.test) == 4 + 3
    # All images of the known class may be labelled: other classes remain for the test.
    assert len(few_shot_split(rows, n_anomaly=6, known_class="hole", seed=0).train_anomaly) == 6


def test_seeds_draw_different_anomalies() -> None:
    rows = examples(5, 4, hole=30)
    drawn = {
        few_shot_split(rows, n_anomaly=3, known_class=None, seed=seed).train_anomaly
        for seed in range(10)
    }
    assert len(drawn) > 5


@pytest.mark.parametrize(
    ("n_anomaly", "known_class", "message"),
    [
        (9, None, "there are 9 anomalies in all defect classes together and one must stay"),
        (7, "hole", "there are 6 anomalies of class hole; ask for 6 at most"),
        (1, "hoel", "no such defect class; did you mean hole"),
    ],
)
def test_impossible_settings_are_errors(
    n_anomaly: int, known_class: str | None, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        few_shot_split(
            examples(5, 4, hole=6, scratch=3), n_anomaly=n_anomaly, known_class=known_class, seed=0
        )


def test_the_only_class_cannot_be_the_known_class() -> None:
    with pytest.raises(UserError, match="only defect class"):
        few_shot_split(examples(5, 4, hole=6), n_anomaly=1, known_class="hole", seed=0)


def test_a_single_anomaly_is_not_enough() -> None:
    with pytest.raises(UserError, match="at least two anomalies are needed"):
        few_shot_split(examples(5, 4, hole=1), n_anomaly=1, known_class=None, seed=0)


@given(
    seed=st.integers(0, 2**31 - 1),
    shots=st.integers(1, 9),
    known_class=st.sampled_from([None, "hole", "scratch"]),
    contamination=st.floats(0, 0.2),
)
def test_contamination_is_neither_tested_nor_labelled(
    seed: int, shots: int, known_class: str | None, contamination: float
) -> None:
    rows = examples(40, 4, hole=15, scratch=15)
    split = full_split(
        rows,
        n_anomaly=shots,
        known_class=known_class,
        contamination=contamination,
        calibration=0.0,
        seed=seed,
    )
    contaminating = set(split.train_contamination)
    # The largest number whose fraction does not exceed the setting.
    assert len(contaminating) <= contamination * (40 + len(contaminating)) + 1e-6
    assert len(contaminating) + 1 > contamination * (40 + len(contaminating) + 1) - 1e-6
    assert not contaminating & {*split.test, *split.train_anomaly, *split.train_normal}
    assert all("good" not in path for path in contaminating)
    if known_class:
        assert not any(known_class in path for path in split.test)
    # The labelled anomalies are those of the run without contamination.
    clean = few_shot_split(rows, n_anomaly=shots, known_class=known_class, seed=seed)
    assert split.train_anomaly == clean.train_anomaly
    assert Split.from_dict(split.to_dict()) == split


@pytest.mark.parametrize(("fraction", "count"), [(0.0, 0), (0.02, 18), (0.05, 47), (0.1, 100)])
def test_contamination_is_a_fraction_of_the_unlabelled_images(fraction: float, count: int) -> None:
    # 900 normal images: 900·0.02/0.98 = 18.4, 900·0.05/0.95 = 47.4, 900·0.1/0.9 = 100 exactly.
    rows = examples(900, 4, hole=200)
    split = full_split(
        rows, n_anomaly=10, known_class=None, contamination=fraction, calibration=0.0, seed=1
    )
    assert len(split.train_contamination) == count
    assert len(split.test) == 4 + 200 - 10 - count


def test_fewer_shots_are_a_subset_of_more_shots() -> None:
    rows = examples(5, 4, hole=30)
    drawn = [
        set(few_shot_split(rows, n_anomaly=n, known_class=None, seed=3).train_anomaly)
        for n in (1, 5, 10)
    ]
    assert drawn[0] < drawn[1] < drawn[2]


@pytest.mark.parametrize(("known_class", "fraction"), [(None, 0.5), ("hole", 0.24), ("hole", 0.4)])
def test_contamination_must_leave_anomalies_for_the_test(
    known_class: str | None, fraction: float
) -> None:
    with pytest.raises(UserError, match="none would be left for the test; use a smaller value"):
        full_split(
            examples(19, 4, hole=6, scratch=3),
            n_anomaly=6,
            known_class=known_class,
            contamination=fraction,
            calibration=0.0,
            seed=0,
        )


@given(
    fraction=st.floats(0, 0.8), contamination=st.sampled_from([0.0, 0.1]), seed=st.integers(0, 99)
)
def test_calibration_images_are_neither_trained_nor_tested(
    fraction: float, contamination: float, seed: int
) -> None:
    rows = examples(40, 4, hole=15)
    split = full_split(
        rows,
        n_anomaly=5,
        known_class=None,
        contamination=contamination,
        calibration=fraction,
        seed=seed,
    )
    held_out = set(split.calibration)
    assert abs(len(held_out) - 40 * fraction) <= 0.5
    assert not held_out & {*split.train, *split.test}
    assert held_out | set(split.train_normal) == {f"train/good/{i}.png" for i in range(40)}
    assert Split.from_dict(split.to_dict()) == split
    # The labelled anomalies do not depend on it.
    plain = few_shot_split(rows, n_anomaly=5, known_class=None, seed=seed)
    assert split.train_anomaly == plain.train_anomaly


def test_calibration_must_leave_normal_images_for_training() -> None:
    with pytest.raises(UserError, match=r"calibration = 0\.9: none of the 3 normal images"):
        full_split(
            examples(3, 4, hole=15),
            n_anomaly=5,
            known_class=None,
            contamination=0.0,
            calibration=0.9,
            seed=0,
        )


def grown(split: Split, rows: list[Example], n_anomaly: int = 2) -> Split:
    return grown_split(split, rows, n_anomaly)


def first_split(known_class: str | None = None) -> Split:
    rows = examples(20, 4, hole=4, scratch=4)
    return full_split(
        rows, n_anomaly=2, known_class=known_class, contamination=0.0, calibration=0.2, seed=1
    )


def test_a_split_that_has_grown_keeps_the_part_of_every_image() -> None:
    split = first_split()
    rows = examples(30, 6, hole=5, scratch=4, crack=2)
    larger = grown(split, rows)
    assert grown(split, examples(20, 4, hole=4, scratch=4)) == split
    for part in ("train_normal", "train_anomaly", "calibration", "test"):
        assert set(getattr(split, part)) <= set(getattr(larger, part))
    assert larger.train_anomaly == split.train_anomaly  # as many as before are asked for
    assert len(larger.calibration) == 4 + 2  # a fifth of the ten new ones
    assert len(larger.train_normal) == 16 + 8
    assert sorted(larger.paths) == sorted(row.path for row in rows)
    assert grown(split, rows[::-1]) == larger


def test_more_labels_are_drawn_from_the_new_anomalies() -> None:
    split = first_split()
    larger = grown(split, examples(20, 4, hole=4, scratch=4, crack=3), n_anomaly=4)
    new = set(larger.train_anomaly) - set(split.train_anomaly)
    assert len(new) == 2
    assert all(path.startswith("test/crack") for path in new)
    assert larger.trained_classes["crack"] == 2
    assert len(larger.test) == len(split.test) + 1
    assert larger.protocol["n_anomaly"] == 4


def test_in_the_hard_setting_the_known_class_stays_out_of_the_test() -> None:
    split = first_split(known_class="hole")
    larger = grown(split, examples(20, 4, hole=6, scratch=5), n_anomaly=3)
    assert len(larger.train_anomaly) == 3
    assert all(path.startswith("test/hole") for path in larger.train_anomaly)
    assert set(larger.test) - set(split.test) == {"test/scratch/4.png"}


@pytest.mark.parametrize("n_anomaly", [1, 5])
def test_labels_can_neither_be_taken_back_nor_invented(n_anomaly: int) -> None:
    rows = examples(20, 4, hole=5, scratch=5)
    with pytest.raises(UserError, match="2 labelled anomalies train already, and 2 are new"):
        grown(first_split(), rows, n_anomaly)


def own(rows: list[Example], n_anomaly: int | None, seed: int = 0) -> Split:
    return few_shot_split(rows, n_anomaly=n_anomaly, known_class=None, seed=seed, own_data=True)


@given(seed=st.integers(0, 2**31 - 1), order=st.randoms())
def test_of_own_pictures_labels_are_drawn_evenly(seed: int, order: random.Random) -> None:
    rows = examples(5, 4, hole=6, scratch=1, dent=9)
    order.shuffle(rows)
    drawn = [own(rows, n, seed) for n in range(17)]
    assert drawn[3].trained_classes == {"dent": 1, "hole": 1, "scratch": 1}
    assert drawn[5].trained_classes == {"dent": 2, "hole": 2, "scratch": 1}
    assert drawn[13].trained_classes == {"dent": 6, "hole": 6, "scratch": 1}
    for fewer, more in itertools.pairwise(drawn):
        assert set(fewer.train_anomaly) < set(more.train_anomaly)
    assert drawn[5].tested_classes == {"dent": 7, "good": 4, "hole": 4}


@pytest.mark.parametrize("n_anomaly", [3, 10, None])
def test_of_few_own_defects_all_train(n_anomaly: int | None) -> None:
    split = own(examples(5, 2, hole=2, scratch=1), n_anomaly)
    assert split.trained_classes == {"hole": 2, "scratch": 1}
    assert split.tested_classes == {"good": 2}


def test_anomalies_of_the_training_part_train_and_the_others_test() -> None:
    rows = examples(5, 2, hole=3)
    rows += [Example(f"train/dent/{i}.png", "train", 1, "dent", "") for i in range(4)]
    split = own(rows, 2)
    assert split.trained_classes == {"dent": 4}
    assert split.tested_classes == {"good": 2, "hole": 3}
    assert split.train_normal == tuple(f"train/good/{i}.png" for i in range(5))
    grown_rows = [*rows, *examples(7, 2, hole=5)]
    grown_rows = list({row.path: row for row in grown_rows}.values())
    grown_rows.append(Example("train/hole/0.png", "train", 1, "hole", ""))
    larger = grown_split(split, grown_rows, 2, own_data=True)
    assert larger.trained_classes == {"dent": 4, "hole": 1}
    assert larger.tested_classes == {"good": 2, "hole": 5}
    with pytest.raises(UserError, match=r"known_class = 'dent'.*leave known_class unset"):
        few_shot_split(rows, n_anomaly=2, known_class="dent", seed=0, own_data=True)


def test_new_own_defects_fill_the_kinds_that_have_few() -> None:
    split = own(examples(5, 2, hole=4), 2)
    larger = grown_split(split, examples(5, 2, hole=6, dent=3), 4, own_data=True)
    assert larger.trained_classes == {"dent": 2, "hole": 2}
    assert set(split.test) < set(larger.test)
    everything = grown_split(split, examples(5, 2, hole=6, dent=3), None, own_data=True)
    assert everything.trained_classes == {"dent": 3, "hole": 4}
    assert grown_split(split, examples(5, 2, hole=4), 10, own_data=True).train_anomaly == (
        split.train_anomaly
    )


def test_all_published_anomalies_cannot_train() -> None:
    with pytest.raises(UserError, match=r"n_anomaly = all: there are 5 anomalies.*at most"):
        few_shot_split(examples(5, 4, hole=5), n_anomaly=None, known_class=None, seed=0)
    split = few_shot_split(
        examples(5, 4, hole=5, dent=2), n_anomaly=None, known_class="hole", seed=0
    )
    assert split.trained_classes == {"hole": 5}
