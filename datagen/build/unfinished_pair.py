"""One pair in the making, of a build or an augmentation: its sketch, its figures, the judgement, its record."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel

from stylepairs.datagen.build import quality
from stylepairs.datagen.build.models import Models
from stylepairs.datagen.build.quality import AnalysedPortrait
from stylepairs.datagen.build.settings import BuildRecipe, code_version
from stylepairs.datagen.compositing.compose import compose
from stylepairs.datagen.features.feature import Feature, asked_degree
from stylepairs.datagen.images.files import to_uint8
from stylepairs.datagen.pairs.record import Pair, PairRecord, split_of
from stylepairs.datagen.portraits.portrait import Portrait
from stylepairs.datagen.portraits.sketch import AnalysedPair, Sketch, SketchRefused
from stylepairs.datagen.reconstruction.inversion import Inversion
from stylepairs.datagen.reconstruction.reconstruct import Reconstruction
from stylepairs.datagen.shell.decode import finite


@dataclass(frozen=True)
class WantedPair:
    """One pair to be made. source: digest of the photo that the portrait was cut from, which decides the split."""

    id: str
    portrait: Portrait
    params: dict[str, Any]
    source: str


@dataclass
class UnfinishedPair:
    """A pair in the making; `refused` is the reason why it will not be made.

    inversion None: it was not inverted now, but made of the latents of other pairs.
    """

    wanted: WantedPair
    params: BaseModel
    sketch: Sketch | None = None
    inversion: Inversion | None = None
    reconstruction: Reconstruction | None = None
    refused: str = ""
    figures: dict[str, float] = field(default_factory=dict)

    @property
    def portrait(self) -> Portrait:
        return self.wanted.portrait


class PairAnalyser:
    """Analyses both halves of pairs; a portrait that was analysed last is not analysed again for its next pair."""

    def __init__(self, analyser: quality.Analyser | None) -> None:
        self.analyser = analyser
        self.last: AnalysedPortrait | None = None

    def before(self, portrait: Portrait) -> AnalysedPortrait:
        """The portrait's own picture, analysed."""
        last = self.last
        if last is None or (last.portrait.name, last.portrait.digest) != (portrait.name, portrait.digest):
            last = self.last = quality.analyse(portrait, portrait.image, self.analyser)
        return last

    def both(self, portrait: Portrait, after: torch.Tensor) -> tuple[AnalysedPortrait, AnalysedPortrait]:
        """The portrait and the picture [3,H,W] that an edit made of it, analysed."""
        return self.before(portrait), quality.analyse(portrait, after, self.analyser)


def sketched(wanted: WantedPair, feature: Feature, models: Models, sketch_detail: float = 1.0) -> UnfinishedPair:
    """The pair with its sketch, or why there is none, at the generator's size; sketch_detail: of the recipe."""
    portrait = wanted.portrait.resized(models.image_px).to(models.device)
    pair = UnfinishedPair(replace(wanted, portrait=portrait), feature.Params.model_validate(wanted.params))
    try:
        pair.params = feature.settled(portrait, pair.params)
        pair.sketch = feature.sketch(portrait, pair.params).with_detail(sketch_detail)
    except SketchRefused as refusal:
        pair.refused = str(refusal)
    return pair


def finish_pair(
    pair: UnfinishedPair, recipe: BuildRecipe, seed: int, feature: Feature, models: Models, analyser: PairAnalyser
) -> Pair:
    """The pair as it is stored, judged by the recipe's gate; of a refused one only what is sound: before, mask and
    sketch."""
    sketch, result, before = pair.sketch, pair.reconstruction, to_uint8(pair.portrait.image)
    if pair.refused or sketch is None or result is None:
        record = record_of(pair, recipe, seed, models.digest, [pair.refused], models.method)
        if sketch is None:
            return Pair(record, before=before)
        return Pair(record, before=before, mask=mask_pixels(sketch.edit_mask), sketch=to_uint8(sketch.image))
    composed = compose(pair.portrait, result, sketch)
    images = quality.Images(result.generated_before, result.generated_after, composed.after, composed.mask)
    latents = result.ws_before, result.ws_after
    try:
        pair.figures = figures_of(pair, sketch, images, latents, feature, models, analyser) | stage_figures(pair)
    except SketchRefused as refusal:  # of a portrait with the other edits of a combination made
        pair.refused = str(refusal)
        return finish_pair(pair, recipe, seed, feature, models, analyser)
    _, reasons = quality.judge(pair.figures, recipe.gate)
    if not finite([composed.after]):
        return Pair(record_of(pair, recipe, seed, models.digest, [quality.NOT_FINITE], models.method), before=before)
    made = with_latents(
        Pair(
            record_of(pair, recipe, seed, models.digest, reasons, models.method),
            before=before,
            after=to_uint8(composed.after),
            mask=mask_pixels(composed.mask),
            sketch=to_uint8(sketch.image),
            edit_mask=mask_pixels(sketch.edit_mask),
        ),
        result,
    )
    return made.turned() if sketch.backwards else made


