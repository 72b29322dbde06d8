"""Reads pickles as data: interprets the instructions itself, calls nothing that a file names, and knows few names.

Python's own unpickler imports and calls whatever a file asks for. Here a name is only looked up in a table that the
caller gives (name -> a function of ours that turns arguments into plain data); a name outside it ends the reading.
Work and memory stay in proportion to the file: reads are bounded by what is left of it, instructions are counted.
"""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Callable, Mapping
from typing import Any

# The largest official pickle (1024 px, three networks) has 40 000; a training checkpoint with optimisers has some more.
MAX_INSTRUCTIONS = 300_000


class CheckpointError(Exception):
    """Why a checkpoint cannot be read, as `what is wrong; what to do`; the caller puts the file's name before it."""


class Name:
    """A name found in a pickle, never resolved."""

    __slots__ = ("path",)

    def __init__(self, path: str):
        self.path = path


class Opaque:
    """Something harmless that is not needed (a numpy scalar, a path): only its name is kept."""

    __slots__ = ("path",)

    def __init__(self, path: str):
        self.path = path


class ByteReader:
    """Sequential reads from memory (bytes or a mapped file) that never allocate more than is there."""

    def __init__(self, data: bytes | memoryview):
        self._view = memoryview(data)
        self._pos = 0

    def read(self, size: int = -1) -> bytes:
        return bytes(self.take(size if size >= 0 else len(self._view), exact=False))

    def take(self, size: int, exact: bool = True) -> memoryview:
        """The next `size` bytes without copying them; fewer at the end, which is an error if `exact`."""
        end = min(self._pos + size, len(self._view))
        if exact and (size < 0 or end - self._pos < size):
            raise CheckpointError("is truncated; copy or download it again")
        view = self._view[self._pos : end]
        self._pos = end
        return view

    def readline(self) -> bytes:
        # Only the text instructions of the oldest protocols use lines; none of theirs is long.
        limit = min(self._pos + 65536, len(self._view))
        line = bytes(self._view[self._pos : limit])
        line = line[: line.find(b"\n") + 1] or line
        self._pos += len(line)
        return line

    def tell(self) -> int:
        return self._pos


class Budget:
    """Counts instructions over all the pickles of one file."""

    def __init__(self, instructions: int = MAX_INSTRUCTIONS):
        self._left = instructions

    def spend(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise CheckpointError(
                "is not a StyleGAN2 checkpoint (its pickle has too many instructions); get another copy"
            )


Calls = Mapping[str, Callable[[tuple[Any, ...]], Any]]


def read_pickle(
    reader: ByteReader,
    calls: Calls,
    names: frozenset[str] = frozenset(),
    budget: Budget | None = None,
    persistent: Callable[[Any], Any] | None = None,
) -> Any:
    """The object of the pickle that starts at the reader's position; the reader is left behind its end.

    calls: what each callable name becomes, given its arguments; names: names that may stand as values, never be called;
    persistent: resolves persistent ids (None refuses them). Raises CheckpointError.
    """
    try:
        return _Machine(calls, names, budget or Budget(), persistent).run(reader)
    except CheckpointError:
        raise
    except (
        ValueError,
        IndexError,
        KeyError,
        TypeError,
        AttributeError,
        OverflowError,
        MemoryError,
        struct.error,
    ) as error:
        # What pickletools and the stack raise on garbage: ValueError for short reads, the rest for nonsense programs.
        raise CheckpointError(
            f"is damaged or truncated (its pickle breaks off: {printable(error)}); copy or download it again"
        ) from None


def printable(text: object, limit: int = 80) -> str:
    """Text from a hostile file as one short line for a message."""
    line = "".join(c if c.isprintable() else "?" for c in str(text)[: limit + 1])
    return line if len(line) <= limit else line[:limit] + "..."


def refuse_name(path: str) -> CheckpointError:
    """The error for a name that no reader of ours knows, with the likely cause where there is one."""
    if path.startswith("dnnlib.tflib"):
        return CheckpointError(
            "is a TensorFlow StyleGAN pickle; convert it with legacy.py of NVIDIA's stylegan2-ada-pytorch first"
        )
    return CheckpointError(
        f"was not read: its pickle asks for {printable(path)}, which no StyleGAN2 checkpoint needs; "
        "do not open it with other tools unless you trust its source"
    )


_PUSHED_WORDS = (
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8 "
    "BYTEARRAY8 UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 FLOAT BINFLOAT"
)
_PUSHED = frozenset(_PUSHED_WORDS.split())
# Sets are read as lists: nothing here needs them, and hashing hostile elements can take forever.
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_SET": list,
    "EMPTY_DICT": dict,
}
_IGNORED = frozenset({"PROTO", "FRAME"})


