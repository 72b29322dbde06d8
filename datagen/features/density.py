"""Density: hair filled up where scalp shows through, at the parting, the crown and the temples.

Scalp is told from hair by colour: the direction in Lab that best parts the forehead's skin from the person's dense hair
(Fisher's linear discriminant, 1936), zero at the colour of the dense hair nearby, so that grey sides are hair too.
Where it shows between hairline and outline, its share of the colour is taken out, which leaves the strands that are
there in place, and strands of the own hair are painted over it.

Figures of `measure`:
  scalp_before   share of the area between hairline and outline that shows scalp (soft count), in the photo
  scalp_after    the same in the after image, by the photo's colours; lower is better
  scalp_removed  share of the visible scalp that is gone, 1 all of it
  texture_kept   local contrast of the filled places, after / sketch; 0 is flat paint
  fill_delta_e   CIEDE2000 between after and sketch over the filled places, both at the scale of locks
  degree         scalp gone as a share of what the full change takes away; 0 none, 1 all; NaN where nothing is thin
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from pydantic import Field

from stylepairs.datagen.images.colors import delta_e_2000, lab_to_srgb, srgb_to_lab
from stylepairs.datagen.portraits.portrait import CLASS, Portrait
from stylepairs.datagen.portraits.regions import dilate, feather
from stylepairs.datagen.portraits.sketch import AnalysedPair, FeatureParams, Sketch, SketchRefused
from stylepairs.datagen.shell.randomness import random_generator
from stylepairs.datagen.sketching.hair.hairline_curve import (
    ANGLES,
    Hairline,
    find_hairline,
    refuse_unclear_hairline,
    smoothed,
)
from stylepairs.datagen.sketching.hair.rays import pixels_polar
from stylepairs.datagen.sketching.hair.strands import grow_hair, own_flow
from stylepairs.datagen.sketching.hair.strokes import StrandStyle
from stylepairs.datagen.sketching.tools.texture import LOCKS, blurred, inner_contrast

# Of the side: how softly the area begins at the hairline, which is to stay as it is, and ends at the outline.
_LINE_SOFTNESS, _OUTLINE_SOFTNESS = 0.028, 0.012
# Scalp counts from this share on, and wholly from that one: between strands there is always some shade of skin.
_SHOWS, _BARE = 0.2, 0.5
# Of the side: up to here from the hairline thin hair is looked for, fading out at the second; further away only
# partings and what the analyser takes for thin, because light locks and shine look like skin.
_FRONTAL, _BEYOND = 0.04, 0.09
# Scalp is red besides being light: from this share of the way to the skin's a* on a place counts wholly.
_REDNESS = 0.4
# Of the side: how far dense hair speaks for the colour of the hair around it.
_NEARBY = 0.06
# How opaque the painted strands lie over fully bare scalp.
_STRANDS_OVER = 0.45
# Of the side: how long they are; what is narrower than twice this is a parting.
_STRAND_LENGTH, _PARTING = 0.07, 0.02
# Angles from straight up at which the crown passes into the temples, and the width of that passage.
_TEMPLE, _PASSAGE = np.radians(40.0), np.radians(8.0)
_BAND = 0.02
# Mean share of scalp that the full change has to take away from its places, or no degree of it is told.
_LEAST_CHANGE = 0.02

Area = Literal["parting", "crown", "temples", "all"]


class Params(FeatureParams):
    """What to fill and how far.

    areas: the parting (narrow gaps away from the hairline), the crown (over the forehead), the temples, or all.
    strength: share of the visible scalp that is to go. intensity: the degree, 0 no change, 1 all of it. seed: of the
    strands. Refused are portraits with a hat; whose hairline is found on less than min_found of the front or ragged by
    more than max_ragged eye distances; whose hair and skin differ by less than min_separation (Mahalanobis); that show
    scalp on less than min_scalp of the area, so that nothing is thin, or more than max_scalp, so that there is no hair
    to thicken.
    """

    areas: Area = "all"
    strength: float = Field(1.0, gt=0, le=1)
    intensity: float = Field(1.0, ge=0, le=1)
    seed: int = 0
    reference_px: int = Field(16, ge=4, le=256)
    min_found: float = Field(0.9, gt=0, le=1)
    max_ragged: float = Field(0.05, ge=0)
    min_separation: float = Field(6.0, ge=0)
    min_scalp: float = Field(0.04, ge=0, le=1)
    max_scalp: float = Field(0.35, ge=0, le=1)


@dataclass(frozen=True)
class Scalp:
    """How scalp is told from hair in a portrait: area [1,H,W] between hairline and outline; hair [3,H,W] colour of the
    dense hair nearby and skin [3], in Lab; axis [3] from one to the other, to be multiplied with colours; separation:
    Mahalanobis distance of the two."""

    area: torch.Tensor
    hair: torch.Tensor
    skin: torch.Tensor
    axis: torch.Tensor
    separation: float

    def share(self, lab: torch.Tensor) -> torch.Tensor:
        """The share of scalp [1,H,W] in colours lab [3,H,W], 0 dense hair, 1 skin, over a strand's width."""
        away = self.skin[:, None, None] - self.hair
        axis = self.axis[:, None, None]
        whole = (away * axis).sum(0, keepdim=True).clamp_min(0.25 * self.separation**2)
        return blurred((((lab - self.hair) * axis).sum(0, keepdim=True) / whole).clamp(0, 1), 0.008)

    def shows(self, lab: torch.Tensor) -> torch.Tensor:
        """Where scalp shows within the area [1,H,W], 0 to 1."""
        return self.area * ((self.share(lab) - _SHOWS) / (_BARE - _SHOWS)).clamp(0, 1)

    def redness(self, lab: torch.Tensor) -> torch.Tensor:
        """Where a* is as much the skin's as scalp would make it [1,H,W], 0 to 1: fair locks and shine are not."""
        whole = (self.skin[1] - self.hair[1:2]).clamp_min(2.0)
        return (blurred((lab[1:2] - self.hair[1:2]) / whole, 0.012) / _REDNESS).clamp(0, 1)


