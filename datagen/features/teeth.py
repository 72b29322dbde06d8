"""Teeth: whitened towards the white of the picture's own light, and evened in tone; lips and gums keep their colour.

Teeth are found by colour between the lips: how far a pixel lies from the lips' colour towards that of the lightest and
least red of the mouth. The sketch recolours them in Lab, so that their edges, gloss and shading stay the photo's.

Figures of `measure` (over the teeth, where their matte is over 0.5, unless said otherwise):
  degree             share of the full change (intensity 1) that was made, 0 none, 1 all: projected in Lab on the change
                     of the teeth's mean and of their unevenness
  yellowness_before, yellowness_after
                     mean b* against that of white in the picture's light; lower is whiter
  lightness_before, lightness_after
                     mean L*
  color_delta_e      CIEDE2000 between the wanted and the obtained mean colour; 0 is reached
  evenness           spread of colour and light over the teeth, at the scale of a tooth, after / before; 1 leaves it
  detail_kept        contrast of lightness finer than a tooth, after / before; 1 keeps edges and gloss
  spill_delta_e      mean CIEDE2000 between before and after over the lips and gums around; 0 is none
  clipped_share      share of the teeth that has a channel at 255 now and had not before
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from pydantic import Field, model_validator

from stylepairs.datagen.images.colors import delta_e_2000, lab_in_light, lab_to_srgb, srgb_to_lab
from stylepairs.datagen.images.filters import blurred_within, grown, mean_of
from stylepairs.datagen.portraits.landmarks import eye_distance
from stylepairs.datagen.portraits.light import light_of, refuse_print
from stylepairs.datagen.portraits.portrait import Portrait
from stylepairs.datagen.portraits.regions import class_region, eye_region, feather, mouth_region, polygon
from stylepairs.datagen.portraits.sketch import AnalysedPair, FeatureParams, Sketch, SketchRefused
from stylepairs.datagen.sketching.face.face_parts import widened

# Landmarks of the inner lips, from the subject's right to the left.
_INNER_UPPER, _INNER_LOWER = [61, 62, 63], [67, 66, 65]
# The white of the light: this share of the cast of the eyes' whites, which are a little yellow and red themselves.
_WHITE_SHARE = 0.5
# Full whiteness adds so much lightness, up to the ceiling, and leaves so much of the teeth's colour.
_LIGHTER, _LIGHTEST, _TINT_LEFT = 9.0, 88.0, 0.12
# Evening takes so much of the shading from tooth to tooth with it; all of it would look like a strip of paper.
_SHADING_EVENED = 0.5
# Of the eye distance: the scale of a tooth, and a band around the mouth in which landmarks and labels may err.
_TOOTH, _SLACK = 0.07, 0.03
_BAND = 0.02
# Teeth are whiter than lips by so much (in lightness less 1.2 times redness, and in redness a*) or are none.
_REDNESS, _MIN_WHITER, _MIN_LESS_RED, _LESS_RED_THAN_SKIN = 1.2, 8.0, 5.0, 4.0
# Of less red lips (skin) only by this share of their own redness: dark ones may have an a* of 6 (5) in all.
_ENOUGH_LESS_RED = 0.5
# Separate pieces smaller than this share of the largest are gloss on the lips.
_CRUMB_SHARE = 0.35
# Of the side: how far around the others their soft edges reach.
_CRUMB_EDGE = 1 / 128


class Params(FeatureParams):
    """How white and how even.

    whiteness: 0 keeps the teeth's own colour, 1 takes nearly all of the yellow and adds 9 L*. evenness: 0 keeps stains
    and darker teeth, 1 evens them out. intensity: the degree of both. Portraits are refused whose
    face's redness a* is less than min_redness, as in a print in one colour: teeth are told by theirs; whose inner lips
    are apart by less than min_opening of the eye distance: the mouth is closed, and what is light in it is gloss; whose
    teeth cover less than min_teeth_share of the square over the eye distance; and those whose teeth the full degree
    would change by less than min_change (CIEDE2000). reference_px: side of the downsampled sketch that reconstruction
    matches.
    """

    whiteness: float = Field(0.8, ge=0, le=1)
    evenness: float = Field(0.5, ge=0, le=1)
    intensity: float = Field(1.0, ge=0, le=1)
    min_redness: float = Field(4.5, ge=-128, le=127)
    min_opening: float = Field(0.06, ge=0, le=1)
    min_teeth_share: float = Field(0.02, ge=0, le=1)
    min_change: float = Field(1.5, ge=0)
    reference_px: int = Field(32, ge=8, le=256)

    @model_validator(mode="after")
    def _asks_for_something(self) -> Params:
        if self.whiteness == self.evenness == 0:
            raise ValueError("whiteness and evenness are both 0; ask for one of them")
        return self


def sketch(portrait: Portrait, params: Params) -> Sketch:
    """The portrait with whiter, evener teeth. Raises SketchRefused where no teeth are seen."""
    matte = teeth_matte(portrait)
    _refuse_unseen(portrait, matte, params)
    lab = srgb_to_lab(portrait.image)
    inside = matte * (matte > 0.5)
    change = float(delta_e_2000(mean_of(lab, inside), mean_of(_whitened(portrait, lab, matte, params, 1.0), inside)))
    if change < params.min_change:
        raise SketchRefused(
            f"{portrait.name}: the teeth are as white already (they would change by {change:.3f} CIEDE2000, "
            f"min_change {params.min_change:g})"
        )
    whiter = lab_to_srgb(_whitened(portrait, lab, matte, params, params.intensity)).clamp(-1, 1)
    return Sketch(
        image=torch.where(matte > 0, portrait.image + matte * (whiter - portrait.image), portrait.image),
        edit_mask=matte,
        keep_mask=1 - torch.maximum(feather(widened(matte, 1.5 * _BAND), _BAND / 2), matte),
        reference_px=min(params.reference_px, portrait.size_px),
        space="lab",
        photo_detail=1.0,
    )


def measure(portrait: Portrait, seen: AnalysedPair, params: Params) -> dict[str, float]:
    """How white and even the teeth became, and what it cost: the figures of the file's docstring."""
    matte = teeth_matte(portrait)
    inside = matte * (matte > 0.5)
    before, after = (srgb_to_lab(image) for image in (seen.before.image, seen.after.image))
    own = srgb_to_lab(portrait.image)
    full = _whitened(portrait, own, matte, params, 1.0)
    white = _white(portrait, own)
    low = [_low(lab, matte) for lab in (own, full, before, after)]
    change, whole = (low[3] - low[2]) * inside, (low[1] - low[0]) * inside
    wanted = mean_of(before + params.intensity * (full - own), inside)
    spread = [mean_of((one - mean_of(one, inside)).square(), inside).sum().sqrt() for one in low[2:]]
    detail = [
        mean_of((lab - smooth)[:1].square(), inside).sqrt() for lab, smooth in ((before, low[2]), (after, low[3]))
    ]
    around = class_region(portrait, ["u_lip", "l_lip", "mouth"], 0.0)
    around = widened(around, _BAND) * (1 - widened((matte > 0.02).float(), 1.01 / portrait.size_px))
    clipped = [(image.amax(0, keepdim=True) > 1 - 1 / 255) for image in (seen.before.image, seen.after.image)]
    figures = {
        "degree": (change * whole).sum() / whole.square().sum().clamp_min(1e-6),
        "yellowness_before": (mean_of(before, inside) - white)[2],
        "yellowness_after": (mean_of(after, inside) - white)[2],
        "lightness_before": mean_of(before, inside)[0],
        "lightness_after": mean_of(after, inside)[0],
        "color_delta_e": delta_e_2000(wanted, mean_of(after, inside)),
        "evenness": spread[1] / spread[0].clamp_min(1e-3),
        "detail_kept": detail[1] / detail[0].clamp_min(1e-3),
        "spill_delta_e": mean_of(delta_e_2000(before, after)[None], around),
        "clipped_share": mean_of((clipped[1] & ~clipped[0]).float(), inside),
    }
    return {name: float(value) for name, value in figures.items()}


