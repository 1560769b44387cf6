"""Scores and explains test images, chunk by chunk; several processes share them."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from devnet_jax.data.decode import Batch, map_in_threads
from devnet_jax.data.example import Example
from devnet_jax.data.few_shot import FewShotDataset
from devnet_jax.data.prefetch import prefetch
from devnet_jax.data.preprocessing import Preprocessing
from devnet_jax.distributed.cluster import gather, local_share, report_progress
from devnet_jax.evaluation.pixel_metrics import PixelMetrics
from devnet_jax.export.read import MAX_BATCH_SIZE
from devnet_jax.inference.detector import TrainedDetector
from devnet_jax.inference.scorer import ImageScorer
from devnet_jax.inference.scores import Scores, as_written
from devnet_jax.inference.verdicts import Verdicts
from devnet_jax.report.content import (
    MAX_LABELLED,
    LabelledAnomalies,
    Picture,
    choose_pictures,
)
from devnet_jax.report.thumbnails import mask_thumbnail, side_for, thumbnail
from devnet_jax.runtime.progress import COMPILING, Phase

CHUNK_BATCHES = 4  # decoded together: enough work for all cores in little memory


class Pictures(Protocol):
    """The interface of pictures to score: a `FewShotDataset` or `LabelledPictures`."""

    @property
    def preprocessing(self) -> Preprocessing:
        """Settings of the way to the network's input."""

    def images(self, paths: Sequence[str]) -> Batch:
        """Loads images by path, in that order."""

    def mask(self, path: str, original: bool = False) -> np.ndarray | None:
        """Loads a defect mask with `load_mask`; `None` if the image has none."""


@dataclasses.dataclass(frozen=True)
class TestScores:
    """Scores and explanations of test images, in the order of their examples.

    Attributes:
      scores: float64 [N], as written to files (`as_written`).
      reasons: reason of each alarm, "" without one (`Scores.reasons`).
      kinds: labelled kind that each image is like; empty without labelled kinds (`Scores.kinds`).
      pixel_metrics: metrics of the maps (`PixelMetrics.compute`), the number of anomalous images
        behind them, and the number of images left out because their masks vanish when resized;
        empty without masks.
      pixel_aurocs: float [N], pixel AUROC of each image's map; NaN if it has none.
      pictures: thumbnails of the images, for the report.
    """

    scores: np.ndarray
    reasons: Sequence[str]
    kinds: Sequence[str | None]
    pixel_metrics: dict[str, float]
    pixel_aurocs: np.ndarray
    pictures: Sequence[Picture]


def score_paths(
    detector: ImageScorer, pictures: Pictures, paths: Sequence[str], description: str
) -> np.ndarray:
    """Returns the scores of pictures, float32 [N], in all processes, which share the pictures.

    Args:
      detector: detector that scores.
      pictures: pictures as its input.
      paths: paths of the N pictures.
      description: name of the phase whose progress is shown.
    """
    chunks = image_chunks(detector, pictures, local_share(paths), description)
    local_scores = [detector.score(images).scores for _, images in chunks]
    return np.concatenate(gather(np.concatenate([np.empty(0, np.float32), *local_scores])))


def score_test_images(
    detector: ImageScorer,
    pictures: Pictures,
    examples: Sequence[Example],
    description: str = "testing",
    side: int | None = None,
) -> TestScores | None:
    """Scores and explains test images chunk by chunk, in bounded memory.

    Several processes share the images.

    Args:
      detector: detector that scores.
      pictures: pictures as its input.
      examples: examples of the test images, all of them among the pictures.
      description: name of the phase whose progress is shown.
      side: maximum side of the thumbnails in pixels; by default that of `side_for`.

    Returns:
      The results of all processes in process 0; `None` in the others.
    """
    side = side_for(len(examples)) if side is None else side
    examples = local_share(examples)
    pixel_metrics = PixelMetrics()
    pixel_aurocs = np.full(len(examples), np.nan)
    n_vanished = 0
    scores: list[np.ndarray] = [np.empty(0)]
    reasons: list[str] = []
    kinds: list[str | None] = []
    shown: list[Picture] = []
    paths = [example.path for example in examples]
    for start, images in image_chunks(detector, pictures, paths, description):
        chunk = examples[start : start + len(images)]
        scored = detector.score(images)
        scores.append(as_written(scored.scores))
        reasons += scored.reasons
        kinds += scored.kinds
        maps = None
        load_mask = functools.partial(pictures.mask, original=detector.original_maps)
        masks = list(map_in_threads(load_mask, [example.path for example in chunk], None))
        if detector.explanation != "none":
            maps = detector.input_maps(images, maps=scored.maps)
            for i, (example, mask) in enumerate(zip(chunk, masks, strict=True)):
                # What the network does not see is not measured.
                seen = detector.lay(maps[i], images.sizes[i])[detector.seen(images.sizes[i])]
                if example.label == 0:
                    pixel_metrics.update(seen, np.zeros(seen.shape, bool))
                elif mask is not None and not mask.any():  # lost in resizing, or not seen
                    n_vanished += 1
                elif mask is not None:
                    auroc = pixel_metrics.update(seen, mask)
                    pixel_aurocs[start + i] = np.nan if auroc is None else auroc
        shown += _make_pictures(detector, chunk, images, scored, maps, masks, side)
    local_results = {
        "scores": np.concatenate(scores),
        "reasons": reasons,
        "kinds": kinds,
        "pixel_aurocs": pixel_aurocs,
        "n_vanished": n_vanished,
        "pixels": pixel_metrics.state(),
        "pictures": [dataclasses.asdict(picture) for picture in shown],
    }
    all_results = gather(local_results, to_all=False)
    return _merge(all_results) if all_results else None


