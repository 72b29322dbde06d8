"""Recipes: YAML files that hold what differs between two features, checked against the settings that code declares.

A recipe has one section per package (`datagen:`, `i2i:`). An installed recipe is found by its name, any other by its
path. All that is wrong with a section is reported at once, on one line, with the key's path and the nearest known key.
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from stylepairs.datagen.build.draws import combinations
from stylepairs.datagen.shell.errors import InputError, nearest, one_line

Model = TypeVar("Model", bound=BaseModel)
Section = Literal["datagen", "i2i"]
SECTIONS: tuple[str, ...] = get_args(Section)

_MAX_RECIPE_BYTES = 1 << 20


def load_recipe(name_or_path: str, section: Section, model: type[Model], overrides: Iterable[str] = ()) -> Model:
    """The section of a recipe as an instance of `model`.

    name_or_path: an installed recipe's name ("hair_color") or a YAML file. overrides: "key=value" strings, the key a
    dotted path inside the section or the bare name of a key of its `params`, the value YAML ("0.5", "blond", "[a, b]").
    Raises InputError, one line: file, key path, what is wrong, and the nearest known key.

    >>> load_recipe("hair_color", "datagen", BuildRecipe, ["color=blond", "inversion.steps=20"])  # doctest: +SKIP
    """
    source, text = _read(name_or_path)
    return _validated(source, _section(source, text, section), section, model, overrides)


def load_combined_recipe(names_or_paths: Iterable[str], model: type[Model], overrides: Iterable[str] = ()) -> Model:
    """The `datagen` sections of several recipes as one that makes all their edits in each pair (see
    `features.combination`).

    Parameters are nested by feature: override them as "bangs.length=0.5". A portrait gets as many pairs as from the
    recipe with the most choices, drawn from all combinations. Gates hold together: a feature's own figures carry its
    name, and of two bounds on a common figure the wider holds. All other settings are the first recipe's. Raises
    InputError as load_recipe does.
    """
    sections: dict[str, dict[str, Any]] = {}
    for name in names_or_paths:
        source, text = _read(name)
        section = _section(source, text, "datagen")
        feature = str(section.get("feature", ""))
        if feature in sections:
            raise InputError(f"{source}: the feature {feature!r} is there already; name each once")
        sections[feature] = _validated(source, section, "datagen", model, ()).model_dump(mode="json")
    return _validated("+".join(sections), _combined(sections), "datagen", model, overrides)


def _combined(sections: dict[str, dict[str, Any]]) -> dict[str, Any]:
    # Here, since they load torch, and `quality` is a user of this module.
    from stylepairs.datagen.build.quality import is_common
    from stylepairs.datagen.features.combination import figure_name

    gate: dict[str, dict[str, Any]] = {}
    for feature, section in sections.items():
        for figure, bounds in section["gate"].items():
            key = figure if is_common(figure) else figure_name(feature, figure)
            gate[key] = _wider(gate[key], bounds) if key in gate else bounds
    counts = (
        len(combinations(section["params"]))
        if section["pairs_per_portrait"] == "all"
        else section["pairs_per_portrait"]
        for section in sections.values()
    )
    return next(iter(sections.values())) | {
        "feature": "+".join(sections),
        "params": {feature: section["params"] for feature, section in sections.items()},
        "pairs_per_portrait": max(counts),
        "gate": {name: bounds for name, bounds in gate.items() if (bounds["min"], bounds["max"]) != (None, None)},
    }


def _wider(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """The bounds within which either of two thresholds passes; a side that one leaves open is open."""
    wide: dict[str, Any] = {"optional": one["optional"] or other["optional"], "min": None, "max": None}
    for side, choose in (("min", min), ("max", max)):
        if one[side] is not None and other[side] is not None:
            wide[side] = choose(one[side], other[side])
    return wide


def _validated(
    source: str, settings: dict[str, Any], section: Section, model: type[Model], overrides: Iterable[str]
) -> Model:
    for override in overrides:
        _apply(settings, override, section, model)
    try:
        return model.model_validate(settings)
    except ValidationError as error:
        problems = [_explain(model, details) for details in error.errors()]
        raise InputError(f"{source}: " + "; ".join(f"{section}.{problem}" for problem in problems)) from error


def installed_recipes() -> list[str]:
    """The names of the recipes that the package carries."""
    folder = importlib.resources.files("stylepairs.recipes")
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def validate_params(model: type[Model], params: dict[str, Any], source: str) -> Model:
    """One draw of a feature's parameters as its `Params`; raises InputError as load_recipe does."""
    try:
        return model.model_validate(params)
    except ValidationError as error:
        problems = "; ".join(f"params.{_explain(model, details)}" for details in error.errors())
        raise InputError(f"{source}: {problems}") from error


