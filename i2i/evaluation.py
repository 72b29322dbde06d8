"""Judges an editor on portraits that it was not trained on, by what the feature itself measures.

Which features an FID-style figure was computed with is part of its name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from stylepairs.datagen.build.quality import analyse
from stylepairs.datagen.compositing.compose import region_mask
from stylepairs.datagen.images.perceptual import Perceptual
from stylepairs.datagen.portraits.folders import PortraitFile
from stylepairs.datagen.portraits.portrait import Portrait
from stylepairs.datagen.portraits.sketch import AnalysedPair, SketchRefused
from stylepairs.datagen.shell.errors import InputError, one_line
from stylepairs.i2i.edit.editor import LEAST_CONFIDENCE, Editor, Wanted
from stylepairs.i2i.identity import Instruments
from stylepairs.i2i.train.held_out import psnr_outside_db

Row = dict[str, Any]


@torch.no_grad()
def portrait_figures(
    editor: Editor,
    portraits: Iterable[Portrait | PortraitFile],
    params: Sequence[Mapping[str, Any]],
    by: Instruments,
    say: Callable[[str], None] = lambda _: None,
) -> tuple[list[Row], dict[str, float]]:
    """Edit every portrait with every set of parameters; one row each, and the summary.

    Rows: portrait, params, the network's confidence, the figures of the feature's `measure`, psnr_outside_db and
    changed_outside (largest absolute change; 0 is untouched), both outside the region that composing a pair may touch,
    whatever the model's mask says; mask_error, the difference of the model's mask and the sketch's, as a share of the
    sketch's; identity_NAME, the likeness of photo and edit. Summary: median of each figure,
    `faces_left`, and fid_NAME (photos against edits) where there are two portraits or more; NAME says the features.
    Portraits that cannot be read, or to which the feature does not apply, are said and left out. The editor's analyser
    looks at photos and edits, for features that are measured by label maps or landmarks; where it has none, those of
    the portrait are taken for both.
    """
    fid = frechet_distance(by.perceptual)
    edits = [editor.wanted(chosen) for chosen in params]
    rows: list[Row] = []
    seen_portraits = 0
    for given in portraits:
        try:
            portrait = given.load() if isinstance(given, PortraitFile) else given
        except InputError as damaged:
            say(str(damaged))
            continue
        before = portrait.resized(editor.model.size_px)
        made, why = len(rows), set[str]()
        for chosen, wanted in zip(params, edits, strict=True):
            try:
                figures, after = edit_figures(editor, before, wanted)
            except SketchRefused as refused:
                why.add(str(refused))
                continue
            fid.update(after[None], real=False)
            alike = {f"identity_{by.identity.name}": by.identity.likeness(after, before.image)}
            rows.append({"portrait": portrait.name, "params": dict(chosen), **figures, **alike})
        for reason in sorted(why):
            say(reason)
        if len(rows) > made:
            fid.update(before.image[None], real=True)
            seen_portraits += 1
    summary, name = medians(rows), f"fid_{by.perceptual.name}"
    if rows:
        summary["faces_left"] = faces_left(rows)
    if len(rows) > 1 and seen_portraits > 1:
        summary |= {name: value} if math.isfinite(value := frechet_value(fid, name, say)) else {}
    elif rows:
        say(f"{name} is left out: it needs two portraits")
    return rows, summary


def edit_figures(editor: Editor, before: Portrait, wanted: Wanted) -> tuple[Row, torch.Tensor]:
    """The figures of one edit and its image [3,H,W] on the CPU; raises SketchRefused where it does not apply."""
    edit, sketch = editor.edit_portrait(before, wanted)
    after, params = edit.output[0].cpu(), wanted.params
    if "intensity" in type(params).model_fields:  # what is measured is what was asked for, by either name
        params = params.model_copy(update={"intensity": wanted.degree})
        sketch = sketch if params == wanted.params else editor.feature.sketch(before, params)
    allowed = region_mask(sketch.edit_mask)
    seen = AnalysedPair(*(analyse(before, image, editor.analyser).portrait for image in (before.image, after)))
    return {
        "confidence": float(edit.confidence),
        **editor.feature.measure(before, seen, params),
        "psnr_outside_db": psnr_outside_db(after, before.image, allowed),
        "mask_error": float((edit.mask[0].cpu() - sketch.edit_mask).abs().sum() / sketch.edit_mask.sum().clamp_min(1)),
        "changed_outside": float(((after - before.image).abs() * (allowed == 0)).max()),
    }, after


def faces_left(rows: Iterable[Row]) -> float:
    """Of how many rows `edit` leaves the face as it is, as the network is too unsure that the feature applies."""
    return float(sum(row["confidence"] < LEAST_CONFIDENCE for row in rows))


def medians(rows: Sequence[Row]) -> dict[str, float]:
    """The median of every figure, over the rows that have it and where it is finite."""
    found: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.items():
            if isinstance(value, float) and math.isfinite(value):
                found.setdefault(name, []).append(value)
    return {name: float(np.median(values)) for name, values in found.items()}


def finite(row: Row) -> Row:
    """A row as JSON can hold it: None for a figure that is not finite."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in row.items()
    }


def frechet_distance(perceptual: Perceptual) -> Any:
    """A torchmetrics FID over the deepest perceptual features, meaned over pixels; takes [N,3,H,W] in [-1,1]."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    return FrechetInceptionDistance(feature=PooledFeatures(perceptual))


def frechet_value(fid: Any, name: str, say: Callable[[str], None]) -> float:
    """What a `frechet_distance` has come to; NaN where it fails, which is said: the rows are not lost with it."""
    try:
        return float(fid.compute())
    except (RuntimeError, ValueError) as error:  # of torchmetrics and its linear algebra
        say(f"{name} is left out: {one_line(error)}")
        return math.nan


class PooledFeatures(nn.Module):
    """image [N,3,H,W] in [-1,1] -> [N,C]: mean and deviation of the deepest level, for FID-style figures."""

    def __init__(self, perceptual: Perceptual):
        super().__init__()
        self.perceptual = perceptual
        # torchmetrics asks for this; it hands the images on as they are.
        self.num_features = 2 * int(perceptual.features(torch.zeros(1, 3, 64, 64))[-1].shape[1])

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        deepest = self.perceptual.features(image.clamp(-1, 1))[-1]
        # Of a picture so small that one cell is left of it the deviation is 0: NaN ends the process in FID's algebra.
        spread = deepest.std((2, 3), correction=min(1, deepest[0, 0].numel() - 1))
        return torch.cat([deepest.mean((2, 3)), spread], dim=1)
