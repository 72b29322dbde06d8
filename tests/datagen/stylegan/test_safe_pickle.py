"""The safe reader against Python's own on plain data, its table of names, and what hostile programs may not do."""

from __future__ import annotations

import io
import pickle
import time
from collections import OrderedDict
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stylepairs.datagen.stylegan.official_pickle import read_official
from stylepairs.datagen.stylegan.safe_pickle import Budget, CheckpointError, printable, read_pickle, tensor_table

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
    | st.binary(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=5), inner, max_size=4)
        | st.tuples(inner)
        | st.tuples(inner, inner, inner, inner)
    ),
    max_leaves=20,
)
REFUSED = "no StyleGAN2 checkpoint needs"


def read(content: bytes, table: dict[str, Any] | None = None, budget: Budget | None = None) -> Any:
    return read_pickle(io.BytesIO(content), table or {}, budget or Budget(len(content)))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(value=PLAIN, protocol=st.sampled_from([3, 4, 5]))
def test_plain_data_is_read_as_python_reads_it(value, protocol):
    assert read(pickle.dumps(value, protocol)) == value


def test_shared_and_cyclic_objects_keep_their_identity():
    shared = [1, 2]
    cyclic: list = [shared, shared]
    cyclic.append(cyclic)
    found = read(pickle.dumps(cyclic))
    assert found[0] is found[1]
    assert found[2] is found


def test_several_pickles_in_a_row_are_read_one_after_the_other():
    file, budget = io.BytesIO(pickle.dumps([1]) + pickle.dumps({"a": 2}) + b"rest"), Budget(0)
    assert read_pickle(file, {}, budget) == [1]
    assert read_pickle(file, {}, budget) == {"a": 2}
    assert file.read() == b"rest"


def test_a_named_call_reaches_only_the_table():
    content = pickle.dumps(OrderedDict(a=1))
    assert read(content, {"collections.OrderedDict": dict}) == {"a": 1}
    with pytest.raises(CheckpointError, match=r"collections\.OrderedDict"):
        read(content)


def test_a_name_that_stands_for_a_value_cannot_be_called():
    table = tensor_table(Budget(0))
    stands = b"\x80\x02ctorch\nFloatStorage\n."
    assert read(stands, table) == torch.float32
    with pytest.raises(CheckpointError, match="damaged"):
        read(stands[:-1] + b")R.", table)


def test_names_of_python_2_are_those_of_python_3():
    assert read(b"\x80\x02c__builtin__\nset\n]q\x00K\x01a\x85R.", tensor_table(Budget(0))) == [1]


def test_the_budget_is_shared_between_pickles():
    budget = Budget(0, instructions=10)
    read(pickle.dumps(1), budget=budget)
    with pytest.raises(CheckpointError, match="too many instructions"):
        read(pickle.dumps(list(range(10))), budget=budget)


@pytest.mark.parametrize("key", [(1,), 2**40, 0.5])
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_keys_whose_hash_a_file_could_choose_are_refused(key, protocol):
    with pytest.raises(CheckpointError, match="dictionary key"):
        read(pickle.dumps({key: 1, "a": 2}, protocol))
    with pytest.raises(CheckpointError, match="dictionary key"):
        read(pickle.dumps({key: 1}, protocol))


MONSTER = b"]" + b"2\x86" * 200  # a tuple of 2^200 elements, if anyone walked them


@pytest.mark.parametrize(
    "program",
    [
        b"}" + MONSTER + b"Ns",
        b"}(" + MONSTER + b"Nu",
        b"(" + MONSTER + b"Nd",
        b"ccollections\nOrderedDict\n(" + MONSTER + b"N\x86lt\x85R",
        b"cdnnlib.util\nEasyDict\n](" + MONSTER + b"N\x86e\x85R",
    ],
)
def test_monsters_are_never_hashed_as_keys(program, tmp_path):
    with pytest.raises(CheckpointError):
        read_official(_mapped(tmp_path, b"\x80\x02" + program + b"."))


@pytest.mark.parametrize("program", [b"\x8f(" + MONSTER + b"\x90", b"(" + MONSTER + b"\x91"])
def test_sets_are_lists_and_hash_nothing(program):
    assert isinstance(read(b"\x80\x04" + program + b"."), list)


def test_attributes_cannot_be_set_on_what_a_name_stands_for():
    def function() -> None: ...

    read(b"\x80\x02cour\nfunction\nN}X\x0c\x00\x00\x00__defaults__K\x01\x85s\x86b.", {"our.function": function})
    assert function.__defaults__ is None


