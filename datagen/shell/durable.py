"""Files that are either whole or absent: temporary name, fsync, rename, fsync of the folder."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING

from stylepairs.datagen.shell.errors import InputError
from stylepairs.datagen.shell.machine import host_name, is_alive
from stylepairs.datagen.shell.regular import open_regular
from stylepairs.datagen.shell.storage.staged import Staged, publish
from stylepairs.datagen.shell.storage.transfer import SCRATCH_FULL

if TYPE_CHECKING:
    import torch

_NAME_BYTES = 120
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def file_digest(path: Path, advice: str = "") -> str:
    """sha256 of a file's bytes, in hex. Raises InputError, ending in `advice`, for a file that cannot be read."""
    try:
        with open_regular(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}){advice}") from error


def refuse_folder(path: Path) -> None:
    """Raises InputError where a file that is to be written is a folder."""
    if path.is_dir():
        raise InputError(f"{path}: is a folder; name the file to write")


def replace_file(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Call `write(file)` on a temporary file beside `path`, sync it and rename it to `path`; for a URL upload it then.

    Whatever fails, `path` keeps what it held and the temporary file is gone. An OSError (disk full, no permission)
    becomes an InputError of one line.
    """
    # A name that nobody can foresee, made new: in a shared folder a link of that name would lead elsewhere.
    temporary = Path(path).with_name(f".{_short(path.name)}.{host_name()}.{os.getpid()}.{secrets.token_hex(6)}.tmp")
    try:
        if isinstance(path, Staged):  # at a URL there are no folders to be made, but each process has its own copies
            temporary.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            _sync_folder(path.parent)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise _storage_error(path, error) from error
    publish(path)


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Write a file whole or not at all, as `replace_file`."""
    replace_file(path, lambda file: file.write(data))


def keep_rows(path: Path, key: str, most: int) -> None:
    """Leave in a log, a JSON object a line, the rows whose `key` is at most `most`; a last one that a kill cut off goes
    too. Raises InputError where a line is none."""
    if not path.exists():
        return
    rows = path.read_bytes().splitlines(keepends=True)
    if rows and not rows[-1].endswith(b"\n"):
        rows.pop()
    try:
        kept = [row for row in rows if json.loads(row)[key] <= most]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: has a line that is no row with {key}; take it out") from error
    write_bytes(path, b"".join(kept))


def safetensors_bytes(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> bytes:
    """A .safetensors file of these tensors (on the CPU, contiguous): equal contents are equal bytes.

    The library writes the metadata in an order that differs from process to process.
    """
    from safetensors.torch import save

    data = save(dict(tensors), dict(metadata))
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    if "__metadata__" in header:
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[end:]


def tensors_digest(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> str:
    """sha256 over names, types, shapes and bytes of the tensors (on the CPU, contiguous) and over the metadata, in
    order of their names."""
    import torch

    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def make_folder(path: Path) -> None:
    """Make a folder and its parents; InputError when that cannot be done, or nothing can be written there."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK | os.X_OK):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise _storage_error(path, error) from error


def remove_stale(folder: Path) -> None:
    """Remove the temporary files in a folder, and in its folders, that killed processes of this machine left behind."""
    folder = Path(folder)
    pattern = re.compile(rf"\..+\.{re.escape(host_name())}\.([0-9]+)\.[0-9a-f]+\.tmp")
    for entry in [*folder.glob(".*.tmp"), *folder.glob("*/.*.tmp")]:
        match = pattern.fullmatch(entry.name)
        if match and not is_alive(int(match[1])):
            with contextlib.suppress(OSError):
                entry.unlink()


def _storage_error(path: Path, error: OSError) -> InputError:
    if error.errno in _FULL and isinstance(path, Staged):
        problem = SCRATCH_FULL
    elif error.errno in _FULL:
        problem = "no space left to write it; free some space and run the same command again, finished files are kept"
    else:
        problem = f"cannot be written ({error.strerror or error}); choose another folder or mend its permissions"
    return InputError(f"{path}: {problem}")


def _sync_folder(folder: Path) -> None:
    """As far as the file system lets folders be synced (some network ones do not): the file itself is whole already."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _short(name: str) -> str:
    """A name that leaves room, in the 255 bytes of most file systems, for what makes it temporary."""
    if len(os.fsencode(name)) <= _NAME_BYTES:
        return name
    return hashlib.sha256(os.fsencode(name)).hexdigest()[:32]
