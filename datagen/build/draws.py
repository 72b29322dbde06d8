"""Which parameters a portrait's pairs get: a list in a recipe's `params` means choices."""

from __future__ import annotations

import itertools
import json
import math
from typing import Any, Literal

from stylepairs.datagen.shell.errors import InputError
from stylepairs.datagen.shell.randomness import random_key

MAX_COMBINATIONS = 100_000


def combinations(params: dict[str, Any]) -> list[dict[str, Any]]:
    """Every combination of the choices in `params`, also of nested ones, the last key varying fastest; InputError.

    >>> combinations({"color": ["red", "blond"], "intensity": 1.0})
    [{'color': 'red', 'intensity': 1.0}, {'color': 'blond', 'intensity': 1.0}]
    """
    choices = {key: _choices(value) for key, value in params.items()}
    for key, values in choices.items():
        if not values:
            raise InputError(f"params.{key}: an empty list of choices; give at least one")
    count = math.prod(len(values) for values in choices.values())
    if count > MAX_COMBINATIONS:
        raise InputError(f"params: {count} combinations of choices; {MAX_COMBINATIONS} are the most, so shorten a list")
    return [dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())]


def _choices(value: Any) -> list[Any]:
    if isinstance(value, dict):  # the parameters of one feature of a combination
        return combinations(value)
    return value if isinstance(value, list) else [value]


def draw(choices: list[dict[str, Any]], count: int | Literal["all"], seed: int, digest: str) -> list[dict[str, Any]]:
    """All choices, or `count` of them without replacement, chosen by seed and portrait digest alone.

    The choices are put in the order of their hashes, which no version of a random generator can change.
    """
    if count == "all":
        return choices
    return sorted(
        choices, key=lambda choice: random_key(seed, digest, json.dumps(choice, sort_keys=True, default=str))
    )[:count]
