"""Tests of the settings: types, ranges, overrides by name, and the files in configs/."""

import dataclasses
import runpy
from pathlib import Path

import numpy as np
import pytest

from devnet_jax.config import (
    Config,
    changed_settings,
    for_dataset,
    for_folder,
    get_config,
    get_setting,
    parse_setting,
    require_setting,
    with_settings,
)
from devnet_jax.data.datasets import DATASETS
from devnet_jax.data.datasets.builder import GOOD
from devnet_jax.errors import UserError
from devnet_jax.sweep.published import published_values

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.py"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_file_gives_valid_settings(path: Path) -> None:
    module = runpy.run_path(str(path))
    config = Config.from_dict(module["get_config"]())
    assert config.dataset.name
    assert f"configs/{path.name}" in module["__doc__"], "its docstring has no command"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_docstrings_of_config_files_state_the_published_figures(path: Path) -> None:
    module = runpy.run_path(str(path))
    dataset, text = module["get_config"]().dataset, " ".join(module["__doc__"].split())
    for category, counts in DATASETS[dataset.name].PUBLISHED_COUNTS.items():
        if category == dataset.category:
            normal = counts[GOOD]
            anomalous = sum(counts.values()) - normal
            assert f"{normal} normal" in text
            assert not anomalous or f"{normal} normal and {anomalous} anomalous" in text
    for figure in published_values(dataset.name, setting="general", n_anomaly=10):
        if (figure.source.name, figure.method) == ("AHL paper", "DevNet"):
            assert f"{figure.mean:.3f} ± {figure.std:.3f}" in text


def test_for_dataset_changes_the_name_and_the_category_alone() -> None:
    config = get_config()
    assert for_dataset("synthetic_textures") == config
    config.dataset.name, config.dataset.category = "mvtec_ad", "carpet"
    assert for_dataset("mvtec_ad", "carpet") == config


def test_defaults_are_the_papers() -> None:
    # arXiv 2108.00462, section 4.1, and the official code's defaults.
    config = Config()
    assert (config.dataset.image_size, config.dataset.n_anomaly) == (448, 10)
    assert (config.model.backbone, config.model.n_scales, config.model.topk) == ("resnet18", 2, 0.1)
    assert (config.loss.margin, config.loss.prior_samples) == (5.0, 5000)
    assert (config.train.batch_size, config.train.epochs, config.train.steps_per_epoch) == (
        48,
        50,
        20,
    )
    assert (config.optimizer.learning_rate, config.optimizer.weight_decay) == (2e-4, 1e-5)
    assert (config.optimizer.clip_norm, config.optimizer.decay_epochs) == (1.0, 10)


def test_settings_survive_the_trip_to_json_and_back() -> None:
    values = get_config()
    values.dataset.known_class = "mono"
    values.train.batch_size = 6
    config = Config.from_dict(values)
    assert Config.from_dict(config.to_dict()) == config
    assert config.dataset.known_class == "mono"


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"manual_dir": "/data/line 3/bottle/"}, "bottle"),
        ({"manual_dir": "/data/bottle/good/.."}, "bottle"),
        ({"manual_dir": "/data/bottle", "run.name": " Bottles of line 3 "}, "Bottles of line 3"),
        ({"manual_dir": '/data/<b>"&日本'}, '<b>"&日本'),
        ({"manual_dir": "/data/a\n\udc80"}, "a\\n\\udc80"),  # on one line, in UTF-8
        ({"manual_dir": "/"}, "image_folder"),
        ({"name": "image_list", "labels": "/data/bottle.v2.csv"}, "bottle.v2"),
        ({"name": "image_list", "labels": "/data/bottle/labels.csv"}, "bottle"),
        ({"name": "image_list", "labels": "/b/Labels.tsv", "manual_dir": "/pictures"}, "b"),
        ({"name": "mvtec_ad", "category": "carpet", "manual_dir": "/mvtec"}, "mvtec_ad / carpet"),
        ({"name": "elpv", "manual_dir": "/data/solar", "run.name": "cells"}, "cells"),
        ({"name": "elpv", "manual_dir": "/data/solar"}, "elpv"),
    ],
)
def test_a_detector_has_a_name(settings: dict[str, str], name: str) -> None:
    of_dataset = {"name": "image_folder", **settings}
    values = {k if "." in k else f"dataset.{k}": v for k, v in of_dataset.items()}
    assert with_settings(Config(), values).detector_name == name


def test_a_relative_folder_has_its_own_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert for_folder(".").detector_name == tmp_path.name
    settings = {"dataset.name": "image_folder", "dataset.manual_dir": "."}
    assert with_settings(Config(), settings).detector_name == tmp_path.name


