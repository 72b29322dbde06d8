"""PNG and NPZ as the shards hold them: deterministic to write, careful to read."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib

import numpy as np

MAX_PIXELS = 100_000_000
# What PIL, numpy and zipfile raise on damaged data.
DAMAGE = (OSError, ValueError, EOFError, KeyError, TypeError, SyntaxError, zlib.error, struct.error, zipfile.BadZipFile)


def encode_png(image: np.ndarray) -> bytes:
    """PNG bytes of [H,W,3] or [H,W] uint8; lossless, the same bytes for the same pixels."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", compress_level=4)
    return buffer.getvalue()


def decode_png(data: bytes, mode: str) -> np.ndarray:
    """The pixels of a PNG as `mode` ("RGB" or "L"), uint8 [H,W,3] or [H,W]; raises one of DAMAGE."""
    from PIL import Image

    width, height = struct.unpack(
        ">II", data[16:24]
    )  # of the header, before PIL sees it: PIL only warns of huge images
    if width * height > MAX_PIXELS:
        raise ValueError(f"image of {width} x {height} pixels")
    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        return np.array(image.convert(mode))


def encode_npz(**arrays: np.ndarray) -> bytes:
    """An uncompressed .npz of float16 arrays; the same bytes for the same arrays."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            data = io.BytesIO()
            np.lib.format.write_array(data, np.ascontiguousarray(array, np.float16), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), data.getvalue())  # ZipInfo's own date is fixed: 1980
    return buffer.getvalue()


def decode_npz(data: bytes, max_bytes: int) -> dict[str, np.ndarray]:
    """The arrays of an .npz, never unpickled; raises one of DAMAGE, so too when they exceed `max_bytes`."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if sum(info.file_size for info in archive.infolist()) > max_bytes:
            raise ValueError("oversized arrays")
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}
