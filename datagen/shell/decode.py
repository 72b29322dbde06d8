"""Decodes bytes that come from outside: JSON, PNG, NPZ, tar, safetensors; in bounded memory, with one exception.

Decoders meet damaged bytes with exceptions of every kind. Here, around the decoder's own call and nowhere else, all of
them become `Damaged`. What the decoded values mean is for the callers to check (pydantic's ValidationError), so that a
bug in that code surfaces as itself.
"""

from __future__ import annotations

import io
import json
import math
import pickle
import re
import struct
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

import numpy as np

from stylepairs.datagen.shell.errors import InputError, one_line
from stylepairs.datagen.shell.regular import open_regular

if TYPE_CHECKING:
    import torch

Item = TypeVar("Item")

MAX_PIXELS = 100_000_000
MAX_NPZ_BYTES = 2 << 30
MAX_JSON_BYTES = 1 << 20


class Damaged(ValueError):
    """Bytes that are not what they should be. The message is one line: why; callers add the file and what to do."""


@contextmanager
def decoding() -> Iterator[None]:
    """Turn whatever a decoder raises into Damaged; the block holds the decoder's call and nothing else."""
    try:
        yield
    except InputError:  # storage that fails says nothing of the bytes
        raise
    except Exception as error:
        raise Damaged(error.strerror if isinstance(error, OSError) and error.strerror else one_line(error)) from error


def decoded(items: Iterable[Item]) -> Iterator[Item]:
    """What a decoder's iterator gives, one by one. Raises Damaged."""
    with decoding():
        iterator = iter(items)
    while True:
        with decoding():
            try:
                item = next(iterator)
            except StopIteration:
                return
        yield item


def read_bytes(path: Path, max_bytes: int) -> bytes:
    """A file's bytes. Raises Damaged where it cannot be read or has more than `max_bytes`."""
    with decoding(), open_regular(path) as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise Damaged(f"more than {max_bytes} bytes")
    return data


def read_at(file: IO[bytes], offset: int, size: int, max_bytes: int) -> bytes:
    """`size` bytes at a place in an open file. Raises Damaged where they are not there or are more than `max_bytes`."""
    if not 0 <= size <= max_bytes or offset < 0:
        raise Damaged(f"member of {size} bytes")
    with decoding():
        file.seek(offset)
        data = file.read(size)
    if len(data) != size:
        raise Damaged("truncated")
    return data


def decode_json(data: bytes | str) -> Any:
    """The value of a JSON text. Raises Damaged."""
    with decoding():
        return json.loads(data)


def read_json(path: Path, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """The value in a JSON file of at most `max_bytes`. Raises Damaged."""
    return decode_json(read_bytes(path, max_bytes))


def read_json_lines(path: Path, max_bytes: int = MAX_JSON_BYTES) -> Iterator[Any]:
    """The values of a file with one JSON text of at most `max_bytes` per line. Raises Damaged."""
    with decoding():
        file = open_regular(path)
    with file:
        for line in decoded(iter(partial(file.readline, max_bytes + 1), b"")):
            if len(line) > max_bytes:
                raise Damaged(f"a line of more than {max_bytes} bytes")
            yield decode_json(line)


def decode_png(data: bytes, mode: str) -> np.ndarray:
    """The pixels of a PNG as `mode` ("RGB" or "L"), uint8 [H,W,3] or [H,W]. Raises Damaged."""
    from PIL import Image

    with decoding():  # the header, before PIL sees it: PIL only warns of huge images
        width, height = struct.unpack(">II", data[16:24])
    if width * height > MAX_PIXELS:
        raise Damaged(f"image of {width} x {height} pixels")
    with decoding(), Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        return np.array(image.convert(mode))


def decode_npz(source: bytes | Path, max_bytes: int = MAX_NPZ_BYTES) -> dict[str, np.ndarray]:
    """The arrays of an .npz (its content or its path), never unpickled. Raises Damaged.

    No more is allocated than the file truly holds: an array whose header claims another size than its member has, and
    members of more than `max_bytes` in all, are refused.
    """
    with decoding():
        archive = zipfile.ZipFile(io.BytesIO(source) if isinstance(source, bytes) else open_regular(source))
    with archive:
        members = archive.infolist()
        if sum(info.file_size for info in members) > max_bytes:
            raise Damaged("oversized arrays")
        return {info.filename.removesuffix(".npy"): _decode_npy(archive, info) for info in members}


def decode_npy(path: Path, max_bytes: int) -> np.ndarray:
    """The array in an .npy file of at most `max_bytes`, never unpickled. Raises Damaged."""
    return _array(io.BytesIO(read_bytes(path, max_bytes)))


def tar_members(file: IO[bytes]) -> Iterator[tarfile.TarInfo]:
    """The headers of an uncompressed tar. Raises Damaged; one that was cut off between members, or that has a header
    which cannot be read, just ends."""
    with decoding():
        tar = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115 - closed below, outside of `decoding`
    with tar:
        yield from decoded(tar)


def read_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors of a .safetensors file, on the CPU, and its metadata. Raises Damaged."""
    with _safetensors(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118 - not a dict


def read_safetensors_metadata(path: Path) -> dict[str, str]:
    """What the header of a .safetensors file says beside its tensors. Raises Damaged."""
    with _safetensors(path) as file:
        return dict(file.metadata() or {})


@contextmanager
def _safetensors(path: Path) -> Iterator[Any]:
    """A .safetensors file, open; what goes wrong while it is read is Damaged."""
    from safetensors import safe_open

    with decoding(), open_regular(path):  # the library would wait for a pipe
        pass
    with decoding(), safe_open(path, framework="pt") as file:
        yield file


def finite(tensors: Iterable[torch.Tensor]) -> bool:
    """Whether all numbers of all tensors are finite."""
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


def read_torch(path: Path) -> object:
    """What torch.save wrote, on the CPU, read without executing pickled code. Raises Damaged."""
    import torch

    with decoding(), open_regular(path) as file:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
                    raise Damaged("a compressed archive, which torch.save never writes")  # it could grow to any size
        file.seek(0)
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:  # torch's own words advise to run what is in the file
            asked = re.search(r"GLOBAL ([\w.]+)", str(error))
            if asked is None:
                raise Damaged("not what torch.save writes, or damaged") from error
            raise Damaged(
                f"holds {asked[1]}, not tensors alone; save the model's state_dict() and give that"
            ) from error


def _decode_npy(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    if not info.filename.endswith(".npy") or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise Damaged(f"unexpected member {info.filename[:80]!r}")  # other compressions cannot be read in bounds
    with decoding(), archive.open(info) as member:
        data = member.read(info.file_size)
    return _array(io.BytesIO(data))


def _array(file: io.BytesIO) -> np.ndarray:
    """The array of an .npy's content."""
    with decoding():
        first, second = np.lib.format.read_array_header_1_0, np.lib.format.read_array_header_2_0
        shape, _, dtype = {(1, 0): first, (2, 0): second}[np.lib.format.read_magic(file)](file)
    if dtype.hasobject or dtype.itemsize == 0 or any(side < 0 for side in shape):
        raise Damaged(f"array of {dtype} {shape}"[:80])
    # Before numpy allocates what the header claims.
    if math.prod(shape) * dtype.itemsize != len(file.getbuffer()) - file.tell():
        raise Damaged(f"array of another size than its header claims ({str(shape)[:40]})")
    file.seek(0)
    with decoding():
        return np.lib.format.read_array(file, allow_pickle=False)
