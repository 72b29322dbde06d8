"""Reads PyTorch's files (zip, older concatenated pickles) and NVIDIA's pickles as data: nothing that they name is run.

A pickle calls what it names. Here a name is looked up in one table, whose functions make tensors and plain data, and a
name outside it ends the reading. Tensors are views of the file, checked against their storage; memory and work stay in
proportion to the file: instructions are counted, and no key is hashed but text and small numbers.
"""

from __future__ import annotations

import io
import math
import mmap
import pickle
import pickletools
import struct
import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, ClassVar, cast

import torch

from stylepairs.datagen.shell.decode import Damaged, decoding

# The largest official pickle (1024 px, three networks) has 40 000; a training checkpoint with optimisers has some more.
MAX_INSTRUCTIONS = 300_000
_LEGACY_MAGIC, _LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
# How the older format of torch.save begins: a pickle (protocol 2) of nothing but its magic number.
LEGACY_START = b"\x80\x02\x8a\x0a" + _LEGACY_MAGIC.to_bytes(10, "little")
# A checkpoint has a few hundred records; the limit keeps a hostile directory from costing memory.
_MAX_ZIP_RECORDS = 100_000
_TRUNCATED = "is truncated; copy or download it again"
_BIG_ENDIAN = "was saved on a big-endian machine; save it again on a little-endian one"
_AGAIN = "copy or download it again"


class CheckpointError(Exception):
    """Why a checkpoint cannot be read, as `what is wrong; what to do`; the caller puts the file's name before it."""


class Ignored:
    """Something harmless that is not needed, such as a numpy scalar or a path."""

    def __new__(cls, *_: object, **__: object) -> Ignored:
        return object.__new__(cls)


@dataclass
class Budget:
    """What all the pickles of one file may cost together."""

    bytes: int
    instructions: int = MAX_INSTRUCTIONS

    def spend(self, instructions: int = 0, bytes: int = 0) -> None:
        self.instructions -= instructions
        self.bytes -= bytes
        if self.instructions < 0:
            raise CheckpointError(
                "is not a StyleGAN2 checkpoint (its pickle has too many instructions); get another copy"
            )
        if self.bytes < 0:
            raise CheckpointError(f"is damaged (its storages claim more bytes than the file has); {_AGAIN}")


Table = dict[str, Any]
# From a persistent id's key, dtype and number of elements to the storage, as a flat tensor.
Locate = Callable[[str, torch.dtype, int], torch.Tensor]


def read_pickle(file: IO[bytes], table: Table, budget: Budget, locate: Locate | None = None) -> Any:
    """The object of the pickle that starts at the file's position; the file is left behind its end.

    table: what stands for each name that the pickle may use. locate None: it may refer to no storages. Raises
    CheckpointError.
    """
    start = file.tell()
    try:
        # Every argument is whole before Python's reader, which trusts declared sizes, gets to see it.
        for instruction, _, _ in pickletools.genops(file):
            budget.spend(instructions=1)
            if instruction.name in ("EXT1", "EXT2", "EXT4"):
                raise CheckpointError("was not read: its pickle uses extensions, which no StyleGAN2 checkpoint needs")
        file.seek(start)
        return _Unpickler(file, table, locate).load()
    except CheckpointError:
        raise
    except Exception as error:  # a decoder on hostile bytes: any of them
        problem = f"is damaged or truncated (its pickle breaks off: {printable(error)}); {_AGAIN}"
        raise CheckpointError(problem) from error


def read_legacy(data: mmap.mmap) -> Any:
    """The object in a file of torch.save before 1.6; its tensors are views of `data`."""
    budget = Budget(len(data))
    return read_concatenated(cast(IO[bytes], data), memoryview(data), budget, tensor_table(budget))


