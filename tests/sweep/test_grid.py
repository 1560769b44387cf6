"""The jobs of a grid: their settings, names and commands."""

from pathlib import Path
from typing import Any

import pytest

from devnet_jax.config import Config, get_config, parse_setting, with_settings
from devnet_jax.data.source import is_available
from devnet_jax.errors import UserError
from devnet_jax.sweep.grid import Axes, Job, make_grid


@pytest.fixture(autouse=True)
def prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes every data set appear to be prepared."""
    monkeypatch.setattr("devnet_jax.sweep.grid.is_available", lambda *_: True)


def grid(*, base: Config | None = None, data: Path | None = None, **axes: Any) -> list[Job]:
    axes = {"datasets": ["elpv"], "seeds": [0], **axes}
    return make_grid(base or Config(), Axes(**axes), data)


def test_one_job_per_combination_ordered_by_seed() -> None:
    jobs = grid(
        datasets=["elpv", "brain_mri"], shots=[1, 10], methods=["devnet", "flos"], seeds=[0, 1]
    )
    assert len(jobs) == len({job.name for job in jobs}) == 16
    assert [job.config.seed for job in jobs] == [0] * 8 + [1] * 8
    assert jobs[1].name == "elpv/general/1-shot/flos/seed-0"
    assert jobs[1].config.loss.name == "focal"
    assert jobs[1].config.dataset.n_anomaly == 1


def test_a_data_set_s_name_means_all_its_categories(tmp_path: Path) -> None:
    (tmp_path / "mvtec_ad").mkdir()
    jobs = grid(datasets=["mvtec_ad", "visa:candle"], data=tmp_path)
    assert len(jobs) == 15 + 1
    folders = [job.config.dataset.manual_dir for job in jobs]
    assert folders == [str(tmp_path / "mvtec_ad")] * 15 + [None]  # visa is prepared already
    assert jobs[-1].name == "visa-candle/general/10-shot/devnet/seed-0"
    assert jobs[-1].config.dataset.category == "candle"


def test_a_data_set_without_data_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("devnet_jax.sweep.grid.is_available", is_available)
    base = with_settings(Config(), {"dataset.data_dir": str(tmp_path)})
    with pytest.raises(
        UserError, match=r"brain_mri: the data set is not prepared, and it is not in --data=.*no/"
    ):
        grid(base=base, datasets=["brain_mri"], data=tmp_path)
    with pytest.raises(UserError, match="not prepared, and --data is not given"):
        grid(base=base, datasets=["image_folder"])
    assert grid(base=base, datasets=["elpv"], data=tmp_path)  # can be downloaded
    assert grid(base=base, datasets=["synthetic_textures:wood"])


def test_protocols() -> None:
    jobs = grid(known_classes=["none", "all"], contaminations=[0.0, 0.1])
    assert [job.name.split("/")[1] for job in jobs] == [
        "general",
        "general-contamination-0.1",
        "hard-mono",
        "hard-mono-contamination-0.1",
        "hard-poly",
        "hard-poly-contamination-0.1",
    ]
    assert [job.config.dataset.known_class for job in jobs[1:4]] == [None, "mono", "mono"]
    assert jobs[1].config.dataset.contamination == 0.1


def test_known_classes() -> None:
    def known(dataset: str, value: str) -> list[str | None]:
        jobs = grid(datasets=["elpv", dataset], known_classes=["none", value])
        return [
            job.config.dataset.known_class for job in jobs if job.config.dataset.name == dataset
        ][1:]

    assert known("mastcam", "published") == [
        *("bedrock", "broken-rock", "drill-hole", "drt", "dump-pile", "float", "meteorite"),
        *("scuff", "veins"),
    ]
    assert len(known("mastcam", "all")) == 11  # two of them are in no published mean
    assert known("brain_mri", "all") == []  # has one class, and the test set needs another
    assert known("brain_mri", "published") == []
    assert known("aitex", "Nep") == ["Nep"]


def test_methods_and_variations_change_only_their_settings() -> None:
    base = with_settings(Config(), {"train.epochs": 3})
    jobs = {
        job.name.split("/")[3]: job.config
        for job in grid(
            base=base,
            methods=["devnet", "bce", "no_mil", "one_scale"],
            variations={"loss.margin": [3.0, 7.0]},
        )
    }
    assert len(jobs) == 8
    expected = {
        "devnet-loss.margin=3.0": {"loss.margin": 3.0},
        "bce-loss.margin=7.0": {"loss.margin": 7.0, "loss.name": "bce"},
        "no_mil-loss.margin=3.0": {"loss.margin": 3.0, "model.topk": 0.0},
        "one_scale-loss.margin=3.0": {"loss.margin": 3.0, "model.n_scales": 1},
    }
    for name, changes in expected.items():
        common = {"seed": 0, "dataset.name": "elpv"}
        assert jobs[name] == with_settings(base, {**common, **changes})


def test_the_command_has_all_non_default_settings(tmp_path: Path) -> None:
    data = tmp_path / "my data"
    (data / "elpv").mkdir(parents=True)
    (job,) = grid(
        base=with_settings(Config(), {"dataset.image_size": 128}),
        known_classes=["mono"],
        methods=["flos"],
        seeds=[7],
        data=data,
    )
    command = job.command(Path("/runs/x"))
    assert command[1:3] == ["-m", "devnet_jax.main"]
    assert Path(command[3].removeprefix("--config=")).name == "config.py"
    assert command[4:] == [
        "--config.seed=7",
        "--config.dataset.name=elpv",
        f"--config.dataset.manual_dir={data}/elpv",
        "--config.dataset.image_size=128",
        "--config.dataset.known_class=mono",
        "--config.loss.name=focal",
        "--workdir=/runs/x",
    ]


def test_devcore_has_its_own_image_size_and_shots() -> None:
    jobs = grid(methods=["devnet", "devcore"], shots=[0, 5])
    sizes = [(job.method, job.config.dataset.image_size) for job in jobs]
    assert sizes == [("devnet", 448), ("devcore", 224)] * 2
    assert jobs[1].config == with_settings(
        Config(),
        {"model.detector": "devcore", "seed": 0, "dataset.name": "elpv", "dataset.n_anomaly": 0},
    )
    small = with_settings(Config(), {"dataset.image_size": 96})
    (job,) = grid(base=small, methods=["devcore"])
    assert job.config.dataset.image_size == 96


@pytest.mark.parametrize("size", [224, 448])
def test_the_command_of_devcore_gives_its_settings(size: int) -> None:
    variations = {"dataset.image_size": [size], "evaluation.explanation": ["gradient"]}
    (job,) = grid(methods=["devcore"], variations=variations)
    flags = [flag.removeprefix("--config.") for flag in job.command(Path("/runs/x"))[4:-1]]
    values = get_config()
    for name, _, text in (flag.partition("=") for flag in flags):
        group, _, last = name.rpartition(".")
        section = values[group] if group else values
        section[last] = parse_setting(name, text)
    assert Config.from_dict(values) == job.config


def test_jobs_that_differ_in_the_training_images_share_a_compile_key() -> None:
    jobs = grid(known_classes=["none", "all"], shots=[1, 5], contaminations=[0, 0.1], seeds=[0, 1])
    assert len({job.compile_key for job in jobs}) == 1
    assert len({job.compile_key for job in grid(methods=["devnet", "flos", "no_mil"])}) == 3
    assert len({job.compile_key for job in grid(datasets=["elpv", "brain_mri"])}) == 2
    jobs = grid(methods=["devcore"], known_classes=["none", "all"], shots=[1, 5], seeds=[0, 1])
    assert len({job.compile_key for job in jobs}) == 2  # its programs take all images at once


def test_names_of_jobs_are_unique() -> None:
    jobs = grid(known_classes=["a b", "a/b", "a_b", "none"])
    assert len({job.name for job in jobs}) == 4
    assert all(len(job.name.split("/")) == 5 for job in jobs)
    weights = ["a/x.npz", "a_x.npz", "a%2Fx.npz"]
    assert len({job.name for job in grid(variations={"model.pretrained": weights})}) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"datasets": ["elpw"]}, "--datasets=elpw: no such data set; did you mean elpv"),
        ({"datasets": ["visa:candel"]}, "no such category of visa; did you mean candle"),
        ({"datasets": ["elpv:mono"]}, "no such category of elpv; it has none"),
        ({"methods": ["devnett"]}, "--methods=devnett: no such method; did you mean devnet"),
        ({"shots": [-1]}, r"config\.dataset\.n_anomaly = -1: must be at least 0"),
        ({"contaminations": [0.9]}, r"config\.dataset\.contamination = 0.9: must be in \[0, 0.5\]"),
        ({"variations": {"loss.margn": [1]}}, "config.loss.margn: no such setting"),
        ({"variations": {"loss": [1]}}, "config.loss: a group of settings, not one"),
        ({"variations": {"loss.margin": ["wide"]}}, "config.loss.margin = 'wide': must be float"),
        ({"variations": {"loss.name": ["bce"]}}, "--vary=loss.name: set it with --methods"),
        (
            {"variations": {"model.topk": [0.2]}, "methods": ["devnet", "no_mil"]},
            "--vary=model.topk: --methods=no_mil sets it, too",
        ),
        ({"variations": {"model.detector": ["devcore"]}}, "--vary=model.detector: set it with"),
        (
            {"base": with_settings(Config(), {"model.detector": "devcore"})},
            "config.model.detector: set it with --methods",
        ),
        (
            {"base": with_settings(Config(), {"dataset.n_anomaly": 1})},
            "config.dataset.n_anomaly: set it with --shots",
        ),
        ({"seeds": []}, "no runs"),
        ({"datasets": ["brain_mri"], "known_classes": ["all"]}, "no runs"),
    ],
)
def test_wrong_requests(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        grid(**changes)
