"""Recipes: what is wrong is said at once, on one line, with the key's path and the nearest known key."""

from __future__ import annotations

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stylepairs.datagen import recipe as recipes
from stylepairs.datagen.shell.errors import InputError


class Steps(BaseModel):
    model_config = ConfigDict(extra="forbid")
    steps: int = Field(100, ge=1)
    rate: float = 0.1


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid")
    feature: str
    params: dict[str, object] = {}
    inversion: Steps = Steps()
    stages: dict[str, Steps] = {}


@pytest.fixture
def recipe(tmp_path):
    def write(text: str) -> str:
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        return str(path)

    return write


def load(path: str, *overrides: str) -> Settings:
    return recipes.load_recipe(path, "datagen", Settings, overrides)


def test_a_section_becomes_its_settings(recipe):
    settings = load(
        recipe("datagen: {feature: hair_color, params: {color: [red, blond]}, inversion: {steps: 3}}\ni2i: {}")
    )
    assert settings == Settings(feature="hair_color", params={"color": ["red", "blond"]}, inversion=Steps(steps=3))


def test_overrides_reach_nested_keys_and_params_by_bare_name(recipe):
    path = recipe("datagen: {feature: hair_color, params: {color: [red], intensity: 1.0}}")
    settings = load(path, "color=blond", "intensity=0.5", "inversion.steps=7", "feature=bangs", "params.extra=[1, 2]")
    assert settings.params == {"color": "blond", "intensity": 0.5, "extra": [1, 2]}
    assert settings.inversion.steps == 7
    assert settings.feature == "bangs"
    assert load(path, "color=#aabbcc").params["color"] == "#aabbcc"


def test_all_that_is_wrong_is_said_on_one_line(recipe):
    path = recipe(
        "datagen: {feature: x, inversoin: {}, inversion: {stpes: 3, rate: fast, steps: 0}, stages: {one: {rte: 1}}}"
    )
    with pytest.raises(InputError) as caught:
        load(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("mine.yaml: ")
    assert "datagen.inversoin: unknown key; did you mean 'inversion'?" in message
    assert "datagen.inversion.stpes: unknown key; did you mean 'steps'?" in message
    assert "datagen.stages.one.rte: unknown key; did you mean 'rate'?" in message
    assert "datagen.inversion.rate: should be a number (got 'fast')" in message
    assert "datagen.inversion.steps: should be greater than or equal to 1 (got 0)" in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "must have the sections"),
        ("- a", "must have the sections"),
        ("datgen: {}", "datgen: unknown section; did you mean 'datagen'?"),
        ("i2i: {}", "has no section 'datagen'"),
        ("datagen: 3", "must be a mapping"),
        ("datagen: {feature: a, feature: b}", "'feature' is given twice"),
        ("datagen: {feature: [", "not YAML"),
        ("datagen: {}", "datagen.feature: is missing"),
        ("datagen: !!python/object/apply:os.system [echo]", "not YAML"),
        ("? [a, b]\n: 1", "not YAML"),
    ],
)
def test_a_file_that_is_no_recipe_is_one_clear_line(recipe, text, expected):
    with pytest.raises(InputError) as caught:
        load(recipe(text))
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("steps", "must be key=value"),
        ("=3", "must be key=value"),
        ("colour=red", "has no key 'colour'; did you mean 'color'?"),
        ("min_share=0.1", "has no key 'min_share'; a parameter that the recipe leaves out is set as params.NAME"),
        ("inversion.steps=[", "the value is not YAML"),
        ("feature.name=x", "'feature' is not a mapping"),
        ("inversion.step=3", "datagen.inversion.step: unknown key; did you mean 'steps'?"),
    ],
)
def test_a_wrong_override_is_one_clear_line(recipe, override, expected):
    path = recipe("datagen: {feature: hair_color, params: {color: red}}")
    with pytest.raises(InputError) as caught:
        load(path, override)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_name_lists_the_installed_ones(monkeypatch):
    monkeypatch.setattr(recipes, "installed_recipes", lambda: ["bangs", "hair_color"])
    with pytest.raises(InputError, match="installed are bangs, hair_color; did you mean 'hair_color'"):
        load("hair_colour")


