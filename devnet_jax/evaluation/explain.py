"""Writes the explanation maps of the test images of a run."""

from __future__ import annotations

from collections.abc import Sequence

from etils import epath

from devnet_jax.config import Config
from devnet_jax.data.decode import Batch, map_in_threads
from devnet_jax.data.paths import output_name
from devnet_jax.distributed.cluster import local_share, locked_by_rank_zero
from devnet_jax.errors import UserError
from devnet_jax.evaluation.scoring import image_chunks
from devnet_jax.inference.detector import TrainedDetector
from devnet_jax.inference.scores import as_written
from devnet_jax.runtime.io import write_jpeg, write_npy
from devnet_jax.runtime.numerics import standard_numerics
from devnet_jax.runtime.workdir import Workdir
from devnet_jax.training.resume import open_dataset


@standard_numerics()
def explain(config: Config, workdir: Workdir) -> None:
    """Writes the explanation maps of the test images and their overlays to explain/.

    maps/<path>.npy is float32 [h, w]; overlays/<path>.jpg is the image with its map drawn over it.
    Names too long for a file system are replaced by their hashes (`output_name`).

    Args:
      config: settings of the run.
      workdir: workdir of the run.

    Raises:
      UserError: as `evaluate`, or if the explanation method is "none".
    """
    if config.evaluation.explanation == "none":
        raise UserError(
            "config.evaluation.explanation = 'none': nothing to write; choose a method, such as "
            "gradient"
        )
    workdir.require_run()
    workdir.require_writable()
    with locked_by_rank_zero(workdir.lock()):
        dataset = open_dataset(config, workdir)
        detector = TrainedDetector.restore(workdir.path, config)
        paths = local_share(dataset.split.test)
        for start, images in image_chunks(detector, dataset, paths, "explaining"):
            chunk = paths[start : start + len(images)]
            _write_explanations(detector, workdir.explanations, chunk, images)


def _write_explanations(
    detector: TrainedDetector, folder: epath.Path, paths: Sequence[str], images: Batch
) -> None:
    scored = detector.score(images)
    scores, maps = as_written(scored.scores), detector.input_maps(images, maps=scored.maps)

    def write(i: int) -> None:
        laid = detector.lay(maps[i], images.sizes[i])
        write_npy(folder / "maps" / output_name(paths[i], ".npy"), laid)
        overlay = detector.overlay(detector.picture(images, i), scores[i], laid)
        write_jpeg(folder / "overlays" / output_name(paths[i], ".jpg"), overlay)

    for _ in map_in_threads(write, range(len(paths)), None):
        pass
