"""The modes of `devnet_jax.main`: functions of the settings, the workdir and the flags.

Each imports what it needs when it runs, so that this module does not import JAX.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Literal, NamedTuple

from devnet_jax.config import Config
from devnet_jax.errors import UserError
from devnet_jax.runtime.workdir import Workdir


class Flags(NamedTuple):
    """Values of the flags that belong to single modes, by their names.

    Attributes:
      input: files, folders and patterns.
      output: folder or file.
      strict: True to stop at the first unreadable image.
    """

    input: Sequence[str] = ()
    output: str | None = None
    strict: bool = False


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
    prediction = predict(detector, flags.input, flags.output, strict=flags.strict)
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


def _recalibrate(config: Config, workdir: Workdir, flags: Flags) -> None:
    if workdir.is_file and flags.output is None:
        raise UserError(
            "--output is missing: the file to write, as an exported file stays as it is"
        )
    if not workdir.is_file and flags.output is not None:
        raise UserError("--output goes with an exported file: a run keeps its new threshold itself")

    from devnet_jax.distributed.cluster import is_rank_zero
    from devnet_jax.evaluation.recalibrate import recalibrate_file, recalibrate_run

    if flags.output is not None:
        change = recalibrate_file(workdir.path, flags.input, flags.output)
    else:
        change = recalibrate_run(config, workdir, flags.input)
    if is_rank_zero():
        print(change)


class Mode(NamedTuple):
    """An entry of `MODES`.

    Attributes:
      help: what the mode does, for `--help`.
      run: the mode itself. It may return an error, which is raised when all processes have finished
        their work.
      needs: names of the flags that it needs, and what each of them is.
      takes: names of further flags that it takes.
      starts_from: the least that `--workdir` must hold: nothing, a run, or a detector, which is a
        run or an exported file. With a file, the mode gets the default settings.
    """

    help: str
    run: Callable[[Config, Workdir, Flags], UserError | None]
    needs: Mapping[str, str] = {}
    takes: Collection[str] = ()
    starts_from: Literal["nothing", "run", "detector"] = "run"

    def check(self, name: str, flags: Flags) -> None:
        """Raises `UserError` for flags that the mode lacks or does not take.

        Args:
          name: name of the mode, a key of `MODES`.
          flags: flags of the command line.
        """
        for flag, value in flags._asdict().items():
            if value and flag not in {*self.needs, *self.takes}:
                takers = [m for m in MODES if flag in {*MODES[m].needs, *MODES[m].takes}]
                modes = " and ".join(f"--mode={taker}" for taker in takers)
                raise UserError(f"--{flag} goes with {modes}, not with --mode={name}")
            if not value and flag in self.needs:
                raise UserError(f"--{flag} is missing: {self.needs[flag]}")


MODES: Mapping[str, Mode] = {
    "train": Mode("train, or resume training, then evaluate", _train, starts_from="nothing"),
    "eval": Mode("restore a checkpoint (config.evaluation.checkpoint) and evaluate it", _evaluate),
    "explain": Mode(
        "restore it and write maps of the test images to explain/ in the workdir", _explain
    ),
    "predict": Mode(
        "restore it, and score and explain the images of --input into --output",
        _predict,
        needs={
            "input": "the images to score, as a file, folder or pattern",
            "output": "the folder to write predictions.csv to",
        },
        takes=("strict",),
    ),
    "recalibrate": Mode(
        "set a new threshold from the good pictures of --input, without learning",
        _recalibrate,
        needs={"input": "good pictures that did not train, as a file, folder or pattern"},
        takes=("output",),
        starts_from="detector",
    ),
    "export": Mode(
        "restore it and write it as one file, --output=model.devnet",
        _export,
        needs={"output": "the file to write, such as model.devnet"},
    ),
}
