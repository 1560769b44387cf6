"""A detector in one file: its format, and what scores images with it.

Needs jax, numpy, Pillow and flatbuffers (with which `jax.export` reads), and none of the code that
made the network. The file is a zip:

- card.json: what the detector is, and what its numbers mean; its `format` is that of this module.
- score, explain: `jax.export` artefacts for CPUs, NVIDIA GPUs and TPUs, of any number of images.
- weights/NAME: the bytes, little-endian, of the weight of that name, which both are called with.
- the comment: the SHA-256 of all bytes before it.
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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export
from jax.extend.mlir import ir
from jax.interpreters import mlir

from devnet_jax.errors import UserError
from devnet_jax.inference.scorer import ImageScorer
from devnet_jax.inference.thresholds import Threshold
from devnet_jax.prior import Prior

FORMAT = 1
CARD, SCORE, EXPLAIN, WEIGHTS = "card.json", "score", "explain", "weights/"
_SEAL = b"sha256:"  # and 64 digits: the end of the file
_ADVICE = "export it again (--mode=export), or ask for another copy"
# At once, where not told otherwise: batches are filled up to powers of two, so that any number of
# images compiles at most six programs.
LARGEST_BATCH = 32
# A program of ours computes, and that is all: these dialects have no others that reach outside.
_DIALECTS = ("builtin", "func", "stablehlo", "chlo")
_REACHING_OUT = ("infeed", "outfeed", "send", "recv")
_CUSTOM_CALLS = ("shape_assertion",)  # that of jax.export, on the number of images


@dataclasses.dataclass(frozen=True)
class ExportedDetector(ImageScorer):
    """What `Detector` is, out of one file: it scores and explains images, as `ImageScorer` has it.

    Attributes:
      card: what the file says of itself: the data set, the training, the preprocessing, versions.
    """

    card: dict[str, Any]
    _weights: dict[str, jax.Array]
    _programs: dict[str, Callable[..., Any]]

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ExportedDetector:
        """Reads a file that `--mode=export` has written.

        Nothing in the file is run but the arithmetic on its weights and on images: there is no
        pickle in it, and a program that would do anything else is refused. It is the user who
        trusts what the numbers mean; the checksum tells damage, not who has written the file.

        Raises:
          UserError: the file is absent, damaged, not of this kind, or of a later version.
        """
        try:
            content = Path(path).read_bytes()
        except IsADirectoryError:
            raise UserError(
                f"{path}: is a folder; of a run's, --mode=export --workdir={path} writes the file"
            ) from None
        except OSError as error:
            raise UserError(
                f"{path}: {error.strerror or error}; give a file that --mode=export has written"
            ) from None
        _check_seal(content, path)
        try:
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                return cls._read(archive, path)
        except UserError:
            raise
        except Exception as error:  # what damage or malice has made fails in many ways
            words = " ".join(str(error).split())[:200]
            raise UserError(
                f"{path}: no detector can be read from it ({type(error).__name__}: {words}); "
                f"{_ADVICE}"
            ) from None

    @classmethod
    def _read(cls, archive: zipfile.ZipFile, path: str | os.PathLike[str]) -> ExportedDetector:
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED:  # nothing grows beyond the file
                raise UserError(f"{path}: {entry.filename} is compressed; {_ADVICE}")
        card = json.loads(archive.read(CARD))
        if card["format"] != FORMAT:
            raise UserError(
                f"{path}: is of format {card['format']}, and this version reads {FORMAT}; "
                "use the version of devnet_jax that wrote it, or export it again"
            )
        size = int(card["image_size"])
        programs: dict[str, Callable[..., Any]] = {}
        score = _read_program(archive.read(SCORE), size, f"{path}: {SCORE}")
        weights = _read_weights(archive, score)
        programs[SCORE] = jax.jit(score.call)
        if EXPLAIN in archive.namelist():
            explain = _read_program(archive.read(EXPLAIN), size, f"{path}: {EXPLAIN}")
            # As text: the number of images is a symbol of each program's own.
            if str(_arguments(explain)) != str(_arguments(score)):
                raise UserError(f"{path}: {EXPLAIN} and {SCORE} are of two detectors; {_ADVICE}")
            programs[EXPLAIN] = jax.jit(explain.call)
        detector = cls(card, weights, programs)
        # Now, not at their first use, it shows whether the card tells them.
        _ = detector.thresholds, detector.prior, detector.margin, detector.explanation
        return detector

    @property
    def image_size(self) -> int:
        """Height and width in pixels of the images that it scores."""
        return int(self.card["image_size"])

    @functools.cached_property
    def thresholds(self) -> list[Threshold]:
        """The thresholds that can be told, the one in force first."""
        return [Threshold(**threshold) for threshold in self.card["thresholds"]]

    @functools.cached_property
    def prior(self) -> Prior | None:
        """The prior that normal scores follow; `None` if the training loss has no prior."""
        if "prior" in self.card:
            return None if self.card["prior"] is None else Prior(**self.card["prior"])
        # Files written before the card had this key know only the deviation loss's prior.
        loss = self.card["loss"]
        has_prior = loss["name"] == "deviation"
        return Prior(loss["prior_mean"], loss["prior_std"]) if has_prior else None

    @property
    def margin(self) -> float:
        """The score that training pushes anomalies to."""
        return float(self.card["loss"]["margin"])

    @property
    def explanation(self) -> str:
        """How it explains."""
        return str(self.card["explanation"])

    def _score(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        parts = list(self._apply(SCORE, images))
        scores, maps = (np.concatenate(leaves) for leaves in zip(*parts, strict=True))
        return scores, maps

    def _explain(self, images: np.ndarray, method: str | None) -> np.ndarray:
        if EXPLAIN not in self._programs or method not in (None, self.explanation):
            raise UserError(
                f"this file explains by {self.explanation!r} alone; export another with "
                f"--config.evaluation.explanation={method or 'gradient'}"
            )
        return np.concatenate(list(self._apply(EXPLAIN, images)))

    def _apply(self, program: str, images: np.ndarray) -> Iterator[Any]:
        for start in range(0, len(images), LARGEST_BATCH):
            batch = images[start : start + LARGEST_BATCH]
            n = len(batch)
            filled = 1 << (n - 1).bit_length()
            padded = np.pad(batch, ((0, filled - n), *[(0, 0)] * 3))
            result = self._programs[program](self._weights, padded)
            yield jax.tree.map(lambda leaf, n=n: np.asarray(leaf)[:n], result)


def sealed(archive: bytes) -> bytes:
    """A zip without a comment → the same with its checksum as the comment."""
    length = len(_SEAL) + 64
    with_length = archive[:-2] + length.to_bytes(2, "little")  # of the comment: a zip's last field
    return with_length + _SEAL + hashlib.sha256(with_length).hexdigest().encode()


def _check_seal(content: bytes, path: str | os.PathLike[str]) -> None:
    if not content.startswith(b"PK"):
        raise UserError(f"{path}: is no exported detector; give a file that --mode=export wrote")
    body, seal = content[: -len(_SEAL) - 64], content[-len(_SEAL) - 64 :]
    if not re.fullmatch(_SEAL + b"[0-9a-f]{64}", seal):
        raise UserError(f"{path}: is truncated, or no exported detector; {_ADVICE}")
    if seal != _SEAL + hashlib.sha256(body).hexdigest().encode():
        raise UserError(f"{path}: was changed or damaged since it was written; {_ADVICE}")


def _read_program(content: bytes, size: int, name: str) -> export.Exported:
    """A program of weights and images that only computes."""
    program = export.deserialize(bytearray(content))
    if program.ordered_effects or program.unordered_effects:
        raise UserError(f"{name} does more than to compute; it is not trusted")
    _require_pure(program.mlir_module(), name)
    _, images = _arguments(program)
    if images.dtype != np.uint8 or images.shape[1:] != (size, size, 3):
        raise UserError(f"{name} is not a program of uint8 images [N, {size}, {size}, 3]")
    return program


def _require_pure(text: str, name: str) -> None:
    """Raises `UserError` unless all operations of a module compute, and call nothing."""
    found: list[str] = []  # MLIR's walk would raise an error of its own

    def visit(operation: ir.Operation) -> ir.WalkResult:
        dialect, _, kind = operation.name.partition(".")
        target = ""
        if kind == "custom_call":
            target = ir.StringAttr(operation.attributes["call_target_name"]).value
        if dialect not in _DIALECTS or kind in _REACHING_OUT or target not in ("", *_CUSTOM_CALLS):
            found.append(target or operation.name)
        return ir.WalkResult.ADVANCE

    with mlir.make_ir_context():
        ir.Module.parse(text).operation.walk(visit)
    if found:
        raise UserError(f"{name} would call {found[0]}, which no detector does: it is not trusted")


def _arguments(program: export.Exported) -> tuple[dict[str, Any], Any]:
    """Shapes and dtypes: of the weights by name, and of the images."""
    (weights, images), _ = jax.tree.unflatten(program.in_tree, program.in_avals)
    return weights, images


def _read_weights(archive: zipfile.ZipFile, program: export.Exported) -> dict[str, jax.Array]:
    shapes, _ = _arguments(program)
    weights = {}
    for name, aval in shapes.items():
        values = np.frombuffer(archive.read(WEIGHTS + name), aval.dtype.newbyteorder("<"))
        weights[name] = jax.device_put(values.astype(aval.dtype).reshape(aval.shape))
    return weights
