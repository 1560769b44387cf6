"""Verifies a raw data set: decodes every file once, and names those that cannot be used."""

from __future__ import annotations

import hashlib
import io
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from sklearn.model_selection import train_test_split

from devnet_jax.data.datasets.builder import (
    ANOMALY,
    NORMAL,
    SPLITS,
    LazyBytes,
    RawDataset,
    RawExample,
    encode_png,
    read_content,
)
from devnet_jax.data.decode import NotAnImageError, map_in_threads, tiff
from devnet_jax.data.decode.mask import Mask, read_mask
from devnet_jax.data.decode.opening import Opened, count_pages, open_image
from devnet_jax.data.decode.rgb import highest_value, to_rgb
from devnet_jax.data.decode.values import Values, camera_level
from devnet_jax.data.pages import read_picture, same_name_error
from devnet_jax.errors import UserError

logger = logging.getLogger(__name__)

_MAX_NAMED = 10  # files that one message names


class _Verified(NamedTuple):
    """The result of one raw example.

    Attributes:
      examples: its image, or one example for each page; empty if the file is no image.
      error: message if the image or the mask cannot be used, else "".
      not_an_image: message if the file is no image, else "".
      mask_levels: levels of the mask that were taken as classes (`Mask.levels`).
      coverage: share of the pixels of each example that its mask covers; empty without a mask.
    """

    examples: Sequence[RawExample] = ()
    error: str = ""
    not_an_image: str = ""
    mask_levels: tuple[int, ...] = ()
    coverage: Sequence[float] = ()


def verify(raw: RawDataset) -> list[RawExample]:
    """Verifies the files of a raw data set (`verify_files`) and assigns the splits.

    Returns:
      The verified examples, all of train, then all of test.

    Raises:
      UserError: as `verify_files`, or if a needed part of a split has no images.
    """
    return _assign_splits(verify_files(raw), raw.name, raw.needs_test_images)


def verify_files(raw: RawDataset) -> list[RawExample]:
    """Verifies the files of a raw data set: decodes every file once.

    Each page of a TIFF file becomes an example of its own, named with "#" and its number from 1.
    Files that are not images are skipped if the data set allows it; their number is logged, and
    their names at verbosity 1. A warning is logged if the counts differ from the published ones,
    and if masks have several grey levels, are empty, cover more than half of their pictures, or
    show defects of normal images.

    Returns:
      The verified examples, in the given order. `LazyBytes` are replaced by the bytes.

    Raises:
      UserError: if files are empty, damaged or of a type that cannot be read, a mask does not fit
        its image, a page has the name of another file, or a class has no images. Ten files are
        named.
    """
    examples = raw.examples
    results = list(map_in_threads(_verify_example, examples, "verifying images"))
    errors = [r.error or ("" if raw.skips_other_files else r.not_an_image) for r in results]
    _raise_errors([error for error in errors if error])
    verified = [example for result in results for example in result.examples]
    _require_unique_names(verified)
    skipped = [e.path for e, result in zip(examples, results, strict=True) if not result.examples]
    if skipped:
        logger.info("%s: skipped %d files that are not images", raw.name, len(skipped))
        logger.debug("%s: skipped %s", raw.name, ", ".join(skipped))
    _warn_of_levels(raw.name, results)
    _warn_of_coverage(raw.name, results)
    for split, defect in sorted({(e.split or "", e.defect) for e in examples}):
        if not any((e.split or "", e.defect) == (split, defect) for e in verified):
            raise UserError(
                f"{raw.name}: none of the files of class '{defect}'{f' in {split}' * bool(split)}"
                " is an image of a known type: convert them to PNG"
            )
    _compare_with_published_counts(verified, raw)
    return verified


def white_level(examples: Iterable[RawExample]) -> int:
    """Returns the value that is white in the images of 16 bits of a data set, or 0 if all are used.

    It is that of the smallest camera depth that holds all values.

    Args:
      examples: verified examples.
    """
    highest = max((e.highest for e in examples if e.highest is not None), default=0)
    return camera_level(highest) if highest else 0


