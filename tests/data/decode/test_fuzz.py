"""Decodes files of every type with random damage: each ends in pixels or in a `UserError`."""

import io
import resource
import signal
import struct
import time
import types
import warnings

import numpy as np
import pytest
from PIL import Image

from devnet_jax.data.decode import count_pages, decode_image, decode_mask
from devnet_jax.errors import UserError

SECONDS = 60
MAX_SECONDS_PER_FILE = 10
MAX_BYTES = 2 * 2**30
MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I", "F", "CMYK", "YCbCr", "LAB")
# Values that overflow sizes, counts and offsets.
NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)


def seeds() -> list[tuple[str, bytes]]:
    """Returns a sound file of each type and mode that Pillow writes, and of other kinds."""
    Image.init()
    rng = np.random.default_rng(0)
    found = []
    for file_format in sorted(Image.SAVE):
        for mode in MODES:
            values = rng.integers(0, 256, (23, 37, 3), dtype=np.uint8)
            try:
                image = Image.fromarray(values).convert("L" if mode[0] in "IF" else "RGB")
                buffer = io.BytesIO()
                image.convert(mode).save(buffer, file_format)
                if file_format != "EPS":
                    found.append((f"{file_format} {mode}", buffer.getvalue()))
            except Exception:
                continue
    pages = io.BytesIO()
    first = Image.new("L", (8, 8))
    first.save(pages, "TIFF", save_all=True, append_images=[first] * 2, compression="tiff_lzw")
    found.append(("TIFF pages", pages.getvalue()))
    for dtype in ("u1", "<u2", ">f4", "?"):
        array = io.BytesIO()
        np.save(array, np.zeros((5, 4, 3), dtype))
        found.append((f"npy {dtype}", array.getvalue()))
    return found


def damage(rng: np.random.Generator, data: bytes) -> bytes:
    """Returns the content with one to eight changes, more of them near the beginning."""
    changed = bytearray(data)
    for _ in range(rng.integers(1, 9)):
        place = int(rng.integers(0, min(len(changed), rng.choice([64, 512, 1 << 30])) or 1))
        kind = rng.integers(0, 6)
        if kind == 0:
            changed[place : place + 1] = bytes(rng.integers(0, 256, 1, dtype=np.uint8))
        elif kind == 1:
            code = rng.choice(["<H", ">H", "<I", ">I"])
            size = struct.calcsize(code)
            number = int(rng.choice(NUMBERS)) % (1 << 8 * size)
            changed[place : place + size] = struct.pack(code, number)
        elif kind == 2:
            del changed[place:]
        elif kind == 3:
            del changed[place : place + int(rng.integers(1, 20))]
        elif kind == 4:
            changed[place:place] = bytes(rng.integers(0, 256, rng.integers(1, 20), dtype=np.uint8))
        else:
            part = changed[place : place + int(rng.integers(1, 64))]
            changed[place:place] = part
    return bytes(changed)


@pytest.mark.slow
def test_damaged_files_end_in_pixels_or_a_user_error() -> None:
    def stop(signum: int, frame: types.FrameType | None) -> None:
        raise TimeoutError

    warnings.simplefilter("ignore")  # Pillow's, of large images
    files, rng = seeds(), np.random.default_rng(1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    old = signal.signal(signal.SIGALRM, stop)
    end, n_pixels, n_errors = time.monotonic() + SECONDS, 0, 0
    try:
        while time.monotonic() < end:
            name, data = files[int(rng.integers(len(files)))]
            content = damage(rng, data)
            signal.alarm(MAX_SECONDS_PER_FILE)
            try:
                for page in range(min(count_pages(content), 3)):
                    pixels = decode_image(content, "a", page=page)
                    assert pixels.dtype == np.uint8
                    assert pixels.ndim == 3
                    assert decode_mask(content, "a", page=page).shape == pixels.shape[:2]
                n_pixels += 1
            except UserError:
                n_errors += 1
            except BaseException as error:
                pytest.fail(f"{name}: {type(error).__name__}: {error}\n{content[:4096].hex()}")
            finally:
                signal.alarm(0)
    finally:
        signal.signal(signal.SIGALRM, old)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert (peak - before) * 1024 < MAX_BYTES
    assert min(n_pixels, n_errors) > 100  # the damage is neither harmless nor total
