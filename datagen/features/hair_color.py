"""Hair colour: another colour of the same hair, its strands and shading kept.

The sketch paints one colour over the soft hair matte, in the light and shade of the hair's locks, as rough as it looks:
reconstruction matches it at low resolution in Lab only. The wanted colour is that of the hair's *mean* in Lab (matte
over 0.8: what is half skin tells nothing of hair), which is how `PALETTE` is meant and how `measure` judges; a mean in
linear light would follow the highlights instead of what is seen. In a dark or overexposed photo it is the colour as it
looks in that light (`light_of`).

Figures of `measure` (all of the hair where the matte is over 0.8 unless said otherwise):
  color_delta_e   CIEDE2000 between the wanted and the obtained mean colour; the figure to gate on
  color_change    CIEDE2000 between the mean colour before and after
  degree          how far the mean went from its own colour to the full one, 0 none, 1 all the way; near 0 also where
                  the hair has the wanted colour already
  spill_delta_e   mean CIEDE2000 between before and after in a ring just outside the dilated matte; 0 is perfect
  detail_kept     local lightness contrast after / before (strands); 1 keeps it, 0 is flat paint
  shading_kept    spread of lightness over the hair after / before, at the scale of locks and light
  flat_share      share of the hair that has become flat paint (local contrast under a quarter of before's)
  clipped_share   share of the hair that has a channel at 0 or 255 now and had not before
  light           what `light_of` judges: 1 for a well exposed photo
"""

from __future__ import annotations

from functools import partial

import torch
from pydantic import Field, field_validator

from stylepairs.datagen.images.colors import (
    color_to_lab,
    delta_e_2000,
    is_of_one_tone,
    lab_in_light,
    lab_to_paled_srgb,
    parse_color,
    srgb_to_lab,
)
from stylepairs.datagen.images.filters import blurred, grown, mean_of
from stylepairs.datagen.images.tones import in_shade, toned_to
from stylepairs.datagen.portraits.light import light_of
from stylepairs.datagen.portraits.portrait import Portrait
from stylepairs.datagen.portraits.sketch import AnalysedPair, FeatureParams, Sketch, SketchRefused
from stylepairs.datagen.shell.errors import InputError
from stylepairs.datagen.sketching.hair.hair_matte import hair_matte, refuse_untrusted_matte
from stylepairs.datagen.sketching.tools.texture import blurred_within_by_share

# Of the crop's side: the neutral band around the matte, where neither the sketch nor the photo is enforced, so that no
# rim of the old colour is.
_BAND = 0.03
# The matte over which a pixel is hair and nothing else.
_SOLID = 0.8
# Of the crop's side: the scale that parts strands (below) from locks and light (above).
_STRAND_SCALE = 0.015
_SHADING_SCALE = 0.04
# Squared Lab distance of two colours under which going from one to the other counts as no change.
_TELLABLE = 25.0


class Params(FeatureParams):
    """What to do with the hair.

    color: the mean colour wanted (palette name, "#rrggbb" or "r,g,b"). intensity: the degree, 0 own colour, 1 wanted.
    Portraits are refused whose hair covers less than min_hair_share of the crop, or whose matte is not to be trusted:
    it lies over more than max_on_face of the face below the brows, or has more than max_unsure half-transparent pixels
    for each that is hair (shaven heads, white hair on white); so are black-and-white pictures. reference_px: side of
    the downsampled sketch that reconstruction matches.
    """

    color: str = "blond"
    intensity: float = Field(1.0, ge=0, le=1)
    min_hair_share: float = Field(0.02, ge=0, lt=1)
    max_on_face: float = Field(0.25, ge=0, le=1)
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
    """The portrait with the wanted colour over its hair.

    Raises SketchRefused if there is (almost) no hair, or its matte is not to be trusted.
    """
    matte = hair_matte(portrait)
    _refuse_unusable(portrait, matte, params)
    lab = srgb_to_lab(portrait.image)
    painted = lab_to_paled_srgb(_shaded(lab, matte, wanted_lab(lab, matte, params, light_of(portrait))))
    return Sketch(
        image=portrait.image * (1 - matte) + painted * matte,
        edit_mask=matte,
        keep_mask=1 - _grown(matte),
        reference_px=min(params.reference_px, portrait.size_px),
        space="lab",
        photo_detail=1.0,
    )


