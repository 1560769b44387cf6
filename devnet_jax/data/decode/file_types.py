"""File types by name and by content: images, images that cannot be read, and everything else."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import PurePath

from PIL import Image

from devnet_jax.data.preprocessing import max_pixels
from devnet_jax.errors import UserError

NPY_MAGIC = b"\x93NUMPY"

_RAW_CAMERA = "raw camera"

# Images of types that are not read, by the suffix of the file's name.
UNREADABLE_SUFFIXES: Mapping[str, str] = {
    ".heic": "HEIC",
    ".heif": "HEIF",
    ".hif": "HEIF",
    ".jxl": "JPEG XL",
    ".jxr": "JPEG XR",
    ".wdp": "JPEG XR",
    ".jls": "JPEG-LS",
    ".dcm": "DICOM",
    ".dicom": "DICOM",
    ".nii": "NIfTI file",
    ".exr": "OpenEXR",
    ".hdr": "HDR",
    ".pam": "PAM",
    ".psb": "PSB",
    ".xcf": "XCF",
    ".svg": "SVG",
    ".svgz": "SVG",
    ".eps": "PostScript document",
    ".ps": "PostScript document",
    ".wmf": "WMF drawing",
    ".emf": "EMF drawing",
    ".h5": "HDF5 file",
    ".hdf": "HDF5 file",
    ".grib": "GRIB file",
    ".bufr": "BUFR file",
    ".mpg": "MPEG video",
    ".mpeg": "MPEG video",
    ".czi": "microscope",
    ".lif": "microscope",
    ".nd2": "microscope",
    ".vsi": "microscope",
    ".raw": "raw",
    **dict.fromkeys(
        (".3fr", ".arw", ".cr2", ".cr3", ".dng", ".nef", ".nrw", ".orf", ".pef", ".raf", ".rw2"),
        _RAW_CAMERA,
    ),
    ".srw": _RAW_CAMERA,
}

# The same types by their first bytes: (offset, bytes, name).
_UNREADABLE_MAGIC = (
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    (0, b"II\xbc\x01", "JPEG XR"),
    (128, b"DICM", "DICOM"),
    (0, b"\x76\x2f\x31\x01", "OpenEXR"),
    (0, b"#?RADIANCE", "Radiance HDR"),
    (0, b"FUJIFILMCCD-RAW", _RAW_CAMERA),
    (0, b"IIRO", _RAW_CAMERA),
    (0, b"IIU\0", _RAW_CAMERA),
    (0, b"8BPS\0\x02", "PSB"),
    (0, b"gimp xcf", "XCF"),
    (0, b"P7\n", "PAM"),
)
# Other files, which have the name of an image by mistake: (bytes, name with its article).
_OTHER_MAGIC = (
    (b"%PDF", "a PDF document"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"%!PS", "a PostScript document"),
    (b"\xc5\xd0\xd3\xc6", "a PostScript document"),
    (b"\xd7\xcd\xc6\x9a", "a WMF drawing"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"GRIB", "a GRIB file"),
    (b"BUFR", "a BUFR file"),
    (b"\0\0\1\xb3", "an MPEG video"),
    (b"\0\0\1\xba", "an MPEG video"),
)
_NOUNS = ("bits", "document", "drawing", "file", "video")  # of names that are no image types
_WITH_AN = ("EMF", "HDF5", "HDR", "MPEG", "OpenEXR", "SVG", "XCF")
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs")
_HEIF_BRANDS = (b"mif1", b"mif2", b"msf1", b"miaf")

# A file that begins so but cannot be opened is a damaged image, not another type of file.
_IMAGE_MAGIC = (
    b"\x89PNG",
    b"\xff\xd8\xff",
    b"GIF8",
    b"II*\0",
    b"MM\0*",
    b"II+\0",
    b"MM\0+",
    b"\0\0\0\x0cjP",
)
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


class NotAnImageError(UserError):
    """Raised for content that is of no image type, in a file not named as one."""


class UnreadableTypeError(UserError):
    """Raised for an image of a type that cannot be read."""


@functools.cache
def image_suffixes() -> frozenset[str]:
    """Returns the suffixes of images that can be read, in lower case: .png, .npy, …"""
    # Pillow writes PDF files but cannot read them.
    known = frozenset(Image.registered_extensions()) | {".npy"}
    return known - UNREADABLE_SUFFIXES.keys() - {".pdf"}


def too_large_error(subject: str) -> UserError:
    """Returns the error for an image of more than `max_pixels`."""
    return UserError(
        f"{subject} has more than {max_pixels()} pixels, the most that are supported: make it"
        " smaller or cut it"
    )


def one_line(error: Exception) -> str:
    """Returns the error's message on one line, or its type if there is no message."""
    return " ".join(str(error).split()) or type(error).__name__


