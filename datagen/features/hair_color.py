"""Hair colour: another colour of the same hair, its strands and shading kept.

The sketch paints one flat colour over the soft hair matte, as rough as it looks: reconstruction matches it at low
resolution in Lab only. The wanted colour is that of the hair's *mean* in Lab (matte over 0.5), which is how `PALETTE`
is meant and how `measure` judges; a mean in linear light would follow the highlights instead of what is seen.

Figures of `measure` (all of the hair where the matte is over 0.5 unless said otherwise):
  color_delta_e   CIEDE2000 between the wanted and the obtained mean colour; the figure to gate on
  color_change    CIEDE2000 between the mean colour before and after
  degree          how far the mean went from its own colour to the full one, 0 none, 1 all the way; near 0 also where
                  the hair has the wanted colour already
  spill_delta_e   mean CIEDE2000 between before and after in a ring just outside the dilated matte; 0 is perfect
  detail_kept     local lightness contrast after / before (strands); 1 keeps it, 0 is flat paint
  shading_kept    spread of lightness over the hair after / before, at the scale of locks and light
  flat_share      share of the hair that has become flat paint (local contrast under a quarter of before's)
  clipped_share   share of the hair that has a channel at 0 or 255 now and had not before
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from kornia.filters import guided_blur
from pydantic import BaseModel, ConfigDict, Field, field_validator

from stylepairs.datagen.images.colors import color_to_lab, delta_e_2000, lab_to_srgb, parse_color, srgb_to_lab
from stylepairs.datagen.images.filters import blurred
from stylepairs.datagen.portraits.portrait import CLASS, Portrait
from stylepairs.datagen.portraits.sketch import AnalysedPair, Sketch, SketchRefused
from stylepairs.datagen.shell.errors import InputError
from stylepairs.datagen.sketching.face.soft_mattes import mean_of

# Of the crop's side: the neutral band around the matte, where neither the sketch nor the photo is enforced, so that no
# rim of the old colour is.
_BAND = 0.03
# Of the crop's side: the scale that parts strands (below) from locks and light (above).
_STRAND_SCALE = 0.015
_SHADING_SCALE = 0.04
# Matte values under this are haze of the matting, not hair.
_HAZE = 0.08
# Of the crop's side: how far the matte's edge may be from the image's.
_EDGE_SLACK = 0.024
# Separate pieces with less than this share of all hair are mistakes: spectacle straps, shadows on a collar.
_CRUMB_SHARE = 0.06
# Squared Lab distance of two colours under which going from one to the other counts as no change.
_TELLABLE = 25.0
# Classes in which no head hair can be, whatever the matte says. Not the brows: a fringe hides them, and what is left of
# them in the label map would punch holes into it.
_NEVER_HAIR = ("l_eye", "r_eye", "nose", "mouth", "u_lip", "l_lip", "hat")


class Params(BaseModel):
    """What to do with the hair.

    color: the mean colour wanted (palette name, "#rrggbb" or "r,g,b"). intensity: the degree, 0 own colour, 1 wanted.
    Portraits are refused whose hair covers less than min_hair_share of the crop, or whose matte is not to be trusted:
    it lies over more than max_on_face of the face below the brows, or has more than max_unsure half-transparent pixels
    for each that is hair (shaven heads, white hair on white). reference_px: side of the downsampled sketch that
    reconstruction matches.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    color: str = "blond"
    intensity: float = Field(1.0, ge=0, le=1)
    min_hair_share: float = Field(0.02, ge=0, lt=1)
    max_on_face: float = Field(0.15, ge=0, le=1)
    max_unsure: float = Field(1.1, ge=0)
    reference_px: int = Field(8, ge=4, le=256)

    @field_validator("color")
    @classmethod
    def _known_color(cls, value: str) -> str:
        try:
            parse_color(value)
        except InputError as error:
            raise ValueError(str(error)) from None
        return value


def sketch(portrait: Portrait, params: Params) -> Sketch:
    """The portrait with the wanted colour flat over its hair.

    Raises SketchRefused if there is (almost) no hair, or its matte is not to be trusted.
    """
    matte = hair_matte(portrait)
    _refuse_unusable(portrait, matte, params)
    lab = srgb_to_lab(portrait.image)
    flat = lab_to_srgb(wanted_lab(lab, matte, params))
    band_px = max(1, round(_BAND * portrait.size_px))
    return Sketch(
        image=portrait.image * (1 - matte) + flat * matte,
        edit_mask=matte,
        keep_mask=1 - _grown(matte, band_px),
        reference_px=min(params.reference_px, portrait.size_px),
        space="lab",
        photo_detail=1.0,
    )


