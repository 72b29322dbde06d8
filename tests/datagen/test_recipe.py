"""Recipes: what is wrong is said at once, on one line, with the key's path and the nearest known key."""

from __future__ import annotations

import pytest
from pydantic import BaseModel, ConfigDict, Field

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
    assert "datagen.inversion.rate: should be a valid number" in message
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