def sketch(portrait: Portrait, params: Params) -> Sketch:
    """The portrait with its thin places filled.

    Raises SketchRefused where nothing is thin, or hair cannot be told from scalp.
    """
    line = find_hairline(portrait)
    scalp = find_scalp(portrait, line)
    place = _thin_places(portrait, line, scalp, params)
    _refuse_unusable(portrait, line, scalp, place, params)
    image = _filled(portrait, scalp, place, params)
    mask = torch.maximum(feather(dilate((place > 0.05).float(), 0.008), 0.008), place).clamp(0, 1)
    return Sketch(
        image=torch.where(mask > 0, image, portrait.image),
        edit_mask=mask,
        keep_mask=1 - feather(dilate((mask > 0.05).float(), _BAND), _BAND / 2),
        reference_px=min(params.reference_px, portrait.size_px),
        sketch_detail=1.0,
        label=torch.where(place[0] > 0.5, torch.full_like(portrait.label, CLASS["hair"]), portrait.label),
        hair=torch.maximum(portrait.hair, params.intensity * params.strength * place),
    )


def measure(portrait: Portrait, seen: AnalysedPair, params: Params) -> dict[str, float]:
    """How much scalp is left and what it cost: the figures of the file's docstring."""
    portrait = portrait.resized(seen.before.size_px)
    line = find_hairline(portrait)
    scalp = find_scalp(portrait, line)
    place = _thin_places(portrait, line, scalp, params)
    full = _filled(portrait, scalp, place, params.model_copy(update={"intensity": 1.0}))
    asked = portrait.image.lerp(full, params.intensity)
    before, after, goal, wanted = (srgb_to_lab(x) for x in (seen.before.image, seen.after.image, full, asked))
    area = scalp.area.sum().clamp_min(1e-6)
    shown = [float((scalp.shows(lab) * (place > 0)).sum() / area) for lab in (before, after, goal)]
    weight = place / place.sum().clamp_min(1e-6)
    # The degree takes the share itself, not where it passes a threshold: it is straight in the colour.
    raw = [float((scalp.share(lab) * weight).sum()) for lab in (before, after, goal)]
    contrast = [inner_contrast(lab, place) for lab in (after, wanted)]
    apart = delta_e_2000(blurred(after, LOCKS), blurred(wanted, LOCKS))[None]
    return {
        "scalp_before": shown[0],
        "scalp_after": shown[1],
        "scalp_removed": 1 - shown[1] / max(shown[0], 1e-6),
        "texture_kept": contrast[0] / max(contrast[1], 1e-3),
        "fill_delta_e": float((apart * weight).sum()),
        "degree": (raw[0] - raw[1]) / (raw[0] - raw[2]) if raw[0] - raw[2] > _LEAST_CHANGE else math.nan,
    }