class _Machine:
    """The pickle instructions that checkpoints use, over a stack, marks and a memo; each method is one instruction."""

    def __init__(
        self, calls: Calls, names: frozenset[str], budget: Budget, persistent: Callable[[Any], Any] | None
    ) -> None:
        self.calls, self.names, self.budget, self.persistent = calls, names, budget, persistent
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self, reader: ByteReader) -> Any:
        for instruction, argument, _ in pickletools.genops(reader):  # type: ignore[arg-type]
            self.budget.spend()
            name = instruction.name
            if name in _PUSHED:
                self.stack.append(argument)
            elif name in _CONSTANTS:
                self.stack.append(_CONSTANTS[name]())
            elif name == "STOP":
                return self.stack.pop()
            elif name not in _IGNORED:
                method = getattr(self, f"do_{name.lower()}", None)
                if method is None:
                    raise CheckpointError(f"was not read: its pickle uses {name}, which no StyleGAN2 checkpoint needs")
                method(argument)
        raise CheckpointError("is truncated; copy or download it again")

    def to_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def do_mark(self, _: object) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def do_pop(self, _: object) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.to_mark()

    def do_pop_mark(self, _: object) -> None:
        self.to_mark()

    def do_dup(self, _: object) -> None:
        self.stack.append(self.stack[-1])

    def do_memoize(self, _: object) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def do_put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    do_binput = do_long_binput = do_put

    def do_get(self, index: int) -> None:
        self.stack.append(self.memo[index])

    do_binget = do_long_binget = do_get

    def do_tuple(self, _: object) -> None:
        items = self.to_mark()
        self.stack.append(tuple(items))

    def do_tuple1(self, _: object) -> None:
        self.gather(1)

    def do_tuple2(self, _: object) -> None:
        self.gather(2)

    def do_tuple3(self, _: object) -> None:
        self.gather(3)

    def gather(self, count: int) -> None:
        items = tuple(self.stack[-count:])
        if len(items) != count:
            raise IndexError("stack is empty")
        self.stack[-count:] = [items]

    def do_list(self, _: object) -> None:
        items = self.to_mark()
        self.stack.append(items)

    def do_append(self, _: object) -> None:
        item = self.stack.pop()
        self.extend([item])

    def do_appends(self, _: object) -> None:
        items = self.to_mark()
        self.extend(items)

    do_additems = do_appends

    def do_frozenset(self, _: object) -> None:
        items = self.to_mark()
        self.stack.append(items)

    def extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Opaque):
            raise TypeError("append to something that is not a list")

    def do_dict(self, _: object) -> None:
        items = self.to_mark()
        self.stack.append({})
        self.set_items(items)

    def do_setitem(self, _: object) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.set_items([key, value])

    def do_setitems(self, _: object) -> None:
        items = self.to_mark()
        self.set_items(items)

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise TypeError("items set on something that is not a dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[plain_key(key)] = value

    def do_global(self, argument: str) -> None:
        # pickletools gives both words as one string, joined by a blank.
        module, _, name = argument.partition(" ")
        self.push_name(module, name)

    def do_stack_global(self, _: object) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.push_name(module, name)

    def push_name(self, module: object, name: object) -> None:
        path = f"{module}.{name}" if isinstance(module, str) and isinstance(name, str) else "something that is no name"
        # What Python 2 called __builtin__ is builtins.
        path = path.replace("__builtin__.", "builtins.", 1) if path.startswith("__builtin__.") else path
        if path not in self.calls and path not in self.names:
            raise refuse_name(path)
        self.stack.append(Name(path))

    def do_reduce(self, _: object) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        self.call(function, arguments)

    do_newobj = do_reduce

    def do_newobj_ex(self, _: object) -> None:
        keywords, arguments, function = self.stack.pop(), self.stack.pop(), self.stack.pop()
        if keywords:
            raise TypeError("call with keywords")
        self.call(function, arguments)

    def call(self, function: object, arguments: object) -> None:
        if not isinstance(function, Name) or not isinstance(arguments, tuple):
            raise TypeError("call of something that is not a name")
        if function.path not in self.calls:
            raise refuse_name(function.path)
        self.stack.append(self.calls[function.path](arguments))

    def do_build(self, _: object) -> None:
        # Attributes of dictionaries, tensors and opaque things (such as a state dict's versions) are not needed.
        self.stack.pop()
        if isinstance(self.stack[-1], Name):
            raise TypeError("attributes set on a name")

    def do_persid(self, argument: str) -> None:
        self.stack.append(self.resolve(argument))

    def do_binpersid(self, _: object) -> None:
        self.stack.append(self.resolve(self.stack.pop()))

    def resolve(self, persistent_id: object) -> Any:
        if self.persistent is None:
            raise CheckpointError(
                "was not read: its pickle refers to data outside itself; get the file in its original form"
            )
        return self.persistent(persistent_id)


def plain_key(key: object) -> object:
    """Only keys that hash fast whatever a file chooses: text (salted hash), small integers, None and booleans."""
    if key is None or isinstance(key, str | bytes) or (isinstance(key, int) and abs(key) < 2**31):
        return key
    raise CheckpointError(
        f"is not a StyleGAN2 checkpoint (a dictionary key is a {type(key).__name__}); check its source"
    )