def _verify_example(example: RawExample) -> _Verified:
    """Decodes an image and its mask."""
    name, (data, page) = _content_name(example, example.image), _read(example.image)
    mask_name, mask, mask_page = "", None, None
    if example.mask is not None:
        mask_name, (mask, mask_page) = _content_name(example, example.mask), _read(example.mask)
    examples: list[RawExample] = []
    levels: set[int] = set()
    coverage: list[float] = []
    try:
        pages = mask_pages = _pages(data, page)
        if mask is not None and len(mask_pages := _pages(mask, mask_page)) != len(pages):
            raise UserError(
                f"mask '{mask_name}' has {len(mask_pages)} pages but its image '{name}' has"
                f" {len(pages)}: they must be equal"
            )
        for number, mask_number in zip(pages, mask_pages, strict=True):
            try:
                opened = open_image(data, name, number)
            except NotAnImageError as error:
                return _Verified(not_an_image=str(error))
            highest = highest_value(opened)
            # The white level is known when all images are; by its own, none looks too dark.
            pixels = to_rgb(opened.content, name, white_level=highest or 0)
            is_page = page is not None or len(pages) > 1
            changes: dict[str, Any] = {
                "digest": _digest(opened, pixels),
                "size": pixels.shape[:2],
                "highest": highest,
                "image": data if isinstance(example.image, LazyBytes) else example.image,
            }
            if is_page:
                changes["image"] = _encode_page(opened, pixels)
            if len(pages) > 1:
                changes["path"] = f"{example.path}#{number + 1}"
            if mask is not None:
                found = read_mask(mask, mask_name, page=mask_number)
                levels.update(found.levels)
                coverage.append(float(found.defect.mean()))
                _require_fit(found, mask_name, opened, name, pixels.shape[:2])
                changes["mask"] = mask if isinstance(example.mask, LazyBytes) else example.mask
                if is_page or mask_page is not None:
                    changes["mask"] = encode_png(found.defect * np.uint8(255))
            examples.append(replace(example, **changes))
    except UserError as error:
        return _Verified(error=str(error))
    return _Verified(examples, mask_levels=tuple(sorted(levels)), coverage=coverage)


def _read(content: Path | LazyBytes | bytes) -> tuple[bytes, int | None]:
    """Returns the content of an image's or a mask's file, and its page; `None` for all of them."""
    return read_picture(content) if isinstance(content, Path) else (read_content(content), None)


def _pages(data: bytes, page: int | None) -> Sequence[int]:
    """Returns the pages of a file that are pictures of an example: the given one, or all."""
    return range(count_pages(data)) if page is None else [page]


def _encode_page(opened: Opened, pixels: np.ndarray) -> bytes:
    """Encodes one page of a file without loss, in a type that keeps what its values mean."""
    values = opened.content
    if not isinstance(values, Values) or values.stored.dtype == np.uint8:
        return encode_png(pixels)
    if values.white is None and values.inverted:
        return tiff.encode_16_bits(values.stored, white_is_zero=True)
    if values.white is None and values.alpha is not None:
        return tiff.encode_16_bits(np.dstack([values.stored, values.alpha]))
    stored = values.stored
    if values.white is not None:
        stored = (values.shown(values.white) / values.white).astype(np.float32)
    buffer = io.BytesIO()
    np.save(buffer, stored)
    return buffer.getvalue()


def _require_fit(
    mask: Mask, mask_name: str, opened: Opened, image_name: str, shape: tuple[int, ...]
) -> None:
    """Raises `UserError` unless a mask certainly lies as its image does.

    Args:
      mask: the mask.
      mask_name: its name, for the message.
      opened: its image.
      image_name: name of the image.
      shape: (height, width) of the image.
    """
    turned = opened.orientation if mask.orientation == 1 else 1
    # A mask drawn on the pixels as they are stored fits an image that is turned by 90°, or not.
    was_stored = mask.defect.shape == (shape[::-1] if turned > 4 else shape)
    if turned > 1 and was_stored:
        raise UserError(
            f"image '{image_name}' has the EXIF orientation {turned} and its mask '{mask_name}'"
            " none, so the mask may lie otherwise than the image: save the image upright, without"
            " the orientation"
        )
    require_equal_sizes(mask_name, mask.defect.shape, image_name, shape)


def _raise_errors(errors: Sequence[str]) -> None:
    """Raises one `UserError` of all messages, if there are any."""
    if len(errors) == 1:
        raise UserError(errors[0])
    if errors:
        named = "; ".join(errors[:_MAX_NAMED])
        rest = len(errors) - _MAX_NAMED
        more = f"; and {rest} more" if rest > 0 else ""
        raise UserError(f"{len(errors)} files cannot be used: {named}{more}")


def _warn_of_levels(name: str, results: Sequence[_Verified]) -> None:
    """Logs a warning if masks have grey levels that could mean something else than defects."""
    graded = [result for result in results if result.mask_levels]
    if graded:
        levels = sorted({level for result in graded for level in result.mask_levels})
        shown = ", ".join(map(str, levels[:8])) + ", …" * (len(levels) > 8)
        logger.warning(
            "%s: %d masks have areas of several grey levels (%s), which are all taken as defects,"
            " for example that of '%s'",
            name,
            len(graded),
            shown,
            graded[0].examples[0].path,
        )


def _require_unique_names(examples: Sequence[RawExample]) -> None:
    """Raises `UserError` if a page of a file has the name of another file."""
    paths = Counter(example.path for example in examples)
    repeated = [path for path, n in paths.items() if n > 1]
    if repeated:
        file, _, page = repeated[0].rpartition("#")
        raise same_name_error(file, int(page))