def find_scalp(portrait: Portrait, line: Hairline) -> Scalp:
    """What tells scalp from hair in this portrait, learned from its forehead and its dense hair.

    Raises SketchRefused where there is too little of either.
    """
    lab = srgb_to_lab(portrait.image)
    if not line.found.any():
        raise SketchRefused(f"{portrait.name}: no hairline is found; bald, or hidden")
    area, forehead = _area(portrait, line), _forehead(portrait, line)
    inside = (area * portrait.hair > 0.8)[0]
    least = 2e-4 * inside.numel()
    if forehead.sum() < least or inside.sum() < least:
        raise SketchRefused(f"{portrait.name}: too little forehead or hair to tell one from the other")
    skin, hair = lab[:, forehead], lab[:, inside]
    # Twice: what shows scalp itself is no example of dense hair.
    for _ in range(2):
        axis, separation = _discriminant(skin, hair)
        share = axis @ (hair - hair.mean(1, keepdim=True)) / separation**2
        hair = hair[:, share <= torch.quantile(share, 0.85)]
    axis, separation = _discriminant(skin, hair)
    typical = hair.mean(1)[:, None, None]
    share = (axis[:, None, None] * (lab - typical)).sum(0, keepdim=True) / separation**2
    dense = (area * portrait.hair) * (1 - share / 0.5).clamp(0, 1)
    # A little of the typical colour everywhere, for places with no dense hair around them.
    near = (blurred(lab * dense, _NEARBY) + 0.02 * typical) / (blurred(dense, _NEARBY) + 0.02)
    return Scalp(area, near, skin.mean(1), axis, separation)


