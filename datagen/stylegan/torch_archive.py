"""Tensors out of PyTorch's formats (zip, the older concatenated pickles, storages in pickles), without torch.load.

Nothing is built until it is asked for: a tensor is first a record of its shape and of where its bytes lie, so that a
caller can check all shapes against what it needs, and against the size of the file, before it allocates anything.
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from stylepairs.datagen.stylegan.restricted_pickle import (
    Budget,
    ByteReader,
    Calls,
    CheckpointError,
    Opaque,
    plain_key,
    read_pickle,
)

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_MAX_DIMENSIONS = 8
# A checkpoint has a few hundred records; the limit keeps a hostile directory from costing memory.
_MAX_ZIP_RECORDS = 100_000
_TRUNCATED = "is truncated; copy or download it again"

STORAGE_DTYPES = {
    "torch.FloatStorage": torch.float32,
    "torch.DoubleStorage": torch.float64,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}
_DTYPES = ("float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
NAMES = frozenset(STORAGE_DTYPES) | frozenset(f"torch.{dtype}" for dtype in _DTYPES) | {"torch.Tensor", "numpy.ndarray"}


@dataclass
class Storage:
    """A flat run of numbers in the file; data is set, or callable, once the place of the bytes is known."""

    dtype: torch.dtype
    numel: int
    data: memoryview | Callable[[], memoryview] | None = None

    def bytes_(self) -> memoryview:
        view = self.data() if callable(self.data) else self.data
        if view is None or len(view) < self.numel * self.dtype.itemsize:
            raise CheckpointError(_TRUNCATED)
        return view


@dataclass(frozen=True)
class TensorRecord:
    """A tensor not read yet: a window onto a storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.storage.dtype.itemsize

    def read(self) -> torch.Tensor:
        """A copy of the values, in the file's dtype."""
        itemsize = self.storage.dtype.itemsize
        if math.prod(self.shape) == 0:
            return torch.empty(self.shape, dtype=self.storage.dtype)
        length = _span(self.shape, self.stride)
        window = self.storage.bytes_()[self.offset * itemsize : (self.offset + length) * itemsize]
        flat = torch.frombuffer(bytearray(window), dtype=self.storage.dtype)
        return flat.as_strided(self.shape, self.stride).contiguous()


def tensor_calls() -> dict[str, Callable[[tuple[Any, ...]], Any]]:
    """What PyTorch's and numpy's pickles call, each as a function of ours that builds records or plain data."""
    calls: dict[str, Callable[[tuple[Any, ...]], Any]] = {
        "torch._utils._rebuild_tensor": _rebuild_tensor,
        "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
        "torch._utils._rebuild_parameter": _rebuild_parameter,
        "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
        "collections.OrderedDict": _ordered_dict,
        "builtins.set": _first_as_list,
        "builtins.frozenset": _first_as_list,
        "torch.Size": _first_as_list,
        "_codecs.encode": _latin1,
    }
    opaque = (
        "torch.device numpy.dtype numpy.core.multiarray._reconstruct numpy._core.multiarray._reconstruct "
        "numpy.core.multiarray.scalar numpy._core.multiarray.scalar numpy.core.numeric._frombuffer "
        "numpy._core.numeric._frombuffer argparse.Namespace pathlib.PosixPath pathlib.WindowsPath "
        "mmengine.logging.history_buffer.HistoryBuffer"
    )
    return calls | {path: _opaque(path) for path in opaque.split()}