def _warn_of_coverage(name: str, results: Sequence[_Verified]) -> None:
    """Logs a warning if masks are empty, cover most of their pictures, or contradict the label."""
    shares = [
        (example, share)
        for result in results
        for example, share in zip(result.examples, result.coverage, strict=False)
    ]
    covered = {example.path: share for example, share in shares if example.label == ANOMALY}
    defects = [example.path for example, share in shares if example.label == NORMAL and share > 0]
    if defects:
        logger.warning(
            "%s: %d masks of normal images show defects, for example that of '%s': correct the"
            " labels, or remove the masks",
            name,
            len(defects),
            defects[0],
        )
    empty = [path for path, share in covered.items() if share == 0]
    if empty:
        logger.warning(
            "%s: %d masks of anomalies are empty, for example that of '%s': draw the defects, or"
            " remove the masks",
            name,
            len(empty),
            empty[0],
        )
    median = float(np.median(list(covered.values()))) if covered else 0.0
    if median > 0.5:
        logger.warning(
            "%s: the masks of anomalies cover %.0f %% of their pictures (median), for example that"
            " of '%s': is white the defect? If it is the background, invert the masks",
            name,
            100 * median,
            max(covered, key=covered.__getitem__),
        )


def _compare_with_published_counts(examples: list[RawExample], raw: RawDataset) -> None:
    """Logs a warning if the number of images of a class is not the published one."""
    counts = Counter(e.defect for e in examples)
    differences = [
        f"{counts[defect]} of class '{defect}' (published: {published})"
        for defect, published in raw.published_counts.items()
        if counts[defect] != published
    ]
    if differences:
        logger.warning(
            "%s: the number of images differs from the published data set: %s",
            raw.name,
            ", ".join(differences),
        )


def _assign_splits(
    examples: list[RawExample], name: str, needs_test_images: bool
) -> list[RawExample]:
    """Returns the examples with their splits: all of train, then all of test, in the given order.

    Args:
      examples: examples with or without a split.
      name: name of the data set, for messages.
      needs_test_images: True if the test part must have normal images and anomalies.

    Raises:
      UserError: if there are no normal images to train with, or a needed part of the test is empty.
    """
    held_out = {e.path for e in examples if e.split is None and e.label == ANOMALY}
    unsplit = [e.path for e in examples if e.split is None and e.label == NORMAL]
    if len(unsplit) >= 2:
        held_out.update(train_test_split(unsplit, test_size=0.25, random_state=42)[1])
    examples = [
        replace(e, split=e.split or ("test" if e.path in held_out else "train")) for e in examples
    ]
    for split, label, required, is_needed in (
        ("train", NORMAL, "normal images to train with", True),
        ("test", NORMAL, "normal images to test with", needs_test_images),
        ("test", ANOMALY, "anomalous images", needs_test_images),
    ):
        if is_needed and not any((e.split, e.label) == (split, label) for e in examples):
            raise UserError(f"{name}: there are no {required}: add some")
    return sorted(examples, key=lambda e: SPLITS.index(str(e.split)))


def require_equal_sizes(
    mask: str, mask_shape: tuple[int, ...], image: str, shape: tuple[int, ...]
) -> None:
    """Raises `UserError` unless a mask and its image have the same size.

    Args:
      mask: name of the mask, for the message.
      mask_shape: (height, width) of the mask.
      image: name of the image, for the message.
      shape: (height, width) of the image.
    """
    if mask_shape != shape:
        raise UserError(
            f"mask '{mask}' is {mask_shape[1]}×{mask_shape[0]} pixels but its image"
            f" '{image}' is {shape[1]}×{shape[0]}: they must be equal"
        )


def digest_of_file(path: Path) -> str:
    """Returns `Example.digest` of a picture, which may be a page of a file.

    Raises:
      UserError: if it cannot be read.
    """
    name, (data, page) = str(path), read_picture(path)
    opened = open_image(data, name, page)
    pixels = to_rgb(opened.content, name, white_level=highest_value(opened) or 0)
    return _digest(opened, pixels)


def _digest(opened: Opened, pixels: np.ndarray) -> str:
    """Returns a hash of the shape and the pixels.

    Of images of 16 bits that may use fewer, the values themselves: in 8 bits many would be equal.
    """
    parts = [pixels]
    if highest_value(opened) is not None and isinstance(opened.content, Values):
        values = opened.content
        # Nothing that is stored equals an image that shows it inverted.
        parts = [values.stored, *[np.zeros(1)] * values.inverted]
        parts += [] if values.alpha is None else [values.alpha]
    digest = hashlib.blake2b(repr(parts[0].shape).encode(), digest_size=16)
    for part in parts:
        digest.update(np.ascontiguousarray(part).data)
    return digest.hexdigest()


def _content_name(example: RawExample, content: Path | LazyBytes | bytes) -> str:
    """Returns the name of an image or a mask, for messages."""
    return str(content) if isinstance(content, Path) else example.path
