"""Blush: a rosy tint on both cheeks, the skin's own texture kept.

Figures of `measure`:
  degree          how far the cheeks' mean colour went from their own to that of intensity 1, 0 none, 1 all the way
  tint_delta_e    CIEDE2000 between the wanted and the obtained mean colour of the cheeks
  spill_delta_e   mean CIEDE2000 between before and after on the rest of the face; 0 is perfect
"""

from __future__ import annotations

import torch
from pydantic import Field

from stylepairs.datagen.images.colors import delta_e_2000, lab_to_srgb, srgb_to_lab
from stylepairs.datagen.portraits.portrait import Portrait
from stylepairs.datagen.portraits.regions import class_region, dilate, face_region
from stylepairs.datagen.portraits.sketch import AnalysedPair, FeatureParams, Sketch, SketchRefused

# What a full blush adds to the skin's colour in Lab: a little darker, much redder, a touch yellower.
_TINT = torch.tensor([-4.0, 16.0, 4.0])[:, None, None]


class Params(FeatureParams):
    """size: a cheek's radius as a share of the distance between the eyes. intensity: the degree, 0 none, 1 full.

    reference_px: side of the downsampled sketch that reconstruction matches.
    """

    size: float = Field(0.45, ge=0.2, le=0.8)
    intensity: float = Field(1.0, ge=0, le=1)
    reference_px: int = Field(16, ge=4, le=256)


def sketch(portrait: Portrait, params: Params) -> Sketch:
    """The portrait with both cheeks tinted. Raises SketchRefused where hardly any cheek is to be seen."""
    cheeks = _cheeks(portrait, params)
    if float((cheeks > 0.5).float().mean()) < 0.002:
        raise SketchRefused(f"{portrait.name}: no cheek to be seen")
    tinted = lab_to_srgb(srgb_to_lab(portrait.image) + params.intensity * cheeks * _TINT).clamp(-1, 1)
    return Sketch(
        image=torch.where(cheeks > 0, tinted, portrait.image),  # exactly the photo where nothing is edited
        edit_mask=cheeks,
        keep_mask=1 - dilate(cheeks, 0.02),
        reference_px=min(params.reference_px, portrait.size_px),
        space="lab",  # lightness and colour are compared apart: shading stays free
        photo_detail=1.0,  # the texture is the photo's own
    )


def measure(portrait: Portrait, seen: AnalysedPair, params: Params) -> dict[str, float]:
    """How rosy the cheeks became, and what else did."""
    cheeks = _cheeks(portrait, params)
    before, after = srgb_to_lab(seen.before.image), srgb_to_lab(seen.after.image)
    own, obtained, full = (_mean(lab, cheeks) for lab in (before, after, before + cheeks * _TINT))
    rest = face_region(portrait) * (dilate(cheeks, 0.04) < 0.01)
    figures = {
        "degree": ((obtained - own) * (full - own)).sum() / (full - own).square().sum().clamp_min(1e-6),
        "tint_delta_e": delta_e_2000(own + params.intensity * (full - own), obtained),
        "spill_delta_e": _mean(delta_e_2000(before, after)[None], rest),
    }
    return {name: float(value) for name, value in figures.items()}


def _cheeks(portrait: Portrait, params: Params) -> torch.Tensor:
    """Two soft discs [1,H,W] below the eyes and beside the nose, on skin only."""
    points = portrait.points68
    right_eye, left_eye, nose = points[36:42].mean(0), points[42:48].mean(0), points[33]
    apart, level = left_eye - right_eye, (right_eye + left_eye) / 2
    at = torch.arange(portrait.size_px, device=points.device).float()
    soft = torch.zeros_like(portrait.hair)
    for side in (-1, 1):
        centre = nose + 0.1 * (level - nose) + side * 0.62 * apart
        away = ((at[None, :] - centre[0]).square() + (at[:, None] - centre[1]).square()).sqrt()
        soft = torch.maximum(soft, (1 - away[None] / (params.size * apart.norm())).clamp(0, 1))
    soft = soft * soft * (3 - 2 * soft)
    return soft * class_region(portrait, ["skin"]) * (1 - portrait.hair)


def _mean(values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Weighted mean over the pixels: [C,H,W] with [1,H,W] -> [C,1,1]."""
    return (values * weight).sum((-2, -1), keepdim=True) / weight.sum().clamp_min(1e-6)