def read_zip(data: memoryview, budget: Budget) -> Any:
    """The object in a PyTorch zip file (torch.save since 1.6); tensors as TensorRecord."""
    _check_zip_directory(data)
    try:
        archive = zipfile.ZipFile(io.BufferedReader(_MemoryFile(data)))
        records = {info.filename: info for info in archive.infolist()}
        _check_zip_records(records, len(data))
        pickles = [name for name in records if name == "data.pkl" or name.endswith("/data.pkl")]
        if len(pickles) != 1 or any(name.endswith("constants.pkl") for name in records):
            raise CheckpointError(
                "is a zip archive, but not one of torch.save's (TorchScript holds code); save the state dict instead"
            )
        prefix = pickles[0].removesuffix("data.pkl")
        order = records.get(prefix + "byteorder")
        if order is not None and archive.read(order) != b"little":
            raise CheckpointError("was saved on a big-endian machine; save it again on a little-endian one")
        storages: dict[str, Storage] = {}

        def locate(key: str, storage: Storage) -> Storage:
            record = records.get(f"{prefix}data/{key}")
            if record is None:
                raise CheckpointError(_TRUNCATED)
            storage.data = lambda: memoryview(_read_record(archive, record))
            return storages.setdefault(key, storage)

        return _read_with_storages(ByteReader(archive.read(pickles[0])), locate, tensor_calls(), budget)
    except (
        zipfile.BadZipFile,
        EOFError,
        NotImplementedError,
        OSError,
        struct.error,
        ValueError,
        RuntimeError,
    ) as error:
        raise CheckpointError(
            f"is damaged ({type(error).__name__} in its zip archive); copy or download it again"
        ) from None


def read_legacy(reader: ByteReader, budget: Budget, calls: Calls | None = None) -> Any:
    """The object in PyTorch's older format (torch.save before 1.6); tensors as TensorRecord, or Storage for a storage.

    calls: the names that may be called; None means those of `tensor_calls`.
    """
    magic, protocol = (read_pickle(reader, {}, budget=budget) for _ in range(2))
    if magic != LEGACY_MAGIC or protocol != _LEGACY_PROTOCOL:
        raise CheckpointError("is not a file of torch.save; check its source")
    machine = read_pickle(reader, {}, budget=budget)
    if not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise CheckpointError("was saved on a big-endian machine; save it again on a little-endian one")
    storages: dict[str, Storage] = {}

    def locate(key: str, storage: Storage) -> Storage:
        known = storages.setdefault(key, storage)
        if (known.dtype, known.numel) != (storage.dtype, storage.numel):
            raise CheckpointError("is damaged (a storage is declared twice, differently); copy or download it again")
        return known

    result = _read_with_storages(reader, locate, tensor_calls() if calls is None else calls, budget)
    keys = read_pickle(reader, {}, budget=budget)
    for key in keys if isinstance(keys, list) else []:
        if not isinstance(key, str) or key not in storages:
            raise CheckpointError("is damaged (unknown storage key); copy or download it again")
        storage = storages[key]
        (numel,) = struct.unpack("<q", reader.take(8))
        if numel != storage.numel:
            raise CheckpointError("is damaged (a storage has another size than declared); copy or download it again")
        storage.data = reader.take(numel * storage.dtype.itemsize)
    return result


def _read_with_storages(
    reader: ByteReader, locate: Callable[[str, Storage], Storage], calls: Calls, budget: Budget
) -> Any:
    """Read the main pickle, whose persistent ids are ("storage", class, key, device, numel[, view])."""

    def resolve(persistent_id: object) -> Storage:
        if not isinstance(persistent_id, tuple) or len(persistent_id) < 5 or persistent_id[0] != "storage":
            raise CheckpointError(
                "is not a file of tensors (torch.save of a whole model?); save its state dict instead"
            )
        kind, key, numel = persistent_id[1], persistent_id[2], persistent_id[4]
        dtype = STORAGE_DTYPES.get(getattr(kind, "path", ""))
        if dtype is None or not isinstance(key, str) or not _is_count(numel):
            raise CheckpointError("is damaged (a storage is not described as PyTorch does); copy or download it again")
        if any(view is not None for view in persistent_id[5:]):
            raise CheckpointError("was saved by a PyTorch before 0.4; load and save it with a newer one")
        return locate(key, Storage(dtype, numel))

    return read_pickle(reader, calls, NAMES, budget, resolve)


def _rebuild_tensor(arguments: tuple[Any, ...]) -> TensorRecord:
    storage, offset, shape, stride = arguments[:4]
    shape, stride = tuple(shape), tuple(stride)
    if not isinstance(storage, Storage) or len(shape) != len(stride) or len(shape) > _MAX_DIMENSIONS:
        raise TypeError("tensor without a storage")
    if not all(_is_count(number) for number in (offset, *shape, *stride)):
        raise TypeError("tensor with odd sizes")
    # The first bound refuses expanded (stride 0) tensors that would need far more memory than the file has.
    if math.prod(shape) > storage.numel or offset + _span(shape, stride) > storage.numel:
        raise CheckpointError("is damaged (a tensor reaches beyond its storage); copy or download it again")
    return TensorRecord(storage, offset, shape, stride)


