"""Holds the order of the packages: kernels <- datagen <- i2i <- recipes, read from the source without importing it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ORDER = ("kernels", "datagen", "i2i", "recipes")


def imported_modules(path: Path) -> set[str]:
    """Absolute names of all modules that a file imports, wherever in the file; relative imports are resolved."""
    package = ("stylepairs", *path.relative_to(ROOT).parts[:-1])
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            names.update({module, *(f"{module}.{alias.name}" for alias in node.names)})
    return names


def sources(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("folder", ORDER)
def test_imports_go_one_way(folder):
    allowed = ORDER[: ORDER.index(folder) + 1]
    wrong = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in sources(folder)
        for name in sorted(imported_modules(path))
        if name.startswith("stylepairs.") and name.split(".")[1] not in allowed
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("folder", (*ORDER, "tests"))
def test_folders_are_imported_by_their_installed_names_only(folder):
    wrong = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in sources(folder)
        for name in sorted(imported_modules(path))
        if name.split(".")[0] in ("datagen", "i2i", "recipes", "kernels")
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("folder", (*ORDER, "tests"))
def test_torchvision_is_imported_nowhere(folder):
    # On CPU builds of torch the released torchvision fails on import and takes torchmetrics with it.
    wrong = [path for path in sources(folder) if any(n.split(".")[0] == "torchvision" for n in imported_modules(path))]
    assert not wrong


def test_no_script_lies_at_the_top_of_recipes():
    # The top of recipes/ is installed as data; a script there would be installed with it.
    assert [path.name for path in (ROOT / "recipes").glob("*.py")] == ["__init__.py"]
