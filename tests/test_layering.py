"""Holds the order of packages and folders, each importing only what stands before it, read from the source without
importing it."""

from __future__ import annotations

import ast
import functools
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
ORDER = ("kernels", "datagen", "i2i", "recipes")
# Of the rooms within them; a module belongs to the longest name that it begins with.
ROOMS = (
    "kernels",
    "datagen.shell",
    "datagen.recipe",
    "datagen.images",
    "datagen.stylegan",
    "datagen.portraits",
    "datagen.portraits.analysis",
    "datagen.sketching.tools",
    "datagen.sketching.face",
    "datagen.sketching.hair",
    "datagen.reconstruction",
    "datagen.encoders",
    "datagen.compositing",
    "datagen.features",
    "datagen.latent",
    "datagen.pairs",
    "datagen.build",
    "datagen.importing",
    "datagen.augment",
    "datagen.cli",
    "i2i.models",
    "i2i.train",
    "i2i.edit",
    "i2i.page",
    "i2i.identity",
    "i2i.evaluation",
    "i2i.intervals",
    "i2i.judging",
    "i2i.cli",
)
MODULES_LIMIT = 12


class Names(NamedTuple):
    """Of a file: absolute names of all modules that it imports, wherever in it; (module, name) of each `from` import;
    all names that it binds."""

    modules: set[str]
    taken: set[tuple[str, str]]
    bound: set[str]


@functools.cache
def names_in(path: Path) -> Names:
    package = ("stylepairs", *path.relative_to(ROOT).parts[:-1])
    modules, taken, bound = set(), set(), set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            modules.add(module)
            taken.update((module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            modules.update(alias.name for alias in node.names)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            bound.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            bound.add(node.id)
        if isinstance(node, ast.ImportFrom | ast.Import):
            bound.update((alias.asname or alias.name).split(".")[0] for alias in node.names)
    return Names(modules | {f"{module}.{name}" for module, name in taken}, taken, bound)


def imported_modules(path: Path) -> set[str]:
    return names_in(path).modules


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


def module_name(path: Path) -> str:
    """ "datagen.build.plan" for datagen/build/plan.py, "datagen.build" for its __init__."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(name: str) -> int:
    """The place in ROOMS of a module; -1 for what is in none: an empty package's __init__, which all may import."""
    fitting = [room for room in ROOMS if f"{name}.".startswith(f"{room}.")]
    return ROOMS.index(max(fitting, key=len)) if fitting else -1


def imports() -> dict[str, set[str]]:
    """Module -> the modules of ours that it imports, wherever in the file."""
    paths = {module_name(path): path for folder in ORDER[:-1] for path in sources(folder)}
    return {
        name: {found.removeprefix("stylepairs.") for found in imported_modules(path)} & paths.keys() - {name}
        for name, path in paths.items()
    }


def test_rooms_import_only_what_stands_before_them():
    arrows = [(name, target) for name, targets in imports().items() for target in sorted(targets)]
    upwards = [f"{name} -> {target}" for name, target in arrows if room_of(target) > room_of(name)]
    assert [arrow for arrow in upwards if "__main__" not in arrow] == []


def test_every_module_has_a_room():
    homeless = [name for name in imports() if room_of(name) < 0 and not name.endswith("__main__")]
    assert set(homeless) <= {"datagen", "datagen.sketching", "i2i"}


def test_no_modules_import_each_other_in_a_circle():
    # Whatever imports nothing that is left, or is imported by nothing that is left, is in no circle.
    left = imports()
    while free := [n for n in left if not left[n] & left.keys() or not any(n in targets for targets in left.values())]:
        for name in free:
            del left[name]
    assert {name: targets & left.keys() for name, targets in left.items()} == {}


def test_no_folder_grows_beyond_what_one_can_see_at_once():
    folders = {path.parent for folder in ORDER[:-1] for path in sources(folder)}
    sizes = {str(f.relative_to(ROOT)): len([p for p in f.glob("*.py") if "__" not in p.name]) for f in folders}
    limits = {"datagen": 3, "datagen/features": 99}
    assert {name: n for name, n in sizes.items() if n > limits.get(name, MODULES_LIMIT)} == {}


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


@pytest.mark.parametrize("folder", (*ORDER, "tests", "benchmarks", "examples"))
def test_what_is_imported_is_there(folder):
    # Also in files that are skipped where a GPU or a package is missing, which nothing else would notice.
    wrong = [
        f"{path.relative_to(ROOT)}: {module}.{name}"
        for path in sources(folder)
        for module, name in sorted(names_in(path).taken)
        if module.startswith("stylepairs.") and name not in names_of(module) | {"*"}
    ]
    assert not wrong, "\n".join(wrong)


def names_of(module: str) -> set[str]:
    """What can be imported from a module of the packages: all names that its file binds, and what its folder holds."""
    place = ROOT.joinpath(*module.split(".")[1:])
    file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    held = {path.stem for path in place.iterdir()} if place.is_dir() else set()
    return held | (names_in(file).bound if file.exists() else set())
