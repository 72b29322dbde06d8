"""The drawing in docs/architecture.md is the tree: every folder and module named, none too many."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
DRAWN = ("kernels", "datagen", "i2i", "recipes", "benchmarks")


def drawn() -> set[str]:
    """Folders (with a slash at the end) and modules of the drawing, as paths."""
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    (drawing,) = re.findall(r"^```tree\n(.*?)^```$", page, re.S | re.M)
    found: list[str] = []
    above: list[str] = []
    for line in drawing.splitlines():
        names = line.split("#")[0].split()
        depth = (len(line) - len(line.lstrip())) // 2
        above = above[:depth]
        if names[0].endswith("/"):
            above.append(names[0])
            found.append("".join(above))
            names = names[1:]
        found += ["".join(above) + name for name in names]
    assert len(found) == len(set(found))
    return set(found)


def present() -> set[str]:
    """Folders that hold Python files, and these files, dunder files aside."""
    files = [path.relative_to(ROOT) for folder in DRAWN for path in (ROOT / folder).rglob("*.py")]
    folders = {f"{parent.as_posix()}/" for file in files for parent in file.parents if parent != Path()}
    return folders | {file.with_suffix("").as_posix() for file in files if not file.name.startswith("__")}


def test_the_drawing_names_every_folder_and_module_and_none_too_many():
    assert drawn() == present()
