"""Networks out of the pickles that NVIDIA's stylegan2-ada-pytorch and stylegan3 write; the source inside is never run.

Such a pickle is a dictionary (G, D, G_ema, ...) of "persistent" objects: each carries the Python source of its class
and the `__dict__` of a torch module. The source is dropped unread; tensors, attributes, constructor arguments stay.
"""

from __future__ import annotations

import io
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any, cast

import torch

from stylepairs.datagen.stylegan.safe_pickle import (
    DTYPES,
    Budget,
    CheckpointError,
    Ignored,
    read_concatenated,
    read_pickle,
    tensor_table,
)

_MAX_DEPTH = 16
_MAX_MODULES = 10_000


@dataclass(frozen=True)
class Module:
    """One torch module of an official pickle: its class's name and its attributes."""

    class_name: str
    state: dict[str, Any]

    def attribute(self, name: str) -> Any:
        """A plain attribute (number, text, None), or None if it is absent or anything else."""
        value = self.state.get(name)
        return value if isinstance(value, str | int | float | bool) else None

    def children(self) -> dict[str, Module]:
        return {name: child for name, child in self._table("_modules").items() if isinstance(child, Module)}

    def tensors(self) -> dict[str, torch.Tensor]:
        both = self._table("_parameters") | self._table("_buffers")
        return {name: tensor for name, tensor in both.items() if isinstance(tensor, torch.Tensor)}

    def _table(self, name: str) -> dict[str, Any]:
        table = self.state.get(name)
        return {key: value for key, value in table.items() if isinstance(key, str)} if isinstance(table, dict) else {}


def read_official(data: mmap.mmap) -> Any:
    """The object of an official pickle: Module for its networks. The source inside is dropped unread."""
    budget = Budget(len(data))

    def load_from_bytes(content: bytes) -> torch.Tensor:
        # PyTorch pickles a storage as the bytes of a file of its own: read with names alone, so nothing nests in it.
        budget.spend(bytes=len(content))
        storage = read_concatenated(io.BytesIO(content), memoryview(content), budget, DTYPES)
        if not isinstance(storage, torch.Tensor):
            raise CheckpointError("is damaged (bytes of a storage hold something else); copy or download it again")
        return storage

    table = tensor_table(budget) | {
        "torch.storage._load_from_bytes": load_from_bytes,
        "torch_utils.persistence._reconstruct_persistent_obj": _module,
        "dnnlib.util.EasyDict": _EasyDict,
    }
    return read_pickle(cast(IO[bytes], data), table, budget)


def walk(module: Module) -> Iterator[tuple[str, Module]]:
    """(dotted prefix, module) of a module and all below it; CheckpointError where they nest as no network does."""
    count, todo = 0, [("", module, 0)]
    while todo:
        prefix, module, depth = todo.pop()
        count += 1
        if depth > _MAX_DEPTH or count > _MAX_MODULES:
            raise CheckpointError("is not a StyleGAN2 checkpoint (modules nest without end); check its source")
        yield prefix, module
        todo.extend((f"{prefix}{name}.", child, depth + 1) for name, child in module.children().items())


def state_dict(module: Module) -> dict[str, torch.Tensor]:
    """All tensors below a module, by the names that torch gives them."""
    return {prefix + name: tensor for prefix, part in walk(module) for name, tensor in part.tensors().items()}


class _EasyDict(dict[Any, Any]):
    """dnnlib's: filled by the pickle's items, which are checked, never by arguments."""

    def __init__(self) -> None:
        super().__init__()


def _module(meta: Any) -> Module:
    state = meta["state"]
    if meta["type"] != "class" or not isinstance(meta["class_name"], str) or not isinstance(state, dict):
        raise TypeError("persistent object without a state")
    # Tensors live in the tables of torch.nn.Module; everything else that is neither plain nor a table is not needed.
    kept = {key: value for key, value in state.items() if isinstance(key, str) and not isinstance(value, Ignored)}
    return Module(meta["class_name"], kept)