def _discriminant(skin: torch.Tensor, hair: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Fisher's axis [3] of colours [3,N], scaled so that axis . (skin - hair) is distance^2; the distance."""
    # Four units of Lab are no difference between a person's hair and skin.
    spread = 0.5 * torch.cov(skin) + 0.5 * torch.cov(hair) + 4.0 * torch.eye(3).to(skin)
    apart = skin.mean(1) - hair.mean(1)
    axis = torch.linalg.solve(spread, apart)
    return axis, max(float(axis @ apart), 1e-6) ** 0.5


def _polar(line: Hairline, portrait: Portrait) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Angle and radius of every pixel, and brow, line and outline at its angle; [H,W] each."""
    known = line.filled()
    angle, radius = (values.cpu().numpy() for values in pixels_polar(line.frame, portrait))
    brow, at, outline = (
        np.interp(angle, ANGLES, smoothed(values, np.radians(3))) for values in (known.brow, known.line, known.outline)
    )
    return angle, radius, brow, at, outline


def _area(portrait: Portrait, line: Hairline) -> torch.Tensor:
    """Between hairline and outline [1,H,W], soft at both, where the analyser sees hair, be it thin."""
    size_px = portrait.size_px
    angle, radius, _, at, outline = _polar(line, portrait)
    above = np.clip((radius - at) / (_LINE_SOFTNESS * size_px), 0, 1)
    below = np.clip((outline - radius) / (_OUTLINE_SOFTNESS * size_px), 0, 1)
    inside = torch.from_numpy(above * below * (np.abs(angle) <= ANGLES[-1])).to(portrait.image)[None]
    return inside * ((blurred(portrait.hair, 0.012) - 0.25) / 0.35).clamp(0, 1)


def _forehead(portrait: Portrait, line: Hairline) -> torch.Tensor:
    """Bare skin between brows and hairline, bool [H,W]."""
    size_px = portrait.size_px
    angle, radius, brow, at, _ = _polar(line, portrait)
    between = (radius > brow) & (radius < at - 0.02 * size_px) & (np.abs(angle) <= np.radians(50))
    skin = (portrait.label == CLASS["skin"]) & (portrait.hair[0] < 0.1)
    return torch.from_numpy(between).to(skin.device) & skin


def _thin_places(portrait: Portrait, line: Hairline, scalp: Scalp, params: Params) -> torch.Tensor:
    """Where to fill [1,H,W]: scalp that shows, in the areas asked for."""
    lab = srgb_to_lab(portrait.image)
    shows = scalp.shows(lab) * scalp.redness(lab) * _plausible(portrait, line)
    if params.areas == "parting":
        # What an opening of the parting's width takes away is narrower than it; a parting is no hairline.
        shows = scalp.shows(lab)
        shows = (shows - dilate(dilate(shows, -_PARTING), _PARTING)).clamp_min(0) * (scalp.area >= 1)
    elif params.areas != "all":
        angle, *_ = _polar(line, portrait)
        temple = np.clip((np.abs(angle) - _TEMPLE) / _PASSAGE + 0.5, 0, 1)
        shows = shows * torch.from_numpy(temple if params.areas == "temples" else 1 - temple).to(shows)
    return blurred(shows, 0.004) * (scalp.area > 0)


def _plausible(portrait: Portrait, line: Hairline) -> torch.Tensor:
    """Where scalp is to be expected [1,H,W]: near the hairline, and wherever the matte is thin."""
    size_px = portrait.size_px
    _, radius, _, at, _ = _polar(line, portrait)
    near = np.clip((_BEYOND - (radius - at) / size_px) / (_BEYOND - _FRONTAL), 0, 1)
    thin = ((0.95 - blurred(portrait.hair, 0.006)) / 0.3).clamp(0, 1)
    return torch.maximum(torch.from_numpy(near).to(thin)[None], thin)


def _filled(portrait: Portrait, scalp: Scalp, place: torch.Tensor, params: Params) -> torch.Tensor:
    """The portrait's image with the scalp's share of colour taken out at `place`, and strands over it."""
    lab = srgb_to_lab(portrait.image)
    toned = lab_to_srgb(lab + (1.2 * place).clamp(max=1) * scalp.share(lab) * (scalp.hair - scalp.skin[:, None, None]))
    rng = random_generator("density", params.seed, portrait.digest)
    strands, alpha = grow_hair(portrait, place, own_flow(portrait), StrandStyle(length=_STRAND_LENGTH), rng)
    full = toned.lerp(strands, (_STRANDS_OVER * alpha * place).expand_as(toned))
    return portrait.image.lerp(full.clamp(-1, 1), params.intensity * params.strength)


def _refuse_unusable(portrait: Portrait, line: Hairline, scalp: Scalp, place: torch.Tensor, params: Params) -> None:
    name = portrait.name
    hat = float((portrait.label == CLASS["hat"]).float().mean())
    if hat > 0.005:
        raise SketchRefused(f"{name}: a hat covers {100 * hat:.1f} % of the crop; the hair is hidden")
    refuse_unclear_hairline(portrait, line, params.min_found, params.max_ragged)
    if scalp.separation < params.min_separation:
        raise SketchRefused(
            f"{name}: hair and skin are {scalp.separation:.1f} apart (min_separation {params.min_separation:g}); "
            "scalp cannot be told from hair"
        )
    shown = float(place.sum() / scalp.area.sum().clamp_min(1e-6))
    if shown < params.min_scalp:
        raise SketchRefused(
            f"{name}: scalp shows on {100 * shown:.1f} % of the hair ({params.areas}; min_scalp "
            f"{100 * params.min_scalp:g} %); nothing is thin"
        )
    if shown > params.max_scalp:
        raise SketchRefused(
            f"{name}: scalp shows on {100 * shown:.0f} % of the hair (max_scalp {100 * params.max_scalp:g} %); "
            "too little hair to thicken"
        )