@pytest.mark.parametrize("target", ["torch.device", "torch.FloatStorage", "torch.Size"])
def test_items_and_elements_are_set_on_dictionaries_and_lists_alone(target):
    module, _, name = target.rpartition(".")
    start = f"\x80\x02c{module}\n{name}\n".encode("latin1")
    for program in (b"K\x01K\x02s.", b"(K\x01K\x02u."):
        with pytest.raises(CheckpointError, match="damaged"):
            read(start + program, tensor_table(Budget(0)))
    if target != "torch.device":
        for program in (b"K\x01a.", b"(K\x01K\x02e."):
            with pytest.raises(CheckpointError, match="damaged"):
                read(start + program, tensor_table(Budget(0)))


def test_what_is_copied_again_and_again_is_counted():
    pairs = b"](" + b"X\x01\x00\x00\x00aN\x86" * 1000 + b"eq\x00"
    calls = b"(" + b"ccollections\nOrderedDict\nh\x00\x85R" * 400 + b"l"
    content = b"\x80\x02" + pairs + calls + b"."
    budget = Budget(len(content))
    with pytest.raises(CheckpointError, match="too many instructions"):
        read(content, tensor_table(budget), budget)


@pytest.mark.filterwarnings("ignore:TypedStorage")
def test_one_storage_given_as_bytes_again_and_again_is_counted(tmp_path):
    stored = io.BytesIO()
    torch.save(torch.storage.TypedStorage(100_000), stored, _use_new_zipfile_serialization=False)
    data = stored.getvalue()
    once = b"ctorch.storage\n_load_from_bytes\nh\x00\x85R0"
    program = b"\x80\x03B" + len(data).to_bytes(4, "little") + data + b"q\x000"
    assert read_official(_mapped(tmp_path, program + once + b"N.")) is None
    with pytest.raises(CheckpointError, match="more bytes than the file has"):
        read_official(_mapped(tmp_path, program + once * 2 + b"N."))


@pytest.mark.parametrize("program", [b"\x82\x01", b"\x83\x01\x00", b"\x84\x01\x00\x00\x00"])
def test_extensions_are_refused(program):
    with pytest.raises(CheckpointError, match=REFUSED):
        read(b"\x80\x02" + program + b".")


STORED = (
    b"X\x07\x00\x00\x00storage",
    b"ctorch\nFloatStorage\n",
    b"X\x01\x00\x00\x000",
    b"X\x03\x00\x00\x00cpu",
    b"K\x02",
)


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (0, b"X\x01\x00\x00\x00x", "not a file of tensors"),
        (1, b"N", "not described"),
        (2, b"K\x00", "not described"),
        (4, b"J\xff\xff\xff\xff", "not described"),
        (4, b"\x88", "not described"),
        (4, b"\x8a\x07\x00\x00\x00\x00\x00\x00\x01", "not described"),
    ],
)
def test_storages_that_are_not_described_as_pytorch_does_are_refused(place, value, words):
    table, described = tensor_table(Budget(0)), list(STORED)

    def stored(parts: list[bytes]) -> Any:
        content = io.BytesIO(b"\x80\x02(" + b"".join(parts) + b"tQ.")
        return read_pickle(content, table, Budget(0), lambda key, dtype, count: (key, dtype, count))

    assert stored(described) == ("0", torch.float32, 2)
    assert stored([*described, b"N"]) == ("0", torch.float32, 2)
    with pytest.raises(CheckpointError, match=r"before 0\.4"):
        stored([*described, b"K\x01"])
    with pytest.raises(CheckpointError, match="not a file of tensors"):
        stored(described[:4])
    described[place] = value
    with pytest.raises(CheckpointError, match=words):
        stored(described)


def test_the_largest_key_is_below_two_to_the_31():
    assert read(pickle.dumps({2**31 - 1: 1})) == {2**31 - 1: 1}
    with pytest.raises(CheckpointError, match="dictionary key"):
        read(pickle.dumps({2**31: 1}))


def test_a_refusal_does_not_take_its_time(tmp_path):
    started = time.monotonic()
    with pytest.raises(CheckpointError):
        read_official(_mapped(tmp_path, b"\x80\x02" + b"(" * 400_000 + b"."))
    assert time.monotonic() - started < 20


def test_printable_makes_one_short_line():
    assert printable("a\nb\x1b" + "c" * 100, limit=5) == "a?b?c..."


def _mapped(folder, content: bytes):
    import mmap

    (folder / "file").write_bytes(content)
    with (folder / "file").open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
