"""Writes a detector to one file, which scores images without the network's code."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import logging
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import traverse_util
from jax import export

from devnet_jax.data.split import Split
from devnet_jax.errors import UserError
from devnet_jax.export.read import CARD, EXPLAIN, FORMAT, SCORE, WEIGHTS, add_checksum
from devnet_jax.inference.detector import TrainedDetector
from devnet_jax.inference.explain import EXPLAINERS
from devnet_jax.inference.forward import score_images
from devnet_jax.inference.thresholds import results_at
from devnet_jax.models.backbones import get_backbone
from devnet_jax.runtime.io import encode_json, read_csv, read_json, write_bytes
from devnet_jax.runtime.numerics import standard_numerics
from devnet_jax.runtime.versions import software_versions
from devnet_jax.runtime.workdir import Workdir

logger = logging.getLogger(__name__)

PLATFORMS = ("cpu", "cuda", "tpu")
_OUTPUTS = {
    SCORE: "scores [N]; score maps [N, h, w], or with tiles [N, T, h, w], of the finest level",
    EXPLAIN: "maps [N, H, W], or with tiles [N, T, H, W]",
}
_PREPROCESSING = (
    "RGB as a viewer shows it (EXIF orientation applied, transparency over white), cut to the "
    "region, resized bilinearly with antialiasing to the size of all tiles together, as `fit` "
    "says, and cut into tiles; uint8. With letterbox, a fourth channel is 255 in the image and 0 "
    "in the padding. Scaling by ImageNet's means and deviations is part of the programs."
)


@standard_numerics()
def export_detector(detector: TrainedDetector, workdir: Workdir, output: epath.PathLike) -> None:
    """Writes a detector to one file, atomically.

    The file contains the weights, with BatchNorm folded in, and programs that score and explain
    images. The explanation method is that of the settings.

    Args:
      detector: detector to export.
      workdir: workdir of its run. The card includes the results of its evaluation if they belong to
        the detector's step.
      output: path of the file.

    Raises:
      UserError: if the path is a folder.
    """
    path = epath.Path(output)
    if path.is_dir():
        raise UserError(f"--output={output}: is a folder; give the name of a file, model.devnet")
    model, variables = detector.folded
    weights = traverse_util.flatten_dict(variables, sep="/")
    shape, method = detector.preprocessing.shape, detector.config.evaluation.explanation
    programs: dict[str, Callable[..., Any]] = {SCORE: score_images}
    if method != "none":
        programs[EXPLAIN] = EXPLAINERS[method](detector.config)

    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_STORED) as archive:
        _add(archive, CARD, encode_json(_card(detector, workdir, programs)))
        for name, function in programs.items():
            _add(archive, name, _serialise(functools.partial(function, model), weights, shape))
        for name, values in weights.items():
            array = np.asarray(values)
            _add(archive, WEIGHTS + name, array.astype(array.dtype.newbyteorder("<")).tobytes())
    write_bytes(path, add_checksum(content.getvalue()))


def _serialise(
    function: Callable[..., Any], weights: dict[str, jax.Array], shape: tuple[int, ...]
) -> bytes:
    """Serialises function(variables, images) for any number of images and all platforms.

    The serialised program takes the weights as a flat dictionary.
    """

    def program(weights: dict[str, jax.Array], images: jax.Array) -> Any:
        return function(traverse_util.unflatten_dict(weights, sep="/"), images)

    (n,) = export.symbolic_shape("n")
    shapes = {name: jax.ShapeDtypeStruct(w.shape, w.dtype) for name, w in weights.items()}
    images = jax.ShapeDtypeStruct((n, *shape), jnp.uint8)
    return bytes(export.export(jax.jit(program), platforms=PLATFORMS)(shapes, images).serialize())


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    """Adds an entry without a date, so that equal detectors give equal files."""
    archive.writestr(zipfile.ZipInfo(name), content)


def _card(detector: TrainedDetector, workdir: Workdir, programs: Iterable[str]) -> dict[str, Any]:
    """Returns the content of card.json, for services and people that use the file."""
    config = detector.config
    return {
        "format": FORMAT,
        "name": detector.name,
        "date": detector.date,
        "image_size": config.dataset.image_size,
        "preprocessing": _PREPROCESSING,
        "preprocessing_settings": dataclasses.asdict(detector.preprocessing),
        "map_size": config.evaluation.map_size,
        "outputs": {name: _OUTPUTS[name] for name in programs},
        "explanation": config.evaluation.explanation,
        "loss": {
            "name": config.loss.name,
            "prior_mean": config.loss.prior_mean,
            "prior_std": config.loss.prior_std,
            "margin": config.loss.margin,
        },
        "prior": None if detector.prior is None else detector.prior._asdict(),
        "thresholds": [dataclasses.asdict(threshold) for threshold in detector.thresholds],
        "false_alarm_rate": config.evaluation.false_alarm_rate,
        "kinds": list(detector.kinds),
        "dataset": {"name": config.dataset.name, "category": config.dataset.category},
        "model": dataclasses.asdict(config.model) | {"pretrained": _weights_origin(detector)},
        "step": detector.step,
        "trained_classes": _trained_classes(workdir),
        **_evaluation(detector, workdir),
        "software": software_versions(),
        "platforms": list(PLATFORMS),
        "calibration_scores": detector.good_scores.tolist(),
        "ordinary": None if detector.ordinary is None else detector.ordinary.to_dict(),
    }


def require_copy(path: epath.PathLike, output: epath.PathLike) -> None:
    """Raises `UserError` if a copy of a file would replace the file itself or a folder."""
    target = epath.Path(output)
    if target.is_dir() or target.resolve() == epath.Path(path).resolve():
        what = "a folder" if target.is_dir() else "the file that is read, which stays as it is"
        raise UserError(f"--output={output}: is {what}; give the name of another file")


def rewrite_card(path: epath.PathLike, output: epath.PathLike, changes: dict[str, Any]) -> None:
    """Writes a copy of an exported file with a changed card, atomically.

    Args:
      path: an exported file, which can be read.
      output: path of the copy.
      changes: new values of the card, by key.

    Raises:
      UserError: as `require_copy`.
    """
    require_copy(path, output)
    source, target = epath.Path(path), epath.Path(output)
    content = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(source.read_bytes())) as old,
        zipfile.ZipFile(content, "w", zipfile.ZIP_STORED) as new,
    ):
        for name in old.namelist():
            entry = old.read(name)
            if name == CARD:
                entry = encode_json(json.loads(entry) | changes)
            _add(new, name, entry)
    write_bytes(target, add_checksum(content.getvalue()))


def _weights_origin(detector: TrainedDetector) -> str:
    """Describes the origin of the pretrained weights and the terms that may apply to them."""
    source, backbone = detector.config.model.pretrained, detector.config.model.backbone
    if source == "none":
        return "none: trained on the data set alone"
    if source == "imagenet":
        repository = get_backbone(backbone).imagenet
        return (
            f"torchvision's ImageNet-1k weights, from {repository} on the Hugging Face Hub, whose "
            "licence holds for them; ImageNet's terms hold for the images they were trained on"
        )
    name = epath.Path(source).name  # without its folder, which is private
    return f"{name}: the terms of that file hold for what was trained from it"


def _trained_classes(workdir: Workdir) -> dict[str, int] | None:
    """Returns the number of labelled anomalies of each class, or `None` without a split.json."""
    if not workdir.split.exists():
        return None
    return dict(Split.from_dict(read_json(workdir.split)).trained_classes)


def _evaluation(detector: TrainedDetector, workdir: Workdir) -> dict[str, Any]:
    """Returns results and tested classes of the last evaluation if it belongs to this step."""
    metrics = workdir.evaluation / "metrics.json"
    results = read_json(metrics) if metrics.exists() else {}
    if results.get("step") != detector.step:
        logger.warning("%s: no results of step %d; the card has none", metrics, detector.step)
        return {"metrics": None, "tested_classes": None}
    results = results_at(results, detector.thresholds)
    classes = Counter(row["defect"] for row in read_csv(workdir.evaluation / "scores.csv"))
    return {"metrics": results, "tested_classes": dict(sorted(classes.items()))}