def read_zip(path: Path, data: mmap.mmap) -> Any:
    """The object in a file of torch.save since 1.6, `data` being its content; its tensors are views of it."""
    view = memoryview(data)
    _check_zip_directory(view)
    try:
        with decoding():
            archive = zipfile.ZipFile(path)
        with archive:
            _check_zip_records(archive.infolist(), len(data))
            records = {info.filename: info for info in archive.infolist()}
            with decoding():
                broken = archive.testzip()
    except Damaged as error:
        raise CheckpointError(f"is damaged (its zip archive: {printable(error)}); {_AGAIN}") from None
    if broken is not None:
        raise CheckpointError(f"is damaged ({printable(broken)} fails its checksum); {_AGAIN}")

    def record(name: str) -> memoryview | None:
        if name not in records:
            return None
        start = records[name].header_offset
        start += 30 + sum(struct.unpack_from("<HH", view, start + 26))  # behind the name and what else its header has
        return view[start : start + records[name].file_size]

    found = [name for name in records if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(found) != 1 or any(name.endswith("constants.pkl") for name in records):
        raise CheckpointError(
            "is a zip archive, but not one of torch.save's (TorchScript holds code); save the state dict instead"
        )
    prefix = found[0].removesuffix("data.pkl")
    if record(f"{prefix}byteorder") not in (None, b"little"):
        raise CheckpointError(_BIG_ENDIAN)
    budget = Budget(len(data))

    def locate(key: str, dtype: torch.dtype, count: int) -> torch.Tensor:
        return _storage(record(f"{prefix}data/{key}"), dtype, count)

    return read_pickle(io.BytesIO(record(found[0]) or b""), tensor_table(budget), budget, locate)


def printable(text: object, limit: int = 80) -> str:
    """Text from a hostile file as one short line for a message."""
    try:
        whole = str(text)
    except ValueError:  # Python writes no integer of more than 4300 digits
        whole = "a huge number"
    line = "".join(c if c.isprintable() else "?" for c in whole[: limit + 1])
    return line if len(line) <= limit else line[:limit] + "..."


class _Unpickler(pickle._Unpickler):  # Python's own in Python: that in C trusts what it is given
    stack: list[Any]
    pop_mark: Callable[[], list[Any]]
    dispatch: ClassVar[dict[int, Any]] = {**pickle._Unpickler.dispatch}

    def __init__(self, file: IO[bytes], table: Table, locate: Locate | None) -> None:
        super().__init__(file)
        self.table, self.locate = table, locate

    def find_class(self, module: str, name: str) -> Any:
        # What Python 2 called __builtin__ is builtins.
        path = f"{module}.{name}".replace("__builtin__.", "builtins.", 1)
        if path in self.table:
            return self.table[path]
        if path.startswith("dnnlib.tflib"):
            raise CheckpointError(
                "is a TensorFlow StyleGAN pickle; convert it with legacy.py of NVIDIA's stylegan2-ada-pytorch first"
            )
        raise CheckpointError(
            f"was not read: its pickle asks for {printable(path)}, which no StyleGAN2 checkpoint needs (of a whole "
            "model save the state_dict()); do not open it with other tools unless you trust its source"
        )

    def persistent_load(self, pid: Any) -> torch.Tensor:
        """A storage: pid is ("storage", class, key, device, number of elements[, view])."""
        if self.locate is None:
            raise CheckpointError(
                "was not read: its pickle refers to data outside itself; get the file in its original form"
            )
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage":
            raise CheckpointError(
                "is not a file of tensors (torch.save of a whole model?); save its state dict instead"
            )
        dtype, key, count = pid[1], pid[2], pid[4]
        if not isinstance(dtype, torch.dtype) or not isinstance(key, str) or not _is_count(count):
            raise CheckpointError(f"is damaged (a storage is not described as PyTorch does); {_AGAIN}")
        if any(view is not None for view in pid[5:]):
            raise CheckpointError("was saved by a PyTorch before 0.4; load and save it with a newer one")
        return self.locate(key, dtype, count)

    def load_build(self) -> None:
        # Attributes of dictionaries, tensors and ignored things (such as a state dict's versions) are not needed.
        self.stack.pop()

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.stack.append({})
        self.set_items(items)

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.set_items([key, value])

    def load_setitems(self) -> None:
        self.set_items(self.pop_mark())

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict):
            raise TypeError("items set on something that is not a dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_plain_key(key)] = value

    def load_appends(self) -> None:
        self.extend(self.pop_mark())

    def load_append(self) -> None:
        self.extend([self.stack.pop()])

    def extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Ignored):
            raise TypeError("append to something that is not a list")

    dispatch |= {
        pickle.BUILD[0]: load_build,
        pickle.DICT[0]: load_dict,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        pickle.APPEND[0]: load_append,
        pickle.APPENDS[0]: load_appends,
        # Sets are read as lists: nothing here needs them, and hashing hostile elements can take forever.
        pickle.EMPTY_SET[0]: pickle._Unpickler.dispatch[pickle.EMPTY_LIST[0]],
        pickle.ADDITEMS[0]: load_appends,
        pickle.FROZENSET[0]: pickle._Unpickler.dispatch[pickle.LIST[0]],
    }


