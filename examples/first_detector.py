"""A first detector: from a folder of pictures to a file that scores new ones, in about a minute.

python examples/first_detector.py

Read it from top to bottom, or open it as a notebook: VS Code and Jupyter (with Jupytext) take each
`# %%` for a cell. It writes to runs/first_detector. `--quick` does the least of everything, to see
that it runs; what that finds means nothing.
"""

# %% [markdown]
# # A first detector
#
# You have pictures of good parts, and a few of bad ones. What you will have at the end: a score for
# each new picture, a threshold whose false alarms are bounded, and a picture of *where*.

# %%
from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from devnet_jax.runtime.startup import prepare

QUICK = "--quick" in sys.argv
FOLDER = Path("runs/first_detector")
PARTS, RUN, FILE = FOLDER / "parts", FOLDER / "run", FOLDER / "detector.devnet"
BATCH = 8 if QUICK else 16

prepare(BATCH)  # before JAX is imported: all cores of a CPU, and a cache of what is compiled

from devnet_jax import Detector  # noqa: E402
from devnet_jax.data.datasets.drawing.defects import draw_defect  # noqa: E402
from devnet_jax.data.datasets.drawing.surfaces import draw_surface, photograph  # noqa: E402
from devnet_jax.export.read import ExportedDetector  # noqa: E402
from devnet_jax.export.write import export_detector  # noqa: E402
from devnet_jax.runtime.workdir import Workdir  # noqa: E402

# %% [markdown]
# ## A folder of pictures
#
# Yours goes here: set `PARTS` to it, and leave this cell out. So that this runs anywhere, we draw
# perforated plates, and scratches, stains and threads on some of them. What matters is the layout:
# `train/good`, `test/good`, `test/<defect>`, and masks in `ground_truth/<defect>` if there are any.

# %%
N_TRAIN, N_TEST, N_DEFECTS = (12, 4, 4) if QUICK else (60, 16, 10)


def draw_parts(kind: str, count: int) -> None:
    """Draws pictures of one kind, test/scratch for example, and masks of their defects."""
    defect = kind.partition("/")[2]
    for i in range(count):
        rng = np.random.default_rng([i, *kind.encode()])
        surface = draw_surface("mesh", rng)
        if defect != "good":
            surface, mask = draw_defect(defect, surface, rng)
            save(PARTS / "ground_truth" / defect / f"{i:03}_mask.png", mask)
        save(PARTS / kind / f"{i:03}.png", photograph(surface, rng))


def save(path: Path, pixels: np.ndarray) -> None:
    """Writes a picture, and the folder that it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


if not PARTS.exists():
    draw_parts("train/good", N_TRAIN)
    draw_parts("test/good", N_TEST)
    for defect in ("scratch", "stain", "thread"):
        draw_parts(f"test/{defect}", N_DEFECTS)
print(*sorted(folder.relative_to(PARTS) for folder in PARTS.glob("*/*")), sep="\n")

# %% [markdown]
# ## Training
#
# Some of the pictures in `test/<defect>` are drawn to train with their label; the others test. A
# third of the good parts does not train: the threshold will rest on them. All else is as in the
# paper, but for size and length: small images and few steps, from random weights. For real parts
# leave `pretrained`, `image_size` and the rest at their defaults, or see docs/choosing.md.

# %%
settings: dict[str, Any] = {
    "n_anomaly": 10,
    "calibration": 1 / 3,
    "image_size": 96,
    "n_scales": 1,
    "pretrained": "none",
    "train.batch_size": BATCH,
    "epochs": 5,
    "data_dir": str(FOLDER / "prepared"),
}
if QUICK:
    settings |= {"n_anomaly": 3, "image_size": 32, "epochs": 2, "steps_per_epoch": 2}

detector = Detector.train(PARTS, workdir=RUN, **settings)

# %% [markdown]
# Run it again and nothing is trained twice. `report.html` in the workdir shows all that follows,
# and lets you move the threshold; here are the main figures.

# %%
results = json.loads((RUN / "eval" / "metrics.json").read_text())
print(f"test: {results['n_test_normal']} good and {results['n_test_anomaly']} bad parts")
print(f"AUROC {results['image_auroc']:.3f}, of the maps' pixels {results['pixel_auroc_mean']:.3f}")

# %% [markdown]
# ## Scores and the threshold
#
# Good parts were pulled to 0, labelled anomalies pushed past 5: a score counts standard deviations
# from normal. The threshold comes with its promise about good parts.

# %%
good = sorted((PARTS / "test" / "good").iterdir())
bad = sorted((PARTS / "test" / "thread").iterdir())
print("good  ", detector.score(good).scores.round(2))
print("thread", detector.score(bad).scores.round(2), "(some of these have trained)")

threshold = detector.threshold
assert threshold is not None  # the deviation loss always knows one
print(f"{threshold.kind} threshold {threshold.value:.2f}:", end=" ")
print(f"alarms on at most {threshold.false_alarm_rate:.0%} of good parts, on average")

# %% [markdown]
# ## Where
#
# A map says which pixels moved the score. Overlays of parts below the threshold are faint, as a map
# has a hottest place on a good part, too.

# %%
shown = [good[0], *(sorted((PARTS / "test" / d).iterdir())[-1] for d in ("scratch", "thread"))]
found = detector.score(shown)
figure, axes = plt.subplots(2, len(shown), figsize=(3 * len(shown), 6.4), layout="constrained")
for column, path in enumerate(shown):
    axes[0, column].imshow(Image.open(path))
    axes[0, column].set_title(f"{path.parent.name}: {found.scores[column]:.1f}")
    axes[1, column].imshow(detector.explain(path).overlay)
for axis in axes.flat:
    axis.axis("off")
figure.savefig(FOLDER / "where.png")

# %% [markdown]
# ## One file
#
# It holds weights, programs and thresholds, and is read with jax, numpy, Pillow and flatbuffers
# alone. Its card says what it is, for whoever finds it in a year.

# %%
export_detector(detector, Workdir(RUN), FILE)
exported = ExportedDetector.load(FILE)
print(f"{FILE.stat().st_size / 1e6:.0f} MB")
print(f"labelled anomalies that it has seen: {exported.card['trained_classes']}")

# %% [markdown]
# ## New parts
#
# 1 is a good part, -1 an anomaly, as in scikit-learn. The file scores what the detector scored.

# %%
new = [good[-1], bad[-1]]
for path, verdict in zip(new, exported.predict(new), strict=True):
    print(f"{path.relative_to(PARTS)}: {'good' if verdict == 1 else 'an anomaly'}")
np.testing.assert_allclose(exported.score(new).scores, detector.score(new).scores, rtol=1e-3)
print(f"the pictures: {FOLDER / 'where.png'}; all about the run: {RUN / 'report.html'}")