def test_unreadable_files_are_one_clear_line(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        load(str(tmp_path / "none.yaml"))
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not UTF-8"):
        load(str(tmp_path / "binary.yaml"))


GROWING = {
    "a value": "datagen: {feature: x, a0: &a0 [x], a1: [*a0, *a0]}",
    "a key": "datagen: {? &a [x] : 1, ? *a : 2}",
    "a merge": "base: &m {feature: x}\ndatagen: {<<: *m}",
    "another section": "i2i: {a: &a [1], b: *a}\ndatagen: {feature: x}",
}


@pytest.mark.parametrize("text", GROWING.values(), ids=GROWING)
def test_aliases_are_refused_wherever_they_stand(recipe, text):
    with pytest.raises(InputError, match=r"not YAML \(aliases \(\*name\) are not taken: write the value out") as caught:
        load(recipe(text))
    assert len(str(caught.value)) < 200


def test_a_billion_laughs_are_refused_at_once(recipe):
    levels = ["a0: &a0 [ha, ha]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10))]
    with pytest.raises(InputError, match="aliases"):
        load(recipe("datagen:\n  feature: x\n  params:\n" + "\n".join(f"    {level}" for level in levels)))
    with pytest.raises(InputError, match="aliases"):
        load(recipe("datagen: {feature: x}"), "params=[&a [1], *a]")


UNREAL = {
    "2020-13-45": "'2020-13-45' is no timestamp",
    "!!timestamp nope": "'nope' is no timestamp",
    "!!float abc": "'abc' is no float",
    "!!int abc": "'abc' is no int",
    "!!int ''": "'' is no int",
    "!!bool maybe": "'maybe' is no bool",
    "9" * 5000: "is no int",
    "1:30:00": "as sixtieths",
    "190:20:30.15": "as sixtieths",
    "1" * 23: "a whole number of more than 64 bits",
    ".nan": "nan is not a finite number",
    "-.inf": "-inf is not a finite number",
    "!!float 1e999": "inf is not a finite number",
    "[" * 5000: "nested more than 32 deep",
    "{a: " * 40 + "1" + "}" * 40: "nested more than 32 deep",
    r'"a\0b"': "holds a NUL",
    r'{"\0": 1}': "holds a NUL",
    r'"\ud800"': "is no str",
}


@pytest.mark.parametrize(("value", "expected"), UNREAL.items(), ids=[value[:20] for value in UNREAL])
def test_what_cannot_be_built_is_one_short_line_in_files_and_overrides(recipe, value, expected):
    for text, overrides in (
        (f"datagen: {{feature: x, params: {{color: {value}}}}}", []),
        ("datagen: {feature: x}", [f"params.color={value}"]),
    ):
        with pytest.raises(InputError) as caught:
            load(recipe(text), *overrides)
        assert expected in str(caught.value)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 400


def test_long_values_are_cut_before_they_are_written_out(recipe):
    path = recipe("datagen: {feature: x}")
    values = ", ".join(["x" * 1000] * 500)
    for override in (f"inversion.steps=[{values}]", f"nowhere.steps=[{values}]", "inversion.steps=[" + "1," * 10_000):
        with pytest.raises(InputError) as caught:
            load(path, override)
        assert len(str(caught.value)) < 500


def _numbers(model):
    """(dotted path, the model's field) of every number in a section, nested ones too."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from ((f"{name}.{inner}", kind) for inner, kind in _numbers(field.annotation))
        elif field.annotation in (int, float):
            yield name, field


def test_no_number_of_a_build_may_be_negative_or_endless_redeclared_ones_too():
    from stylepairs.datagen.build.settings import BuildRecipe

    paths = [path for path, _ in _numbers(BuildRecipe)]
    assert {"sketch_detail", "inversion.steps", "reconstruction.learning_rate"} <= set(paths)
    for path in paths:
        with pytest.raises(InputError, match=rf"datagen\.{path}: should be"):
            recipes.load_recipe("hair_color", "datagen", BuildRecipe, [f"{path}=-0.1"])
        *nested, name = path.split(".")
        for value in (-1, -5, float("nan"), float("inf")):
            section = {name: value}
            for outer in nested[::-1]:
                section = {outer: section}
            with pytest.raises(ValidationError):
                BuildRecipe.model_validate({"feature": "hair_color"} | section)


@pytest.mark.parametrize("bound", ["min", "max"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gate_that_nothing_could_exceed_is_refused(recipe, bound, value):
    from stylepairs.datagen.build.settings import BuildRecipe

    with pytest.raises(ValidationError, match="finite"):
        BuildRecipe.model_validate({"feature": "hair_color", "gate": {"seam_energy": {bound: value}}})
    path = recipe(f"datagen: {{feature: hair_color, gate: {{seam_energy: {{{bound}: .{value}}}}}}}")
    with pytest.raises(InputError, match="not a finite number"):
        recipes.load_recipe(path, "datagen", BuildRecipe)


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("pairs_per_portrait=x", "datagen.pairs_per_portrait: should be 'all', or a whole number (got 'x')"),
        ("pairs_per_portrait=0", "datagen.pairs_per_portrait: should be 'all', or greater than 0 (got 0)"),
        ("inversion=3", "datagen.inversion: should be a mapping (got 3)"),
        ("gate.x=[1]", "datagen.gate.x: should be a mapping (got [1])"),
        ("feature=3", "datagen.feature: should be text (got 3)"),
        ("inversion.batch=1.5", "datagen.inversion.batch: should be a whole number (got 1.5)"),
        (
            "inversion.batch=1.0e+12",
            "datagen.inversion.batch: should be less than or equal to 4096 (got 1000000000000.0)",
        ),
        ("encoder=[a]", "datagen.encoder: should be text (got ['a'])"),
    ],
)
def test_messages_are_in_plain_words(override, problem):
    from stylepairs.datagen.build.settings import BuildRecipe

    with pytest.raises(InputError) as caught:
        recipes.load_recipe("hair_color", "datagen", BuildRecipe, [override])
    assert str(caught.value) == f"hair_color.yaml: {problem}"


@pytest.mark.parametrize("section", ["datagen", "i2i"])
def test_no_whole_number_of_a_recipe_is_without_an_end(section):
    from stylepairs.datagen.build.settings import BuildRecipe
    from stylepairs.i2i.train.settings import TrainingSettings

    model = BuildRecipe if section == "datagen" else TrainingSettings
    paths = [path for path, field in _numbers(model) if field.annotation is int]
    assert {"inversion.batch", "reconstruction.steps"} <= set(paths) or {"seed", "batch_size"} <= set(paths)
    for path in paths:
        with pytest.raises(InputError, match="less than"):
            recipes.load_recipe("hair_color", section, model, [f"{path}={2**62}"])
