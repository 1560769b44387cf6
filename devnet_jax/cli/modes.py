"""The modes of `devnet_jax.main`: functions of the settings, the workdir and the flags.

Each imports what it needs when it runs, so that this module does not import JAX.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from devnet_jax.config import Config, for_list
from devnet_jax.errors import UserError
from devnet_jax.runtime.accounts import expand_home
from devnet_jax.runtime.workdir import Workdir

if TYPE_CHECKING:
    from devnet_jax.review.results import Results


class Flags(NamedTuple):
    """Values of the flags that belong to single modes, by their names.

    Attributes:
      input: files, folders and patterns.
      output: folder or file.
      strict: True to stop at the first unreadable image.
      port: port of the page; 0 for any.
      export_folders: folder.
      copies: True for copies in that folder instead of links.
      against: folder of another run, or an exported file.
      seeds: number of seeds.
    """

    input: Sequence[str] = ()
    output: str | None = None
    strict: bool = False
    port: int | None = None
    export_folders: str | None = None
    copies: bool = False
    against: str | None = None
    seeds: int | None = None


def _train(config: Config, workdir: Workdir, flags: Flags) -> None:
    if flags.seeds is not None:
        _train_seeds(config, workdir, flags.seeds)
        return
    from devnet_jax.training.run import train

    train(config, workdir)
    _evaluate_run(config, workdir)


def _train_seeds(config: Config, workdir: Workdir, n: int) -> None:
    from devnet_jax.distributed.cluster import is_rank_zero
    from devnet_jax.sweep.seeds import train_seeds

    seeds = train_seeds(config, workdir, n)
    if is_rank_zero():
        print(seeds)


def _evaluate(config: Config, workdir: Workdir, flags: Flags) -> None:
    labelled = _labelled_input(flags)
    if labelled is None:
        if flags.output:
            raise UserError("--output goes with --input; without it, results go to the workdir")
        if workdir.is_file:
            raise UserError(
                f"--workdir={workdir.path}: an exported file has no test images; give labelled "
                "pictures with --input, and a folder for the results with --output"
            )
        _evaluate_run(config, workdir)
        return
    if flags.output is None:
        raise UserError("--output is missing: the folder to write the results to")
    from devnet_jax.distributed.cluster import is_rank_zero
    from devnet_jax.evaluation.labelled import evaluate_labelled

    summary = evaluate_labelled(config, workdir, labelled, flags.output)
    if is_rank_zero():
        print(summary)


def _labelled_input(flags: Flags) -> str | None:
    """Returns the folder or list of --input; `None` without the flag."""
    if len(flags.input) > 1:
        raise UserError(
            f"--input is given {len(flags.input)} times: give one labelled folder or list"
        )
    return next(iter(flags.input), None)


def _compare(config: Config, workdir: Workdir, flags: Flags) -> None:
    labelled = _labelled_input(flags)
    from devnet_jax.distributed.cluster import is_rank_zero
    from devnet_jax.evaluation.compare import compare

    assert flags.against is not None
    assert flags.output is not None
    against = Workdir(flags.against, flag="--against")
    summary = compare(config, workdir, against, labelled, flags.output)
    if is_rank_zero():
        print(summary)


def _evaluate_run(config: Config, workdir: Workdir) -> None:
    from devnet_jax.distributed.cluster import is_rank_zero
    from devnet_jax.evaluation.evaluate import evaluate
    from devnet_jax.report.summary import summarise

    results = evaluate(config, workdir)
    if is_rank_zero():
        print(summarise(config, workdir, results))


def _explain(config: Config, workdir: Workdir, flags: Flags) -> None:
    from devnet_jax.distributed.cluster import is_rank_zero
    from devnet_jax.evaluation.explain import explain

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


def _review(config: Config, workdir: Workdir, flags: Flags) -> None:
    from devnet_jax.review.results import Results, export_folders, read_labels, require_empty

    results = Results.of(workdir, flags.output)
    out = None if flags.export_folders is None else expand_home(flags.export_folders).absolute()
    if out is not None:
        require_empty(out)  # rather than after an hour's work
    if flags.input:
        _look(config, workdir, flags, results)
    if out is not None:
        print(export_folders(out, *read_labels(results), copies=flags.copies))


def _look(config: Config, workdir: Workdir, flags: Flags, results: Results) -> None:
    """Serves the page until it is told to end, and says where the labels are."""
    if workdir.is_file:
        raise UserError(
            f"--workdir={workdir.path}: a file cannot learn; give the folder of a run, or another "
            "folder to begin without one"
        )
    try:
        from devnet_jax.review.serve import serve
    except ModuleNotFoundError as error:
        raise UserError(
            f"--mode=review needs {error.name}, which is not installed: pip install "
            "'devnet-jax[review]'"
        ) from None
    from devnet_jax.review.session import open_session

    with contextlib.closing(open_session(config, workdir, flags.input, results.path)) as session:
        serve(session, results.address, flags.port)
        state = session.state()
    print(f"{state['n_looked']} pictures looked at; labels: {results.labels}")
    if state["finished"]:
        print(f"detector: {results.detector}; to go on:", *state["finished"]["commands"], sep="\n")
    else:
        print("to go on with the review, run the same command again")


def _settings_of_review(workdir: Workdir, flags: Flags) -> Config:
    from devnet_jax.review.results import Results

    return for_list(Results.of(workdir, flags.output).labels)


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
      instead: flags that make a needed one unnecessary, by its name.
      starts_from: the least that `--workdir` must hold: nothing, a run, or a detector, which is a
        run or an exported file. With a file, the mode gets the default settings.
      settings: function that returns the settings if there is neither a run nor `--config`; `None`
        if the mode then refuses.
    """

    help: str
    run: Callable[[Config, Workdir, Flags], UserError | None]
    needs: Mapping[str, str] = {}
    takes: Collection[str] = ()
    instead: Mapping[str, str] = {}
    starts_from: Literal["nothing", "run", "detector"] = "run"
    settings: Callable[[Workdir, Flags], Config] | None = None

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
            is_replaced = flag in self.instead and getattr(flags, self.instead[flag])
            if not value and flag in self.needs and not is_replaced:
                raise UserError(f"--{flag} is missing: {self.needs[flag]}")


MODES: Mapping[str, Mode] = {
    "train": Mode(
        "train, or resume training, then evaluate",
        _train,
        takes=("seeds",),
        starts_from="nothing",
    ),
    "eval": Mode(
        "restore a checkpoint (config.evaluation.checkpoint) and evaluate it, or, with --input, it "
        "or a file on labelled pictures",
        _evaluate,
        takes=("input", "output"),
        starts_from="detector",
    ),
    "compare": Mode(
        "compare the detector of --workdir with that of --against on the same pictures",
        _compare,
        needs={
            "against": "the run or the exported file to compare with",
            "output": "the folder to write the results to",
        },
        takes=("input",),
        starts_from="detector",
    ),
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
    "review": Mode(
        "label the images of --input on a page in the browser, and learn from the labels",
        _review,
        needs={"input": "the images to label, as a file, folder or pattern"},
        takes=("output", "port", "export_folders", "copies"),
        instead={"input": "export_folders"},
        starts_from="nothing",
        settings=_settings_of_review,
    ),
}