def score_labelled_anomalies(
    detector: TrainedDetector, dataset: FewShotDataset, cross_validated: Sequence[float]
) -> LabelledAnomalies | None:
    """Explains the labelled anomalies of a run, for its report. Several processes share them.

    Args:
      detector: detector of the run.
      dataset: data set of the run.
      cross_validated: score of each labelled anomaly by a detector that has not learned from it; if
        there are none, or not of these images, the scores are the detector's own.

    Returns:
      The labelled anomalies in process 0, those with the worst scores if there are too many; `None`
      in the others, and without any.
    """
    examples = [dataset.example(path) for path in dataset.split.train_anomaly]
    if not examples:
        return None
    is_known = len(cross_validated) == len(examples)
    # Evenly spaced in the order of paths, which is that of the kinds, if the scores are not known.
    scores = (
        as_written(np.array(cross_validated, np.float32)) if is_known else np.arange(len(examples))
    )
    threshold = detector.threshold.value if is_known and detector.threshold else None
    chosen = choose_pictures(scores, np.ones(len(scores)), threshold, MAX_LABELLED).tolist()
    test = score_test_images(
        detector,
        dataset,
        [examples[i] for i in chosen],
        "scoring the labelled anomalies",
        side_for(len(dataset.test_examples) + len(chosen)),
    )
    if test is None:
        return None
    pictures = test.pictures
    if is_known:
        verdicts = detector.judge(scores)
        pictures = [
            dataclasses.replace(picture, score=float(scores[i]), **verdicts.numbers(i))
            for i, picture in zip(chosen, pictures, strict=True)
        ]
    return LabelledAnomalies(pictures, len(examples), is_known)


def _merge(results: Sequence[Mapping[str, Any]]) -> TestScores:
    """Merges the results of all processes."""
    pixels = PixelMetrics()
    for result in results:
        pixels.merge(result["pixels"])
    pixel_aurocs = np.concatenate([result["pixel_aurocs"] for result in results])
    pixel_metrics = pixels.compute()
    if pixel_metrics:
        pixel_metrics["n_pixel_anomaly"] = int(np.isfinite(pixel_aurocs).sum())
        pixel_metrics["n_pixel_vanished"] = sum(result["n_vanished"] for result in results)
    scores = np.concatenate([result["scores"] for result in results])
    reasons = [reason for result in results for reason in result["reasons"]]
    pictures = [Picture(**fields) for result in results for fields in result["pictures"]]
    kinds = [kind for result in results for kind in result["kinds"]]
    return TestScores(scores, reasons, kinds, pixel_metrics, pixel_aurocs, pictures)


def _make_pictures(
    detector: ImageScorer,
    examples: Sequence[Example],
    images: Batch,
    scored: Scores,
    maps: np.ndarray | None,
    masks: Sequence[np.ndarray | None],
    side: int,
) -> list[Picture]:
    """Returns the pictures of a chunk of images, with thumbnails of at most `side` pixels."""
    scores = as_written(scored.scores)
    verdicts = Verdicts(scored.is_anomaly, scored.p_values, scored.severity)

    def make_picture(i: int) -> Picture:
        mask, overlay = masks[i], None
        image = detector.picture(images, i)
        if maps is not None:
            laid = detector.lay(maps[i], images.sizes[i])
            overlay = thumbnail(detector.overlay(image, scores[i], laid), side)
        if mask is not None and mask.any():
            framed = np.zeros(image.shape[:2], bool)
            framed[detector.seen(images.sizes[i])] = mask
            mask = framed
        return Picture(
            path=examples[i].path,
            score=float(scores[i]),
            label=examples[i].label,
            defect=examples[i].defect,
            image=thumbnail(image, side),
            overlay=overlay,
            mask=mask_thumbnail(mask, side) if mask is not None and mask.any() else None,
            **verdicts.numbers(i),
            reason=scored.reasons[i],
            odd=scored.odd[i],
        )

    return list(map_in_threads(make_picture, range(len(examples)), None))


def image_chunks(
    detector: ImageScorer, pictures: Pictures, paths: Sequence[str], description: str
) -> Iterator[tuple[int, Batch]]:
    """Yields images in chunks: the chunk's first index, and its images.

    Args:
      detector: detector that will score them.
      pictures: pictures as its input.
      paths: paths of the images.
      description: name of the phase whose progress is shown.
    """
    batch_size = MAX_BATCH_SIZE
    if isinstance(detector, TrainedDetector):
        batch_size = detector.config.evaluation.batch_size
    chunk_size = max(CHUNK_BATCHES * batch_size // pictures.preprocessing.n_tiles, 1)
    chunks = prefetch(
        (start, pictures.images(paths[start : start + chunk_size]))
        for start in range(0, len(paths), chunk_size)
    )
    phase = Phase(description, len(paths), first=COMPILING)
    with phase, contextlib.closing(chunks):
        for start, images in chunks:
            yield start, images
            phase.update(len(images))
            report_progress()
