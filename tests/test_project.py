"""Holds the habits of the repository: recipes load, files introduce themselves and stay readable, links resolve."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import yaml

ROOT = Path(__file__).parents[1]
CODE_FOLDERS = ("kernels", "datagen", "i2i", "recipes", "tests")
LINES_LIMIT = 450
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


def tracked_files() -> list[Path]:
    """All files under version control, or all of the known folders where git is not at hand (an unpacked archive)."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode == 0 and done.stdout:
        return [path for name in done.stdout.split("\0") if name and (path := ROOT / name).is_file()]
    return [p for folder in (*CODE_FOLDERS, "docs") for p in (ROOT / folder).rglob("*") if p.is_file()]


def python_files() -> list[Path]:
    return sorted(p for folder in CODE_FOLDERS for p in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_recipe_loads(path):
    from stylepairs.datagen.recipe import load_recipe

    assert set(yaml.safe_load(path.read_text(encoding="utf-8"))) == {"datagen", "i2i"}
    for section, model in recipe_models().items():
        by_name, by_path = (load_recipe(which, section, model, []) for which in (path.stem, str(path)))
        assert by_name == by_path


def recipe_models() -> dict[str, type]:
    from stylepairs.datagen.build.settings import BuildRecipe
    from stylepairs.i2i.train.settings import TrainingSettings

    return {"datagen": BuildRecipe, "i2i": TrainingSettings}


def test_every_file_says_what_it_is_for():
    silent = [p for p in python_files() if not re.match(r'(#.*\n)*r?"""\S', p.read_text(encoding="utf-8"))]
    assert not silent


def test_files_stay_readable_in_one_sitting():
    lengths = {str(p.relative_to(ROOT)): p.read_text(encoding="utf-8").count("\n") for p in python_files()}
    assert {name: n for name, n in lengths.items() if n > LINES_LIMIT} == {}


def test_no_file_names_a_path_of_somebodys_machine():
    pattern = re.compile(r"(?<![\w.:/-])/(?:home|root|work|Users|mnt|workspace)/\w")
    wrong = []
    for path in tracked_files():
        if path.suffix in (".py", ".md", ".yaml", ".toml", ".json", ".jsonl", ".txt", "") and path.name != "LICENSE":
            text = path.read_text(encoding="utf-8")
            wrong += [f"{path.relative_to(ROOT)}: {match.group()}" for match in pattern.finditer(text)]
    assert not wrong


@pytest.mark.parametrize(
    "page", sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "recipes").rglob("*.md")]), ids=str
)
def test_links_between_pages_resolve(page):
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
    missing = [t for t in targets if "://" not in t and not t.startswith("mailto:") and not (page.parent / t).exists()]
    assert not missing


def test_bundled_photos_are_listed_and_have_truth():
    rows = [json.loads(line) for line in (ROOT / "recipes/photos/photos.jsonl").read_text().splitlines()]
    on_disk = {(p.stem, p.parent.name) for p in (ROOT / "recipes/photos").glob("*/*.jpg")}
    assert {(row["name"], row["split"]) for row in rows} == on_disk
    assert {row["licence"] for row in rows} == {"MIT"}
    notes = (ROOT / "recipes/photos/README.md").read_text()
    assert all(row["source"] in notes for row in rows)
    with np.load(ROOT / "tests/data/portraits_truth.npz") as truth:
        assert list(zip(truth["name"], truth["split"], strict=True)) == [(r["name"], r["split"]) for r in rows]


@pytest.mark.parametrize("path", sorted((ROOT / "recipes/photos").glob("*/*.jpg")), ids=lambda p: p.stem)
def test_bundled_photos_carry_no_metadata(path):
    from PIL import Image

    with Image.open(path) as photo:
        assert not photo.getexif()
        assert set(photo.info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}


@pytest.mark.parametrize("path", sorted((ROOT / "recipes/accelerate").glob("*.yaml")), ids=lambda p: p.stem)
def test_accelerate_reads_its_configurations(path):
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    config_args = pytest.importorskip("accelerate.commands.config.config_args")
    loaded = config_args.load_config_from_file(str(path))
    assert (loaded.num_machines, loaded.num_processes) == (settings["num_machines"], settings["num_processes"])
    assert str(loaded.distributed_type).endswith(settings["distributed_type"])
