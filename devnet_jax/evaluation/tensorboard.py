"""What an evaluation tells TensorBoard: its measures, and some test images beside their maps."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from devnet_jax.report.content import Picture
from devnet_jax.runtime.workdir import Workdir

# The same at every step, so that TensorBoard shows how a map changes.
N_EACH_CLASS = 3
N_AT_MOST = 24


def log_evaluation(
    workdir: Workdir, results: Mapping[str, Any], pictures: Sequence[Picture]
) -> None:
    """Writes what was found at a step to tensorboard/eval; what an earlier evaluation of that
    step has told is replaced.

    Args:
      workdir: of the run. In a bucket nothing is written: tensorboardX cannot append there.
      results: the content of eval/metrics.json.
      pictures: of the test images, each with its map and mask if there are any.
    """
    if not workdir.is_local:
        return
    # Here, because it imports PyTorch where that is installed, and most commands log nothing.
    from tensorboardX import SummaryWriter

    step, folder = results["step"], workdir.tensorboard / "eval"
    suffix = f".step{step}"
    for earlier in folder.glob(f"*{suffix}"):
        earlier.unlink()
    with SummaryWriter(str(folder), filename_suffix=suffix) as writer:
        for name, value in results.items():
            if name != "step" and value is not None:
                writer.add_scalar(f"eval/{name}", value, step)
        for picture in _shown(pictures):
            name = f"{picture.defect}/{picture.path}"  # TensorBoard groups them by class
            writer.add_image(name, _strip(picture), step, dataformats="HWC")


def _shown(pictures: Sequence[Picture]) -> Iterator[Picture]:
    """The first of each class by their paths, normal ones before the others."""
    seen: Counter[str] = Counter()
    in_order = sorted(pictures, key=lambda picture: (picture.label, picture.path))
    for picture in in_order:
        if seen[picture.defect] < N_EACH_CLASS and seen.total() < N_AT_MOST:
            seen[picture.defect] += 1
            yield picture


def _strip(picture: Picture) -> np.ndarray:
    """Image, map and mask side by side, uint8 [h, 3·w, 3]; black where there is none."""
    image = _opened(picture.image)
    parts = [image, _opened(picture.overlay), _opened(picture.mask)]
    return np.hstack([np.asarray(part.resize(image.size)) for part in parts])


def _opened(file: bytes | None) -> Image.Image:
    return Image.open(io.BytesIO(file)).convert("RGB") if file else Image.new("RGB", (1, 1))