def measure(portrait: Portrait, seen: AnalysedPair, params: Params) -> dict[str, float]:
    """How far the wanted colour was reached and what it cost: the figures of the file's docstring."""
    matte = hair_matte(portrait)
    inside = (matte > 0.5).float()
    before, after = seen.before.image, seen.after.image
    lab_before, lab_after = srgb_to_lab(before), srgb_to_lab(after)
    own, obtained = mean_of(lab_before, inside), mean_of(lab_after, inside)
    full = color_to_lab(parse_color(params.color), like=lab_before)
    strands = _contrast(lab_before, inside, _STRAND_SCALE), _contrast(lab_after, inside, _STRAND_SCALE)
    figures = {
        "color_delta_e": delta_e_2000(wanted_lab(lab_before, matte, params), obtained),
        "color_change": delta_e_2000(own, obtained),
        "degree": ((obtained - own) * (full - own)).sum() / (full - own).square().sum().clamp_min(_TELLABLE),
        "spill_delta_e": mean_of(delta_e_2000(lab_before, lab_after)[None], _ring(matte)),
        "detail_kept": mean_of(strands[1], inside) / mean_of(strands[0], inside).clamp_min(1e-3),
        "shading_kept": _spread(lab_after, inside) / _spread(lab_before, inside).clamp_min(1e-3),
        "flat_share": mean_of((strands[1] < 0.25 * strands[0]).float(), inside),
        "clipped_share": mean_of((_clipped(after) & ~_clipped(before)).float(), inside),
    }
    return {name: float(value) for name, value in figures.items()}


def hair_matte(portrait: Portrait) -> torch.Tensor:
    """The soft hair matte [1,H,W], its edge drawn to the image's, without haze, crumbs and what cannot be hair.

    A matte that is a pixel off leaves a rim of the old colour, so its edge is refined twice, by guided filtering (He,
    Sun, Tang 2010) and by where a pixel's colour lies between the hair's and the surroundings' colour nearby; but held
    near the given edge, because grey hair beside skin would let it run.
    """
    image, matte = portrait.image, _without_crumbs(_without_haze(portrait.hair))
    radius_px = max(1, round(_EDGE_SLACK * portrait.size_px))
    guided = _without_haze(guided_blur((image[None] + 1) / 2, matte[None], 2 * radius_px + 1, 1e-3)[0])
    slack_px = max(1, round(_EDGE_SLACK * portrait.size_px / 2))
    widest = _dilated(matte, slack_px)
    refined = torch.minimum(torch.maximum(guided, 1 - _dilated(1 - matte, slack_px)), widest)
    refined = torch.minimum(torch.maximum(refined, _share_by_color(image, refined)), widest)
    never = torch.zeros_like(refined[0], dtype=torch.bool)
    for name in _NEVER_HAIR:
        never |= portrait.label == CLASS[name]
    return refined * (1 - blurred(never[None].float(), 0.7)).clamp(0, 1)


def wanted_lab(lab: torch.Tensor, matte: torch.Tensor, params: Params) -> torch.Tensor:
    """The mean hair colour [3,1,1] in Lab that `params` ask for, mixed from the hair's own and the colour."""
    own = mean_of(lab, (matte > 0.5).float())
    return own + params.intensity * (color_to_lab(parse_color(params.color), like=lab) - own)


def _refuse_unusable(portrait: Portrait, matte: torch.Tensor, params: Params) -> None:
    share = float((matte > 0.5).float().mean())
    if share < params.min_hair_share:
        raise SketchRefused(
            f"{portrait.name}: hair covers only {100 * share:.1f} % of the crop "
            f"(min_hair_share {100 * params.min_hair_share:g} %); no hair to colour"
        )
    refuse_untrusted_matte(portrait, matte, params.max_on_face, params.max_unsure)


def refuse_untrusted_matte(portrait: Portrait, matte: torch.Tensor, max_on_face: float, max_unsure: float) -> None:
    """Raises SketchRefused where matte [1,H,W] lies on the face, or the given one is unsure (see Params)."""
    face = _face_below_brows(portrait)
    on_face = float((matte * face).sum() / face.sum().clamp_min(1))
    if on_face > max_on_face:
        raise SketchRefused(
            f"{portrait.name}: the hair matte covers {100 * on_face:.0f} % of the face "
            f"(max_on_face {100 * max_on_face:g} %); the matte is wrong"
        )
    unsure = _unsure_share(portrait.hair)
    if unsure > max_unsure:
        raise SketchRefused(
            f"{portrait.name}: {unsure:.2f} unsure pixels of the hair matte for each that is hair "
            f"(max_unsure {max_unsure:g}); the hair cannot be told from the rest"
        )