@pytest.mark.parametrize(
    ("group", "name", "value", "message"),
    [
        ("model", "topk", 1.5, r"config\.model\.topk = 1\.5: must be in \[0, 1\]"),
        ("model", "topk", float("nan"), "must be finite"),
        ("model", "n_scales", 0, "must be at least 1"),
        ("model", "backbone", "resnet81", "unknown; did you mean resnet18"),
        ("loss", "name", "devation", "did you mean deviation"),
        ("train", "batch_size", 3.5, "must be int"),
        ("train", "batch_size", True, "must be int"),
        ("train", "batchsize", 8, r"config\.train\.batchsize: no such setting.*batch_size"),
        ("dataset", "known_class", 3, "must be str or none"),
        ("dataset", "n_anomaly", -1, "must be at least 0"),
        ("evaluation", "threshold", "high", "'high': give a score, or auto"),
        ("evaluation", "threshold", "inf", "'inf': give a score, or auto"),
    ],
)
def test_a_wrong_setting_is_named(group: str, name: str, value: object, message: str) -> None:
    values = Config().to_dict()
    values[group][name] = value
    with pytest.raises(UserError, match=message):
        Config.from_dict(values)


def test_a_wrong_setting_in_a_file_names_the_file() -> None:
    with pytest.raises(UserError, match=r"a/config\.json: config\.sede: no such setting.*seed"):
        Config.from_dict({"sede": 3}, source="a/config.json")


def test_an_unknown_override_names_the_nearest() -> None:
    require_setting("train.epochs")
    require_setting("train")
    with pytest.raises(
        UserError, match=r"did you mean evaluation\.batch_size or train\.batch_size"
    ):
        require_setting("batch_size")
    with pytest.raises(UserError, match=r"did you mean train\.epochs"):
        require_setting("train.epoch")


def test_only_settings_that_change_the_result_forbid_resuming() -> None:
    old = Config()
    values = old.to_dict()
    values["dataset"]["manual_dir"] = "elsewhere"
    values["evaluation"]["batch_size"] = 7
    values["train"]["epochs"] = 60
    assert changed_settings(old, Config.from_dict(values)) == {}
    values["optimizer"]["learning_rate"] = 1.0
    values["seed"] = 1
    assert changed_settings(old, Config.from_dict(values)) == {
        "config.optimizer.learning_rate": (2e-4, 1.0),
        "config.seed": (42, 1),
    }


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("seed", "7", 7),
        ("loss.margin", "3", 3.0),
        ("loss.margin", "wide", "wide"),
        ("model.pretrained", "none", "none"),
        ("dataset.known_class", "none", None),
        ("dataset.known_class", "7", "7"),
        ("train.batch_size", "1.5", "1.5"),
        ("dataset.cache", "False", False),
        ("dataset.cache", "no", "no"),
    ],
)
def test_settings_from_text(name: str, text: str, value: object) -> None:
    parsed = parse_setting(name, text)
    assert (parsed, type(parsed)) == (value, type(value))


def test_settings_by_name() -> None:
    changed = with_settings(Config(), {"train.epochs": 3, "seed": 1})
    assert (changed.train.epochs, changed.seed) == (3, 1)
    assert get_setting(changed, "train.epochs") == 3
    assert Config() != changed == with_settings(changed, {})
    with pytest.raises(UserError, match=r"config\.train\.batch_size = '1.5': must be int"):
        with_settings(Config(), {"train.batch_size": "1.5"})
    with pytest.raises(UserError, match=r"config\.train: a group of settings, not one"):
        get_setting(Config(), "train")
    with pytest.raises(UserError, match=r"config\.train\.epoch: no such setting; did you mean"):
        with_settings(Config(), {"train.epoch": 3})


def test_the_page_of_settings_is_up_to_date() -> None:
    """Compares docs/settings.md; `python docs/settings_page.py` regenerates it."""
    from docs.settings_page import PAGE, page

    assert PAGE.read_text(encoding="utf-8") == page()


def test_a_threshold_that_python_gives_is_a_finite_score() -> None:
    evaluation = dataclasses.replace(Config().evaluation, threshold=np.float32(0.1))
    assert Config(evaluation=evaluation).evaluation.threshold == 0.1  # as tables have it
    with pytest.raises(UserError, match="threshold = nan: give a score, or auto"):
        Config(evaluation=dataclasses.replace(evaluation, threshold=float("nan")))


@pytest.mark.parametrize(("given", "threshold"), [("auto", None), ("-0.5", -0.5), (1, 1.0)])
def test_a_threshold_is_a_score_or_auto(given: str | int, threshold: float | None) -> None:
    found = with_settings(Config(), {"evaluation.threshold": given}).evaluation
    assert found.given_threshold == threshold
    assert found == with_settings(Config(evaluation=found), {}).evaluation
