"""Holds the pages to the tree: names and paths in them exist, the API page is up to date, the tutorial runs."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "recipes").rglob("*.md"),
        ROOT / "benchmarks/README.md",
    ]
)
# What links in README begin with: PyPI shows the page without the files beside it.
HOME = "https://github.com/stylepairs/stylepairs/blob/main/"
FOLDERS = "kernels|datagen|i2i|recipes|tests|benchmarks|docs|examples"


def blocks(page: Path) -> list[tuple[str, str]]:
    """(language, text) of the page's fenced blocks, in order."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.S | re.M)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_paths_that_pages_mention_exist(page):
    text = page.read_text(encoding="utf-8").replace(HOME, "")
    paths = set(re.findall(rf"(?<![\w./-])(?:{FOLDERS})/[\w./-]*[\w/](?![\w*\[])", text))
    written = [path for path in paths if "NAME" not in path]  # NAME.py: any of them
    places = [[ROOT / path, ROOT / f"{path}.py", page.parent / path] for path in written]
    assert [found[0] for found in places if not any(place.exists() for place in found)] == []
    files = {path.as_posix() for folder in FOLDERS.split("|") for path in (ROOT / folder).rglob("*.py")}
    named = set(re.findall(r"`([a-z][\w/]*\.py)`", text)) - {"legacy.py"}
    assert [name for name in named if "NAME" not in name and not any(f.endswith(f"/{name}") for f in files)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_two_commands_of_a_page_write_different_pairs_into_one_folder(page):
    """Whoever types them in turn is refused: a folder holds one build."""
    text = page.read_text(encoding="utf-8").replace("\\\n", "")
    written: dict[str, set[str]] = {}
    for line in re.findall(r"^ *datagen (?:build|import|augment) .*", text, re.M):
        command = re.sub(r" +#.*", "", line).strip()
        if out := re.search(r" --out (\S+)", command):
            same = re.sub(r" --(?:log|engine|address|workers|device) \S+| 2>.*", "", command)
            written.setdefault(out[1], set()).add(same)
    assert {out: commands for out, commands in written.items() if len(commands) > 1} == {}


def test_what_the_page_of_latents_fits_is_among_the_scores_that_it_samples():
    page = (ROOT / "docs/latent.md").read_text(encoding="utf-8")
    (sampled,) = re.findall(r"^ *datagen latent sample --scores (\S+)", page, re.M)
    learnt = re.findall(r"^ *datagen latent .*--samples samples .*--(?:attributes?|condition) (\S+)", page, re.M)
    assert len(learnt) >= 3
    assert {name for names in learnt for name in names.split(",")} <= set(sampled.split(","))


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_names_that_pages_mention_can_be_imported(page):
    text = page.read_text(encoding="utf-8")
    for module, names in re.findall(r"^ *from (stylepairs[\w.]*) import (\([^)]*\)|.*)$", text, re.M):
        found = importlib.import_module(module)
        for name in re.findall(r"\w+", re.sub(r"#.*| as \w+", "", names)):
            assert hasattr(found, name) or importlib.util.find_spec(f"{module}.{name}"), f"{module}.{name}"
    for dotted in set(re.findall(r"\bstylepairs(?:\.[a-z]\w*)+", text)) - {"stylepairs.json"}:
        assert exists(dotted), dotted


def exists(dotted: str) -> bool:
    """Whether this is a module, or something in one."""
    module, _, name = dotted.rpartition(".")
    try:
        return importlib.util.find_spec(dotted) is not None
    except ModuleNotFoundError:
        return hasattr(importlib.import_module(module), name)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_python_blocks_are_python(page):
    if page.name != "api.md":
        for language, text in blocks(page):
            if language == "python":
                ast.parse(text)


def test_readme_s_links_work_outside_the_repository():
    targets = re.findall(r"\]\(([^)\s]+)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(targets) > 15
    for target in targets:
        assert target.startswith(HOME)
        path = target.removeprefix(HOME)
        assert path.endswith("?raw=true") == path.removesuffix("?raw=true").endswith((".png", ".jpg"))
        assert (ROOT / path.removesuffix("?raw=true")).is_file(), path


def test_every_page_is_listed():
    for index in (ROOT / "docs/index.md", ROOT / "docs/notes/README.md"):
        listed = set(re.findall(r"\]\((\w[\w-]*\.md)\)", index.read_text(encoding="utf-8")))
        assert listed >= {page.name for page in index.parent.glob("*.md")} - {index.name}


def test_every_benchmark_is_listed():
    page, helpers = ROOT / "benchmarks/README.md", {"defects.py", "latent_bench.py", "latent_table.py"}
    listed = set(re.findall(r"`(\w+\.py)`", page.read_text(encoding="utf-8")))
    assert {path.name for path in page.parent.glob("*.py")} - helpers <= listed


def test_the_api_page_is_what_the_docstrings_say():
    spec = importlib.util.spec_from_file_location("make_api", ROOT / "docs" / "make_api.py")
    make_api = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_api)
    page = make_api.page()
    assert "### build_pairs" in page
    assert page == make_api.PAGE.read_text(encoding="utf-8"), "run `python docs/make_api.py`"


# What the test of the tutorial does in small: each text on the left stands in the page once.
IN_SMALL = {
    "portrait_00*.jpg recipes/photos/train/portrait_01*.jpg": "portrait_00[56].jpg",
    '--set "color=[blond, auburn]"\ndatagen inspect': '--set "color=[blond, auburn]" --set inversion.steps=20'
    " --set reconstruction.steps=20 --set perceptual=pyramid --limit 2\ndatagen inspect",
    "--set steps=60": "--set steps=2 --set perceptual=pyramid",
    "--limit 4": "--limit 1 --perceptual pyramid",
    "datagen prepare recipes/photos/heldout ": "datagen prepare recipes/photos/heldout/portrait_04[37].jpg ",
}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_block_of_the_tutorial_runs(tmp_path):
    page = ROOT / "docs" / "tutorial.md"
    text = page.read_text(encoding="utf-8")
    for written, small in IN_SMALL.items():
        assert text.count(written) == 1, written
        text = text.replace(written, small)
    (tmp_path / "tutorial.md").write_text(text, encoding="utf-8")
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    commands = tmp_path / "commands"
    commands.mkdir()
    for package in ("datagen", "i2i"):
        (commands / package).write_text(f'#!/bin/sh\nexec "{sys.executable}" -m stylepairs.{package} "$@"\n')
        (commands / package).chmod(0o755)
    environment = os.environ | {"PATH": f"{commands}{os.pathsep}{os.environ['PATH']}"}
    run = {"bash": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-c"]}
    for language, block in blocks(tmp_path / "tutorial.md"):
        done = subprocess.run(
            [*run[language], block], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
    assert (tmp_path / "first/edited/portrait_047.png").is_file()
    assert (tmp_path / "first/onnx.png").is_file()
