"""Density: hair filled up where scalp shows through, at the parting, the crown and the temples.

Few people have thin hair, so pairs are also made from those with dense hair: theirs is thinned out, scalp between
strands, and the pair runs backwards, from the thinned picture to the photo.

Where scalp shows between hairline and outline (`sketching.hair.hair_and_skin`), its share of the colour is taken out,
which leaves the strands that are there in place, and strands of the own hair are painted over it.

Figures of `measure` (edited: the after half, of a pair that runs backwards the before half):
  scalp_before   share of the area between hairline and outline that shows scalp (soft count), in the before half
  scalp_after    the same in the after half, by the photo's colours; lower is better
  scalp_removed  share of the visible scalp that is gone, 1 all of it
  texture_kept   local contrast of the edited places, edited half / sketch; 0 is flat paint
  fill_delta_e   CIEDE2000 between edited half and sketch over the edited places, both at the scale of locks
  degree         how far the colour of the edited places went from the photo's to the full sketch's; 0 not at all,
                 1 wholly; NaN where the full sketch takes nothing away
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from pydantic import Field

from stylepairs.datagen.images.colors import delta_e_2000, lab_to_srgb, srgb_to_lab
from stylepairs.datagen.images.tones import in_shade
from stylepairs.datagen.portraits.landmarks import eye_distance
from stylepairs.datagen.portraits.portrait import CLASS, Portrait
from stylepairs.datagen.portraits.regions import dilate, feather
from stylepairs.datagen.portraits.sketch import AnalysedPair, FeatureParams, Sketch, SketchRefused
from stylepairs.datagen.shell.randomness import random_generator
from stylepairs.datagen.sketching.hair.hair_and_skin import Scalp, find_scalp, hair_area, pixels_by_line
from stylepairs.datagen.sketching.hair.hairline_curve import (
    ANGLES,
    FRONT,
    Hairline,
    find_hairline,
    refuse_hidden_hairline,
    refuse_unclear_hairline,
    smoothed,
)
from stylepairs.datagen.sketching.hair.strands import grow_hair, own_flow
from stylepairs.datagen.sketching.hair.strokes import StrandStyle
from stylepairs.datagen.sketching.tools.texture import LOCKS, blurred_by_share, blurred_within_by_share, inner_contrast

# Of the side: up to here from the hairline thin hair is looked for, fading out at the second; further away only
# partings and what the analyser takes for thin, because light locks and shine look like skin.
_FRONTAL, _BEYOND = 0.04, 0.09
# How opaque the painted strands lie over fully bare scalp.
_STRANDS_OVER = 0.45
# Of the side: how long they are; what is narrower than twice this is a parting.
_STRAND_LENGTH, _PARTING = 0.07, 0.02
# Angles from straight up at which the crown passes into the temples, and the width of that passage.
_TEMPLE, _PASSAGE = np.radians(40.0), np.radians(8.0)
_BAND = 0.02
# The intensity from which on the edit is shown whole; at 0 nothing is edited.
_APPEARS = 0.1
# Mean share of scalp by which the full change has to differ in its places, or no degree of it is told.
_LEAST_CHANGE = 0.02
# Of the side: how softly thinned hair begins at the hairline; how far up from there scalp shows, at least and at most.
_THIN_SOFTNESS, _THIN_REACH = 0.012, (0.08, 0.16)
# Angle from straight up at which thinned hair is dense again, and over which it becomes so.
_THIN_TO, _THIN_FADE = np.radians(66.0), np.radians(22.0)
# Eye distances of forehead below min_forehead at which the line counts as hidden; over what angle that passes.
_HALF_HIDDEN, _OPENING = 0.1, np.radians(5.0)
# Of the side: half the width of a parting laid in dense hair; how far to the sides of the middle it may lie.
_LAID_PARTING, _PARTING_TO = 0.012, np.radians(25.0)
# The strands that thinned hair is left with: finer than locks, so that scalp shows in lines between them.
_LEFT_STRANDS = StrandStyle(
    density=0.65, length=0.1, lock_width=0.008, strand_width=0.0022, lock_cover=2.0, clumping=0.5
)
# How much scalp shows through strands and, beyond that, between them; never more than _MOST. Of the side: how softly
# strands end, so that what lies between them is no scratch.
_THROUGH, _BETWEEN, _MOST, _STRAND_SOFTNESS = 0.45, 1.0, 0.8, 0.005
# How far the lightness of scalp goes from the forehead's to that of the hair around it: it lies in its shadow. Of the
# side: over what distance that is found.
_SHADOW, _SHADOW_SCALE = 0.3, 0.02
# Mean CIEDE2000 by which thinning has to change its places: less could not be told from the photo.
_LEAST_THINNING = 3.0

Area = Literal["parting", "crown", "temples", "all"]
MadeFrom = Literal["thin", "dense", "either"]


class Params(FeatureParams):
    """What to fill and how far.

    areas: the parting (narrow gaps away from the hairline), the crown (over the forehead), the temples, or all.
    made_from: people with thin hair, which is filled up; with dense hair, which is thinned out for a pair that runs
    backwards; or either, thin hair first.
    strength: share of the visible scalp that is to go; of dense hair, of the scalp that thinning may show. intensity:
    the degree, 0 no change, 1 all of it. seed: of the strands. Refused are portraits with a hat; whose hairline is
    found on less than min_found of the front or ragged by more than max_ragged eye distances; with min_forehead eye
    distances of skin below it on less than min_open of the front (elsewhere a fringe hides the line, and hair stays as
    it is). Thin hair is refused whose colour differs from the skin's by less than min_separation (Mahalanobis); that
    shows scalp on less than min_scalp of the area, so that nothing is thin, or more than max_scalp, so that there is no
    hair to thicken. Dense hair is refused on which thinning would hardly show, and whose colour differs from the skin's
    by less than min_dense_separation.
    """

    areas: Area = "all"
    made_from: MadeFrom = "thin"
    strength: float = Field(1.0, gt=0, le=1)
    intensity: float = Field(1.0, ge=0, le=1)
    seed: int = 0
    reference_px: int = Field(16, ge=4, le=256)
    min_found: float = Field(0.9, gt=0, le=1)
    max_ragged: float = Field(0.05, ge=0)
    min_forehead: float = Field(0.33, ge=0)
    min_open: float = Field(0.5, gt=0, le=1)
    min_separation: float = Field(6.0, ge=0)
    min_dense_separation: float = Field(4.2, ge=0)
    min_scalp: float = Field(0.04, ge=0, le=1)
    max_scalp: float = Field(0.35, ge=0, le=1)


def settled(portrait: Portrait, params: Params) -> Params:
    """The parameters with `made_from` thin or dense, as the portrait's hair is."""
    if params.made_from != "either":
        return params
    line = find_hairline(portrait)
    scalp = find_scalp(portrait, line)
    thinly, densely = (params.model_copy(update={"made_from": hair}) for hair in ("thin", "dense"))
    shown = _shown(scalp, _places(portrait, line, scalp, thinly))
    # Where hair cannot be told from scalp, what seems to show is none.
    return thinly if scalp.separation >= params.min_separation and shown >= params.min_scalp else densely


