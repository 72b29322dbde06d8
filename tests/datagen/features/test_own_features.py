"""A feature in a user's own file: the page that shows how, its example from end to end, and what is refused."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import tiny_build

from stylepairs.datagen import features
from stylepairs.datagen.augment.plan import plan_augmentation
from stylepairs.datagen.build.plan import BuildPlan
from stylepairs.datagen.build.settings import BuildRecipe
from stylepairs.datagen.build.shard_runner import build_pairs
from stylepairs.datagen.features import feature_names, load_feature
from stylepairs.datagen.pairs import shards
from stylepairs.datagen.portraits.portrait import CLASS, Portrait
from stylepairs.datagen.portraits.sketch import AnalysedPair, SketchRefused
from stylepairs.datagen.recipe import load_recipe
from stylepairs.datagen.shell.errors import InputError

ROOT = Path(__file__).parents[3]
EXAMPLE = "docs/examples/blush.py"
GOOD = (ROOT / EXAMPLE).read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def fresh_folder(tmp_path, monkeypatch):
    """A working folder with a copy of the example, and no file loaded before."""
    (tmp_path / "docs").mkdir()
    shutil.copytree(ROOT / "docs" / "examples", tmp_path / "docs" / "examples")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(features, "_own_files", {})


@pytest.fixture
def page_tool():
    spec = importlib.util.spec_from_file_location("feature_table", ROOT / "docs" / "feature_table.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def portrait(size=64):
    """Nothing but skin, two eyes, a nose and lips."""
    image = torch.tensor([0.5, 0.1, -0.1])[:, None, None] + 0.05 * torch.randn(
        3, size, size, generator=torch.Generator().manual_seed(0)
    )
    points = torch.full((68, 2), size / 2)
    points[36:42], points[42:48] = torch.tensor([0.35, 0.4]) * size, torch.tensor([0.65, 0.4]) * size
    points[33] = torch.tensor([0.5, 0.6]) * size
    label = torch.full((size, size), CLASS["skin"], dtype=torch.uint8)
    return Portrait("synthetic", image.clamp(-1, 1), label, torch.zeros(1, size, size), points, "0" * 64)


def test_the_page_shows_the_features_as_the_code_has_them(page_tool):
    page = (ROOT / "docs" / "features.md").read_text(encoding="utf-8")
    assert page == page_tool.with_tables(page), "run `python docs/feature_table.py`"
    for name in feature_names():
        assert f"| `{name}` |" in page


def test_the_tables_follow_a_changed_parameter_and_need_their_markers(page_tool, monkeypatch):
    page = (ROOT / "docs" / "features.md").read_text(encoding="utf-8")
    names = ["fluffiness", "hair_color"]
    monkeypatch.setattr(page_tool, "feature_names", lambda: names)
    table = page_tool.tables()
    assert "| `fluffiness` | `volume` | -0.1 to 0.25 | 0.1 |" in table
    assert "|  | `where` | `crown`, `sides`, `both` | `both` |" in table
    assert "`min_hair_share` 0.02" in table
    assert page_tool.with_tables(page) != page
    with pytest.raises(ValueError, match="must both be there"):
        page_tool.with_tables("nothing")


def test_the_page_prints_the_example_as_it_is():
    page = (ROOT / "docs" / "own-feature.md").read_text(encoding="utf-8")
    assert f"```python\n{GOOD.rstrip()}\n```" in page
    assert f"```yaml\n{(ROOT / 'docs/examples/blush.yaml').read_text(encoding='utf-8').rstrip()}\n```" in page


def test_the_example_sketches_and_measures():
    blush, before = load_feature(EXAMPLE, run_files=True), portrait()
    sketch = blush.sketch(before, blush.Params())
    still = sketch.edit_mask[0] == 0
    assert torch.equal(sketch.image[:, still], before.image[:, still])
    assert (sketch.image[0] - sketch.image[1]).sum() > (before.image[0] - before.image[1]).sum() + 10
    degrees = []
    for intensity in (0.0, 0.3, 0.7, 1.0):
        after = replace(before, image=blush.sketch(before, blush.Params(intensity=intensity)).image)
        found = blush.measure(before, AnalysedPair(before, after), blush.Params(intensity=intensity))
        degrees.append(found["degree"])
        assert found["tint_delta_e"] < 0.5
        assert found["spill_delta_e"] < 0.1
    assert degrees == pytest.approx([0, 0.3, 0.7, 1.0], abs=0.05)
    with pytest.raises(SketchRefused, match="no cheek"):
        blush.sketch(replace(before, hair=torch.ones(1, 64, 64)), blush.Params())


def plan(tmp_path: Path, out: str, changes: dict | None = None) -> BuildPlan:
    recipe = load_recipe("docs/examples/blush.yaml", "datagen", BuildRecipe)
    return tiny_build.plan(tmp_path, out, recipe.model_dump(exclude=tiny_build.QUICK.keys()) | (changes or {}))


def test_the_example_s_recipe_builds_pairs(tmp_path):
    the_plan = plan(tmp_path, "pairs")
    assert build_pairs(the_plan).complete
    pairs = list(shards.read_pairs(tmp_path / "pairs", accepted_only=False))
    made = [pair for pair in pairs if pair.after is not None]
    assert len(pairs) == 2 * tiny_build.COUNT
    assert made
    assert all(pair.record.feature == EXAMPLE for pair in pairs)
    assert all({"degree", "tint_delta_e", "spill_delta_e"} <= set(pair.record.figures) for pair in made)


def test_a_figure_of_the_file_may_not_hide_one_of_every_pair(tmp_path):
    Path(EXAMPLE).write_text(GOOD.replace('"spill_delta_e": ', '"seam_energy": '))
    with pytest.raises(InputError, match=r"blush\.py'?: its measure gives seam_energy, .* name it otherwise"):
        build_pairs(plan(tmp_path, "pairs", {"gate": {}}))


@pytest.mark.slow
def test_pairs_of_a_file_are_augmented_only_with_the_very_file_named(tmp_path):
    build_pairs(plan(tmp_path, "pairs", {"gate": {}}))
    features._own_files.clear()
    with pytest.raises(
        InputError, match=r"made by the feature file docs/examples/blush\.py; name it with --own-feature"
    ):
        plan_augmentation(tmp_path / "pairs", tmp_path / "more")
    Path("other.py").write_text(GOOD + "# changed\n")
    with pytest.raises(InputError, match=r"other\.py: is not the feature that .*pairs was built with"):
        plan_augmentation(tmp_path / "pairs", tmp_path / "more", own_feature=Path("other.py"))
    Path("moved.py").write_text(GOOD)
    the_plan = plan_augmentation(tmp_path / "pairs", tmp_path / "more", own_feature=Path("moved.py"))
    assert the_plan.recipe.feature == "moved.py"
    assert the_plan.run_feature


def test_another_version_of_the_file_is_another_build(tmp_path):
    models = plan(tmp_path, "pairs").load_models()
    before = plan(tmp_path, "pairs").identity(models)
    Path(EXAMPLE).write_text(GOOD.replace("16.0, 4.0", "20.0, 4.0"))
    after = plan(tmp_path, "pairs").identity(models)
    assert before["feature_code"] != after["feature_code"]
    assert load_feature(EXAMPLE, run_files=True).sketch.__wrapped__.__globals__["_TINT"][1] == 20


def test_names_out_of_data_run_nothing(tmp_path):
    Path("evil.py").write_text(GOOD + "\nopen('ran', 'w')\n")
    for name in ("evil.py", str(tmp_path / "evil.py")):
        with pytest.raises(InputError, match=r"data cannot make one run; name it yourself: --own-feature .*evil\.py"):
            load_feature(name)
    assert not Path("ran").exists()
    feature = load_feature("evil.py", run_files=True)
    assert Path("ran").exists()
    assert load_feature("elsewhere/evil.py") == feature  # a model remembers another path to the same file name


@pytest.mark.parametrize(
    "text, reason",
    [
        ("def broken(:", r"own\.py: cannot be run \(SyntaxError: .*line 1\)"),
        ("import no_such_module", r"own\.py: cannot be run \(ModuleNotFoundError: No module named 'no_such_module'\)"),
        ("raise ValueError('two\\nlines')", r"own\.py: cannot be run \(ValueError: two lines\)"),
        ("import sys; sys.exit(3)", r"own\.py: cannot be run \(SystemExit: 3\)"),
        (GOOD.replace("def measure(", "def measured("), r"own\.py: has no measure; a feature holds"),
        ("", r"own\.py: has no Params and no sketch and no measure"),
        (GOOD.replace("class Params(FeatureParams)", "class Params"), r"own\.py: Params is no pydantic model"),
        (GOOD.replace("    intensity: float", "    strength: float"), r"own\.py: Params has no `intensity`"),
        (GOOD + "COLORS = 'red'\n", r"own\.py: COLORS is no tuple of names"),
        (GOOD + "COLORS = 3\n", r"own\.py: COLORS is no tuple of names"),
        (GOOD + "COLORS = [(1, 2, 3)]\n", r"own\.py: COLORS is no tuple of names"),
    ],
)
def test_a_file_that_holds_no_feature_is_told_in_one_line(text, reason):
    Path("own.py").write_text(text)
    with pytest.raises(InputError, match=reason) as error:
        load_feature("own.py", run_files=True)
    assert "\n" not in str(error.value)
    assert not [name for name in sys.modules if name.startswith("stylepairs_own_own")]


@pytest.mark.parametrize(
    "was, now, reason",
    [
        (
            "edit_mask=cheeks,",
            "edit_mask=cheeks[0],",
            r"edit_mask is torch\.float32 \[64, 64\], not torch\.float32 \[1, ",
        ),
        ("edit_mask=cheeks,", "edit_mask=cheeks > 0.5,", r"edit_mask is torch\.bool \[1, 64, 64\], not torch\.float32"),
        ("edit_mask=cheeks,", "edit_mask=255 * cheeks,", r"edit_mask goes from 0 to 255, not from 0 to 1"),
        ("edit_mask=cheeks,", "edit_mask=None,", r"edit_mask is NoneType, not torch\.float32"),
        ("keep_mask=1 - ", "keep_mask=-1 - ", r"keep_mask goes from -2 to -1, not from 0 to 1"),
        ("image=torch.where(", "image=2 * torch.where(", r"image goes from .*, not from -1 to 1"),
        ("reference_px=min(", "reference_px=24 + 0 * min(", r"reference_px 24 is not a power of two"),
        ('space="lab"', 'space="Lab"', r"space 'Lab' is neither rgb nor lab"),
        ("photo_detail=1.0", "photo_detail=2.0", r"photo_detail 2 is not in \[0,1\]"),
        ("    return Sketch(", "    return dict(", r"gives dict, not a Sketch"),
    ],
)
def test_a_sketch_that_is_none_is_told_in_one_line(was, now, reason):
    Path("own.py").write_text(GOOD.replace(was, now))
    feature = load_feature("own.py", run_files=True)
    with pytest.raises(InputError, match=rf"^own\.py: sketch of synthetic: {reason}"):
        feature.sketch(portrait(), feature.Params())


@pytest.mark.parametrize(
    "gives, reason",
    [
        ("'red'", r"gives 'red', not three numbers from 0 to 255, or None"),
        ("(1, 2)", r"gives \(1, 2\), not three numbers"),
        ("(0, 0, 256)", r"gives \(0, 0, 256\), not three numbers"),
        ("(0, 0, float('nan'))", r"gives \(0, 0, nan\), not three numbers"),
        ("{'red': (1, 2, 3)}[text]", r"raises KeyError: 'pink'"),
    ],
)
def test_a_colour_that_is_none_is_told_in_one_line(gives, reason):
    Path("own.py").write_text(GOOD + f"\ndef color_of(text):\n    return {gives}\n")
    feature = load_feature("own.py", run_files=True)
    with pytest.raises(InputError, match=rf"^own\.py: color_of of 'pink': {reason}"):
        feature.color_of("pink")


def test_a_file_may_name_colours_and_leave_the_photo_s_own():
    names = "COLORS = {'red': [200, 0, 0]}\ncolor_of = COLORS.get\n"
    Path("own.py").write_text(GOOD + names)
    feature = load_feature("own.py", run_files=True)
    assert feature.colors == ("red",)
    assert tuple(feature.color_of("red")) == (200, 0, 0)
    assert feature.color_of("own") is None


@pytest.mark.parametrize(
    "was, now, reason",
    [
        ('"degree": (', '"much": (', "gives no `degree`"),
        ("    return {name: float(value) for name, value in figures.items()}", "    return None", "gives no `degree`"),
        ("name: float(value) for", "name: str(name) for", "a figure is no number"),
        ("name: float(value) for", "name: before for", "a figure is no number"),
    ],
)
def test_figures_that_are_none_are_told_in_one_line(was, now, reason):
    Path("own.py").write_text(GOOD.replace(was, now))
    feature = load_feature("own.py", run_files=True)
    same = AnalysedPair(portrait(), portrait())
    with pytest.raises(InputError, match=rf"^own\.py: measure of synthetic: {reason}") as error:
        feature.measure(portrait(), same, feature.Params())
    assert "\n" not in str(error.value)


def test_the_example_s_sketches_are_compared_at_powers_of_two():
    with pytest.raises(ValueError, match="24 is not a power of two"):
        load_feature(EXAMPLE, run_files=True).Params(reference_px=24)


def test_missing_files_folders_and_combinations_are_told():
    with pytest.raises(InputError, match=r"'nowhere\.py': cannot be read \(No such file or directory\)"):
        load_feature("nowhere.py", run_files=True)
    Path("folder.py").mkdir()
    with pytest.raises(InputError, match=r"'folder\.py': cannot be read \(a folder"):
        load_feature("folder.py", run_files=True)
    for name in (f"hair_color+{EXAMPLE}", f"{EXAMPLE}+hair_color"):
        with pytest.raises(InputError, match=r"blush\.py is a file of your own, .*; to combine it, .* name it blush$"):
            load_feature(name, run_files=True)
    with pytest.raises(InputError, match="unknown; did you mean 'hair_color'"):
        load_feature("hair_colour", run_files=True)


@pytest.mark.parametrize("name", feature_names())
def test_a_sketch_s_side_is_a_power_of_two(name):
    needed = {"color": "red"} if name == "hair_color" else {}
    params = load_feature(name).Params
    assert params(reference_px=64, **needed).reference_px == 64
    with pytest.raises(ValueError, match="48 is not a power of two"):
        params(reference_px=48, **needed)
