"""The restricted reader against Python's own on plain data, and its table of names."""

from __future__ import annotations

import pickle
from collections import OrderedDict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stylepairs.datagen.stylegan.restricted_pickle import Budget, ByteReader, CheckpointError, printable, read_pickle

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


@settings(max_examples=100, deadline=None, derandomize=True)
@given(value=PLAIN, protocol=st.sampled_from([3, 4, 5]))
def test_plain_data_is_read_as_python_reads_it(value, protocol):
    assert read_pickle(ByteReader(pickle.dumps(value, protocol)), {}) == value


def test_shared_and_cyclic_objects_keep_their_identity():
    shared = [1, 2]
    cyclic: list = [shared, shared]
    cyclic.append(cyclic)
    read = read_pickle(ByteReader(pickle.dumps(cyclic)), {})
    assert read[0] is read[1]
    assert read[2] is read


def test_several_pickles_in_a_row_are_read_one_after_the_other():
    reader = ByteReader(pickle.dumps([1]) + pickle.dumps({"a": 2}) + b"rest")
    assert read_pickle(reader, {}) == [1]
    assert read_pickle(reader, {}) == {"a": 2}
    assert reader.read() == b"rest"


def test_a_named_call_reaches_only_the_table():
    content = pickle.dumps(OrderedDict(a=1))
    assert read_pickle(ByteReader(content), {"collections.OrderedDict": lambda arguments: {}}) == {"a": 1}
    with pytest.raises(CheckpointError, match=r"collections\.OrderedDict"):
        read_pickle(ByteReader(content), {})


def test_a_name_that_may_stand_may_not_be_called():
    stands = b"\x80\x02cos\nsystem\n."
    assert read_pickle(ByteReader(stands), {}, frozenset({"os.system"})).path == "os.system"
    with pytest.raises(CheckpointError, match=r"os\.system"):
        read_pickle(ByteReader(stands[:-1] + b")R."), {}, frozenset({"os.system"}))


def test_the_budget_is_shared_between_pickles():
    budget = Budget(10)
    read_pickle(ByteReader(pickle.dumps(1)), {}, budget=budget)
    with pytest.raises(CheckpointError, match="too many instructions"):
        read_pickle(ByteReader(pickle.dumps(list(range(10)))), {}, budget=budget)


@pytest.mark.parametrize("key", [(1,), 2**40, 0.5])
def test_keys_whose_hash_a_file_could_choose_are_refused(key):
    with pytest.raises(CheckpointError, match="dictionary key"):
        read_pickle(ByteReader(pickle.dumps({key: 1})), {})


def test_printable_makes_one_short_line():
    assert printable("a\nb\x1b" + "c" * 100, limit=5) == "a?b?c..."