def directed(params: Params, backwards: bool) -> Params:
    """The parameters with `made_from` as a pair of this direction has it."""
    made_from = "dense" if backwards else "thin"
    return params.model_copy(update={"made_from": made_from}) if params.made_from == "either" else params


def sketch(portrait: Portrait, params: Params) -> Sketch:
    """The portrait with its thin places filled, or with dense hair thinned out.

    Raises SketchRefused where nothing is thin, hair cannot be told from scalp, or thinning would not show.
    """
    params = settled(portrait, params)
    line = find_hairline(portrait)
    scalp = find_scalp(portrait, line)
    _refuse_hat(portrait)
    refuse_unclear_hairline(portrait, line, params.min_found, params.max_ragged)
    refuse_hidden_hairline(portrait, line, params.min_forehead, params.min_open)
    place = _places(portrait, line, scalp, params)
    backwards = params.made_from == "dense"
    if backwards:
        _refuse_alike(portrait, scalp, "min_dense_separation", params.min_dense_separation)
    else:
        _refuse_unusable(portrait, scalp, place, params)
    whole, hair = _whole_edit(portrait, scalp, place, params)
    if backwards:
        _refuse_invisible_thinning(portrait, place, portrait.image.lerp(whole, params.strength))
    share = params.intensity * params.strength
    image = portrait.image.lerp(whole, share)
    mask = torch.maximum(feather(dilate((place > 0.05).float(), 0.008), 0.008), place).clamp(0, 1)
    mask = mask * min(1.0, params.intensity / _APPEARS)
    return Sketch(
        image=torch.where(mask > 0, image, portrait.image),
        edit_mask=mask,
        keep_mask=1 - feather(dilate((mask > 0.05).float(), _BAND), _BAND / 2),
        reference_px=min(params.reference_px, portrait.size_px),
        sketch_detail=1.0,
        harmony=0.0,  # strands and scalp of the photo's own colours
        label=None if backwards else portrait.label.masked_fill(share * place[0] > 0.5, CLASS["hair"]),
        hair=portrait.hair * (1 - share * hair) if backwards else torch.maximum(portrait.hair, share * hair),
        backwards=backwards,
    )


