"""PNG and NPZ as the shards hold them: the same bytes for the same arrays."""

from __future__ import annotations

import io
import zipfile

import numpy as np


def encode_png(image: np.ndarray) -> bytes:
    """PNG bytes of [H,W,3] or [H,W] uint8; lossless, the same bytes for the same pixels."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", compress_level=4)
    return buffer.getvalue()


def encode_npz(**arrays: np.ndarray) -> bytes:
    """An uncompressed .npz of float16 arrays; the same bytes for the same arrays."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            data = io.BytesIO()
            np.lib.format.write_array(data, np.ascontiguousarray(array, np.float16), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), data.getvalue())  # ZipInfo's own date is fixed: 1980
    return buffer.getvalue()
