"""Recipes: YAML files that hold what differs between two features, checked against the settings that code declares.

A recipe has one section per package (`datagen:`, `i2i:`). An installed recipe is found by its name, any other by its
path. All that is wrong with a section is reported at once, on one line, with the key's path and the nearest known key.
"""

from __future__ import annotations

import importlib.resources
import math
import reprlib
from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from stylepairs.datagen.shell.errors import InputError, nearest, one_line, plain_words
from stylepairs.datagen.shell.regular import open_regular

Model = TypeVar("Model", bound=BaseModel)
Section = Literal["datagen", "i2i"]
SECTIONS: tuple[str, ...] = get_args(Section)

_MAX_RECIPE_BYTES = 1 << 20
_MAX_DEPTH = 32
_PROBLEMS_SHOWN = 10
_SHOWN = 80
_BRIEF = reprlib.Repr()
_BRIEF.maxstring = _BRIEF.maxother = _BRIEF.maxlong = _SHOWN


def load_recipe(name_or_path: str, section: Section, model: type[Model], overrides: Iterable[str] = ()) -> Model:
    """The section of a recipe as an instance of `model`.

    name_or_path: an installed recipe's name ("hair_color") or a YAML file. overrides: "key=value" strings, the key a
    dotted path inside the section or the bare name of a key of its `params`, the value YAML ("0.5", "blond", "[a, b]").
    Raises InputError, one line: file, key path, what is wrong, and the nearest known key.

    >>> load_recipe("hair_color", "datagen", BuildRecipe, ["color=blond", "inversion.steps=20"])  # doctest: +SKIP
    """
    source, text = _read(name_or_path)
    return validate_settings(source, _section(source, text, section), section, model, overrides)


def validate_settings(
    source: str, settings: dict[str, Any], section: str, model: type[Model], overrides: Iterable[str] = ()
) -> Model:
    """The settings of a section, which messages name, with overrides, as an instance of `model`; raises InputError as
    load_recipe does."""
    for override in overrides:
        _apply(settings, override, section, model)
    try:
        return model.model_validate(settings)
    except ValidationError as error:
        raise InputError(f"{source}: {_explain_all(model, error, settings, section)}") from error


def installed_recipes() -> list[str]:
    """The names of the recipes that the package carries."""
    folder = importlib.resources.files("stylepairs.recipes")
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def validate_params(model: type[Model], params: dict[str, Any], source: str) -> Model:
    """One draw of a feature's parameters as its `Params`; raises InputError as load_recipe does."""
    try:
        return model.model_validate(params)
    except ValidationError as error:
        raise InputError(f"{source}: {_explain_all(model, error, params, 'params')}") from error


def parse_yaml(text: str) -> Any:
    """What a YAML text holds; ValueError, of one line, for what is no YAML or could grow beyond its text.

    >>> parse_yaml("[a, 0.5]")
    ['a', 0.5]
    """
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(one_line(error)) from error


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
        with open_regular(path) as file:
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
        document = parse_yaml(text)
    except ValueError as error:
        raise InputError(f"{source}: not YAML ({error})") from error
    if not isinstance(document, dict):
        raise InputError(f"{source}: not a recipe; it must have the sections {' and '.join(SECTIONS)}")
    names = [_brief_text(str(key)) for key in document][: len(SECTIONS) + _PROBLEMS_SHOWN]
    unknown = [f"{key}: unknown section{nearest(key, SECTIONS)}" for key in names if key not in SECTIONS]
    if section not in document and not unknown:
        unknown = [f"has no section {section!r}"]
    if unknown:
        raise InputError(f"{source}: " + "; ".join(unknown))
    settings = document.get(section) or {}
    if not isinstance(settings, dict):
        raise InputError(f"{source}: {section}: must be a mapping of settings")
    return settings


def parse_override(override: str, option: str = "--set") -> tuple[list[str], Any]:
    """The key's path and the value of "inversion.steps=100"; option: its name in messages. Raises InputError."""
    key, equals, text = override.partition("=")
    path, shown = key.strip().split("."), _brief_text(override)
    if not equals or not all(path) or len(path) > _MAX_DEPTH:
        example = "inversion.steps=100" if option == "--set" else "color=blond"
        raise InputError(f"{option} {shown}: must be key=value, for example {example}")
    try:
        # To YAML a value such as #aabbcc is a comment; here it can only be a colour.
        return path, text.strip() if text.strip().startswith("#") else parse_yaml(text)
    except ValueError as error:
        raise InputError(f"{option} {shown}: the value is not YAML ({error})") from error


