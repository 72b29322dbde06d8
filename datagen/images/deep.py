"""Pictures of 16 bits a channel, in PNG and TIFF: Pillow, which does the rest, reads and writes their colours in 8."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator, Mapping
from typing import IO, Any

import cv2
import numpy as np
from PIL import Image, ImageFile

_PNG_HEAD = 8  # bytes of signature
_TIFF_WIDTH, _TIFF_BITS, _TIFF_EXTRA = 256, 258, 338
MULTIPLIED_ALPHA, PLAIN_ALPHA = 1, 2  # as a TIFF has them; 0 is any other channel, such as a selection


def is_deep(image: Image.Image) -> bool:
    """Whether an opened, not yet loaded, picture has 16 bits of each of several channels."""
    if image.format == "PNG":
        assert isinstance(image, ImageFile.ImageFile)
        return bool(image.tile) and str(image.tile[0][3]).endswith(";16B") and image.mode != "I;16"
    if image.format == "TIFF":
        bits = image.tag_v2.get(_TIFF_BITS, ())  # type: ignore[attr-defined]
        return len(bits) in (3, 4) and set(bits) == {16}
    return False


def fourth_channel(image: Image.Image) -> int:
    """What the fourth channel of a deep picture is: PLAIN_ALPHA, MULTIPLIED_ALPHA, or something that does not show."""
    if image.format != "TIFF":
        return PLAIN_ALPHA
    extra = image.tag_v2.get(_TIFF_EXTRA) or (PLAIN_ALPHA,)  # type: ignore[attr-defined]
    return int(extra[0])


def read_deep(data: bytes) -> np.ndarray | None:
    """uint16 [H,W,3] RGB or [H,W,4] with alpha of a file's bytes, not turned; None: it cannot be read so."""
    try:
        found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        return None
    if found is None or found.dtype != np.uint16 or found.ndim != 3 or found.shape[2] not in (3, 4):
        return None
    return np.ascontiguousarray(found[..., [2, 1, 0, 3][: found.shape[2]]])


def write_deep(file: IO[bytes], pixels: np.ndarray, kind: str, options: Mapping[str, Any]) -> None:
    """Write uint16 [H,W,3] or [H,W,4] as a PNG or TIFF, with what Pillow's `save` takes as options."""
    file.write(_png(pixels, options) if kind == "PNG" else _tiff(pixels, options))


def _png(pixels: np.ndarray, options: Mapping[str, Any]) -> bytes:
    """OpenCV's pixels between the chunks that Pillow writes for a picture of one pixel."""
    done, encoded = cv2.imencode(".png", pixels[..., [2, 1, 0, 3][: pixels.shape[2]]])
    assert done
    small = io.BytesIO()
    Image.new("RGB", (1, 1)).save(small, "PNG", **options)
    about = [chunk for name, chunk in _chunks(small.getvalue()) if name not in (b"IHDR", b"IDAT", b"IEND")]
    data = encoded.tobytes()
    (first, header), *rest = _chunks(data)
    return data[:_PNG_HEAD] + header + b"".join(about) + b"".join(chunk for _, chunk in rest)


def _chunks(png: bytes) -> Iterator[tuple[bytes, bytes]]:
    place = _PNG_HEAD
    while place < len(png):
        end = place + 12 + struct.unpack_from(">I", png, place)[0]
        yield png[place + 4 : place + 8], png[place:end]
        place = end


def _tiff(pixels: np.ndarray, options: Mapping[str, Any]) -> bytes:
    """Two 8-bit pixels hold the bytes of one with 16: Pillow writes those, and its directory is told what they are."""
    height, width, channels = pixels.shape
    file = io.BytesIO()
    halves = pixels.astype("<u2").view(np.uint8).reshape(height, 2 * width, channels)
    Image.fromarray(halves).save(file, "TIFF", **options)
    data = bytearray(file.getvalue())
    assert data[:4] == b"II*\0"
    directory = struct.unpack_from("<I", data, 4)[0]
    for index in range(struct.unpack_from("<H", data, directory)[0]):
        entry = directory + 2 + 12 * index
        tag, _, count, value = struct.unpack_from("<HHII", data, entry)
        if tag == _TIFF_WIDTH:
            struct.pack_into("<I", data, entry + 8, width)
        elif tag == _TIFF_BITS:  # more than two shorts lie elsewhere
            struct.pack_into(f"<{count}H", data, value, *[16] * count)
    return bytes(data)
