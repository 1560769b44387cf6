"""The pictures that a run has been taught with, as a review takes them over."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from devnet_jax.config import Config
from devnet_jax.data.datasets.builder import ANOMALY, GOOD
from devnet_jax.data.few_shot import FewShotDataset
from devnet_jax.data.pages import split_page
from devnet_jax.data.paths import name_some
from devnet_jax.errors import UserError
from devnet_jax.runtime.accounts import expand_home
from devnet_jax.runtime.workdir import Workdir
from devnet_jax.training.resume import open_dataset


class Taught(NamedTuple):
    """A picture of a run.

    Attributes:
      path: absolute path of the file, or of a page of it.
      label: "good" or "anomaly".
      defect: kind of the defect, or "".
      part: part of the run's split.
    """

    path: Path
    label: str
    defect: str
    part: Literal["train", "calibration", "test"]


def taught_pictures(config: Config, workdir: Workdir) -> list[Taught]:
    """Lists the pictures of a run with their labels.

    Raises:
      UserError: if the data set is missing, or its pictures are no files of their own.
    """
    dataset = open_dataset(config, workdir)
    folder = _folder(config)
    split = dataset.split
    parts: tuple[tuple[Literal["train", "calibration", "test"], Sequence[str]], ...] = (
        ("train", split.train),
        ("calibration", dataset.calibration),
        ("test", split.test),
    )
    pictures = [
        _picture(dataset, folder / path, path, part) for part, paths in parts for path in paths
    ]
    missing = [
        f"'{picture.path}'" for picture in pictures if not split_page(picture.path)[0].is_file()
    ]
    if missing:
        raise UserError(
            f"--workdir={workdir.path}: {len(missing)} pictures of the run are no files below"
            f" '{folder}': {name_some(missing)}: a review needs a run of one's own pictures"
            " (image_folder or image_list), or no run"
        )
    return pictures


def _folder(config: Config) -> Path:
    """Returns the folder that the paths of the run's pictures start from."""
    settings = config.dataset
    if settings.manual_dir is None and settings.labels is not None:
        return expand_home(settings.labels).absolute().parent
    return expand_home(settings.manual_dir or ".").absolute()


def _picture(
    dataset: FewShotDataset, file: Path, path: str, part: Literal["train", "calibration", "test"]
) -> Taught:
    example = dataset.example(path)
    if example.label != ANOMALY:
        return Taught(file, GOOD, "", part)
    return Taught(file, "anomaly", example.defect, part)