def nested_overrides(overrides: Iterable[str], option: str = "--set") -> dict[str, Any]:
    """What "a.b=1" strings say, as nested dictionaries; option: their name in messages. Raises InputError.

    >>> nested_overrides(["color=blond", "bangs.length=0.5"])
    {'color': 'blond', 'bangs': {'length': 0.5}}
    """
    found: dict[str, Any] = {}
    for override in overrides:
        path, value = parse_override(override, option)
        node = found
        for name in path[:-1]:
            node = node.setdefault(name, {})
            if not isinstance(node, dict):
                raise InputError(f"{option} {_brief_text(override)}: {name} has a value already; give it or its parts")
        node[path[-1]] = value
    return found


def _apply(settings: dict[str, Any], override: str, section: str, model: type[BaseModel]) -> None:
    path, value = parse_override(override)
    shown = _brief_text(override)
    params = settings.get("params")
    if isinstance(params, dict) and path[0] in params and path[0] not in model.model_fields:
        path = ["params", *path]
    if path[0] not in model.model_fields:
        known = [*model.model_fields, *map(str, params if isinstance(params, dict) else ())]
        own = "; a parameter that the recipe leaves out is set as params.NAME" if "params" in model.model_fields else ""
        raise InputError(f"--set {shown}: {section} has no key {_brief(path[0])}{nearest(path[0], known)}{own}")
    node = settings
    for name in path[:-1]:
        child = node.get(name)
        if child is None:
            child = node[name] = {}
        if not isinstance(child, dict):
            raise InputError(f"--set {shown}: {name!r} is not a mapping, so it has no key {path[-1]!r}")
        node = child
    node[path[-1]] = value


def _explain_all(model: type[BaseModel], error: ValidationError, given: Any, section: str) -> str:
    """Each key that is wrong once, with all that it might have been."""
    found: dict[str, str] = {}
    for details in error.errors(include_url=False):
        location = _location(given, details)
        where, problem = ".".join([section, *(location or ["settings"])]), _explain(model, location, details)
        before = f"{found[where].rpartition(' (got ')[0]}, or " if where in found else ""
        found[where] = before + (problem.removeprefix("should be ") if before else problem)
    shown = [f"{where}: {problem}" for where, problem in found.items()][:_PROBLEMS_SHOWN]
    more = f"; and {len(found) - _PROBLEMS_SHOWN} more" if len(found) > _PROBLEMS_SHOWN else ""
    return "; ".join(shown) + more


def _location(given: Any, details: ErrorDetails) -> list[str]:
    """The key's path as it was written: pydantic's also names the branches of a union that it tried."""
    location: list[str] = []
    value = given
    for part in details["loc"]:
        if isinstance(value, Mapping):
            written = part in value
        else:
            written = isinstance(value, list | tuple) and isinstance(part, int) and part < len(value)
        value = value[part] if written else value
        if written or (details["type"] == "missing" and part == details["loc"][-1]):
            location.append(_brief_text(str(part)))
    return location


def _explain(model: type[BaseModel], location: list[str], details: ErrorDetails) -> str:
    """ "unknown key; did you mean 'steps'?" """
    if details["type"] == "extra_forbidden":
        return f"unknown key{nearest(location[-1], _known_keys(model, location[:-1]))}"
    if details["type"] == "missing":
        return "is missing"
    return f"{one_line(plain_words(details))} (got {_brief(details['input'])})"


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


def _brief(value: object) -> str:
    """A value as a message shows it, cut before it is written out."""
    return _brief_text(_BRIEF.repr(value))


def _brief_text(text: str) -> str:
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML that is never more than its text: no aliases, no deep nesting, no number that nobody means, and a key
    given twice is an error, not a silent loss of the first."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):  # a few hundred bytes of them can stand for gigabytes
            raise self._refused("aliases (*name) are not taken: write the value out", event)
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise self._refused(f"nested more than {_MAX_DEPTH} deep", event)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep)
            if isinstance(value, str):
                value.encode()  # half a surrogate pair is an error
        except (ValueError, TypeError, AttributeError, LookupError, OverflowError) as error:
            kind = node.tag.rpartition(":")[2]
            raise self._refused(f"{_brief(node.value)} is no {kind}", node) from error
        if isinstance(value, str) and "\0" in value:
            raise self._refused(f"{_brief(value)} holds a NUL", node)
        if isinstance(value, float) and not math.isfinite(value):
            raise self._refused(f"{value} is not a finite number", node)
        if isinstance(value, int | float) and isinstance(node, yaml.ScalarNode) and ":" in node.value:
            raise self._refused(f"YAML reads {_brief(node.value)} as sixtieths: write a number, or quote it", node)
        if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
            raise self._refused("a whole number of more than 64 bits", node)
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = str(key_node.value)
            if key in seen:
                raise self._refused(f"key {_brief(key)} is given twice", key_node)
            seen.add(key)
        return super().construct_mapping(node, deep)

    def _refused(self, problem: str, where: Any) -> yaml.MarkedYAMLError:
        return yaml.MarkedYAMLError(None, None, problem, where.start_mark)