def teeth_matte(portrait: Portrait) -> torch.Tensor:
    """The teeth [1,H,W], soft; all 0 where none are seen."""
    size = portrait.size_px
    eyes = eye_distance(portrait.points68) / size
    lab = lab_in_light(srgb_to_lab(portrait.image), 1 / light_of(portrait))  # as it would look in full light
    inside = _between_lips(portrait, eyes)
    lips = class_region(portrait, ["u_lip", "l_lip"], 0.0) * (1 - inside)
    if float(inside.sum()) < 4 or float(lips.sum()) < 4:
        return torch.zeros_like(inside)
    # Lightness and redness, both count; dark gaps and corners are neither lips nor teeth, but they are not light.
    whiteness = (lab[0] - _REDNESS * lab[1])[None]
    lip, bright = mean_of(whiteness, lips), whiteness[inside > 0.5]
    if len(bright) < 8:
        return torch.zeros_like(inside)
    tooth = bright.topk(len(bright) // 4).values.mean()
    likely = inside * (whiteness > (tooth + lip) / 2)
    lip_red = float(mean_of(lab, lips)[1])
    less_red = lip_red - float(mean_of(lab, likely)[1])
    if float(tooth - lip) < _MIN_WHITER or less_red < _less_red(_MIN_LESS_RED, lip_red):
        return torch.zeros_like(inside)
    share = ((whiteness - lip) / (tooth - lip)).clamp(0, 1)
    # Where landmarks err, skin lies between the lips they give: it is redder than teeth, if less than lips.
    skin = class_region(portrait, ["skin"], 0.0) * widened(mouth_region(portrait, 0.0), 0.15 * eyes)
    skin_red = mean_of(lab, skin)[1:2]
    not_skin = ((skin_red - lab[1:2]) / _less_red(_LESS_RED_THAN_SKIN, float(skin_red))).clamp(0, 1)
    matte = ((share - 0.3) / 0.4).clamp(0, 1) * not_skin
    matte = _without_crumbs(matte * matte * (3 - 2 * matte) * inside)
    return torch.where(matte > 1 / 255, matte, torch.zeros_like(matte))


def _refuse_unseen(portrait: Portrait, matte: torch.Tensor, params: Params) -> None:
    refuse_print(portrait, params.min_redness, "its teeth cannot be told from its lips")
    eyes, points = eye_distance(portrait.points68), portrait.points68
    opening = float((points[_INNER_UPPER] - points[_INNER_LOWER]).norm(dim=-1).mean()) / eyes
    if opening < params.min_opening:
        raise SketchRefused(
            f"{portrait.name}: the lips are {opening:.2f} eye distances apart (min_opening {params.min_opening:g}); "
            "the mouth is closed"
        )
    share = float(matte.sum()) / eyes**2
    if share < params.min_teeth_share:
        raise SketchRefused(
            f"{portrait.name}: teeth that differ from lips and skin in colour cover {100 * share:.1f} % of the eye "
            f"distance squared (min_teeth_share {100 * params.min_teeth_share:g} %); too little of them is to be seen"
        )


def _less_red(usual: float, own: float) -> float:
    """By how much less red than lips or skin of redness a* `own` teeth have to be: `usual`, of less red ones less."""
    return max(min(usual, _ENOUGH_LESS_RED * own), 1e-3)


def _without_crumbs(matte: torch.Tensor) -> torch.Tensor:
    """The matte [1,H,W] without separate pieces that are small beside the largest."""
    count, pieces = cv2.connectedComponents((matte[0] > 0.25).cpu().numpy().astype(np.uint8), connectivity=8)
    areas = np.bincount(pieces.ravel(), minlength=count)[1:]
    kept = [piece + 1 for piece in range(count - 1) if areas[piece] >= _CRUMB_SHARE * areas.max()]
    near = torch.from_numpy(np.isin(pieces, kept).astype(np.float32))[None].to(matte)
    return matte * grown(near, _CRUMB_EDGE * matte.shape[-1])


def _between_lips(portrait: Portrait, eyes: float) -> torch.Tensor:
    """Where teeth may be [1,H,W]: the mouth's class and the inner lips' outline, a little wider, inside the mouth."""
    inner = polygon(portrait, portrait.points68[60:68].cpu().numpy())
    inner = torch.maximum(inner, class_region(portrait, ["mouth"], 0.0))
    return feather(widened(inner, _SLACK * eyes), 0.5 / portrait.size_px) * mouth_region(portrait, 0.004)


def _whitened(
    portrait: Portrait, lab: torch.Tensor, matte: torch.Tensor, params: Params, degree: float
) -> torch.Tensor:
    """lab [3,H,W] with its teeth whitened and evened to `degree`; what lies outside the matte is of no meaning."""
    inside = matte * (matte > 0.5)
    mean, low, white = mean_of(lab, inside), _low(lab, matte), _white(portrait, lab)
    left = torch.ones(3, 1, 1).to(lab)
    left[0], left[1:] = 1 - _SHADING_EVENED * params.evenness, 1 - params.evenness
    even = lab - low + mean + left * (low - mean)
    target = white + (1 - (1 - _TINT_LEFT) * params.whiteness) * (mean - white)
    # Lighter as far as white teeth are in this light.
    light = light_of(portrait)
    full = lab_in_light(mean, 1 / light)
    lighter = full.clone()
    lighter[0] = torch.maximum(full[0], (full[0] + _LIGHTER * params.whiteness).clamp(max=_LIGHTEST))
    target[0] = lab_in_light(lighter, light)[0]
    return lab + degree * (even + target - mean - lab)


def _white(portrait: Portrait, lab: torch.Tensor) -> torch.Tensor:
    """White in the picture's light as Lab [3,1,1] (lightness 0, of no meaning), by the whites of the eyes."""
    pixels = lab[:, eye_region(portrait, feather_share=0.0)[0] > 0.5]
    if pixels.shape[1] < 3:
        return torch.zeros(3, 1, 1).to(lab)
    cast = pixels[:, pixels[0].topk(pixels.shape[1] // 3).indices].mean(1)[:, None, None]
    cast = _WHITE_SHARE * cast.clamp(-20, 20)
    cast[0] = 0
    return cast


def _low(lab: torch.Tensor, matte: torch.Tensor) -> torch.Tensor:
    """lab smoothed over the teeth alone, at the scale of a tooth."""
    sigma = _TOOTH * 0.25 * lab.shape[-1]  # an aligned crop's side is about four eye distances
    return blurred_within(lab, matte, sigma)
