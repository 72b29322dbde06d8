"""The wheel in an empty environment outside the repository, beside the oldest libraries that it declares: it builds a
pair of every feature and runs every command."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FEATURES = sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml"))
PHOTOS = sorted((ROOT / "recipes" / "photos" / "heldout").glob("*.jpg"))
TORCH = os.environ.get("TORCH", "torch==2.13.0")
# A few steps show that the commands work; what they come to is other tests' business.
QUICK = ["--set", "inversion.steps=6", "--set", "inversion.decay_steps=2", "--set", "reconstruction.steps=6",
         "--set", "reconstruction.decay_steps=2", "--set", "pairs_per_portrait=1"]  # fmt: skip
# To go on from: a first training looks for the generator's curvature, which takes minutes.
UNTRAINED_ENCODER = """
from pathlib import Path
from stylepairs.datagen.encoders.files import save_encoder
from stylepairs.datagen.encoders.network import Encoder, EncoderConfig
from stylepairs.datagen.encoders.settings import METHODS, EncoderTraining
from stylepairs.datagen.stylegan.checkpoints import generator_digest, load_generator
generator = load_generator("embedded")
config = EncoderConfig.of(generator, EncoderTraining.model_validate(METHODS["start"]))
save_encoder(Path("untrained.safetensors"), Encoder(config), generator_digest(generator))
"""

# In one process: to begin one takes longer than to build a pair.
BUILD_EACH = """
import sys
from stylepairs.datagen.cli import app
features, *quick = sys.argv[1:]
for name in features.split(","):
    where = ["--portraits", "portraits", "--out", name, "--workers", "1", "--limit", "1"]
    app(["build", name, *where, *quick], standalone_mode=False)
"""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


class Installed:
    """An environment with the wheel, and a folder to work in."""

    def __init__(self, folder: Path, work: Path) -> None:
        self.binaries, self.work = folder / "venv" / "bin", work

    def __call__(self, *command: str, code: int = 0) -> str:
        """What a command prints, of a refusal the line on stderr; AssertionError for another exit code. Nothing of the
        repository is on its path."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "MYPY"))}
        environment |= {"PATH": f"{self.binaries}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [str(self.binaries / command[0]), *command[1:]],
            cwd=self.work, env=environment, check=False, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == code, f"{command}: {done.returncode}\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}"
        return done.stderr if code else done.stdout


def lowest_versions() -> list[str]:
    """`name==version` of every dependency that pyproject declares with a lowest version, torch apart."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["perceptual"]]
    bounds = [re.fullmatch(r"([\w-]+)[>=]=([\w.]+)", requirement) for requirement in wanted]
    assert all(bounds), wanted
    return [f"{bound[1]}=={bound[2]}" for bound in bounds if bound and bound[1] != "torch"]


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Installed:
    """One environment for all test processes; each works in a folder of its own."""
    mine = tmp_path_factory.getbasetemp()
    folder = (mine if worker_id == "master" else mine.parent) / "installed"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "portraits").exists():
            install(folder)
    work = tmp_path_factory.mktemp("work")
    shutil.copytree(folder / "portraits", work / "portraits")
    return Installed(folder, work)


def install(folder: Path) -> None:
    """The wheel in an environment of its own, and photos that it prepared, last of all."""
    tree = folder / "tree"
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in filter(None, tracked.stdout.split("\0")):
        if (ROOT / name).is_file() and not name.startswith(("tests/", "docs/", "recipes/photos/")):
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tree / name)
    make = "import setuptools.build_meta as b; print(b.build_wheel('dist'))"
    subprocess.run([sys.executable, "-c", make], cwd=tree, check=True, capture_output=True)
    (wheel,) = (tree / "dist").glob("*.whl")
    wheel = shutil.move(wheel, folder / wheel.name)
    shutil.rmtree(tree)
    (folder / "lowest.txt").write_text("\n".join(lowest_versions()))
    installed = Installed(folder, folder)
    subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
    # Of libraries of a hundred megabytes of Python a third is ever imported, and compiled then.
    pip = ("python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile")
    installed(*pip, TORCH)
    installed(*pip, "--constraint", str(folder / "lowest.txt"), f"{wheel}[perceptual]")
    installed("datagen", "prepare", *map(str, PHOTOS[:3]), "--out", "prepared")
    (folder / "prepared").rename(folder / "portraits")


@pytest.fixture(scope="session")
def pairs(installed: Installed) -> str:
    """Two portraits' pairs of hair colours, half of them accepted whatever the figures."""
    installed("datagen", "build", "hair_color", "--portraits", "portraits", "--out", "pairs", "--workers", "1",
              *QUICK[:-1], "pairs_per_portrait=2", "--set", "gate={}")  # fmt: skip
    return "pairs"


def test_the_lowest_versions_are_the_ones_installed(installed):
    have = installed("python", "-m", "pip", "freeze", "--disable-pip-version-check").lower().replace("_", "-")
    assert set(lowest_versions()) <= set(have.split())


def test_the_packages_are_the_wheels(installed):
    code = "import stylepairs.datagen as d, stylepairs.i2i as i; print(d.__file__, i.__version__)"
    where, version = installed("python", "-c", code).split()
    assert str(installed.binaries.parent) in where
    assert version == tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]


def test_a_pair_of_every_feature_is_built(installed):
    installed("python", "-c", BUILD_EACH, ",".join(FEATURES), *QUICK)
    assert [name for name in FEATURES if not (installed.work / name / "manifest.parquet").is_file()] == []


def test_features_are_built_together(installed):
    installed("datagen", "build", "--features", "bangs,hair_color", "--portraits", "portraits", "--out", "both",
              "--workers", "1", "--limit", "1", *QUICK)  # fmt: skip


def test_pairs_are_shown_exported_and_multiplied(installed, pairs):
    installed("datagen", "inspect", pairs, "--out", "pairs.html")
    installed("datagen", "export", pairs, "--out", "loose")
    installed("datagen", "augment", pairs, "--out", "more", "--steps", "0.5", "--grid", "1", "--workers", "1")
    assert (installed.work / "more" / "manifest.parquet").is_file()


def test_an_encoder_is_trained(installed):
    installed("python", "-c", UNTRAINED_ENCODER)
    installed("datagen", "train-encoder", "embedded", "--portraits", "portraits", "--out", "encoder.safetensors",
              "--begin", "untrained.safetensors", "--steps", "2")  # fmt: skip


def test_a_model_is_trained_evaluated_exported_and_edits_a_photo(installed, pairs):
    few = ["--set", "steps=2", "--set", "batch_size=2"]
    installed("i2i", "train", "hair_color", "--pairs", pairs, "--out", "run", *few)
    installed("i2i", "evaluate", "run", "--portraits", "portraits", "--limit", "1", "--set", "color=red")
    installed("i2i", "export", "run", "--out", "editor.pt2")
    installed("i2i", "edit", "run", str(PHOTOS[0]), "--out", "edited", "--set", "color=red")
    assert list((installed.work / "edited").iterdir())


def test_the_shipped_model_edits_a_photo(installed):
    installed("i2i", "edit", "embedded", str(PHOTOS[0]), "--out", "shipped", "--set", "color=blond")
    assert list((installed.work / "shipped").iterdir())


def test_bad_input_is_one_line_and_code_2(installed):
    told = installed("datagen", "build", "no_such_recipe", "--portraits", "portraits", "--out", "none", code=2)
    assert told.startswith("no_such_recipe: no such recipe")
    assert told.count("\n") == 1
