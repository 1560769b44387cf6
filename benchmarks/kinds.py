"""Measures how often DevCore names an alarm after its kind, on categories of MVTec AD.

python benchmarks/kinds.py --data=MVTEC --weights=resnet18.safetensors

MVTEC holds categories as published. Three pictures of each kind, drawn by the seed, train with
their label; the others test. To measure kinds that nobody has labelled, the labelled vectors of one
kind after the other are taken out of the trained detector. Writes kinds.md.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from results_page import page_parser, provenance, table

from devnet_jax.runtime.startup import prepare

LABELS_PER_KIND = 3
COMMAND = "python benchmarks/kinds.py --data=MVTEC --weights=resnet18.safetensors"


def lay_out(category: Path, folder: Path, seed: int) -> None:
    """Links the pictures of a category into a folder with train/<defect> beside train/good."""
    rng = np.random.default_rng(seed)
    for kind in sorted([category / "train" / "good", *(category / "test").iterdir()]):
        files = sorted(kind.iterdir())
        trains = kind.parent.name == "train"
        chosen = set(rng.permutation(len(files))[:LABELS_PER_KIND]) if kind.name != "good" else {}
        for i, file in enumerate(files):
            part = "train" if trains or i in chosen else "test"
            link = folder / part / kind.name / file.name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file.absolute())


def run(category: Path, weights: Path, seed: int) -> tuple[dict[str, Any], dict[str, Counter[str]]]:
    """Trains and evaluates one detector.

    Returns:
      The content of eval/metrics.json; and for each kind, what its alarms are named after without
      its labels.
    """
    from devnet_jax.config import for_folder, with_settings
    from devnet_jax.evaluation.evaluate import evaluate
    from devnet_jax.inference.detector import TrainedDetector
    from devnet_jax.runtime.workdir import Workdir
    from devnet_jax.training.run import train

    with tempfile.TemporaryDirectory() as temporary:
        folder, workdir = Path(temporary) / "pictures", Workdir(Path(temporary) / "run")
        lay_out(category, folder, seed)
        settings = {
            "seed": seed,
            "model.pretrained": str(weights.absolute()),
            "dataset.data_dir": temporary,
            "evaluation.explanation": "none",
        }
        config = with_settings(for_folder(folder), settings)
        train(config, workdir)
        results = evaluate(config, workdir)
        detector = TrainedDetector.restore(workdir.path)
        unknown = {}
        for kind in detector.kinds:
            scored = without(detector, kind).score(sorted((folder / "test" / kind).iterdir()))
            assert scored.is_anomaly is not None
            unknown[kind] = Counter(
                name or "no labelled kind"
                for name, alarm in zip(scored.kinds, scored.is_anomaly, strict=True)
                if alarm
            )
    return results, unknown


def without(detector: Any, kind: str) -> Any:
    """Returns a detector without the labelled vectors of a kind."""
    from devnet_jax.models.devcore import UNLIKE

    params = detector.variables["params"]
    kinds = np.array(params["position_head"]["labelled_kinds"])
    kinds[kinds == detector.kinds.index(kind)] = UNLIKE
    head = {**params["position_head"], "labelled_kinds": kinds}
    variables = {**detector.variables, "params": {**params, "position_head": head}}
    return dataclasses.replace(detector, variables=variables)


def section(category: str, runs: Sequence[tuple[dict[str, Any], dict[str, Counter[str]]]]) -> str:
    """Returns the tables of one category, sums over its runs."""
    accuracies = [results["kind_accuracy"] for results, _ in runs]
    kinds = sorted(runs[0][0]["kinds"])
    columns = list(runs[0][0]["kinds"][kinds[0]])
    named: Counter[tuple[str, str]] = Counter()
    hidden: Counter[tuple[str, str]] = Counter()
    for results, unknown in runs:
        for kind in kinds:
            named.update({(kind, name): n for name, n in results["kinds"][kind].items()})
            hidden.update({(kind, name): n for name, n in unknown[kind].items()})
    n_alarms = sum(results["n_kind_accuracy"] for results, _ in runs)
    n_right = sum(named[kind, kind] for kind in kinds)
    n_named = sum(named[row, column] for row in kinds for column in kinds)
    n_none = sum(hidden[kind, "no labelled kind"] for kind in kinds)
    listed = ", ".join(f"{accuracy:.0%}" for accuracy in accuracies)
    rows = [[kind, *(named[kind, name] for name in columns)] for kind in kinds]
    # Without its labels, no picture is named after its own kind.
    others = [column for column in columns if column != "no alarm"]
    hidden_rows = [[kind, *(hidden[kind, name] for name in others)] for kind in kinds]
    return (
        f"## {category}\n\n"
        f"All kinds labelled: {n_right / n_alarms:.0%} of {n_alarms} alarms are named after their "
        f"kind ({listed} by seed), and {n_right / max(n_named, 1):.0%} of the {n_named} names are "
        f"right.\n\n{table(['true kind', *columns], rows)}\n\n"
        f"Each kind without its labels: {n_none / hidden.total():.0%} of the alarms are like no "
        f"labelled kind.\n\n{table(['kind without labels', *others], hidden_rows)}\n"
    )


def main() -> None:
    """Measures all categories and seeds, and writes the page."""
    parser = page_parser("kinds.py", __doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of MVTec AD")
    parser.add_argument("--weights", type=Path, required=True, help="ImageNet weights")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    prepare(batch_size=32)
    sections = []
    for category in sorted(path for path in arguments.data.iterdir() if path.is_dir()):
        runs = [run(category, arguments.weights, seed) for seed in arguments.seeds]
        sections.append(section(category.name, runs))
        print(sections[-1], flush=True)
    about = (
        f"{LABELS_PER_KIND} labels of each kind, sums over {len(arguments.seeds)} draws; "
        "alarms at the calibrated threshold; 224×224.\n"
    )
    page = ["# Which kind?\n", provenance(COMMAND), about, *sections]
    (arguments.output / "kinds.md").write_text("\n".join(page))


if __name__ == "__main__":
    main()