def measure(portrait: Portrait, seen: AnalysedPair, params: Params) -> dict[str, float]:
    """How far the wanted colour was reached and what it cost: the figures of the file's docstring."""
    matte = hair_matte(portrait)
    inside = _solid(matte)
    before, after = seen.before.image, seen.after.image
    lab_before, lab_after = srgb_to_lab(before), srgb_to_lab(after)
    own, obtained = mean_of(lab_before, inside), mean_of(lab_after, inside)
    light = light_of(portrait)
    full = lab_in_light(color_to_lab(parse_color(params.color), like=lab_before), light)
    strands = _contrast(lab_before, inside), _contrast(lab_after, inside)
    rim = grown((matte > 0.02).float(), 1)
    figures = {
        "color_delta_e": delta_e_2000(wanted_lab(lab_before, matte, params, light), obtained),
        "color_change": delta_e_2000(own, obtained),
        "degree": ((obtained - own) * (full - own)).sum() / (full - own).square().sum().clamp_min(_TELLABLE),
        "spill_delta_e": mean_of(delta_e_2000(lab_before, lab_after)[None], grown(rim, _band_px(matte)) - rim),
        "detail_kept": mean_of(strands[1], inside) / mean_of(strands[0], inside).clamp_min(1e-3),
        "shading_kept": _spread(_locks(lab_after, inside), inside)
        / _spread(_locks(lab_before, inside), inside).clamp_min(1e-3),
        "flat_share": mean_of((strands[1] < 0.25 * strands[0]).float(), inside),
        "clipped_share": mean_of((_clipped(after) & ~_clipped(before)).float(), inside),
        "light": torch.tensor(light),
    }
    return {name: float(value) for name, value in figures.items()}


def wanted_lab(lab: torch.Tensor, matte: torch.Tensor, params: Params, light: float = 1.0) -> torch.Tensor:
    """The mean hair colour [3,1,1] in Lab that `params` ask for in `light`, mixed from own and wanted colour."""
    own = mean_of(lab, _solid(matte))
    return own + params.intensity * (lab_in_light(color_to_lab(parse_color(params.color), like=lab), light) - own)


def _shaded(lab: torch.Tensor, matte: torch.Tensor, color: torch.Tensor) -> torch.Tensor:
    """color [3,1,1] in the light and shade of the own hair's locks [3,H,W], both in Lab; its mean is color."""
    inside = _solid(matte)
    light = toned_to(_locks(lab, inside), color[:1], partial(mean_of, weight=inside))
    return torch.cat([light, in_shade(color[1:].expand(-1, *light.shape[1:]), color[:1], light)])


def _solid(matte: torch.Tensor) -> torch.Tensor:
    """Where there is hair and nothing else, 1 or 0; where most is hair, if that is nowhere."""
    solid = (matte > _SOLID).float()
    return solid if bool(solid.any()) else (matte > 0.5).float()


def _refuse_unusable(portrait: Portrait, matte: torch.Tensor, params: Params) -> None:
    share = float((matte > 0.5).float().mean())
    if share < params.min_hair_share:
        raise SketchRefused(
            f"{portrait.name}: hair covers only {100 * share:.1f} % of the crop "
            f"(min_hair_share {100 * params.min_hair_share:g} %); no hair to colour"
        )
    refuse_untrusted_matte(portrait, matte, params.max_on_face, params.max_unsure)
    if is_of_one_tone(portrait.image):
        raise SketchRefused(f"{portrait.name}: black-and-white, or in one tint; hair would be all that has a colour")


def _contrast(lab: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """Local standard deviation of lightness against its surroundings within the hair [1,H,W]."""
    detail = lab[:1] - blurred_within_by_share(lab[:1], inside, _STRAND_SCALE)
    return blurred_within_by_share(detail.square(), inside, 2 * _STRAND_SCALE).sqrt()


def _locks(lab: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """Lightness [1,H,W] smoothed over the hair at the scale of locks."""
    return blurred_within_by_share(lab[:1], inside, _SHADING_SCALE)


def _spread(light: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """Standard deviation of lightness over the hair [1,1,1]."""
    return mean_of((light - mean_of(light, inside)).square(), inside).sqrt()


def _grown(matte: torch.Tensor) -> torch.Tensor:
    """The matte dilated by the neutral band, its new edge softened over about the same width outwards."""
    band_px = _band_px(matte)
    return torch.maximum(blurred(grown(matte, band_px + (band_px + 1) // 2), band_px / 2), matte).clamp(0, 1)


def _band_px(matte: torch.Tensor) -> int:
    return max(1, round(_BAND * matte.shape[-1]))


def _clipped(image: torch.Tensor) -> torch.Tensor:
    """Pixels [1,H,W] with a channel that rounds to 0 or 255."""
    return (image.abs() > 1 - 1 / 255).any(0, keepdim=True)
