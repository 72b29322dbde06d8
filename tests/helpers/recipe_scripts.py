"""A recipe's scripts import each other by plain name, as when run."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def scripts_on_path(folder: Path, names: Sequence[str]) -> Iterator[None]:
    """The scripts of `folder` can be imported; those of other folders under the same `names` come back afterwards."""
    held = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in names:
            sys.modules.pop(name, None)
        sys.modules.update(held)
