"""A first detector: trains on a folder of pictures, exports a file and scores new pictures with it.

python examples/first_detector.py

It takes about a minute on a CPU and writes to runs/first_detector. Read it from top to bottom, or
open it as a notebook: VS Code and Jupyter (with Jupytext) treat each `# %%` as a cell. `--quick`
only checks that it runs; its results mean nothing.
"""

# %% [markdown]
# # A first detector
#
# You have pictures of good parts and a few of bad ones. At the end you have a score for each new
# picture, a threshold with a bounded rate of false alarms, and a map of *where* the defect is.

# %%
from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from devnet_jax import Detector
from devnet_jax.data.datasets.drawing.defects import draw_defect
from devnet_jax.data.datasets.drawing.surfaces import draw_surface, photograph
from devnet_jax.export.read import ExportedDetector
from devnet_jax.export.write import export_detector
from devnet_jax.runtime.workdir import Workdir

QUICK = "--quick" in sys.argv
FOLDER = Path("runs/first_detector")
PARTS, RUN, FILE = FOLDER / "parts", FOLDER / "run", FOLDER / "detector.devnet"
BATCH = 8 if QUICK else 16

# %% [markdown]
# ## A folder of pictures
#
# Set `PARTS` to your own folder and skip this cell. Here we draw perforated plates, some with
# scratches, stains and threads. The layout is `train/good`, `test/good`, `test/<defect>`, and
# optional masks in `ground_truth/<defect>`.

# %%
N_TRAIN, N_TEST, N_DEFECTS = (12, 4, 4) if QUICK else (60, 16, 10)


def draw_parts(kind: str, count: int) -> None:
    """Draws pictures of one kind, such as test/scratch, and masks of their defects."""
    defect = kind.partition("/")[2]
    for i in range(count):
        rng = np.random.default_rng([i, *kind.encode()])
        surface = draw_surface("mesh", rng)
        if defect != "good":
            surface, mask = draw_defect(defect, surface, rng)
            save(PARTS / "ground_truth" / defect / f"{i:03}_mask.png", mask)
        save(PARTS / kind / f"{i:03}.png", photograph(surface, rng))


def save(path: Path, pixels: np.ndarray) -> None:
    """Writes a picture and creates its folder."""
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
# Some pictures in `test/<defect>` train with their label; the others test. A third of the good
# parts does not train: it calibrates the threshold. This needs no download: it trains the paper's
# network on small images, for few steps, from random weights. For real parts leave these settings
# out: `Detector.train("my_parts")` trains DevCore from ImageNet weights (docs/devcore.md).

# %%
settings: dict[str, Any] = {
    "detector": "devnet",
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
# A second run of this cell does not train again. `report.html` in the workdir shows all results,
# with a movable threshold. The main figures:

# %%
results = json.loads((RUN / "eval" / "metrics.json").read_text())
print(f"test: {results['n_test_normal']} good and {results['n_test_anomaly']} bad parts")
print(f"AUROC {results['image_auroc']:.3f}, of the maps' pixels {results['pixel_auroc_mean']:.3f}")

# %% [markdown]
# ## Scores and the threshold
#
# Training pulls good parts to 0 and pushes labelled anomalies past 5: a score counts standard
# deviations from normal. The threshold bounds the rate of false alarms.

# %%
good = sorted((PARTS / "test" / "good").iterdir())
bad = sorted((PARTS / "test" / "thread").iterdir())
print("good  ", detector.score(good).scores.round(2))
print("thread", detector.score(bad).scores.round(2), "(some of these have trained)")

threshold = detector.threshold
assert threshold is not None  # the deviation loss always has one
print(f"{threshold.kind} threshold {threshold.value:.2f}:", end=" ")
print(f"alarms on at most {threshold.false_alarm_rate:.0%} of good parts, on average")

# %% [markdown]
# ## Where
#
# A map shows which pixels changed the score. A good part has a hottest spot too, so overlays of
# parts below the threshold are faint.

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
# The file contains weights, programs and thresholds. Reading it needs jax, numpy, Pillow and
# flatbuffers alone. Its card describes the detector.

# %%
export_detector(detector, Workdir(RUN), FILE)
exported = ExportedDetector.load(FILE)
print(f"{FILE.stat().st_size / 1e6:.0f} MB")
print(f"labelled anomalies in training: {exported.card['trained_classes']}")

# %% [markdown]
# ## New parts
#
# 1 is a good part, -1 an anomaly, as in scikit-learn. The file and the detector give the same
# scores.

# %%
new = [good[-1], bad[-1]]
for path, verdict in zip(new, exported.predict(new), strict=True):
    print(f"{path.relative_to(PARTS)}: {'good' if verdict == 1 else 'an anomaly'}")
np.testing.assert_allclose(exported.score(new).scores, detector.score(new).scores, rtol=1e-3)
print(f"maps: {FOLDER / 'where.png'}; report: {RUN / 'report.html'}")
