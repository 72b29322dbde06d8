"""Opens a checkpoint file of any format, found from its content: what is inside, with tensors still unread."""

from __future__ import annotations

import mmap
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from stylepairs.datagen.stylegan.official_pickle import read_official
from stylepairs.datagen.stylegan.restricted_pickle import Budget, ByteReader, CheckpointError, printable
from stylepairs.datagen.stylegan.torch_archive import LEGACY_MAGIC, read_legacy, read_zip

# How the older format of torch.save begins: a pickle (protocol 2) of nothing but its magic number.
_LEGACY_START = b"\x80\x02\x8a\x0a" + LEGACY_MAGIC.to_bytes(10, "little")
_NOT_OURS = "is not a StyleGAN2 checkpoint"
_FORMATS = "give an official .pkl, a rosinality .pt, an OpenMMLab .pth or a .safetensors file"


class StoredTensor(Protocol):
    """A tensor in a file: its shape is known, its values are read on demand."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def nbytes(self) -> int: ...
    def read(self) -> torch.Tensor: ...


@dataclass(frozen=True)
class Content:
    """What a file holds: root is a pickle's object (Module, dict, TensorRecord, ...) or a dict of tensors by name."""

    root: Any
    size: int
    metadata: Mapping[str, str] = field(default_factory=dict)


def read_content(path: Path) -> Content:
    """Read the structure of a checkpoint file. Raises CheckpointError, or OSError where the file cannot be opened."""
    try:
        status = path.stat()
    except ValueError:
        raise CheckpointError("cannot be a file's name (null byte); check the path") from None
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(f"is not a file; {_FORMATS}")
    size = status.st_size
    if size == 0:
        raise CheckpointError("is empty; copy or download it again")
    with path.open("rb") as file:
        # Not closed by hand: tensors still to be read are views of it.
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    start = bytes(data[:64])
    if start.startswith(b"PK\3\4"):
        return Content(read_zip(data, Budget()), size)
    if start.startswith(_LEGACY_START):
        return Content(read_legacy(ByteReader(data), Budget()), size)
    if start[:1] == b"\x80" and start[1:2] in (b"\2", b"\3", b"\4", b"\5"):
        return Content(read_official(ByteReader(data), Budget()), size)
    if size > 9 and start[8:9] == b"{" and struct.unpack("<Q", start[:8])[0] <= size - 8:
        return _read_safetensors(path, size)
    raise CheckpointError(_explain(start))


@dataclass(frozen=True)
class _SafeTensor:
    handle: Any
    key: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        # Safetensors checks that tensors lie side by side within the file, so its own bounds are enough.
        return 0

    def read(self) -> torch.Tensor:
        tensor: torch.Tensor = self.handle.get_tensor(self.key)
        return tensor


def _read_safetensors(path: Path, size: int) -> Content:
    from safetensors import SafetensorError, safe_open

    try:
        handle = safe_open(path, framework="pt")
        shapes = {key: tuple(handle.get_slice(key).get_shape()) for key in handle.keys()}  # noqa: SIM118 - not a dict
    except SafetensorError as error:
        raise CheckpointError(f"is damaged ({printable(error)}); copy or download it again") from None
    tensors = {key: _SafeTensor(handle, key, shape) for key, shape in shapes.items()}
    return Content(tensors, size, handle.metadata() or {})


def _explain(start: bytes) -> str:
    text = start.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return (
            "is a web page, not a checkpoint (a download that asked for a login or a confirmation?); download it again"
        )
    if text.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the checkpoint itself; fetch it with git lfs pull"
    if start.startswith((b"\x1f\x8b", b"7z\xbc\xaf", b"Rar!", b"\xfd7zXZ", b"BZh")):
        return "is a compressed archive; unpack it first"
    return f"{_NOT_OURS}; {_FORMATS}"