def with_latents(pair: Pair, result: Reconstruction) -> Pair:
    """The pair with what the generator made of it, as it is stored."""
    return replace(
        pair,
        generated_before=to_uint8(result.generated_before),
        generated_after=to_uint8(result.generated_after),
        w_before=_half(result.ws_before),
        w_after=_half(result.ws_after),
        noise=[_half(noise) for noise in result.noise],
    )


def figures_of(
    pair: UnfinishedPair,
    sketch: Sketch,
    images: quality.Images,
    latents: tuple[torch.Tensor, torch.Tensor] | None,
    feature: Feature,
    models: Models,
    analyser: PairAnalyser,
) -> dict[str, float]:
    """The gate's figures and the feature's own; latents as in `measure_pair`."""
    analysed = analyser.both(pair.portrait, images.after)
    figures = quality.measure_pair(pair.portrait, sketch, images, latents, models.instruments, analysed)
    halves = AnalysedPair(analysed[0].portrait, analysed[1].portrait)
    return figures | feature.measure(pair.portrait, halves, pair.params)


def stage_figures(pair: UnfinishedPair) -> dict[str, float]:
    """Those of the optimisations under inversion_ and reconstruction_."""
    figures: dict[str, float] = {}
    for stage, found in (("inversion", pair.inversion), ("reconstruction", pair.reconstruction)):
        if found is not None:
            figures |= {f"{stage}_{name.replace('-', '_')}": float(value) for name, value in found.figures.items()}
    return figures


def record_of(
    pair: UnfinishedPair, recipe: BuildRecipe, seed: int, generator: str, reasons: list[str], method: str = ""
) -> PairRecord:
    """What is known of the pair; generator: the digest of that which made its latents, "" where it has none; method:
    how, "" for reconstruction."""
    return PairRecord(
        id=pair.wanted.id,
        feature=recipe.feature,
        params=pair.params.model_dump(mode="json"),
        degree=_degree(pair),
        accepted=not reasons,
        reasons=reasons,
        figures=dict(pair.figures),
        portrait=pair.portrait.name,
        portrait_digest=pair.portrait.digest,
        source_digest=pair.wanted.source,
        generator_digest=generator,
        seed=seed,
        code_version=code_version(),
        split=split_of(pair.wanted.source),
        method=method,
    )


def _degree(pair: UnfinishedPair) -> float:
    """The degree that the feature measured, else the one that was asked for, in [0,1]; 0 where nothing was made.

    Of a pair that runs backwards always 1: all that is missing comes back, however much it was.
    """
    if pair.refused:
        return 0.0
    if pair.sketch is not None and pair.sketch.backwards:
        return 1.0
    asked = asked_degree(pair.params)
    measured = pair.figures.get("degree", asked)
    return min(max(measured if math.isfinite(measured) else asked, 0.0), 1.0)


def mask_pixels(mask: torch.Tensor) -> np.ndarray:
    """[1,H,W] in [0,1] -> [H,W] uint8, rounded up: where the stored mask is 0 nothing at all was edited.

    Less a thousandth, so that what is in steps of 1/255 stays what it is.
    """
    return (mask[0].detach().clamp(0, 1) * 255 - 1e-3).ceil().clamp(0, 255).to(torch.uint8).cpu().numpy()


def _half(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().to(torch.float16).cpu().numpy()
