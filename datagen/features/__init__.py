"""Product features: one file each, holding `Params`, `sketch` and `measure`; the package's own, or a user's file."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Collection
from pathlib import Path
from types import ModuleType

from stylepairs.datagen.features.feature import Feature
from stylepairs.datagen.shell.errors import InputError, nearest, one_line
from stylepairs.datagen.shell.regular import read_regular

SEPARATOR = "+"  # of the features of a combination
_MAX_FILE_BYTES = 16 << 20
_NOT_FEATURES = ("base", "checked", "combination", "feature")


def feature_names() -> list[str]:
    """The features that exist, in alphabetical order."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in _NOT_FEATURES)


def load_feature(name: str, *, run_files: bool = False) -> Feature:
    """The feature `name`: "hair_color", several in one as "bangs+hair_color" (see `combination`), or "my/freckles.py".

    A name that ends in .py is a Python file of the user's, relative to the working folder, and loading it runs it. That
    is done only with run_files, for names that come from a recipe or a command; names out of data (pairs, models) never
    run anything, they find a file of that name that was loaded before in this process.
    Raises InputError, one line: no such feature (and the nearest), a file that cannot be run or holds no feature.
    """
    parts = str(name).split(SEPARATOR)
    if is_own_file(name):
        return _load_own(name, run_files)
    if len(parts) == 1:
        return Feature.of(_load_one(name))
    from stylepairs.datagen.features.combination import combine

    twice = sorted({part for part in parts if parts.count(part) > 1})
    if twice:
        raise InputError(f"feature {name!r}: {twice[0]} is named twice; name each once")
    files = list(filter(is_own_file, parts))
    if files:
        raise InputError(
            f"feature {name!r}: {files[0]} is a file of your own, which is built alone; to combine it, put it into "
            f"{Path(__file__).parent} and name it {Path(files[0]).stem}"
        )
    return combine({part: Feature.of(_load_one(part)) for part in parts})


def is_own_file(name: str) -> bool:
    """Whether a feature's name means a user's Python file."""
    return str(name).endswith(".py") and SEPARATOR not in str(name)


def code_digest(name: str) -> str | None:
    """sha256 of a user's feature file; None for the package's own, whose code is known by the package's version.

    Raises InputError if the file cannot be read.
    """
    return hashlib.sha256(_source(name)).hexdigest() if is_own_file(name) else None


_own_files: dict[str, Feature] = {}  # file name -> the feature as the file was run last


def _load_own(name: str, run_files: bool) -> Feature:
    from stylepairs.datagen.features.checked import checked

    path = Path(name)
    if not run_files:
        if path.name in _own_files:
            return _own_files[path.name]
        raise InputError(
            f"feature {name!r}: is a Python file, and data cannot make one run; name it yourself: --own-feature {name}"
        )
    source = _source(name)
    label = f"stylepairs_own_{path.stem}_{hashlib.sha256(source).hexdigest()[:16]}"
    if label not in sys.modules:
        sys.modules[label] = _run(name, label, source)
    _own_files[path.name] = checked(Feature.of(sys.modules[label]), name)
    return _own_files[path.name]


def _run(name: str, label: str, source: bytes) -> ModuleType:
    from pydantic import BaseModel

    spec = importlib.util.spec_from_file_location(label, Path(name).resolve())
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[label] = module  # dataclasses and pydantic look their module up while it runs
    try:
        exec(compile(source, name, "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        raise InputError(f"{name}: cannot be run ({type(error).__name__}: {one_line(error)})") from error
    finally:
        sys.modules.pop(label)
    missing = [part for part in ("Params", "sketch", "measure") if not callable(getattr(module, part, None))]
    if missing:
        raise InputError(f"{name}: has no {' and no '.join(missing)}; a feature holds Params, sketch and measure")
    if not (isinstance(module.Params, type) and issubclass(module.Params, BaseModel)):
        raise InputError(f"{name}: Params is no pydantic model; write `class Params(BaseModel)`")
    names = getattr(module, "COLORS", ())
    if isinstance(names, str) or not isinstance(names, Collection) or not all(isinstance(each, str) for each in names):
        raise InputError(f"{name}: COLORS is no tuple of names; write for example COLORS = ('rose', 'own')")
    if "intensity" not in module.Params.model_fields:
        raise InputError(f"{name}: Params has no `intensity`, the degree asked for: 0 none, 1 all")
    return module


def _source(name: str) -> bytes:
    try:
        return read_regular(Path(name), _MAX_FILE_BYTES)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InputError(f"feature {name!r}: cannot be read ({reason}); paths start at the working folder") from error


def _load_one(name: str) -> ModuleType:
    names = feature_names()
    if name not in names:
        hint = nearest(str(name), names, f"there are: {', '.join(names)}")
        raise InputError(f"feature {name!r}: unknown{hint}")
    return importlib.import_module(f"{__name__}.{name}")