def _read(name_or_path: str) -> tuple[str, str]:
    """What to call the recipe in messages, and its text."""
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml") and path.name == name_or_path:
        names = installed_recipes()
        if name_or_path not in names:
            known = f"installed are {', '.join(names) or 'none'}" + nearest(name_or_path, names)
            raise InputError(f"{name_or_path}: no such recipe; {known} (a file of your own must end in .yaml)")
        path = Path(str(importlib.resources.files("stylepairs.recipes").joinpath(f"{name_or_path}.yaml")))
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_RECIPE_BYTES + 1)
        if len(data) > _MAX_RECIPE_BYTES:
            raise InputError(f"{path}: more than {_MAX_RECIPE_BYTES >> 20} MiB, which is no recipe")
        return path.name, data.decode("utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text, so no recipe") from error


def _section(source: str, text: str, section: str) -> dict[str, Any]:
    try:
        document = yaml.load(text, Loader=_StrictLoader)
    except (yaml.YAMLError, RecursionError) as error:
        raise InputError(f"{source}: not YAML ({one_line(error)})") from error
    if not isinstance(document, dict):
        raise InputError(f"{source}: not a recipe; it must have the sections {' and '.join(SECTIONS)}")
    unknown = [f"{key}: unknown section{nearest(str(key), SECTIONS)}" for key in document if key not in SECTIONS]
    if section not in document and not unknown:
        unknown = [f"has no section {section!r}"]
    if unknown:
        raise InputError(f"{source}: " + "; ".join(unknown))
    settings = document.get(section) or {}
    if not isinstance(settings, dict):
        raise InputError(f"{source}: {section}: must be a mapping of settings")
    return settings


def _apply(settings: dict[str, Any], override: str, section: str, model: type[BaseModel]) -> None:
    key, equals, text = override.partition("=")
    path = key.strip().split(".")
    if not equals or not all(path):
        raise InputError(f"--set {override}: must be key=value, for example inversion.steps=100")
    try:
        # To YAML a value such as #aabbcc is a comment; here it can only be a colour.
        value = text.strip() if text.strip().startswith("#") else yaml.load(text, Loader=_StrictLoader)
    except (yaml.YAMLError, RecursionError) as error:
        raise InputError(f"--set {override}: the value is not YAML ({one_line(error)})") from error
    params = settings.get("params")
    if isinstance(params, dict) and path[0] in params and path[0] not in model.model_fields:
        path = ["params", *path]
    if path[0] not in model.model_fields:
        known = [*model.model_fields, *(params if isinstance(params, dict) else ())]
        raise InputError(f"--set {override}: {section} has no key {path[0]!r}{nearest(path[0], known)}")
    node = settings
    for name in path[:-1]:
        child = node.get(name)
        if child is None:
            child = node[name] = {}
        if not isinstance(child, dict):
            raise InputError(f"--set {override}: {name!r} is not a mapping, so it has no key {path[-1]!r}")
        node = child
    node[path[-1]] = value


def _explain(model: type[BaseModel], details: ErrorDetails) -> str:
    """ "inversion.stpes: unknown key; did you mean 'steps'?" """
    location = [str(part) for part in details["loc"]]
    where = ".".join(location) or "settings"
    if details["type"] == "extra_forbidden":
        return f"{where}: unknown key{nearest(location[-1], _known_keys(model, location[:-1]))}"
    if details["type"] == "missing":
        return f"{where}: is missing"
    message = details["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    shown = repr(details["input"])
    verb = "should be " if details["msg"].startswith("Input should be ") else ""
    return f"{where}: {verb}{one_line(message)} (got {shown if len(shown) <= 80 else shown[:77] + '...'})"


def _known_keys(model: type[BaseModel], location: list[str]) -> list[str]:
    """The fields of the nested model at `location`; empty when that is not a model."""
    annotation: Any = model
    for name in location:
        nested = _model_in(annotation)
        if get_origin(annotation) is dict:
            annotation = get_args(annotation)[1]
        elif nested is not None and name in nested.model_fields:
            annotation = nested.model_fields[name].annotation
        else:
            return []
    nested = None if get_origin(annotation) is dict else _model_in(annotation)
    return [] if nested is None else list(nested.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    return next((kind for kind in _types_in(annotation) if issubclass(kind, BaseModel)), None)


def _types_in(annotation: Any) -> list[type]:
    if isinstance(annotation, type):
        return [annotation]
    return [inner for argument in get_args(annotation) for inner in _types_in(argument)]


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML in which a key given twice is an error, not a silent loss of the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = str(key_node.value)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)