def _rebuild_parameter(arguments: tuple[Any, ...]) -> TensorRecord:
    if not isinstance(arguments[0], TensorRecord):
        raise TypeError("parameter without a tensor")
    return arguments[0]


def _ordered_dict(arguments: tuple[Any, ...]) -> dict[Any, Any]:
    pairs = arguments[0] if arguments else []
    if not isinstance(pairs, list) or not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
        raise TypeError("ordered dictionary of something that is not pairs")
    return {plain_key(key): value for key, value in pairs}


def _first_as_list(arguments: tuple[Any, ...]) -> list[Any]:
    items = arguments[0] if arguments else ()
    if not isinstance(items, list | tuple):
        raise TypeError("collection of something that is not a list")
    return list(items)


def _latin1(arguments: tuple[Any, ...]) -> bytes:
    text, encoding = arguments
    if not isinstance(text, str) or encoding != "latin1":
        raise TypeError("text in another encoding than latin1")
    return text.encode("latin1")


def _opaque(path: str) -> Callable[[tuple[Any, ...]], Opaque]:
    return lambda _: Opaque(path)


def _is_count(number: object) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and 0 <= number < 2**48


def _span(shape: tuple[int, ...], stride: tuple[int, ...]) -> int:
    """How many elements from the first to the last one of a strided window."""
    if math.prod(shape) == 0:
        return 0
    return 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))


def _read_record(archive: zipfile.ZipFile, record: zipfile.ZipInfo) -> bytes:
    try:
        return archive.read(record)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, OSError, struct.error, ValueError, RuntimeError):
        raise CheckpointError("is damaged (a tensor's bytes fail their checksum); copy or download it again") from None


def _check_zip_records(records: Mapping[str, zipfile.ZipInfo], file_size: int) -> None:
    """torch.save never compresses: a compressed record is a bomb or not ours; overlapping ones add up to too much."""
    for info in records.values():
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size or info.flag_bits & 1:
            raise CheckpointError("is a compressed zip archive, which torch.save never writes; unpack it first")
    if sum(info.file_size for info in records.values()) > file_size:
        raise CheckpointError(
            "is damaged (its zip records claim more bytes than the file has); copy or download it again"
        )


def _check_zip_directory(data: memoryview) -> None:
    """Bound the directory before zipfile reads it: every entry costs about 500 bytes of Python objects."""
    tail = bytes(data[-65557:])
    end = tail.rfind(b"PK\5\6")
    if end < 0 or len(tail) < end + 22:
        raise CheckpointError(_TRUNCATED)
    (records,) = struct.unpack_from("<H", tail, end + 10)
    (size,) = struct.unpack_from("<I", tail, end + 12)
    if tail[max(end - 20, 0) : end][:4] == b"PK\6\7":
        (offset,) = struct.unpack_from("<Q", tail, end - 12)
        if offset + 56 > len(data) or bytes(data[offset : offset + 4]) != b"PK\6\6":
            raise CheckpointError(_TRUNCATED)
        (records,) = struct.unpack_from("<Q", data, offset + 32)
        (size,) = struct.unpack_from("<Q", data, offset + 40)
    if records > _MAX_ZIP_RECORDS or size > 200 * _MAX_ZIP_RECORDS:
        raise CheckpointError("is a zip archive with too many records for a checkpoint; check its source")


class _MemoryFile(io.RawIOBase):
    """A seekable file over a memory view, for zipfile; unlike BytesIO it does not copy the file."""

    def __init__(self, data: memoryview):
        self._data, self._pos = data, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._pos

    def seek(self, offset: int, whence: int = 0) -> int:
        base = (0, self._pos, len(self._data))[whence]
        if base + offset < 0:
            raise ValueError("seek before the start")
        self._pos = base + offset
        return self._pos

    def readinto(self, buffer: Any) -> int:
        window = self._data[self._pos : self._pos + len(buffer)]
        buffer[: len(window)] = window
        self._pos += len(window)
        return len(window)
