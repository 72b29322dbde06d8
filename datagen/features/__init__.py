"""Product features: one file each, holding `Params`, `sketch` and `measure`."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from types import ModuleType
from typing import Any

from stylepairs.datagen.errors import InputError

SEPARATOR = "+"  # of the features of a combination
_NOT_FEATURES = ("base", "combination")


def feature_names() -> list[str]:
    """The features that exist, in alphabetical order."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in _NOT_FEATURES)


def load_feature(name: str) -> Any:
    """The feature `name`, such as "hair_color", or several in one as "bangs+hair_color" (see `combination`).

    It holds `Params`, `sketch(portrait, params)` and `measure(portrait, seen, params)`.
    Raises InputError that names the nearest feature if there is none of that name.
    """
    parts = str(name).split(SEPARATOR)
    if len(parts) == 1:
        return _load_one(name)
    from stylepairs.datagen.features.combination import combine

    twice = sorted({part for part in parts if parts.count(part) > 1})
    if twice:
        raise InputError(f"feature {name!r}: {twice[0]} is named twice; name each once")
    return combine({part: _load_one(part) for part in parts})


def _load_one(name: str) -> ModuleType:
    names = feature_names()
    if name not in names:
        nearest = difflib.get_close_matches(str(name), names, n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"there are: {', '.join(names)}"
        raise InputError(f"feature {name!r}: unknown; {hint}")
    return importlib.import_module(f"{__name__}.{name}")
