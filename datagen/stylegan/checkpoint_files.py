"""Opens a checkpoint file of any format, found from its content: what is inside, its tensors views of the file."""

from __future__ import annotations

import mmap
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stylepairs.datagen.shell.decode import Damaged, read_safetensors
from stylepairs.datagen.stylegan.official_pickle import read_official
from stylepairs.datagen.stylegan.safe_pickle import LEGACY_START, CheckpointError, printable, read_legacy, read_zip

_NOT_OURS = "is not a StyleGAN2 checkpoint"
_FORMATS = "give an official .pkl, a rosinality .pt, an OpenMMLab .pth or a .safetensors file"


@dataclass(frozen=True)
class Content:
    """What a file holds: root is a pickle's object (Module, dict, tensor, ...) or a dict of tensors by name."""

    root: Any
    metadata: Mapping[str, str]
    size: int


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
        # Not closed by hand: tensors are views of it.
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    start = data[:64]
    if start.startswith(b"PK\3\4"):
        return Content(read_zip(path, data), {}, size)
    if start.startswith(LEGACY_START):
        return Content(read_legacy(data), {}, size)
    # Before official pickles: the length that a safetensors file begins with can look like a pickle's start.
    if size > 9 and start[8:9] == b"{" and struct.unpack("<Q", start[:8])[0] <= size - 8:
        try:
            return Content(*read_safetensors(path), size)
        except Damaged as error:
            raise CheckpointError(f"is damaged ({printable(error)}); copy or download it again") from None
    if start[:1] == b"\x80" and start[1:2] in (b"\2", b"\3", b"\4", b"\5"):
        return Content(read_official(data), {}, size)
    raise CheckpointError(_explain(start))


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