def measure(portrait: Portrait, seen: AnalysedPair, params: Params) -> dict[str, float]:
    """How much scalp is left and what it cost: the figures of the file's docstring."""
    portrait = portrait.resized(seen.before.size_px)
    params = settled(portrait, params)
    line = find_hairline(portrait)
    scalp = find_scalp(portrait, line)
    place = _places(portrait, line, scalp, params)
    full = portrait.image.lerp(_whole_edit(portrait, scalp, place, params)[0], params.strength)
    asked = portrait.image.lerp(full, params.intensity)
    photo, edited, goal, wanted = (srgb_to_lab(x) for x in (seen.before.image, seen.after.image, full, asked))
    area = scalp.area.sum().clamp_min(1e-6)
    before, after = (edited, photo) if params.made_from == "dense" else (photo, edited)
    shown = [float((scalp.shows(lab) * (place > 0)).sum() / area) for lab in (before, after)]
    weight = place / place.sum().clamp_min(1e-6)
    # The degree takes the share itself, not where it passes a threshold: it is straight in the colour.
    raw = [float((scalp.share(lab) * weight).sum()) for lab in (photo, edited, goal)]
    contrast = [inner_contrast(lab, place) for lab in (edited, wanted)]
    apart = delta_e_2000(blurred_by_share(edited, LOCKS), blurred_by_share(wanted, LOCKS))[None]
    return {
        "scalp_before": shown[0],
        "scalp_after": shown[1],
        "scalp_removed": 1 - shown[1] / max(shown[0], 1e-6),
        "texture_kept": contrast[0] / max(contrast[1], 1e-3),
        "fill_delta_e": float((apart * weight).sum()),
        "degree": (raw[0] - raw[1]) / (raw[0] - raw[2]) if abs(raw[0] - raw[2]) > _LEAST_CHANGE else math.nan,
    }


def _places(portrait: Portrait, line: Hairline, scalp: Scalp, params: Params) -> torch.Tensor:
    """Where the edit is made, and how strongly [1,H,W], 0 to 1: nowhere that a fringe hides the line."""
    places = _places_to_thin if params.made_from == "dense" else _thin_places
    return places(portrait, line, scalp, params) * _open(portrait, line, params)


def _open(portrait: Portrait, line: Hairline, params: Params) -> torch.Tensor:
    """Where the hairline at a pixel's angle is in the open [1,H,W], 0 to 1; beyond its front, as at the front's end."""
    known = line.filled()
    forehead = (known.line - known.brow) / eye_distance(portrait.points68)
    forehead = np.interp(np.clip(ANGLES, -FRONT, FRONT), ANGLES, forehead)
    seen = smoothed(np.clip((forehead - params.min_forehead) / _HALF_HIDDEN + 1, 0, 1), _OPENING)
    angle, *_ = pixels_by_line(line, portrait)
    return torch.from_numpy(np.interp(angle, ANGLES, seen)).to(portrait.hair)[None]


