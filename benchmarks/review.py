"""Measures what looking at pictures teaches: AUROC on held-out pictures by the number of looks.

python benchmarks/review.py --part=accuracy --data=DATA --weights=resnet18.safetensors
python benchmarks/review.py --part=speed --data=DATA --weights=resnet18.safetensors

The pictures of a data set are shuffled and halved: one half is reviewed as an unsorted folder, of
which nothing is known, the other half measures. A reviewer who knows the truth looks at pictures in
the review's order, or in random order for comparison, and the detector learns after every five.
Speed is that of all pictures of bottle, on a machine that does nothing else. Each part updates
review.json, review.md and review.svg.
"""

from __future__ import annotations

import itertools
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from results_page import Line, draw_aurocs, page_parser, provenance, table
from sklearn.metrics import roc_auc_score

from devnet_jax.config import Config, for_list, with_settings
from devnet_jax.data.preprocessing import Preprocessing
from devnet_jax.prediction.inputs import Inputs
from devnet_jax.review.journal import Journal
from devnet_jax.review.pictures import Pictures
from devnet_jax.review.results import Results
from devnet_jax.review.session import ReviewSession
from devnet_jax.review.taught import Taught
from devnet_jax.review.teacher import Teacher, settings_to_learn
from devnet_jax.runtime.startup import prepare

DATA_SETS = ("mvtec/bottle", "mvtec/pill", "brain_mri")
POLICIES = {"teach": "the review's order", "random": "random order"}
LOOKS = (0, 5, 10, 20, 40)
LEARN_EVERY = 5


class Known(NamedTuple):
    """A picture, and the truth of it: "good", or a kind of defect."""

    path: Path
    kind: str

    @property
    def label(self) -> str:
        return "good" if self.kind == "good" else "anomaly"

    @property
    def defect(self) -> str:
        return "" if self.kind == "good" else self.kind


def pictures_of(data: Path, name: str) -> list[Known]:
    """Lists a data set in the layout in which it is published."""
    if name == "brain_mri":
        kinds = {"no": "good", "yes": "tumour"}
        return [
            Known(path, kinds[path.parent.name]) for path in sorted((data / name).glob("*/*.*"))
        ]
    files = sorted((data / name).glob("t*/*/*"))  # train and test
    return [Known(path, path.parent.name) for path in files]


def halves(pictures: Sequence[Known], seed: int) -> tuple[list[Known], list[Known]]:
    """Returns the pictures to review, and those that measure."""
    order = np.random.default_rng(seed).permutation(len(pictures))
    chosen = [pictures[i] for i in order]
    half = len(pictures) // 2
    return chosen[:half], chosen[half:]


class Review:
    """A review without a page."""

    def __init__(self, config: Config, pool: Sequence[Known], held: Sequence[Known], out: Path):
        settings = settings_to_learn(config, None)
        self._pool, self._held = pool, held
        taught = {
            len(pool) + i: Taught(known.path, known.label, known.defect, "test")
            for i, known in enumerate(held)
        }
        pictures = Pictures(
            Inputs([known.path for known in pool], Path("/")),
            [known.path for known in held],
            Preprocessing.from_settings(settings.dataset),
        )
        self.teacher = Teacher(settings, pictures, taught, None)
        results = Results(out)
        self.session = ReviewSession(
            settings, [], results, pictures, self.teacher, Journal(results.journal), taught
        )

    def wait(self) -> None:
        """Waits until the detector in force has scored everything."""
        quiet = 0
        while quiet < 3:
            state = self.session.state()
            if state["error"]:
                raise RuntimeError(state["error"])
            is_done = state["working"] is None and state["n_scored"] == state["n"]
            quiet = quiet + 1 if is_done else 0
            time.sleep(0.02)

    def look(self, policy: str, generator: np.random.Generator) -> None:
        """Labels one picture by the truth."""
        if policy == "teach":
            i = self.session.list("teach", "unseen", 0, 1)["pictures"][0]["id"]
        else:
            unseen = self.session.list("name", "unseen", 0, len(self._pool))["pictures"]
            i = generator.choice([picture["id"] for picture in unseen])
        known = self._pool[i]
        self.session.label([int(i)], known.label, known.defect, "")

    def auroc(self) -> float:
        """Returns the AUROC on the held-out pictures."""
        numbers = range(len(self._pool), len(self._pool) + len(self._held))
        found = [scores.scores for _, scores in self.teacher.score(list(numbers))]
        labels = [known.label == "anomaly" for known in self._held]
        return float(roc_auc_score(labels, np.concatenate(found)))


def measure(config: Config, pictures: Sequence[Known], seed: int, policy: str) -> dict[str, Any]:
    """Returns the AUROC by the number of looks."""
    pool, held = halves(pictures, seed)
    generator = np.random.default_rng(1000 + seed)
    aurocs, n_defects = {}, 0
    with tempfile.TemporaryDirectory() as folder:
        review = Review(config, pool, held, Path(folder))
        try:
            review.wait()
            aurocs["0"] = review.auroc()
            for looks in range(1, max(LOOKS) + 1):
                review.look(policy, generator)
                if looks % LEARN_EVERY:
                    continue
                review.session.learn()
                review.wait()
                if looks in LOOKS:
                    aurocs[str(looks)] = review.auroc()
            n_defects = sum(review.session.state()["kinds"].values())
        finally:
            review.session.close()
    return {
        "seed": seed,
        "policy": policy,
        "aurocs": aurocs,
        "n_defects": n_defects,
    }


