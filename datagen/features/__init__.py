"""Product features: one file each, holding `Params`, `sketch` and `measure`."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from types import ModuleType

from stylepairs.datagen.errors import InputError


def feature_names() -> list[str]:
    """The features that exist, in alphabetical order."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "base")


def load_feature(name: str) -> ModuleType:
    """The module of the feature `name`, such as "hair_color".

    It holds `Params`, `sketch(portrait, params)` and `measure(before, after, params)`.
    Raises InputError that names the nearest feature if there is none of that name.
    """
    names = feature_names()
    if name not in names:
        nearest = difflib.get_close_matches(str(name), names, n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"there are: {', '.join(names)}"
        raise InputError(f"feature {name!r}: unknown; {hint}")
    return importlib.import_module(f"{__name__}.{name}")