def _whole_edit(
    portrait: Portrait, scalp: Scalp, place: torch.Tensor, params: Params
) -> tuple[torch.Tensor, torch.Tensor]:
    """The image [3,H,W] with hair wholly filled up, or thinned out, at `place`; how much hair that adds, or takes
    [1,H,W]."""
    if params.made_from == "dense":
        between = _scalp_between(portrait, place, params)
        return _thinned(portrait, scalp, between).clamp(-1, 1), between
    return _filled(portrait, scalp, place, params).clamp(-1, 1), place


def _thin_places(portrait: Portrait, line: Hairline, scalp: Scalp, params: Params) -> torch.Tensor:
    """Where to fill [1,H,W]: scalp that shows, in the areas asked for."""
    lab = srgb_to_lab(portrait.image)
    shows = scalp.shows(lab) * scalp.redness(lab) * _plausible(portrait, line)
    if params.areas == "parting":
        # What an opening of the parting's width takes away is narrower than it; a parting is no hairline.
        shows = scalp.shows(lab)
        shows = (shows - dilate(dilate(shows, -_PARTING), _PARTING)).clamp_min(0) * (scalp.area >= 1)
    else:
        shows = shows * _in_areas(portrait, line, params)
    return blurred_by_share(shows, 0.004) * (scalp.area > 0)


def _places_to_thin(portrait: Portrait, line: Hairline, scalp: Scalp, params: Params) -> torch.Tensor:
    """Where dense hair is to show scalp, and how much [1,H,W]: most at the hairline, none at its ends."""
    rng = _rng(portrait, params)
    reach, parting = rng.uniform(*_THIN_REACH), rng.uniform(-_PARTING_TO, _PARTING_TO)
    angle, radius, _, at, _ = pixels_by_line(line, portrait)
    if params.areas == "parting":
        beside = radius * np.abs(np.sin(angle - parting)) / portrait.size_px
        share = np.clip(2 * (1 - beside / _LAID_PARTING), 0, 1) * (np.abs(angle - parting) < np.pi / 2)
        area = scalp.area
    else:
        depth = np.clip(1 - (radius - at) / (reach * portrait.size_px), 0, 1)
        share = depth * np.clip((_THIN_TO - np.abs(angle)) / _THIN_FADE, 0, 1)
        area = hair_area(portrait, line, _THIN_SOFTNESS, before=_THIN_SOFTNESS) * _in_areas(portrait, line, params)
    return torch.from_numpy(share).to(area)[None] * area


def _in_areas(portrait: Portrait, line: Hairline, params: Params) -> torch.Tensor:
    """The crown or the temples [1,H,W], soft where they meet; everything for all."""
    if params.areas not in {"crown", "temples"}:
        return torch.ones_like(portrait.hair)
    angle, *_ = pixels_by_line(line, portrait)
    temple = np.clip((np.abs(angle) - _TEMPLE) / _PASSAGE + 0.5, 0, 1)
    return torch.from_numpy(temple if params.areas == "temples" else 1 - temple).to(portrait.hair)[None]


def _plausible(portrait: Portrait, line: Hairline) -> torch.Tensor:
    """Where scalp is to be expected [1,H,W]: near the hairline, and wherever the matte is thin."""
    size_px = portrait.size_px
    _, radius, _, at, _ = pixels_by_line(line, portrait)
    near = np.clip((_BEYOND - (radius - at) / size_px) / (_BEYOND - _FRONTAL), 0, 1)
    thin = ((0.95 - blurred_by_share(portrait.hair, 0.006)) / 0.3).clamp(0, 1)
    return torch.maximum(torch.from_numpy(near).to(thin)[None], thin)


