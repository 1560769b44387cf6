"""Reads the tags of TIFF files that Pillow does not act on: polarity, bits, kind of each page."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

_MAX_PAGES = 100_000
_MAX_VALUES = 64  # of one tag; the tags used here have one value for each sample
# Struct codes of the types of tag values that are read.
_CODES = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
# Sizes of the values of all types of tags, from 1.
_SIZES = (1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8, 8, 8)

_SUBFILE_TYPE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 254, 256, 257, 258, 259, 262
_STRIP_OFFSETS, _SAMPLES, _STRIP_ROWS, _STRIP_SIZES = 273, 277, 278, 279
_SUB_PAGES, _EXTRA_SAMPLES, _SAMPLE_FORMAT, _DNG_VERSION = 330, 338, 339, 50706
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB = 0, 1, 2
_PREMULTIPLIED, _ALPHA = 1, 2  # kinds of extra samples
_UNSIGNED, _SIGNED = 1, 2
_IS_REDUCED, _IS_MASK = 1, 4  # bits of the subfile type
_FORMAT_NAMES = {_UNSIGNED: "unsigned", _SIGNED: "signed", 3: "floating-point"}


class Page(NamedTuple):
    """Tags of one image in a TIFF file.

    Attributes:
      tags: values by number of the tag.
      places: position in the file of the values of each tag, in bytes, and their struct format.
      is_cut: True if the file ends before the values of a tag.
    """

    tags: Mapping[int, Sequence[int]]
    places: Mapping[int, tuple[int, str]]
    is_cut: bool = False

    @property
    def bits(self) -> int:
        """Bits of a sample."""
        return self._first(_BITS, 1)

    @property
    def n_samples(self) -> int:
        """Samples of a pixel."""
        return self._first(_SAMPLES, 1)

    @property
    def white_is_zero(self) -> bool:
        """True for greyscale in which 0 is white."""
        return self.n_samples <= 2 and tuple(self.tags.get(_PHOTOMETRIC, ())) == (_WHITE_IS_ZERO,)

    @property
    def is_premultiplied(self) -> bool:
        """True if transparent pixels are stored darker, by their opacity."""
        return self._first(_EXTRA_SAMPLES, 0) == _PREMULTIPLIED

    @property
    def is_signed(self) -> bool:
        """True for signed samples."""
        return self._first(_SAMPLE_FORMAT, _UNSIGNED) == _SIGNED

    @property
    def is_complete(self) -> bool:
        """True if the tags say what the samples are."""
        return not self.is_cut and {_WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC} <= self.tags.keys()

    @property
    def is_picture(self) -> bool:
        """False for a smaller copy of another image, and for a mask of transparency."""
        return not self._first(_SUBFILE_TYPE, 0) & (_IS_REDUCED | _IS_MASK)

    @property
    def has_sub_pages(self) -> bool:
        """True if there are images within this one, which are no pages."""
        return _SUB_PAGES in self.tags

    def _first(self, tag: int, default: int) -> int:
        return self.tags.get(tag, (default,))[0]

    def __str__(self) -> str:
        """Returns the kind of samples in words."""
        code = self._first(_SAMPLE_FORMAT, _UNSIGNED)
        samples = "greyscale" if self.n_samples == 1 else f"{self.n_samples} samples"
        return f"{samples} of {self.bits} bits, {_FORMAT_NAMES.get(code, f'sample format {code}')}"


class Pages(NamedTuple):
    """The images of a TIFF file.

    Attributes:
      found: their tags, as far as the file has them.
      is_truncated: True if the file says that more of them follow, and ends before.
    """

    found: Sequence[Page]
    is_truncated: bool

    @property
    def numbers(self) -> list[int]:
        """The numbers, among all images, of those that are pictures."""
        return [i for i, page in enumerate(self.found) if page.is_picture] or [0]

    @property
    def is_raw_camera(self) -> bool:
        """True for a raw camera file, whose own pages are smaller copies of what it holds."""
        copies_only = not any(page.is_picture for page in self.found)
        return any(_DNG_VERSION in page.tags for page in self.found) or (
            copies_only and any(page.has_sub_pages for page in self.found)
        )


def is_tiff(data: bytes | mmap.mmap) -> bool:
    """Returns True if data begins as a TIFF or BigTIFF file does."""
    return data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def read_pages(data: bytes | mmap.mmap) -> Pages:
    """Reads the tags of all images of a TIFF file, as far as they are complete."""
    order = "<" if data[:2] == b"II" else ">"
    is_big = data[2:4] in (b"+\0", b"\0+")
    # Formats of an offset, of the number of tags, and of a tag's number, type and count.
    offset_code, count_code, tag_code = ("Q", "Q", "HHQ") if is_big else ("I", "H", "HHI")
    size = struct.calcsize(order + tag_code + offset_code)
    pages: list[Page] = []
    seen = set()
    try:
        (start,) = struct.unpack_from(order + offset_code, data, 8 if is_big else 4)
        while start and start not in seen and len(pages) < _MAX_PAGES:
            seen.add(start)
            (n_tags,) = struct.unpack_from(order + count_code, data, start)
            start += struct.calcsize(order + count_code)
            end = start + n_tags * size
            if end > len(data):
                return Pages(pages, is_truncated=True)
            tags, places, is_cut = {}, {}, False
            for entry in range(start, end, size):
                tag, kind, count = struct.unpack_from(order + tag_code, data, entry)
                n_bytes = count * (_SIZES[kind - 1] if 0 < kind <= len(_SIZES) else 0)
                position = entry + struct.calcsize(order + tag_code)
                if n_bytes > struct.calcsize(offset_code):
                    (position,) = struct.unpack_from(order + offset_code, data, position)
                if position + n_bytes > len(data):
                    is_cut = True  # Pillow tells if it needs the tag
                elif kind in _CODES and 0 < count <= _MAX_VALUES:
                    code = order + _CODES[kind]
                    tags[tag] = struct.unpack_from(f"{order}{count}{_CODES[kind]}", data, position)
                    places[tag] = (position, code)
            pages.append(Page(tags, places, is_cut))
            if end + struct.calcsize(offset_code) > len(data):
                break  # some writers leave out the mark of the end
            (start,) = struct.unpack_from(order + offset_code, data, end)
    except struct.error:
        return Pages(pages, is_truncated=True)
    return Pages(pages, is_truncated=False)


def page_of_pillow(tags: Mapping[int, object]) -> Page:
    """Returns the page that Pillow has read.

    Args:
      tags: its attribute `tag_v2`.
    """
    wanted = (_BITS, _PHOTOMETRIC, _SAMPLES, _EXTRA_SAMPLES, _SAMPLE_FORMAT)
    values = {tag: tags[tag] for tag in wanted if tag in tags}
    return Page({tag: v if isinstance(v, tuple) else (v,) for tag, v in values.items()}, {})


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


def encode_16_bits(pixels: np.ndarray, white_is_zero: bool = False) -> bytes:
    """Encodes an image of 16 bits, without compression.

    Args:
      pixels: uint16 [H, W], or [H, W, 4], whose fourth channel is the opacity.
      white_is_zero: True for greyscale in which 0 is white.
    """
    height, width = pixels.shape[:2]
    n_samples = pixels.shape[2] if pixels.ndim == 3 else 1
    photometric = _RGB if n_samples > 1 else _WHITE_IS_ZERO if white_is_zero else _BLACK_IS_ZERO
    data = pixels.astype("<u2").tobytes()
    values = {
        _WIDTH: (width,),
        _HEIGHT: (height,),
        _BITS: (16,) * n_samples,
        _COMPRESSION: (1,),
        _PHOTOMETRIC: (photometric,),
        _STRIP_OFFSETS: (8,),  # right after the head
        _SAMPLES: (n_samples,),
        _STRIP_ROWS: (height,),
        _STRIP_SIZES: (len(data),),
        **({_EXTRA_SAMPLES: (_ALPHA,)} if n_samples > 1 else {}),
    }
    start = 8 + len(data)
    lists_at = start + 2 + 12 * len(values) + 4
    entries, lists = b"", b""
    for tag, numbers in values.items():
        packed = struct.pack(f"<{len(numbers)}I", *numbers)
        if len(numbers) > 1:
            lists += packed
            packed = struct.pack("<I", lists_at + len(lists) - len(packed))
        entries += struct.pack("<HHI", tag, 4, len(numbers)) + packed
    head = b"II*\0" + struct.pack("<I", start)
    return head + data + struct.pack("<H", len(values)) + entries + bytes(4) + lists
