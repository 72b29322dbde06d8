"""Imports the benchmarks' scripts, none of which is installed."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from helpers.small_generator import generator, perceptual, portraits

__all__ = ["generator", "import_script", "perceptual", "portraits"]

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
FOLDERS = [BENCHMARKS / "speed", BENCHMARKS]
NAMES = [path.stem for folder in FOLDERS for path in folder.glob("*.py")]


@pytest.fixture(scope="module")
def import_script() -> Iterator[Callable[[str], ModuleType]]:
    """Imports a script, and what it imports, by plain name as when run; modules of such names are put back after."""
    held = {name: sys.modules.pop(name) for name in NAMES if name in sys.modules}
    path = list(sys.path)
    sys.path[:0] = map(str, FOLDERS)
    yield importlib.import_module
    sys.path[:] = path
    for name in NAMES:
        sys.modules.pop(name, None)
    sys.modules.update(held)
