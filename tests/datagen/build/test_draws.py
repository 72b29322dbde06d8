"""Lists in a recipe's params are choices, and what is drawn of them repeats."""

from __future__ import annotations

import json

import pytest

from stylepairs.datagen.build.draws import combinations, draw
from stylepairs.datagen.shell.errors import InputError


def test_draws_depend_on_portrait_and_seed_and_repeat_no_choice():
    choices = combinations({"color": list("abcdef"), "intensity": [0.5, 1.0]})
    assert len(choices) == 12
    first = draw(choices, 5, seed=0, digest="p")
    assert first == draw(choices, 5, seed=0, digest="p")
    assert first != draw(choices, 5, seed=1, digest="p")
    assert first != draw(choices, 5, seed=0, digest="q")
    assert len({json.dumps(params) for params in first}) == 5
    assert draw(choices, "all", 0, "p") == choices


def test_too_many_combinations_are_refused():
    with pytest.raises(InputError, match="combinations"):
        combinations({"a": list(range(1000)), "b": list(range(1000))})
    with pytest.raises(InputError, match="empty list"):
        combinations({"a": []})
