"""Several features in one pair: each sketch is made on the portrait as the one before leaves it, and one
reconstruction meets them all.

A combination is named by its parts in order, "bangs+hair_color", and is used as any feature: its parameters are nested
({"bangs": {...}, "hair_color": {...}}), its figures carry the part's name before them (hair_color_color_delta_e).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, create_model

from stylepairs.datagen.features.feature import Feature
from stylepairs.datagen.portraits.portrait import Portrait
from stylepairs.datagen.portraits.sketch import AnalysedPair, Sketch, SketchRefused


def combine(features: dict[str, Feature]) -> Feature:
    """The features, by name and in this order, as one."""
    fields: dict[str, Any] = {
        name: (feature.Params, Field(default_factory=feature.Params)) for name, feature in features.items()
    }
    params_model: type[BaseModel] = create_model(
        "CombinedParams", __config__=ConfigDict(extra="forbid", frozen=True), **fields
    )

    def settled(portrait: Portrait, params: BaseModel) -> BaseModel:
        parts = {name: feature.settled(portrait, getattr(params, name)) for name, feature in features.items()}
        return params.model_copy(update=parts)

    def directed(params: BaseModel, _backwards: bool) -> BaseModel:
        parts = {name: feature.directed(getattr(params, name), False) for name, feature in features.items()}
        return params.model_copy(update=parts)

    def sketch(portrait: Portrait, params: BaseModel) -> Sketch:
        parts, current = [], portrait
        for name, feature in features.items():
            part = feature.sketch(current, getattr(params, name))
            if part.backwards:
                raise SketchRefused(f"{portrait.name}: a pair of {name} that runs backwards cannot be combined")
            parts.append(part)
            current = parts[-1].applied_to(current)
        return combined_sketch(portrait, parts)

    def measure(portrait: Portrait, seen: AnalysedPair, params: BaseModel) -> dict[str, float]:
        figures: dict[str, float] = {}
        for name, feature in features.items():
            start, start_seen = portrait, seen.before
            for other in features:
                if other != name:
                    start, start_seen = _with_edit(features[other], getattr(params, other), start, start_seen)
            found = feature.measure(start, AnalysedPair(start_seen, seen.after), getattr(params, name))
            figures |= {figure_name(name, figure): value for figure, value in found.items()}
        degrees = [figures[figure_name(name, "degree")] for name in features]
        return figures | {"degree": sum(degrees) / len(degrees)}

    named = tuple(f"{name}.{param}" for name, feature in features.items() for param in feature.file_params)
    return Feature(params_model, sketch, measure, settled, directed, file_params=named)


def combined_sketch(portrait: Portrait, parts: list[Sketch]) -> Sketch:
    """One sketch that asks for all of `parts`: the last one's picture, the union of what they edit."""
    edit, keep = parts[0].edit_mask, parts[0].keep_mask
    for part in parts[1:]:
        edit, keep = torch.maximum(edit, part.edit_mask), torch.minimum(keep, part.keep_mask)
    final = portrait
    for part in parts:
        final = part.applied_to(final)
    return Sketch(
        image=final.image,
        edit_mask=edit,
        keep_mask=keep,
        reference_px=max(part.reference_px for part in parts),
        space="lab" if all(part.space == "lab" for part in parts) else "rgb",
        label=final.label,
        hair=final.hair,
        points68=final.points68,
        parts=tuple(parts),
    )


def figure_name(feature: str, figure: str) -> str:
    """What a part's own figure is called in a combination."""
    return f"{feature}_{figure}"


def _with_edit(feature: Feature, params: BaseModel, portrait: Portrait, seen: Portrait) -> tuple[Portrait, Portrait]:
    """The portrait and how it is seen, with an edit as it looks where the generator meets its sketch.

    A part is judged against the portrait with all the other edits made, so that neither hides the other: a fringe in
    hair that was recoloured has the new colour.
    """
    from stylepairs.datagen.compositing.compose import with_part

    try:
        sketch = feature.sketch(portrait, params)
    except SketchRefused:  # on the portrait as it was, not as the parts before left it
        return portrait, seen
    image = with_part(portrait.image, portrait.image, sketch.image, sketch)
    return replace(sketch.applied_to(portrait), image=image), replace(sketch.applied_to(seen), image=image)
