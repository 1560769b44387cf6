"""The modes of `devnet_jax.main`: functions of the settings, the workdir and the flags.

Each imports what it needs when it runs, so that this module does not import JAX.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from devnet_jax.config import Config
from devnet_jax.errors import UserError
from devnet_jax.runtime.workdir import Workdir


class Flags(NamedTuple):
    """Flags that belong to single modes.

    Attributes:
      inputs: files, folders and patterns of `--input`.
      output: folder or file of `--output`.
      strict: True to stop at the first unreadable image.
    """

    inputs: Sequence[str]
    output: str | None
    strict: bool


def _train(config: Config, workdir: Workdir, flags: Flags) -> None:
    from devnet_jax.training.run import train

    train(config, workdir)
    _evaluate(config, workdir, flags)


def _evaluate(config: Config, workdir: Workdir, flags: Flags) -> None:
    from devnet_jax.distributed.cluster import is_rank_zero
    from devnet_jax.evaluation.evaluate import evaluate
    from devnet_jax.report.summary import summarise

    results = evaluate(config, workdir)
    if is_rank_zero():
        print(summarise(config, workdir, results))


def _explain(config: Config, workdir: Workdir, flags: Flags) -> None:
    from devnet_jax.distributed.cluster import is_rank_zero
    from devnet_jax.evaluation.evaluate import explain

    explain(config, workdir)
    if is_rank_zero():
        print(f"maps and overlays of the test images: {workdir.explanations}")


def _predict(config: Config, workdir: Workdir, flags: Flags) -> UserError | None:
    from devnet_jax.distributed.cluster import is_rank_zero
    from devnet_jax.inference.detector import TrainedDetector
    from devnet_jax.prediction.predict import predict

    assert flags.output is not None
    detector = TrainedDetector.restore(workdir.path, config)
    prediction = predict(detector, flags.inputs, flags.output, strict=flags.strict)
    if is_rank_zero():
        print(prediction)
    if not prediction.n_unreadable:
        return None
    return UserError(
        f"{prediction.n_unreadable} of {prediction.n_images} images could not be read; see the "
        f"column error of {prediction.table}"
    )


def _export(config: Config, workdir: Workdir, flags: Flags) -> None:
    from devnet_jax.distributed.cluster import is_rank_zero
    from devnet_jax.export.write import export_detector
    from devnet_jax.inference.detector import TrainedDetector

    assert flags.output is not None
    detector = TrainedDetector.restore(workdir.path, config)
    if is_rank_zero():
        export_detector(detector, workdir, flags.output)
        print(f"detector in one file: {flags.output}")


class Mode(NamedTuple):
    """An entry of `MODES`.

    Attributes:
      help: what the mode does, for `--help`.
      run: the mode itself. It may return an error, which is raised when all processes have finished
        their work.
    """

    help: str
    run: Callable[[Config, Workdir, Flags], UserError | None]


MODES: Mapping[str, Mode] = {
    "train": Mode("train, or resume training, then evaluate", _train),
    "eval": Mode("restore a checkpoint (config.evaluation.checkpoint) and evaluate it", _evaluate),
    "explain": Mode(
        "restore it and write maps of the test images to explain/ in the workdir", _explain
    ),
    "predict": Mode(
        "restore it, and score and explain the images of --input into --output", _predict
    ),
    "export": Mode("restore it and write it as one file, --output=model.devnet", _export),
}