def measure_seconds(config: Config, pictures: Sequence[Known]) -> dict[str, Any]:
    """Returns the seconds to the first scores, and from every fifth label to new ones."""
    generator = np.random.default_rng(0)
    order = generator.permutation(len(pictures))
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        review = Review(config, [pictures[i] for i in order], [], Path(folder))
        try:
            review.wait()
            first = time.perf_counter() - started
            for looks in range(1, max(LOOKS) + 1):
                review.look("teach", generator)
                if looks % LEARN_EVERY == 0:
                    started = time.perf_counter()
                    review.session.learn()
                    review.wait()
                    seconds.append(time.perf_counter() - started)
        finally:
            review.session.close()
    return {"n_pictures": len(pictures), "first": first, "seconds": seconds}


def rows(runs: Sequence[dict[str, Any]]) -> Iterator[list[str]]:
    """Yields a row for each data set and order: means over seeds, with the lowest and highest."""
    for name in dict.fromkeys(run["name"] for run in runs):
        for policy, described in POLICIES.items():
            chosen = [run for run in runs if (run["name"], run["policy"]) == (name, policy)]
            if not chosen:
                continue
            cells = []
            for looks in map(str, LOOKS):
                values = [run["aurocs"][looks] for run in chosen]
                cells.append(f"{np.mean(values):.4f} ({min(values):.3f} – {max(values):.3f})")
            n_defects = np.mean([run["n_defects"] for run in chosen])
            yield [name, described, *cells, f"{n_defects:.0f}"]


def draw(runs: Sequence[dict[str, Any]], file: Path) -> None:
    """Draws the AUROC by the number of looks; random order is dashed."""
    lines = []
    for colour, name in enumerate(dict.fromkeys(run["name"] for run in runs)):
        for policy, described in POLICIES.items():
            chosen = [run for run in runs if (run["name"], run["policy"]) == (name, policy)]
            if chosen:
                values = [[run["aurocs"][str(n)] for run in chosen] for n in LOOKS]
                is_random = policy == "random"
                lines.append(Line(f"{name}, {described}", values, colour, is_random))
    draw_aurocs(lines, LOOKS, "pictures looked at", file)


def write_page(results: dict[str, Any], output: Path) -> None:
    """Writes review.json and review.md from the results of all parts."""
    (output / "review.json").write_text(json.dumps(results, indent=1) + "\n")
    page = ["# What looking at pictures teaches\n"]
    if "accuracy" in results:
        runs = results["accuracy"]["runs"]
        page += [
            "## Accuracy\n",
            results["accuracy"]["provenance"],
            "Half of each data set is reviewed as an unsorted folder, of which nothing is known; "
            "AUROC on the other half, by the number of pictures that a reviewer who knows the "
            f"truth has looked at. Mean of {len({run['seed'] for run in runs})} seeds, with the "
            "lowest and highest; the last column is the number of defects among forty pictures.\n",
            table(["data set", "order", *LOOKS, "defects"], rows(runs)),
            "",
        ]
        draw(runs, output / "review.svg")
    if "speed" in results:
        speed = results["speed"]
        page += [
            "## Speed\n",
            speed["provenance"],
            f"{speed['n_pictures']} pictures of 512×512 (all of bottle, unsorted), on a machine "
            "that did nothing else. From the start to the first scores of all "
            f"{speed['first']:.0f} s, two learnings among them; from “Learn now” to new scores of "
            f"all {np.median(speed['seconds']):.1f} s, at most {max(speed['seconds']):.1f} s "
            f"(median of {len(speed['seconds'])}, after every five labels).",
            "",
        ]
    (output / "review.md").write_text("\n".join(page))


def main() -> None:
    """Measures a part, and writes the page after each run."""
    parser = page_parser("review.py", __doc__)
    parser.add_argument("--part", choices=("accuracy", "speed"), required=True, help="part")
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--weights", type=Path, required=True, help="file of ResNet-18's weights")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds")
    parser.add_argument("--names", nargs="+", default=list(DATA_SETS), help="data sets")
    arguments = parser.parse_args()
    prepare(batch_size=8)
    config = with_settings(
        for_list("labels.csv"), {"model.pretrained": str(arguments.weights.absolute())}
    )
    file = arguments.output / "review.json"
    results = json.loads(file.read_text()) if file.exists() else {}
    command = f"python benchmarks/review.py --part={arguments.part} --data=DATA --weights=WEIGHTS"
    if arguments.part == "speed":
        measured = measure_seconds(config, pictures_of(arguments.data, DATA_SETS[0]))
        results["speed"] = {"provenance": provenance(command), **measured}
        write_page(results, arguments.output)
        return
    results["accuracy"] = {"provenance": provenance(command), "runs": []}
    for name, seed, policy in itertools.product(arguments.names, arguments.seeds, POLICIES):
        run = measure(config, pictures_of(arguments.data, name), seed, policy)
        results["accuracy"]["runs"].append({"name": name, **run})
        write_page(results, arguments.output)


if __name__ == "__main__":
    main()
