"""Several recipes as one, which makes all their edits in each pair (see `features.combination`)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from stylepairs.datagen.build.draws import combinations
from stylepairs.datagen.build.quality import is_common
from stylepairs.datagen.build.settings import BuildRecipe
from stylepairs.datagen.features.combination import figure_name
from stylepairs.datagen.recipe import load_recipe, validate_settings
from stylepairs.datagen.shell.errors import InputError


def load_combined_recipe(names_or_paths: Iterable[str], overrides: Iterable[str] = ()) -> BuildRecipe:
    """The `datagen` sections of several recipes as one.

    Parameters are nested by feature: override them as "bangs.length=0.5". A portrait gets as many pairs as from the
    recipe with the most choices, drawn from all combinations. Gates hold together: a feature's own figures carry its
    name, and of two bounds on a common figure the wider holds. A recipe that does without an encoder decides for all.
    All other settings are the first recipe's. Raises InputError as load_recipe does.
    """
    sections: dict[str, dict[str, Any]] = {}
    for name in names_or_paths:
        recipe = load_recipe(name, "datagen", BuildRecipe)
        # What nobody set stays so: an encoder's start has other values for it.
        section = recipe.model_dump(mode="json") | {
            "inversion": recipe.inversion.model_dump(mode="json", exclude_unset=True),
            "reconstruction": recipe.reconstruction.model_dump(mode="json", exclude_unset=True),
        }
        feature = section["feature"]
        if feature in sections:
            raise InputError(f"{name}: the feature {feature!r} is there already; name each once")
        sections[feature] = section
    return validate_settings("+".join(sections), _combined(sections), "datagen", BuildRecipe, overrides)


def _combined(sections: dict[str, dict[str, Any]]) -> dict[str, Any]:
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
    encoders = [section["encoder"] for section in sections.values()]
    return next(iter(sections.values())) | {
        "encoder": "none" if "none" in encoders else encoders[0],
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
