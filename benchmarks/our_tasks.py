"""The tasks of a comparison in this package; `comparison.py` runs each task as a program."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import logging
import os
import sys
from pathlib import Path
from typing import Literal

import numpy as np
from in_turn import serve
from materials import OURS, OURS_BFLOAT16, Materials

from devnet_jax.config import (
    Config,
    DatasetConfig,
    EvaluationConfig,
    ModelConfig,
    TrainConfig,
    with_settings,
)
from devnet_jax.data.decode import load_image, map_in_threads
from devnet_jax.data.prefetch import prefetch
from devnet_jax.data.preprocessing import Preprocessing
from devnet_jax.runtime.startup import prepare

# JAX is imported only in the tasks, after `prepare` has set its environment variables.


DTYPES: dict[str, Literal["float32", "bfloat16"]] = {OURS: "float32", OURS_BFLOAT16: "bfloat16"}


def make_config(materials: Materials, side: str) -> Config:
    """Returns the settings of one of our sides."""
    settings = materials.settings
    return Config(
        dataset=DatasetConfig(
            name="image_folder",
            manual_dir=str(materials.images),
            data_dir=str(materials.folder / "prepared"),
            image_size=settings.image_size,
        ),
        model=ModelConfig(pretrained="none", dtype=DTYPES[side]),
        train=TrainConfig(
            batch_size=settings.batch_size,
            epochs=settings.epochs,
            steps_per_epoch=settings.steps_per_epoch,
        ),
        evaluation=EvaluationConfig(batch_size=settings.score_batch),
    )


def decode(paths: list[Path], size: int) -> np.ndarray:
    """Decodes image files to uint8 [N, S, S, 3]."""

    def load(path: Path) -> np.ndarray:
        return load_image(path.read_bytes(), str(path), Preprocessing(size, size))

    return np.stack(list(map_in_threads(load, paths, None)))


def make(materials: Materials, side: str) -> None:
    """Writes the weights, runs and decoded images that all sides start from."""
    from devnet_jax.checkpoints.checkpoints import Checkpoints
    from devnet_jax.data.few_shot import FewShotDataset
    from devnet_jax.models import to_torch_state_dict
    from devnet_jax.models.build import make_variables
    from devnet_jax.runtime.io import write_json
    from devnet_jax.runtime.workdir import Workdir
    from devnet_jax.training.loop import save_state
    from devnet_jax.training.step import initial_state

    config = make_config(materials, side)
    variables = make_variables(config)
    np.savez(materials.weights, **to_torch_state_dict(variables))
    for our_side in DTYPES:
        side_config = make_config(materials, our_side)
        workdir = Workdir(materials.run(our_side))
        write_json(workdir.config, side_config.to_dict())
        with Checkpoints(workdir.checkpoints) as checkpoints:
            save_state(checkpoints, initial_state(side_config, variables), side_config)
    np.save(materials.decoded, decode(materials.paths, config.dataset.image_size))
    if materials.settings.platform == "gpu":  # training is measured with a filled cache of images
        dataset = FewShotDataset.draw(config.dataset, config.seed)
        images = dataset.train_images()
        images.read(np.arange(len(images)))


def train(materials: Materials, side: str) -> None:
    """Trains a model on image files; prints a line after each epoch."""
    from devnet_jax.runtime.workdir import Workdir
    from devnet_jax.training import run

    package = logging.getLogger("devnet_jax")
    package.addHandler(logging.StreamHandler(sys.stdout))
    package.setLevel(logging.INFO)
    run.train(make_config(materials, side), Workdir(materials.trained(side)))


@dataclasses.dataclass(frozen=True)
class DecodedImages:
    """An `ImageReader` of images in memory."""

    images: np.ndarray
    is_cached: bool = True

    @property
    def preprocessing(self) -> Preprocessing:
        return Preprocessing(*self.images.shape[1:3])

    def __len__(self) -> int:
        return len(self.images)

    def read(self, indices: np.ndarray, description: str | None = None) -> np.ndarray:
        return self.images[indices]


def step(materials: Materials, side: str) -> None:
    """Runs training steps on decoded images, half of them labelled as anomalies.

    The result is the first loss.
    """
    import jax

    from devnet_jax.data.store import HostStore
    from devnet_jax.distributed.sharding import replicated
    from devnet_jax.models.build import make_variables
    from devnet_jax.training.loop import call_inputs, unrolls_steps
    from devnet_jax.training.step import initial_state, make_train_call

    settings = materials.settings
    # PyTorch rotates when it loads images. A million epochs outlast the measurement.
    config = with_settings(
        make_config(materials, side), {"train.rotation": 0.0, "train.epochs": 1_000_000}
    )
    state = jax.device_put(initial_state(config, make_variables(config)), replicated())
    store = HostStore(DecodedImages(np.load(materials.decoded)[: settings.batch_size]))
    train_call = make_train_call(config, store, scan=not unrolls_steps())
    calls = prefetch(call_inputs(config, store, settings.batch_size // 2, done=0))

    def work() -> np.ndarray:
        nonlocal state
        losses: list[float] = []
        while len(losses) < settings.steps_per_round:
            state, metrics = train_call(state, store.resident, *next(calls))
            losses += np.asarray(metrics["loss"]).tolist()
        return np.array(losses[:1])

    with contextlib.closing(calls):
        serve(work, materials.result("step", side))


def score(materials: Materials, side: str) -> None:
    """Scores image files; all cores decode the next batch while one is being scored."""
    from devnet_jax import Detector

    detector = Detector.restore(materials.run(side), make_config(materials, side))
    size, batch_size = detector.config.dataset.image_size, detector.config.evaluation.batch_size
    paths = materials.paths

    def work() -> np.ndarray:
        batches = prefetch(
            decode(paths[start : start + batch_size], size)
            for start in range(0, len(paths), batch_size)
        )
        return np.concatenate([detector.score(images).scores for images in batches])

    serve(work, materials.result("score", side))


def score_decoded(materials: Materials, side: str) -> None:
    """Scores decoded images."""
    from devnet_jax import Detector

    detector = Detector.restore(materials.run(side), make_config(materials, side))
    images = np.load(materials.decoded)
    serve(lambda: detector.score(images).scores, materials.result("score_decoded", side))


def explain(materials: Materials, side: str) -> None:
    """Explains decoded images."""
    from devnet_jax import Detector

    images = np.load(materials.decoded)[: materials.settings.n_explained]
    config = with_settings(make_config(materials, side), {"evaluation.batch_size": len(images)})
    detector = Detector.restore(materials.run(side), config)
    serve(lambda: detector.explain(images, "gradient").maps, materials.result("explain", side))


TASKS = {task.__name__: task for task in (make, train, step, score, score_decoded, explain)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("folder", type=Path, help="folder of the materials")
    parser.add_argument("side", choices=DTYPES)
    arguments = parser.parse_args()
    materials = Materials(arguments.folder)
    # Each task has its own cache, empty at first, so that training includes compilation.
    compiled = materials.folder / f"compiled-{arguments.task}-{arguments.side}"
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(compiled)
    os.environ["JAX_PLATFORMS"] = {"cpu": "cpu", "gpu": "cuda"}[materials.settings.platform]
    # The sides share the GPU's memory.
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    prepare(materials.settings.batch_size)
    TASKS[arguments.task](materials, arguments.side)


if __name__ == "__main__":
    main()
