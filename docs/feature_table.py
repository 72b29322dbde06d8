"""Writes the tables of features.md, every feature with its parameters, from the code: `python docs/feature_table.py`.

The tables stand between two marker lines; a test compares them with the code.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stylepairs.datagen.features import feature_names, load_feature

PAGE = Path(__file__).with_name("features.md")
BEGIN, END = "<!-- made by feature_table.py: begin -->", "<!-- made by feature_table.py: end -->"
# Parameters that only decide what is refused, and how finely the sketch is matched: named in one row.
_LIMITS = ("min_", "max_", "reference_px")


def tables() -> str:
    """Both tables as Markdown: what each feature does, and its parameters with ranges and defaults."""
    features = {name: load_feature(name) for name in feature_names()}
    what = ["| feature | what it does |", "|---|---|"]
    parameters = ["| feature | parameter | values | default |", "|---|---|---|---|"]
    for name, feature in features.items():
        what.append(f"| `{name}` | {_first_sentence(feature.about)} |")
        schema = feature.Params.model_json_schema()
        rows, limits = [], []
        for parameter, details in schema["properties"].items():
            if parameter.startswith(_LIMITS):
                limits.append(f"`{parameter}` {_default(details)}")
            else:
                rows.append(f"`{parameter}` | {_values(details, schema.get('$defs', {}))} | {_default(details)} |")
        if limits:
            rows.append(f"limits | {', '.join(limits)} | |")
        parameters += [f"| {f'`{name}`' if index == 0 else ''} | {row}" for index, row in enumerate(rows)]
    return "\n".join([*what, "", *parameters])


def with_tables(page: str) -> str:
    """The page's text with its tables as the code has them now. Raises ValueError where the markers are missing."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{PAGE.name}: the lines {BEGIN!r} and {END!r} must both be there")
    return f"{before}{BEGIN}\n{tables()}\n{END}{after}"


def _first_sentence(docstring: str | None) -> str:
    paragraph = " ".join((docstring or "").partition("\n\n")[0].split())
    return paragraph.partition(". ")[0].rstrip(".").replace("|", "\\|")


def _values(details: dict[str, Any], definitions: dict[str, Any]) -> str:
    """What a parameter takes, from its JSON schema: "0 to 1", "`crown`, `sides`", "text", ..."""
    if "$ref" in details:
        details = definitions[details["$ref"].rpartition("/")[2]]
    if "anyOf" in details:
        return " or ".join(_values(option, definitions) for option in details["anyOf"])
    if "enum" in details:
        return ", ".join(f"`{value}`" for value in details["enum"])
    if "const" in details:
        return f"`{details['const']}`"
    kind = details.get("type", "")
    if kind in ("number", "integer"):
        whole = "whole, " if kind == "integer" else ""
        return whole + _range(details)
    names = {"string": "text", "boolean": "true or false", "null": "null", "object": "a mapping"}
    if kind == "array":
        return f"a list of: {_values(details['items'], definitions)}" if "items" in details else "a list"
    return str(names.get(kind, kind))


def _range(details: dict[str, Any]) -> str:
    low = details.get("minimum", details.get("exclusiveMinimum"))
    high = details.get("maximum", details.get("exclusiveMaximum"))
    below = "below " if "exclusiveMaximum" in details else ""
    above = "above " if "exclusiveMinimum" in details else ""
    if low is not None and high is not None:
        return f"{above}{low:g} to {below}{high:g}"
    if low is not None:
        return f"{above or 'from '}{low:g}"
    return f"{below or 'up to '}{high:g}" if high is not None else "any number"


def _default(details: dict[str, Any]) -> str:
    if "default" not in details:
        return "required"
    value = details["default"]
    return "null" if value is None else f"`{value}`" if isinstance(value, str) and value else f"{value!r}"


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
