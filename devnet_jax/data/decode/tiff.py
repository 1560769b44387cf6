"""Reads the tags of TIFF files that Pillow does not act on: polarity, bits, kind of each page."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping, Sequence
from typing import NamedTuple

_MAX_PAGES = 100_000
_MAX_VALUES = 64  # of one tag; the tags used here have one value for each sample
# Types of tag values: struct code and size in bytes.
_VALUE_TYPES = {1: ("B", 1), 3: ("H", 2), 4: ("I", 4), 13: ("I", 4), 16: ("Q", 8), 18: ("Q", 8)}

_SUBFILE_TYPE, _WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC = 254, 256, 257, 258, 262
_SAMPLES, _SAMPLE_FORMAT = 277, 339
_WHITE_IS_ZERO, _BLACK_IS_ZERO = 0, 1
_IS_REDUCED, _IS_MASK = 1, 4  # bits of the subfile type
_FORMAT_NAMES = {1: "unsigned", 2: "signed", 3: "floating-point"}


class Page(NamedTuple):
    """Tags of one image in a TIFF file.

    Attributes:
      tags: values by number of the tag.
      places: position in the file of the values of each tag, in bytes, and their struct format.
    """

    tags: Mapping[int, Sequence[int]]
    places: Mapping[int, tuple[int, str]]

    @property
    def bits(self) -> int:
        """Bits of a sample."""
        return self.tags.get(_BITS, (1,))[0]

    @property
    def n_samples(self) -> int:
        """Samples of a pixel."""
        return self.tags.get(_SAMPLES, (1,))[0]

    @property
    def white_is_zero(self) -> bool:
        """True for greyscale in which 0 is white."""
        return self.n_samples == 1 and self.tags.get(_PHOTOMETRIC) == (_WHITE_IS_ZERO,)

    @property
    def is_complete(self) -> bool:
        """True if the tags say what the samples are."""
        return {_WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC} <= self.tags.keys()

    @property
    def is_picture(self) -> bool:
        """False for a smaller copy of another image, and for a mask of transparency."""
        return not self.tags.get(_SUBFILE_TYPE, (0,))[0] & (_IS_REDUCED | _IS_MASK)

    def __str__(self) -> str:
        """Returns the kind of samples in words."""
        code = self.tags.get(_SAMPLE_FORMAT, (1,))[0]
        samples = "greyscale" if self.n_samples == 1 else f"{self.n_samples} samples"
        return f"{samples} of {self.bits} bits, {_FORMAT_NAMES.get(code, f'sample format {code}')}"


def is_tiff(data: bytes | mmap.mmap) -> bool:
    """Returns True if data begins as a TIFF or BigTIFF file does."""
    return data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def read_pages(data: bytes | mmap.mmap) -> list[Page]:
    """Reads the tags of all images of a TIFF file, as far as they are complete."""
    order = "<" if data[:2] == b"II" else ">"
    is_big = data[2:4] in (b"+\0", b"\0+")
    # Formats of an offset, of the number of tags, and of a tag's number, type and count.
    offset_code, count_code, tag_code = ("Q", "Q", "HHQ") if is_big else ("I", "H", "HHI")
    pages: list[Page] = []
    seen = set()
    try:
        (start,) = struct.unpack_from(order + offset_code, data, 8 if is_big else 4)
        while start and start not in seen and len(pages) < _MAX_PAGES:
            seen.add(start)
            (n_tags,) = struct.unpack_from(order + count_code, data, start)
            start += struct.calcsize(order + count_code)
            size = struct.calcsize(order + tag_code + offset_code)
            if n_tags * size > len(data):
                break
            tags, places = {}, {}
            for entry in range(start, start + n_tags * size, size):
                tag, kind, count = struct.unpack_from(order + tag_code, data, entry)
                if kind not in _VALUE_TYPES or not 0 < count <= _MAX_VALUES:
                    continue
                code, width = _VALUE_TYPES[kind]
                position = entry + struct.calcsize(order + tag_code)
                if count * width > struct.calcsize(offset_code):
                    (position,) = struct.unpack_from(order + offset_code, data, position)
                tags[tag] = struct.unpack_from(f"{order}{count}{code}", data, position)
                places[tag] = (position, order + code)
            pages.append(Page(tags, places))
            (start,) = struct.unpack_from(order + offset_code, data, start + n_tags * size)
    except struct.error:  # truncated
        pass
    return pages


def as_black_is_zero(data: bytes, page: Page) -> bytes:
    """Returns the file with one page of greyscale declared as BlackIsZero; no sample changes.

    Pillow opens few kinds of samples as WhiteIsZero, and inverts none of more than 8 bits.

    Args:
      data: content of the file.
      page: page whose `white_is_zero` is True.
    """
    position, code = page.places[_PHOTOMETRIC]
    value = struct.pack(code, _BLACK_IS_ZERO)
    return data[:position] + value + data[position + len(value) :]
