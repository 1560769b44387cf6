"""A grid's jobs: which, under which settings, by which command."""

from pathlib import Path
from typing import Any

import pytest

from devnet_jax.config import Config
from devnet_jax.errors import UserError
from devnet_jax.sweep.grid import Job, make_grid, with_settings


def grid(**changes: Any) -> list[Job]:
    arguments: dict[str, Any] = {
        "datasets": ["elpv"],
        "known_classes": [""],
        "contaminations": [0.0],
        "shots": [10],
        "methods": ["devnet"],
        "variations": {},
        "seeds": [0],
        "data": None,
        "classes_of": lambda config: ["mono", "poly"],
        **changes,
    }
    return make_grid(arguments.pop("base", Config()), **arguments)


def test_every_combination_once_and_a_whole_table_before_a_second_seed() -> None:
    jobs = grid(
        datasets=["elpv", "brain_mri"], shots=[1, 10], methods=["devnet", "flos"], seeds=[0, 1]
    )
    assert len(jobs) == len({job.name for job in jobs}) == 16
    assert [job.config.seed for job in jobs] == [0] * 8 + [1] * 8
    assert jobs[1].name == "elpv/general/1-shot/flos/seed-0"
    assert jobs[1].config.loss.name == "focal"
    assert jobs[1].config.dataset.n_anomaly == 1


def test_a_name_stands_for_all_categories_of_a_data_set() -> None:
    jobs = grid(datasets=["mvtec_ad", "visa:candle"], data=Path("/data"))
    assert len(jobs) == 15 + 1
    assert {job.config.dataset.manual_dir for job in jobs} == {"/data/mvtec_ad", "/data/visa"}
    assert jobs[-1].name == "visa-candle/general/10-shot/devnet/seed-0"
    assert jobs[-1].config.dataset.category == "candle"
    (built_in,) = grid(datasets=["synthetic_textures:wood"], data=Path("/data"))
    assert built_in.config.dataset.manual_dir is None


def test_protocols() -> None:
    jobs = grid(known_classes=["", "all"], contaminations=[0.0, 0.1])
    assert [job.name.split("/")[1] for job in jobs] == [
        "general",
        "hard-mono",
        "hard-poly",
        "general-contamination-0.1",
        "hard-mono-contamination-0.1",
        "hard-poly-contamination-0.1",
    ]
    assert [job.config.dataset.known_class for job in jobs[:3]] == [None, "mono", "poly"]
    assert jobs[3].config.dataset.contamination == 0.1


def test_methods_and_variations_change_what_they_say_and_nothing_else() -> None:
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


def test_the_command_names_every_setting_that_is_not_a_default() -> None:
    (job,) = grid(
        base=with_settings(Config(), {"dataset.image_size": 128}),
        known_classes=["mono"],
        methods=["flos"],
        seeds=[7],
        data=Path("/my data"),
    )
    command = job.command(Path("/runs/x"))
    assert command[1:3] == ["-m", "devnet_jax.main"]
    assert Path(command[3].removeprefix("--config=")).name == "config.py"
    assert command[4:] == [
        "--config.seed=7",
        "--config.dataset.name=elpv",
        "--config.dataset.manual_dir=/my data/elpv",
        "--config.dataset.image_size=128",
        "--config.dataset.known_class=mono",
        "--config.loss.name=focal",
        "--workdir=/runs/x",
    ]


def test_jobs_that_differ_in_data_and_seed_alone_share_a_shape() -> None:
    shapes = {job.shape for job in grid(datasets=["elpv", "brain_mri"], shots=[1, 5], seeds=[0, 1])}
    assert len(shapes) == 1
    assert len({job.shape for job in grid(methods=["devnet", "flos", "no_mil"])}) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"datasets": ["elpw"]}, "--datasets=elpw: no such data set; did you mean elpv"),
        ({"datasets": ["visa:candel"]}, "no such category of visa; did you mean candle"),
        ({"datasets": ["elpv:mono"]}, "no such category of elpv; it has none"),
        ({"methods": ["devnett"]}, "--methods=devnett: no such method; did you mean devnet"),
        ({"shots": [0]}, r"config\.dataset\.n_anomaly = 0: must be at least 1"),
        ({"contaminations": [0.9]}, r"config\.dataset\.contamination = 0.9: must be in \[0, 0.5\]"),
        ({"variations": {"loss.margn": [1]}}, "config.loss.margn: no such setting"),
    ],
)
def test_wrong_requests(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        grid(**changes)
