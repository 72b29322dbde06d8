"""PNG and NPZ as the shards hold them: deterministic to write, careful to read."""

from __future__ import annotations

import io
import math
import struct
import zipfile
import zlib
from pathlib import Path
from typing import IO

import numpy as np

MAX_PIXELS = 100_000_000
MAX_NPZ_BYTES = 2 << 30
# What PIL, numpy, zipfile and json raise on damaged data. RuntimeError: encrypted zips, and text nested too deeply.
DAMAGE = (
    OSError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
    SyntaxError,
    OverflowError,
    MemoryError,
    RuntimeError,
    zlib.error,
    struct.error,
    zipfile.BadZipFile,
)


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


def checked_npz(source: bytes | Path, max_bytes: int = MAX_NPZ_BYTES) -> dict[str, np.ndarray]:
    """The arrays of an .npz (its content or its path), never unpickled; raises one of DAMAGE.

    No more is allocated than the file truly holds: an array whose header claims another size than its member has, and
    members of more than `max_bytes` in all, are refused with a ValueError.
    """
    with zipfile.ZipFile(io.BytesIO(source) if isinstance(source, bytes) else source) as archive:
        members = archive.infolist()
        if sum(info.file_size for info in members) > max_bytes:
            raise ValueError("oversized arrays")
        return {info.filename.removesuffix(".npy"): _read_member(archive, info) for info in members}


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    if not info.filename.endswith(".npy") or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"unexpected member {info.filename[:80]!r}")  # other compressions cannot be read in bounds
    with archive.open(info) as member:
        data = member.read(info.file_size)
    _check_header(io.BytesIO(data), len(data))
    return np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)


def _check_header(file: IO[bytes], size: int) -> None:
    """Whether an .npy of `size` bytes holds what its header claims, before numpy allocates it; else ValueError."""
    version = np.lib.format.read_magic(file)
    read_header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read_header is None:
        raise ValueError(f"array format {version}")
    shape, _, dtype = read_header(file)
    if dtype.hasobject or dtype.itemsize == 0 or any(side < 0 for side in shape):
        raise ValueError(f"array of {dtype} {shape}"[:80])
    if math.prod(shape) * dtype.itemsize != size - file.tell():
        raise ValueError(f"array of another size than its header claims ({str(shape)[:40]})")
