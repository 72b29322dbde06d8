"""What the gate's report takes: pairs of two people, one of whom is put in the other's place."""

from types import SimpleNamespace

import pytest

from stylepairs.datagen.shell.errors import InputError


@pytest.fixture(scope="module")
def script(import_script):
    return import_script("gate_report")


def of(*people: str) -> list:
    return [
        (SimpleNamespace(record=SimpleNamespace(portrait_digest=person)), number)
        for number, person in enumerate(people)
    ]


@pytest.mark.parametrize("people", [(), ("a",), ("a", "a")], ids=str)
def test_pairs_of_one_person_are_refused(script, people):
    with pytest.raises(InputError, match="not of two people"):
        script.judge_all(of(*people), {}, None, None)


def test_a_stranger_is_the_next_pair_of_somebody_else(script):
    pairs = of("a", "a", "b", "c")
    assert [script.stranger(pairs, number) for number in range(4)] == [2, 2, 3, 0]