def _face_below_brows(portrait: Portrait) -> torch.Tensor:
    """The polygon of the jaw and the brows [1,H,W], 0 or 1."""
    corners = portrait.points68[[*range(17), 26, 25, 24, 19, 18, 17]].cpu().numpy()
    polygon = np.zeros(portrait.label.shape, np.uint8)
    cv2.fillPoly(polygon, [corners.round().astype(np.int32)], 1)
    return torch.from_numpy(polygon)[None].to(portrait.image)


def _unsure_share(hair: torch.Tensor) -> float:
    """Pixels of the given matte between 0.2 and 0.8 for each above 0.5, counted at one size as edges have a width."""
    fixed = F.interpolate(hair[None], size=(128, 128), mode="bilinear", antialias=True)
    return float(((fixed > 0.2) & (fixed < 0.8)).sum() / (fixed > 0.5).sum().clamp_min(1))


def _without_haze(matte: torch.Tensor) -> torch.Tensor:
    return ((matte - _HAZE) / (1 - 2 * _HAZE)).clamp(0, 1)


def _share_by_color(image: torch.Tensor, matte: torch.Tensor) -> torch.Tensor:
    """The share of hair [1,H,W] in each pixel near the edge, by its colour; the matte where colour says nothing."""
    sigma = max(1.0, _EDGE_SLACK * image.shape[-1])
    hair = 1 - _dilated((matte < 0.9).float(), 1)
    around = 1 - _dilated((matte > 0.1).float(), 1)
    hair_near, around_near = blurred(hair, sigma), blurred(around, sigma)
    hair_color = blurred(image * hair, sigma) / hair_near.clamp_min(1e-4)
    around_color = blurred(image * around, sigma) / around_near.clamp_min(1e-4)
    axis = hair_color - around_color
    length2 = axis.square().sum(0, keepdim=True)
    share = (((image - around_color) * axis).sum(0, keepdim=True) / length2.clamp_min(1e-4)).clamp(0, 1)
    # Colours closer than a tenth of the range (0.04 = 0.2^2 in [-1,1]) do not tell hair from the rest.
    trust = length2 / (length2 + 0.04) * ((hair_near > 1e-3) & (around_near > 1e-3))
    return trust * share + (1 - trust) * matte


def _dilated(x: torch.Tensor, radius_px: int) -> torch.Tensor:
    return F.max_pool2d(x[None], 2 * radius_px + 1, 1, radius_px)[0]


def _without_crumbs(matte: torch.Tensor) -> torch.Tensor:
    """The matte [1,H,W] without separate pieces that are too small to be hair."""
    count, pieces = cv2.connectedComponents((matte[0] > 0.25).cpu().numpy().astype(np.uint8), connectivity=8)
    areas = np.bincount(pieces.ravel(), minlength=count)
    small = [piece for piece in range(1, count) if areas[piece] < _CRUMB_SHARE * areas[1:].sum()]
    crumbs = torch.from_numpy(np.isin(pieces, small)).to(matte.device)[None].float()
    return matte * (1 - _dilated(crumbs, 1))


def _contrast(lab: torch.Tensor, inside: torch.Tensor, scale: float) -> torch.Tensor:
    """Local standard deviation of lightness against its surroundings within the hair [1,H,W]."""
    sigma = max(0.8, scale * lab.shape[-1])
    light = lab[:1]
    detail = light - blurred(light * inside, sigma) / blurred(inside, sigma).clamp_min(1e-3)
    return (blurred(detail.square() * inside, 2 * sigma) / blurred(inside, 2 * sigma).clamp_min(1e-3)).sqrt()


def _spread(lab: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """Standard deviation over the hair of the lightness smoothed at the scale of locks."""
    sigma = _SHADING_SCALE * lab.shape[-1]
    smooth = blurred(lab[:1] * inside, sigma) / blurred(inside, sigma).clamp_min(1e-3)
    return mean_of((smooth - mean_of(smooth, inside)).square(), inside).sqrt()


def _ring(matte: torch.Tensor) -> torch.Tensor:
    """A ring just outside the dilated matte [1,H,W], as wide as the neutral band."""
    band_px = max(1, round(_BAND * matte.shape[-1]))
    inner = _dilated((matte > 0.02).float(), 1)
    return _dilated(inner, band_px) - inner


def _grown(matte: torch.Tensor, radius_px: int) -> torch.Tensor:
    """The matte dilated by radius_px, its new edge softened over about the same width outwards."""
    return torch.maximum(blurred(_dilated(matte, radius_px + (radius_px + 1) // 2), radius_px / 2), matte).clamp(0, 1)


def _clipped(image: torch.Tensor) -> torch.Tensor:
    """Pixels [1,H,W] with a channel that rounds to 0 or 255."""
    return (image.abs() > 1 - 1 / 255).any(0, keepdim=True)
