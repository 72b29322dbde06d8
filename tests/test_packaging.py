"""Holds what users install: recipes and weights travel as data, commands answer quickly, imports stay light."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("kernels", "datagen", "i2i")
HEAVY = ("torch", "kornia", "cv2", "albumentations", "accelerate", "sklearn", "pyarrow")
# Processor time, so that waiting on a busy machine costs nothing: 0.2 to 0.3 s.
HELP_LIMIT_S = 1.0


# Where the name that is imported is not the distribution's.
DISTRIBUTIONS = {"PIL": "pillow", "cv2": "opencv-python-headless", "yaml": "pyyaml", "face_alignment": "face-alignment",
                 "sklearn": "scikit-learn", "pydantic_core": "pydantic", "pillow_heif": "pillow-heif",
                 "open_clip": "open-clip-torch"}  # fmt: skip
# Found by torch alone, which imports them for what we call there.
THROUGH_TORCH = {"torch.utils.tensorboard": "tensorboard", "torch.onnx": "onnx"}


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """A copy of the tree, so that no build folder is left behind."""
    tree = tmp_path_factory.mktemp("tree")
    for name in ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    for name in (*PACKAGES, "recipes", "tests"):
        ignored = shutil.ignore_patterns("__pycache__", "photos", "data")
        shutil.copytree(ROOT / name, tree / name, ignore=ignored)
    return tree


@pytest.fixture(scope="module")
def wheel(tree) -> Path:
    return built(tree, "wheel")


def built(tree: Path, what: str) -> Path:
    """The wheel or sdist of a tree, built offline."""
    command = f"import setuptools.build_meta as b; print(b.build_{what}('dist'))"
    done = subprocess.run([sys.executable, "-c", command], cwd=tree, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return tree / "dist" / done.stdout.split()[-1]


def names_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.mark.slow
def test_wheel_carries_every_module_recipe_and_weight(wheel):
    names = names_in(wheel)
    wanted = [path for folder in PACKAGES for path in (ROOT / folder).rglob("*.py")]
    data = ("weights/*", "py.typed", "**/*.html", "features/references/*")
    wanted += [path for folder in PACKAGES for glob in data for path in (ROOT / folder).glob(glob) if path.is_file()]
    wanted += list((ROOT / "recipes").glob("*.yaml"))
    missing = [str(p.relative_to(ROOT)) for p in wanted if f"stylepairs/{p.relative_to(ROOT).as_posix()}" not in names]
    assert not missing, f"add to [tool.setuptools] in pyproject.toml: {missing}"


@pytest.mark.slow
def test_wheel_leaves_scripts_photos_and_tests_out(wheel):
    names = names_in(wheel)
    recipes = {f"stylepairs/recipes/{path.name}" for path in (ROOT / "recipes").glob("*.yaml")}
    assert {n for n in names if n.startswith("stylepairs/recipes/")} == recipes | {"stylepairs/recipes/__init__.py"}
    assert not [n for n in names if n.split("/")[0] in ("tests", "recipes", *PACKAGES) or "/tests/" in n]


@pytest.mark.slow
def test_the_source_archive_makes_the_same_wheel_and_holds_no_tests(tree, wheel, tmp_path):
    with tarfile.open(built(tree, "sdist")) as archive:
        archive.extractall(tmp_path, filter="data")
    (unpacked,) = tmp_path.iterdir()
    assert not (unpacked / "tests").exists()
    assert names_in(built(unpacked, "wheel")) == names_in(wheel)


@pytest.mark.slow
def test_recipes_are_found_by_name_in_an_installed_copy_from_any_folder(wheel, tmp_path):
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    code = (
        "import stylepairs.datagen as d\n"
        "from stylepairs.datagen.build.settings import BuildRecipe\n"
        "from stylepairs.datagen.recipe import installed_recipes, load_recipe\n"
        "print(d.__file__)\n"
        "print(*[load_recipe(name, 'datagen', BuildRecipe).feature for name in installed_recipes()])\n"
    )
    environment = os.environ | {"PYTHONPATH": str(site)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=elsewhere, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    where, features = done.stdout.splitlines()
    assert where.startswith(str(site))
    assert features.split() == sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml"))


def test_declared_packages_are_the_folders_that_hold_modules():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    found = {
        ".".join(("stylepairs", *path.parent.relative_to(ROOT).parts))
        for folder in PACKAGES
        for path in (ROOT / folder).rglob("*.py")
    }
    assert set(settings["packages"]) == found | {"stylepairs.recipes"}


def test_what_is_declared_is_what_is_imported():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    optional = project["optional-dependencies"]
    names = ("landmarks", "heif", "triton", "export", "page", "video", "bench", "ray", "latent", "clip", "storage")
    extras = {_name(entry) for name in names for entry in optional[name]}
    declared = {_name(requirement) for requirement in project["dependencies"]}
    imported = {found for folder in PACKAGES for path in (ROOT / folder).rglob("*.py") for found in _libraries(path)}
    assert imported - extras == declared


def _name(requirement: str) -> str:
    found = re.match(r"[\w-]+", requirement)
    assert found is not None
    return found[0]


def _libraries(path: Path) -> set[str]:
    """The distributions that a file's imports need."""
    modules: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            modules.add(node.module)
    through = {THROUGH_TORCH[module] for module in modules & THROUGH_TORCH.keys()}
    outside = {module.split(".")[0] for module in modules} - sys.stdlib_module_names - {"stylepairs"}
    return {DISTRIBUTIONS.get(module, module) for module in outside} | through


def test_importing_is_light_and_so_is_every_help():
    """In one process, one after the other: what none of them imports, each of them does not."""
    code = f"""
import importlib, sys, typer
def told(what):
    heavy = [name for name in {HEAVY!r} if name in sys.modules]
    if heavy:
        sys.exit(f"{{what}} imports {{heavy}}")
for module in {[*PACKAGES, "datagen.portraits", "datagen.features", "datagen.cli", "i2i.cli"]!r}:
    importlib.import_module("stylepairs." + module)
    told(module)
def each(name, command):
    command(["--help"], standalone_mode=False)
    told(name + " --help")
    inner = getattr(command, "commands", {{}})
    return 1 + sum(each(f"{{name}} {{word}}", one) for word, one in inner.items())
apps = {{package: importlib.import_module(f"stylepairs.{{package}}.cli").app for package in ("datagen", "i2i")}}
print(sum(each(package, typer.main.get_command(app)) for package, app in apps.items()), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("Usage") == int(done.stderr) >= 24


@pytest.mark.parametrize("arguments", ["datagen build", "i2i edit"])
def test_help_comes_quickly(arguments):
    package, *command = arguments.split()
    pid = os.posix_spawn(
        sys.executable,
        [sys.executable, "-m", f"stylepairs.{package}", *command, "--help"],
        os.environ,
        file_actions=[(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)],
    )
    _, status, usage = os.wait4(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert usage.ru_utime + usage.ru_stime < HELP_LIMIT_S