def _filled(portrait: Portrait, scalp: Scalp, place: torch.Tensor, params: Params) -> torch.Tensor:
    """The portrait's image with the scalp's share of colour taken out at `place`, and strands over it."""
    lab = srgb_to_lab(portrait.image)
    toned = lab_to_srgb(lab + (1.2 * place).clamp(max=1) * scalp.share(lab) * (scalp.hair - scalp.skin[:, None, None]))
    style = StrandStyle(length=_STRAND_LENGTH)
    strands, alpha = grow_hair(portrait, place, own_flow(portrait), style, _rng(portrait, params))
    return toned.lerp(strands, (_STRANDS_OVER * alpha * place).expand_as(toned))


def _thinned(portrait: Portrait, scalp: Scalp, share: torch.Tensor) -> torch.Tensor:
    """The portrait's image with that share of scalp [1,H,W] between its strands, whose own light and shade stay."""
    lab = srgb_to_lab(portrait.image)
    skin = scalp.skin[:, None, None]
    around = blurred_within_by_share(lab[:1], portrait.hair, _SHADOW_SCALE).minimum(skin[:1])
    light = skin[:1].lerp(around, _SHADOW)
    bare = torch.cat([light, in_shade(skin[1:].expand(-1, *light.shape[1:]), skin[:1], light)])
    # What is skin already, at the hairline, gets no lighter.
    return lab_to_srgb(lab + share * (1 - scalp.mixed(lab)) * (bare - scalp.hair))


def _scalp_between(portrait: Portrait, place: torch.Tensor, params: Params) -> torch.Tensor:
    """How much scalp is to show between the strands of dense hair [1,H,W]."""
    grown = dilate((place > 0).float(), 0.02)
    _, alpha = grow_hair(portrait, grown, own_flow(portrait), _LEFT_STRANDS, _rng(portrait, params))
    return (place * (_THROUGH + _BETWEEN * blurred_by_share(1 - alpha, _STRAND_SOFTNESS))).clamp(max=_MOST)


def _rng(portrait: Portrait, params: Params) -> np.random.Generator:
    return random_generator("density", params.seed, portrait.digest)


def _shown(scalp: Scalp, place: torch.Tensor) -> float:
    """The share of the hair on which scalp shows."""
    return float(place.sum() / scalp.area.sum().clamp_min(1e-6))


def _refuse_hat(portrait: Portrait) -> None:
    hat = float((portrait.label == CLASS["hat"]).float().mean())
    if hat > 0.005:
        raise SketchRefused(f"{portrait.name}: a hat covers {100 * hat:.1f} % of the crop; the hair is hidden")


def _refuse_alike(portrait: Portrait, scalp: Scalp, limit: str, least: float) -> None:
    if scalp.separation < least:
        raise SketchRefused(
            f"{portrait.name}: hair and skin are {scalp.separation:.3f} apart ({limit} {least:g}); "
            "scalp cannot be told from hair"
        )


def _refuse_unusable(portrait: Portrait, scalp: Scalp, place: torch.Tensor, params: Params) -> None:
    """Raises SketchRefused for hair that there is nothing to fill in, or too much."""
    name = portrait.name
    _refuse_alike(portrait, scalp, "min_separation", params.min_separation)
    shown = _shown(scalp, place)
    if shown < params.min_scalp:
        raise SketchRefused(
            f"{name}: scalp shows on {100 * shown:.3f} % of the hair ({params.areas}; min_scalp "
            f"{100 * params.min_scalp:g} %); nothing is thin"
        )
    if shown > params.max_scalp:
        raise SketchRefused(
            f"{name}: scalp shows on {100 * shown:.0f} % of the hair (max_scalp {100 * params.max_scalp:g} %); "
            "too little hair to thicken"
        )


def _refuse_invisible_thinning(portrait: Portrait, place: torch.Tensor, full: torch.Tensor) -> None:
    """Raises SketchRefused where the full edit [3,H,W] hardly changes the image, or there is no hair to thin out."""
    change = delta_e_2000(srgb_to_lab(portrait.image), srgb_to_lab(full))[None]
    seen = float((change * place).sum() / place.sum().clamp_min(1e-6))
    if seen < _LEAST_THINNING:
        raise SketchRefused(
            f"{portrait.name}: thinned out, its hair would change by CIEDE2000 {seen:.3f} "
            f"({_LEAST_THINNING:g} needed); scalp would not show in it"
        )