DTYPES: Table = {
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
DTYPES |= {str(dtype): dtype for dtype in DTYPES.values()}
_IGNORED = (
    "torch.device numpy.dtype numpy.core.multiarray._reconstruct numpy._core.multiarray._reconstruct "
    "numpy.core.multiarray.scalar numpy._core.multiarray.scalar numpy.core.numeric._frombuffer "
    "numpy._core.numeric._frombuffer argparse.Namespace pathlib.PosixPath pathlib.WindowsPath numpy.ndarray "
    "mmengine.logging.history_buffer.HistoryBuffer torch.Tensor"
)


def tensor_table(budget: Budget) -> Table:
    """What PyTorch's and numpy's pickles use."""

    def ordered_dict(pairs: Any = ()) -> dict[Any, Any]:
        budget.spend(instructions=len(pairs))
        return {_plain_key(key): value for key, value in pairs}

    return DTYPES | {
        "torch._utils._rebuild_tensor": _tensor,
        "torch._utils._rebuild_tensor_v2": _tensor,
        "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
        "torch._utils._rebuild_parameter_with_state": lambda tensor, *_: tensor,
        "collections.OrderedDict": ordered_dict,
        **dict.fromkeys(("builtins.set", "builtins.frozenset", "torch.Size"), lambda items=(): items),
        "_codecs.encode": lambda text, _: text.encode("latin1"),
        **dict.fromkeys(_IGNORED.split(), Ignored),
    }


def read_concatenated(file: IO[bytes], data: memoryview, budget: Budget, table: Table) -> Any:
    """Read twice: where the storages lie is known only behind the pickle that refers to them."""
    if [read_pickle(file, {}, budget) for _ in range(2)] != [_LEGACY_MAGIC, _LEGACY_PROTOCOL]:
        raise CheckpointError("is not a file of torch.save; check its source")
    machine = read_pickle(file, {}, budget)
    if not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise CheckpointError(_BIG_ENDIAN)
    main = file.tell()
    declared: dict[str, tuple[torch.dtype, int]] = {}

    def declare(key: str, dtype: torch.dtype, count: int) -> torch.Tensor:
        if declared.setdefault(key, (dtype, count)) != (dtype, count):
            raise CheckpointError(f"is damaged (a storage is declared twice, differently); {_AGAIN}")
        return torch.empty(count, dtype=dtype, device="meta")

    read_pickle(file, table, budget, declare)
    keys = read_pickle(file, {}, budget)
    places, place = {}, file.tell()
    for key in keys if isinstance(keys, list) else []:
        if not isinstance(key, str) or key not in declared:
            raise CheckpointError(f"is damaged (unknown storage key); {_AGAIN}")
        dtype, count = declared[key]
        if data[place : place + 8] != struct.pack("<q", count):
            raise CheckpointError(f"is damaged (a storage has another size than declared); {_AGAIN}")
        places[key] = data[place + 8 : place + 8 + count * dtype.itemsize]
        place += 8 + count * dtype.itemsize
    file.seek(main)
    return read_pickle(file, table, budget, lambda key, dtype, count: _storage(places.get(key), dtype, count))


def _storage(content: memoryview | None, dtype: torch.dtype, count: int) -> torch.Tensor:
    """The elements in a part of the file, a flat view of it."""
    if content is None or len(content) < count * dtype.itemsize:
        raise CheckpointError(_TRUNCATED)
    if count == 0:
        return torch.empty(0, dtype=dtype)
    with warnings.catch_warnings():  # torch warns that such a tensor must not be written to: nobody does
        warnings.simplefilter("ignore", UserWarning)
        return torch.frombuffer(content, dtype=dtype, count=count)


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: object) -> torch.Tensor:
    sound = isinstance(storage, torch.Tensor) and len(shape) == len(stride) <= 8
    if not sound or not all(_is_count(number) for number in (offset, *shape, *stride)):
        raise TypeError("tensor without a storage or with odd sizes")
    size = math.prod(shape)
    last = offset + sum((side - 1) * step for side, step in zip(shape, stride, strict=True)) if size else 0
    # The first bound refuses expanded (stride 0) tensors that would need far more memory than the file has.
    if size > storage.numel() or last >= max(storage.numel(), 1):
        raise CheckpointError(f"is damaged (a tensor reaches beyond its storage); {_AGAIN}")
    tensor: torch.Tensor = storage.as_strided(shape, stride, offset) if size else storage.new_empty(shape)
    return tensor


def _plain_key(key: object) -> object:
    """Only keys that hash fast whatever a file chooses: text (salted hash), small integers, None and booleans."""
    if key is None or isinstance(key, str | bytes) or (isinstance(key, int) and abs(key) < 2**31):
        return key
    raise CheckpointError(
        f"is not a StyleGAN2 checkpoint (a dictionary key is a {type(key).__name__}); check its source"
    )


def _is_count(number: object) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and 0 <= number < 2**48


def _check_zip_records(records: Sequence[zipfile.ZipInfo], file_size: int) -> None:
    """torch.save never compresses: a compressed record is a bomb or not ours; overlapping ones add up to too much."""
    for info in records:
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size or info.flag_bits & 1:
            raise CheckpointError("is a compressed zip archive, which torch.save never writes; unpack it first")
    if sum(info.file_size for info in records) > file_size:
        raise CheckpointError(f"is damaged (its zip records claim more bytes than the file has); {_AGAIN}")


def _check_zip_directory(data: memoryview) -> None:
    """Bound the directory before zipfile reads it: every entry costs about 500 bytes of Python objects."""
    tail = bytes(data[-65557:])
    end = tail.rfind(b"PK\5\6")
    if end < 0 or len(tail) < end + 22:
        raise CheckpointError(_TRUNCATED)
    records, size = struct.unpack_from("<HI", tail, end + 10)
    if tail[max(end - 20, 0) : end][:4] == b"PK\6\7":
        (offset,) = struct.unpack_from("<Q", tail, end - 12)
        if offset + 56 > len(data) or bytes(data[offset : offset + 4]) != b"PK\6\6":
            raise CheckpointError(_TRUNCATED)
        records, size = struct.unpack_from("<QQ", data, offset + 32)
    if records > _MAX_ZIP_RECORDS or size > 200 * _MAX_ZIP_RECORDS:
        raise CheckpointError("is a zip archive with too many records for a checkpoint; check its source")
