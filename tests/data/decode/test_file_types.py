"""Tests that files that are not read are called what they are, and are not called damaged."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
import tifffile
from PIL import Image

from devnet_jax.data.decode import NotAnImageError, UnreadableTypeError, decode_image
from devnet_jax.data.decode.file_types import UNREADABLE_SUFFIXES, image_suffixes
from devnet_jax.errors import UserError


def jpeg() -> bytes:
    file = io.BytesIO()
    Image.new("L", (16, 16)).save(file, "JPEG")
    return file.getvalue()


def photoshop(version: int, bits: int) -> bytes:
    head = struct.pack(">4sH6xHIIHH", b"8BPS", version, 3, 4, 4, bits, 3)
    return head + bytes(12) + b"\0\0" + bytes(96)


def direct_draw(pixel_format: bytes) -> bytes:
    head = struct.pack("<4sIIIIIII44x", b"DDS ", 124, 0x1007, 4, 4, 0, 0, 0)
    return head + struct.pack("<II4s20x20x", 32, 4, pixel_format) + bytes(64)


BMP_WITH_JPEG = b"BM" + struct.pack("<IHHI", 154, 0, 0, 54)
BMP_WITH_JPEG += struct.pack("<IiiHHIIiiII", 40, 4, 4, 1, 0, 4, 100, 0, 0, 0, 0) + bytes(100)


@pytest.mark.parametrize(
    ("name", "data", "kind"),
    [
        ("a.jpg", jpeg().replace(b"\xff\xc0\x00\x0b\x08", b"\xff\xc1\x00\x0b\x0c"), "of 12 bits"),
        ("a.jpg", b"\xff\xd8\xff\xf7\x00\x0b\x08\x00\x20\x00\x20\x01\x01\x11\x00", "a JPEG-LS"),
        ("a.psd", photoshop(1, 16), "a Photoshop image of 16 bits"),
        ("a.psd", photoshop(2, 8), "a PSB image"),
        ("a.jpg", b"\0\0\0\x18ftypheis" + bytes(80), "a HEIC image"),
        ("a.jpg", b"\0\0\0\x18ftyphevx" + bytes(80), "a HEIC image"),
        ("a.jpg", b"\0\0\0\x18ftypmif1" + bytes(80), "a HEIF image"),
        ("a.dds", direct_draw(b"ZZZZ"), "of a kind that cannot be read"),
        ("a.bmp", BMP_WITH_JPEG, "of a kind that cannot be read"),
        ("a.png", b"<?xml version='1.0'?>\n<svg/>", "an SVG image"),
        ("a.svgz", b"\x1f\x8b" + bytes(20), "an SVG image"),
        ("a.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n", "a PostScript document"),
        ("a.wmf", b"\xd7\xcd\xc6\x9a" + bytes(60), "a WMF drawing"),
        ("a.h5", b"\x89HDF\r\n\x1a\n" + bytes(60), "an HDF5 file"),
        ("a.mpg", b"\0\0\1\xb3" + bytes(60), "an MPEG video"),
        ("a.xcf", b"gimp xcf v011\0" + bytes(60), "an XCF image"),
        ("a.png", b"gimp xcf v011\0" + bytes(60), "an XCF image"),
        ("a.hdr", b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n", "a Radiance HDR image"),
        ("a.pam", b"P7\nWIDTH 2\n", "a PAM image"),
        ("a.czi", b"ZISRAWFILE" + bytes(60), "a microscope image"),
        ("a.raw", bytes(range(256)), "a raw image"),
    ],
)
def test_kinds_that_are_not_read(name: str, data: bytes, kind: str) -> None:
    with pytest.raises(UnreadableTypeError, match=f"^image '{name}' is .*{kind}.*: convert it"):
        decode_image(data, name)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"%PDF-1.4\n", "a PDF document"),
        (b"PK\3\4" + bytes(60), "a ZIP archive"),
        (b"\x1f\x8b" + bytes(60), "a gzip archive"),
        (b"\xef\xbb\xbf\n<!DOCTYPE html><html>", "an HTML page"),
        (b"<?xml version='1.0'?><a/>", "an XML document"),
        (b"\0\0\0\x18ftypisom" + bytes(60), "a video"),
        (b"%!PS-Adobe-3.0", "a PostScript document"),
    ],
)
def test_other_files_with_the_name_of_an_image(data: bytes, kind: str) -> None:
    """They are not skipped, as the same content of another name is."""
    with pytest.raises(UserError, match=rf"'a\.png' is {kind}, not an image") as raised:
        decode_image(data, "a.png")
    assert not isinstance(raised.value, NotAnImageError)
    with pytest.raises(NotAnImageError):
        decode_image(data, "notes.txt")


def test_suffixes_are_of_images_that_are_read_or_of_others() -> None:
    assert not image_suffixes() & UNREADABLE_SUFFIXES.keys()
    assert {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".pgm", ".npy"} <= image_suffixes()


def raw_camera_file(thumbnail_is_reduced: bool = True, **options: object) -> bytes:
    """Returns a file whose page is a thumbnail, and whose raw data lie within that page."""
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        thumbnail = np.zeros((16, 16, 3), np.uint8)
        writer.write(
            thumbnail, photometric="rgb", subifds=1, subfiletype=thumbnail_is_reduced, **options
        )
        writer.write(np.zeros((64, 64), np.uint16), photometric="minisblack")
    return file.getvalue()


def test_raw_camera_files_are_not_read_as_their_thumbnail() -> None:
    """By their tags, whatever their name, or by their name."""
    version = [(50706, 1, 4, (1, 4, 0, 0), True)]
    plain = io.BytesIO()
    Image.new("L", (4, 4)).save(plain, "TIFF")
    for name, data in (
        ("a.tif", raw_camera_file()),
        ("a.tif", raw_camera_file(False, extratags=version)),
        ("a.NEF", raw_camera_file(False)),
        ("a.cr2", plain.getvalue()),
    ):
        with pytest.raises(UnreadableTypeError, match=f"{name}' is a raw camera image"):
            decode_image(data, name)
    # A pyramid of smaller copies within a page, and a single small copy, are pictures.
    assert decode_image(raw_camera_file(False), "a.tif").shape == (16, 16, 3)
    file = io.BytesIO()
    tifffile.imwrite(file, np.zeros((4, 5), np.uint8), subfiletype=1)
    assert decode_image(file.getvalue(), "a.tif").shape == (4, 5, 3)
