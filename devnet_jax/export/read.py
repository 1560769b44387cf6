"""The format of exported detectors, and `ExportedDetector`, which scores images with one.

This module needs only jax, numpy, Pillow and flatbuffers (which `jax.export` reads with), not the
code of the network. An exported file is a zip archive:

- card.json: description of the detector; its `format` is `FORMAT`.
- score, explain: `jax.export` artefacts for CPUs, NVIDIA GPUs and TPUs and any number of images.
- weights/NAME: little-endian bytes of each weight; the weights are arguments of both programs.
- comment: SHA-256 of all bytes before it.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import json
import os
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export
from jax.extend.mlir import ir
from jax.interpreters import mlir

from devnet_jax.data.ordinary import Ordinary
from devnet_jax.data.preprocessing import Preprocessing
from devnet_jax.errors import UserError
from devnet_jax.inference.scorer import ImageScorer
from devnet_jax.inference.scores import RawScores
from devnet_jax.inference.thresholds import Threshold, given_threshold
from devnet_jax.prior import Prior
from devnet_jax.runtime.numerics import standard_numerics
from devnet_jax.runtime.startup import keep_compiled

FORMAT = 1
CARD, SCORE, EXPLAIN, WEIGHTS = "card.json", "score", "explain", "weights/"
_CHECKSUM_PREFIX = b"sha256:"  # followed by 64 hexadecimal digits, the end of the file
_HINT = "export it again (--mode=export), or get another copy"
# Batches are padded to powers of two, so any number of images compiles at most six programs.
MAX_BATCH_SIZE = 32
# Exported programs only compute. In these dialects, only these operations communicate.
_ALLOWED_DIALECTS = ("builtin", "func", "stablehlo", "chlo")
_FORBIDDEN_OPERATIONS = ("infeed", "outfeed", "send", "recv")
# jax.export checks the number of images with it.
_ALLOWED_CUSTOM_CALLS = ("shape_assertion",)


class _Program:
    """A compiled program of a file. It is pickled as its bytes, since compiled code cannot be."""

    def __init__(self, content: bytes) -> None:
        keep_compiled()
        self._content = content
        self.exported = export.deserialize(bytearray(content))
        self.compiled = jax.jit(self.exported.call)

    def __reduce__(self) -> tuple[type[_Program], tuple[bytes]]:
        return _Program, (self._content,)


@dataclasses.dataclass(frozen=True)
class ExportedDetector(ImageScorer):
    """A detector loaded from an exported file; it can be copied and sent to other processes.

    Attributes:
      card: content of card.json: data set, training, preprocessing, thresholds and versions.
    """

    card: dict[str, Any]
    _weights: dict[str, jax.Array]
    _programs: dict[str, _Program]

    @classmethod
    @standard_numerics()
    def load(cls, path: str | os.PathLike[str]) -> ExportedDetector:
        """Loads a file written by `--mode=export`.

        Loading and scoring run nothing but arithmetic on weights and images. The file contains no
        pickle, and programs with other operations are rejected. The checksum detects damage; it
        does not authenticate the author.

        Args:
          path: path of the file.

        Raises:
          UserError: if the file is missing, damaged, of another kind or of another format version.
        """
        try:
            content = Path(path).read_bytes()
        except IsADirectoryError:
            raise UserError(
                f"{path}: is a folder; to export the run in it, use --mode=export --workdir={path}"
            ) from None
        except OSError as error:
            raise UserError(
                f"{path}: {error.strerror or error}; give a file written by --mode=export"
            ) from None
        _verify_checksum(content, path)
        try:
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                return cls._read(archive, path)
        except UserError:
            raise
        except Exception as error:  # a malformed file can raise errors of many types
            words = " ".join(str(error).split())[:200]
            raise UserError(
                f"{path}: no detector can be read from it ({type(error).__name__}: {words}); "
                f"{_HINT}"
            ) from None

    @classmethod
    def _read(cls, archive: zipfile.ZipFile, path: str | os.PathLike[str]) -> ExportedDetector:
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED:  # no decompression bombs
                raise UserError(f"{path}: {entry.filename} is compressed; {_HINT}")
        card = json.loads(archive.read(CARD))
        if card["format"] != FORMAT:
            raise UserError(
                f"{path}: has format {card['format']}, and this version reads format {FORMAT}; "
                "use the version of devnet_jax that wrote it, or export it again"
            )
        shape = _preprocessing(card).shape
        score = _read_program(archive.read(SCORE), shape, f"{path}: {SCORE}")
        weights = _read_weights(archive, score.exported)
        programs = {SCORE: score}
        if EXPLAIN in archive.namelist():
            explain = _read_program(archive.read(EXPLAIN), shape, f"{path}: {EXPLAIN}")
            # Compared as text, because each program has its own symbol for the number of images.
            if str(_arguments(explain.exported)) != str(_arguments(score.exported)):
                raise UserError(
                    f"{path}: {EXPLAIN} and {SCORE} belong to different detectors; {_HINT}"
                )
            programs[EXPLAIN] = explain
        detector = cls(card, weights, programs)
        # Reads them now, so that an incomplete card fails here and not at the first use.
        _ = (
            detector.name,
            detector.date,
            detector.thresholds,
            detector.prior,
            detector.margin,
            detector.explanation,
            detector.kinds,
            detector.ordinary,
            detector.good_scores,
        )
        return detector

    @property
    def name(self) -> str:
        """Name of the detector; that of the data set for files of earlier versions."""
        return str(self.card.get("name") or " / ".join(filter(None, self.card["dataset"].values())))

    @property
    def date(self) -> str | None:
        """Day of its training, as 2026-11-30; `None` for files of earlier versions."""
        date = self.card.get("date")
        return None if date is None else str(date)

    @functools.cached_property
    def preprocessing(self) -> Preprocessing:
        """Settings of the way from an image to the network's input, and back."""
        return _preprocessing(self.card)

    @property
    def original_maps(self) -> bool:
        """True if maps have the images' own size, False for that of the network's input."""
        return bool(self.card.get("map_size") == "original")

    @functools.cached_property
    def thresholds(self) -> list[Threshold]:
        """All known thresholds, the one in force first."""
        return [Threshold(**threshold) for threshold in self.card["thresholds"]]

    @functools.cached_property
    def prior(self) -> Prior | None:
        """The prior that normal scores follow; `None` if the training loss has no prior."""
        if "prior" in self.card:
            return None if self.card["prior"] is None else Prior(**self.card["prior"])
        # Older files have no "prior"; only the deviation loss has one.
        loss = self.card["loss"]
        has_prior = loss["name"] == "deviation"
        return Prior(loss["prior_mean"], loss["prior_std"]) if has_prior else None

    @property
    def margin(self) -> float:
        """The score that training pushes anomalies to."""
        return float(self.card["loss"]["margin"])

    @property
    def explanation(self) -> str:
        """Explanation method of the file."""
        return str(self.card["explanation"])

    @functools.cached_property
    def kinds(self) -> tuple[str, ...]:
        """Names of the labelled kinds that an image can be like; empty for devnet."""
        return tuple(map(str, self.card.get("kinds", ())))

    @functools.cached_property
    def ordinary(self) -> Ordinary | None:
        """Summary of the training images; `None` for files of earlier versions."""
        values = self.card.get("ordinary")
        return None if values is None else Ordinary.from_dict(values)

    @functools.cached_property
    def good_scores(self) -> np.ndarray:
        """Scores of calibration as written, float64 [n], ascending; empty for older files."""
        return np.sort(np.array(self.card.get("calibration_scores", ()), np.float64))

    def with_threshold(self, value: float) -> ExportedDetector:
        """Returns the detector with a given threshold in force."""
        others = [threshold for threshold in self.thresholds if threshold.kind != "given"]
        thresholds = [given_threshold(value, self.good_scores, self.prior), *others]
        values = [dataclasses.asdict(threshold) for threshold in thresholds]
        return dataclasses.replace(self, card=self.card | {"thresholds": values})

    @standard_numerics()
    def _score(self, images: np.ndarray) -> RawScores:
        parts = list(self._apply(SCORE, images))
        return RawScores(*(np.concatenate(leaves) for leaves in zip(*parts, strict=True)))

    @standard_numerics()
    def _explain(
        self, images: np.ndarray, method: str | None, maps: np.ndarray | None
    ) -> np.ndarray:
        if EXPLAIN not in self._programs or method not in (None, self.explanation):
            raise UserError(
                f"this file explains only by {self.explanation!r}; export another file with "
                f"--config.evaluation.explanation={method or 'gradient'}"
            )
        return np.concatenate(list(self._apply(EXPLAIN, images)))

    def _apply(self, program: str, images: np.ndarray) -> Iterator[Any]:
        """Yields the results of a program for each batch of images, without padding."""
        size = max(MAX_BATCH_SIZE // self.preprocessing.n_tiles, 1)
        for start in range(0, len(images), size):
            batch = images[start : start + size]
            n = len(batch)
            padded_length = 1 << (n - 1).bit_length()
            padded = np.pad(batch, ((0, padded_length - n), *[(0, 0)] * (batch.ndim - 1)))
            result = self._programs[program].compiled(self._weights, padded)
            yield jax.tree.map(lambda leaf, n=n: np.asarray(leaf)[:n], result)


def add_checksum(archive: bytes) -> bytes:
    """Returns a zip archive with its checksum added as the archive's comment.

    Args:
      archive: content of a zip file without a comment.
    """
    length = len(_CHECKSUM_PREFIX) + 64
    # The last field of a zip file without a comment is the length of the comment.
    body = archive[:-2] + length.to_bytes(2, "little")
    return body + _checksum(body)


def _checksum(body: bytes) -> bytes:
    return _CHECKSUM_PREFIX + hashlib.sha256(body).hexdigest().encode()


def _verify_checksum(content: bytes, path: str | os.PathLike[str]) -> None:
    """Raises `UserError` unless the content is a zip archive that ends in its checksum."""
    if not content.startswith(b"PK"):
        raise UserError(
            f"{path}: is not an exported detector; give a file written by --mode=export"
        )
    length = len(_CHECKSUM_PREFIX) + 64
    body, checksum = content[:-length], content[-length:]
    if not re.fullmatch(_CHECKSUM_PREFIX + b"[0-9a-f]{64}", checksum):
        raise UserError(f"{path}: is truncated, or not an exported detector; {_HINT}")
    if checksum != _checksum(body):
        raise UserError(f"{path}: was changed or damaged since it was written; {_HINT}")


def _preprocessing(card: dict[str, Any]) -> Preprocessing:
    """Returns the preprocessing that a card describes."""
    if "preprocessing_settings" in card:
        return Preprocessing(**card["preprocessing_settings"])
    size = int(card["image_size"])  # older files stretch images to a square
    return Preprocessing(size, size)


def _read_program(content: bytes, shape: tuple[int, ...], name: str) -> _Program:
    """Deserialises a program; raises `UserError` if it does more than compute.

    Args:
      content: `jax.export` artefact.
      shape: shape of the images that it must accept, uint8.
      name: name of the file and the program, for errors.
    """
    program = _Program(content)
    if program.exported.ordered_effects or program.exported.unordered_effects:
        raise UserError(f"{name} has side effects; it is not trusted")
    _require_pure(program.exported.mlir_module(), name)
    _, images = _arguments(program.exported)
    if images.dtype != np.uint8 or images.shape[1:] != shape:
        raise UserError(f"{name} does not take uint8 images {['N', *shape]}")
    return program


def _require_pure(text: str, name: str) -> None:
    """Raises `UserError` if an operation of an MLIR module communicates or calls foreign code."""
    forbidden: list[str] = []  # collected, because an error in MLIR's walk would be replaced

    def visit(operation: ir.Operation) -> ir.WalkResult:
        dialect, _, kind = operation.name.partition(".")
        target = ""
        if kind == "custom_call":
            target = ir.StringAttr(operation.attributes["call_target_name"]).value
        if (
            dialect not in _ALLOWED_DIALECTS
            or kind in _FORBIDDEN_OPERATIONS
            or target not in ("", *_ALLOWED_CUSTOM_CALLS)
        ):
            forbidden.append(target or operation.name)
        return ir.WalkResult.ADVANCE

    with mlir.make_ir_context():
        ir.Module.parse(text).operation.walk(visit)
    if forbidden:
        raise UserError(
            f"{name} would call {forbidden[0]}, which no exported detector needs; it is not trusted"
        )


def _arguments(program: export.Exported) -> tuple[dict[str, Any], Any]:
    """Returns shapes and dtypes of a program's arguments: weights by name, and images."""
    (weights, images), _ = jax.tree.unflatten(program.in_tree, program.in_avals)
    return weights, images


def _read_weights(archive: zipfile.ZipFile, program: export.Exported) -> dict[str, jax.Array]:
    shapes, _ = _arguments(program)
    weights = {}
    for name, aval in shapes.items():
        values = np.frombuffer(archive.read(WEIGHTS + name), aval.dtype.newbyteorder("<"))
        weights[name] = jax.device_put(values.astype(aval.dtype).reshape(aval.shape))
    return weights