def is_named_as_image(path: PurePath) -> bool:
    """Returns True if a file's suffix is that of an image, readable or not."""
    suffix = path.suffix.lower()
    return suffix in image_suffixes() or suffix in UNREADABLE_SUFFIXES


def unidentified(data: bytes, path: str) -> UserError:
    """Returns the error for content that Pillow does not recognise as an image.

    Args:
      data: content of the file, not empty.
      path: name of the file, for messages.
    """
    suffix = PurePath(path).suffix.lower()
    if kind := _unreadable_kind(data) or UNREADABLE_SUFFIXES.get(suffix):
        return _unreadable(path, kind)
    if data.startswith(_LFS_POINTER):
        return UserError(
            f"image '{path}' is a Git LFS pointer, not the image itself: fetch it with `git lfs"
            " pull`"
        )
    if not data.strip(b"\0"):
        return UserError(f"image '{path}' contains only zeros: restore or remove it")
    if data.startswith(_IMAGE_MAGIC):
        return UserError(f"image '{path}' is damaged: restore or remove it")
    if suffix in image_suffixes():
        if other := _other_kind(data):
            return UserError(
                f"'{path}' is {other}, not an image: put the image in its place, or remove it"
            )
        return UserError(
            f"image '{path}' is damaged: its content is of no image type; restore or remove it"
        )
    return NotAnImageError(
        f"'{path}' is not an image of a known type: convert it to PNG or remove it"
    )


def require_no_raw_camera(data: bytes, path: str, is_raw_camera: bool) -> None:
    """Raises `UnreadableTypeError` if a TIFF file is that of a raw camera.

    Such a file opens as TIFF, but its pages are thumbnails.

    Args:
      data: content of the file.
      path: name of the file.
      is_raw_camera: True if its tags tell.
    """
    is_named_so = UNREADABLE_SUFFIXES.get(PurePath(path).suffix.lower()) == _RAW_CAMERA
    if is_raw_camera or is_named_so or data.startswith(b"CR", 8):
        raise _unreadable(path, _RAW_CAMERA)


def _unreadable_kind(data: bytes) -> str:
    """Returns the name of an image type that is not read, by the content; "" for others."""
    for offset, magic, name in _UNREADABLE_MAGIC:
        if data.startswith(magic, offset):
            return name
    if data.startswith(b"8BPS") and data[22:24] not in (b"\0\x01", b"\0\x08"):
        return f"Photoshop image of {int.from_bytes(data[22:24], 'big')} bits"
    if data.startswith(b"\xff\xd8\xff"):
        return _jpeg_kind(data)
    brand = data[8:12] if data.startswith(b"ftyp", 4) else b""
    if brand == b"crx ":
        return _RAW_CAMERA
    if brand in _HEIC_BRANDS:
        return "HEIC"
    if brand in _HEIF_BRANDS and b"avif" not in data[12:64]:
        return "HEIF"
    return "SVG" if b"<svg" in _beginning(data) else ""


def _jpeg_kind(data: bytes) -> str:
    """Returns the name of a JPEG variant that is not read; "" for others."""
    start = 2
    while start + 5 <= len(data) and data[start] == 0xFF:
        marker = data[start + 1]
        if marker == 0xFF:  # padding
            start += 1
            continue
        if marker == 0xF7:
            return "JPEG-LS"
        # Beginnings of a frame; the others in this range are tables.
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            bits = data[start + 4]
            return f"JPEG image of {bits} bits" if bits != 8 and 2 <= bits <= 16 else ""
        start += 2 + int.from_bytes(data[start + 2 : start + 4], "big")
    return ""


def _other_kind(data: bytes) -> str:
    """Returns the name, with its article, of a file that is no image; "" if it is not known."""
    for magic, name in _OTHER_MAGIC:
        if data.startswith(magic):
            return name
    if data.startswith(b"ftyp", 4) and b"avi" not in data[8:64]:  # brands avif and avis
        return "a video"
    if data.startswith(b" EMF", 40):
        return "an EMF drawing"
    text = _beginning(data)
    if text.startswith((b"<!doctype html", b"<html")):
        return "an HTML page"
    return "an XML document" if text.startswith(b"<?xml") else ""


def _beginning(data: bytes) -> bytes:
    """Returns the first characters of a text of tags, in lower case; nothing of other content."""
    text = data[:1000].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    return text if text.startswith(b"<") else b""


def _unreadable(path: str, name: str) -> UnreadableTypeError:
    kind = name if name.split()[-1] in _NOUNS else f"{name} image"
    article = "an" if name.startswith(_WITH_AN) else "a"
    return UnreadableTypeError(
        f"image '{path}' is {article} {kind}, which cannot be read: convert it to PNG or TIFF"
    )
