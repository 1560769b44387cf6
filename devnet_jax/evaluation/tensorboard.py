"""TensorBoard log of an evaluation: metrics, and some test images with their maps."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from devnet_jax.errors import printable
from devnet_jax.report.content import Picture
from devnet_jax.runtime.workdir import Workdir

# The same images are logged at every step, so that TensorBoard shows how their maps change.
MAX_IMAGES_PER_CLASS = 3
MAX_IMAGES = 24


def log_evaluation(
    workdir: Workdir, results: Mapping[str, Any], pictures: Sequence[Picture]
) -> None:
    """Writes the results of an evaluation to tensorboard/eval.

    Replaces the events of an earlier evaluation of the same step.

    Args:
      workdir: workdir of the run. If it is in a bucket, nothing is written, because tensorboardX
        cannot append there.
      results: content of eval/metrics.json.
      pictures: pictures of the test images.
    """
    if not workdir.is_local:
        return
    # Imported here: it imports PyTorch if that is installed, and most commands log nothing.
    from devnet_jax.runtime.events import EventWriter

    step, folder = results["step"], workdir.tensorboard / "eval"
    suffix = f".step{step}"
    for earlier in folder.glob(f"*{suffix}"):
        earlier.unlink()
    with EventWriter(folder, filename_suffix=suffix) as writer:
        for name, value in results.items():
            if name != "step" and isinstance(value, (int, float)):
                writer.add_scalar(f"eval/{name}", value, step)
        for picture in _logged_pictures(pictures):
            # TensorBoard groups them by class. Its names must be valid text.
            name = printable(f"{picture.defect}/{picture.path}")
            writer.add_image(name, _strip(picture), step, dataformats="HWC")


def _logged_pictures(pictures: Sequence[Picture]) -> Iterator[Picture]:
    """Yields the first pictures of each class in the order of their paths, normal ones first."""
    seen: Counter[str] = Counter()
    in_order = sorted(pictures, key=lambda picture: (picture.label, picture.path))
    for picture in in_order:
        if seen[picture.defect] < MAX_IMAGES_PER_CLASS and seen.total() < MAX_IMAGES:
            seen[picture.defect] += 1
            yield picture


def _strip(picture: Picture) -> np.ndarray:
    """Returns image, overlay and mask side by side, uint8 [h, 3·w, 3]; missing ones are black."""
    image = _decode(picture.image)
    parts = [image, _decode(picture.overlay), _decode(picture.mask)]
    return np.hstack([np.asarray(part.resize(image.size)) for part in parts])


def _decode(file: bytes | None) -> Image.Image:
    """Decodes a thumbnail; returns a black pixel for `None`."""
    return Image.open(io.BytesIO(file)).convert("RGB") if file else Image.new("RGB", (1, 1))
