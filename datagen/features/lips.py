"""Lips: another colour, fuller or thinner, matt or glossy; their creases, their shading and the teeth kept.

Colour moves the lips' *mean* in Lab to the wanted one and keeps every crease (as composition does with hair);
fullness warps each lip from its inner line outwards, so that the mouth stays as open as it is; the finish flattens or
strengthens the highlights. The lips are `lip_matte`: never teeth or the dark between them.

Figures of `measure` (lips: where the matte, warped as the edit asks, is over 0.5):
  color_delta_e   CIEDE2000 between the wanted and the obtained mean colour of the lips; the figure to gate on
  color_change    CIEDE2000 between the mean colour before and after
  color_degree    how far the mean went from the own colour to the full one, 0 none, 1 all the way (colour asked for)
  height_gain     lips' height after / before - 1, found by laying the warped photo over the after image
  height_error    |height_gain - the wanted one|
  shape_degree    height_gain / that of the full change (fullness asked for)
  gloss_change    highlights over the lips' middle lightness (95th percentile, in L) after - before
  degree          mean of the degrees of what was asked for: colour, fullness; that of the highlights for a finish alone
  spill_delta_e   mean CIEDE2000 between the warped photo and after in a ring of skin around the lips; 0 is perfect
  teeth_delta_e   the same between the lips, 0 where they are closed
  detail_kept     local lightness contrast after / before (creases); 1 keeps it, 0 is flat paint
  light           what `light_of` judges: 1 for a well exposed photo
"""

from __future__ import annotations

import re
from typing import Literal

import torch
from pydantic import Field, field_validator, model_validator

from stylepairs.datagen.compositing.detail import transfer_detail
from stylepairs.datagen.images.colors import (
    color_to_lab,
    delta_e_2000,
    lab_in_light,
    lab_to_srgb,
    parse_color,
    srgb_to_lab,
)
from stylepairs.datagen.images.filters import blurred, blurred_within, grown, mean_of
from stylepairs.datagen.portraits.face_frame import pixel_places
from stylepairs.datagen.portraits.landmarks import LEFT_CORNER, NOSE_BASE, RIGHT_CORNER, mouth_width
from stylepairs.datagen.portraits.light import light_of, refuse_print
from stylepairs.datagen.portraits.portrait import CLASS, Portrait
from stylepairs.datagen.portraits.regions import labelled
from stylepairs.datagen.portraits.sketch import AnalysedPair, FeatureParams, Sketch, SketchRefused
from stylepairs.datagen.shell.errors import InputError, nearest
from stylepairs.datagen.sketching.face.lip_matte import LipOutline, lip_matte, lip_outline
from stylepairs.datagen.sketching.tools.curves import smoothstep
from stylepairs.datagen.sketching.tools.matching import match_degree
from stylepairs.datagen.sketching.tools.warp import changed_region, point_flow, warp_image, warp_label, warp_points

# Mean sRGB over the lips of a portrait in even light, creases and highlights included: duller than a lipstick's swatch.
PALETTE: dict[str, tuple[int, int, int]] = {
    "nude": (184, 132, 117),
    "rose": (186, 110, 112),
    "pink": (196, 108, 124),
    "coral": (198, 98, 86),
    "peach": (212, 140, 115),
    "red": (152, 40, 46),
    "cherry": (126, 30, 46),
    "berry": (132, 50, 78),
    "fuchsia": (186, 50, 112),
    "orange": (196, 86, 56),
    "mauve": (160, 104, 118),
    "brown": (126, 78, 66),
    "plum": (96, 44, 66),
    "wine": (100, 34, 44),
}
OWN = "own"
COLORS = (*PALETTE, OWN)

# Shares of the mouth's width: the neutral band around the lips; the ring in which spill is looked for; creases; what
# parts highlights from the lips' rounding.
_BAND = 0.08
_RING = 0.14
_CREASE_SCALE = 0.02
_GLOSS_SCALE = 0.07
# In mouth widths from its middle: how far the warp reaches.
_REACH = 0.75
# Lightness that a full gloss adds where the lips are brightest, and how much stronger it makes their highlights.
_SHINE, _SHARPEN = 13.0, 1.2
# Share of the highlights that a matt finish takes away.
_FLATTEN = 0.8
# Squared Lab distance of two colours at which a degree between them can be half told.
_TELLABLE = 25.0


class Params(FeatureParams):
    """What to do with the lips.

    color: the mean colour wanted (palette name, "#rrggbb" or "r,g,b"), "own" to leave it. fullness: height to gain, as
    a share of each lip's own. finish: "natural" leaves the highlights. intensity: the degree, 0 none, 1 all of it.
    Portraits are refused whose lips cover less than min_lip_share of the crop; of whose labelled lips less than
    min_found, or less than min_found_each of one of both, shows a colour of its own (hidden, or not to be told from
    skin or beard: coloured in patches, or one lip alone, they look like a mistake); whose lips are lower than
    min_height_px in the mean (all edge: a colour on them is a blur); and, for a colour, whose face's redness a* is less
    than min_redness, as in a print in one colour (`face_redness`).
    reference_px: side of the downsampled sketch that reconstruction matches.
    """

    color: str = "red"
    fullness: float = Field(0.0, ge=-0.3, le=0.5)
    finish: Literal["matte", "natural", "gloss"] = "natural"
    intensity: float = Field(1.0, ge=0, le=1)
    min_lip_share: float = Field(0.002, ge=0, lt=1)
    min_found: float = Field(0.35, ge=0, lt=1)
    min_found_each: float = Field(0.3, ge=0, lt=1)
    min_height_px: float = Field(1.5, ge=0)
    min_redness: float = Field(4.5, ge=-128, le=127)
    reference_px: int = Field(32, ge=4, le=256)

    @field_validator("color")
    @classmethod
    def _known_color(cls, value: str) -> str:
        try:
            color_of(value)
        except InputError as error:
            raise ValueError(str(error)) from None
        return value

    @model_validator(mode="after")
    def _asks_for_something(self) -> Params:
        if self.color == OWN and self.fullness == 0 and self.finish == "natural":
            raise ValueError("color own, fullness 0 and finish natural: nothing to change; set one of them")
        return self


def color_of(text: str) -> tuple[int, int, int] | None:
    """The sRGB colour, 0..255 each, of a lip colour's name, "#rrggbb" or "r,g,b"; None for "own".

    Raises InputError that names the nearest known name.
    """
    name = re.sub(r"[\s-]+", "_", text.strip().lower())
    if name == OWN:
        return None
    if name in PALETTE:
        return PALETTE[name]
    if name.startswith("#") or "," in name:
        return parse_color(text)
    hint = nearest(name, COLORS, f"known names: {', '.join(COLORS)};")
    raise InputError(f"color {text!r}: unknown{hint} #rrggbb and r,g,b work too")


def sketch(portrait: Portrait, params: Params) -> Sketch:
    """The portrait with its lips recoloured, finished and warped, texture and all.

    Raises SketchRefused if the lips are not seen, or not to be told from what is around them.
    """
    matte = lip_matte(portrait)
    _refuse_unusable(portrait, matte, params)
    image = finished(
        recoloured(portrait.image, matte, params, light_of(portrait)), matte, params, mouth_width(portrait.points68)
    )
    edit, label, points = matte, None, None
    if params.fullness != 0:
        full = fullness_flow(portrait, matte, params)
        flow = params.intensity * full
        image = warp_image(image, flow)
        # The mask is that of the full change at every degree, so that a series of degrees is edited in one place.
        edit = torch.stack([warp_image(matte, flow), warp_image(matte, full), changed_region(full)]).amax(0)
        label, points = warp_label(portrait.label, flow), warp_points(portrait.points68, flow)
    color_only = params.fullness == 0 and params.finish == "natural"
    return Sketch(
        image=torch.where(edit > 0, image, portrait.image).clamp(-1, 1),
        edit_mask=edit.clamp(0, 1),
        keep_mask=1 - _widened(edit, _BAND * mouth_width(portrait.points68)),
        reference_px=min(params.reference_px, portrait.size_px),
        space="lab" if color_only else "rgb",
        photo_detail=1.0 if color_only else 0.0,
        sketch_detail=0.0 if color_only else 1.0,
        label=label,
        points68=points,
    )


def measure(portrait: Portrait, seen: AnalysedPair, params: Params) -> dict[str, float]:
    """How far the wanted lips were reached and what it cost: the figures of the file's docstring."""
    before, after, light = portrait.image, seen.after.image, light_of(portrait)
    width, matte = mouth_width(portrait.points68), lip_matte(portrait)
    full = fullness_flow(portrait, matte, params)
    reached = _reached_share(portrait, after, matte, full, params)
    flow = reached * full
    lips, photo = warp_image(matte, flow), warp_image(before, flow)
    own = _own_lab(before, matte)
    obtained = own + _lab_shift(photo, after, lips)
    lab_photo, lab_after = srgb_to_lab(photo), srgb_to_lab(after)
    change = delta_e_2000(lab_photo, lab_after)[None]
    creases = _contrast(lab_photo, lips, width), _contrast(lab_after, lips, width)
    gloss = _highlight(lab_photo, lips), _highlight(lab_after, lips)
    figures = {
        "color_delta_e": float(delta_e_2000(_wanted_lab(own, params, light), obtained)),
        "color_change": float(delta_e_2000(own, obtained)),
        "height_gain": reached * params.fullness,
        "height_error": abs(reached - params.intensity) * abs(params.fullness),
        "gloss_change": gloss[1] - gloss[0],
        "spill_delta_e": float(mean_of(change, _skin_ring(portrait, flow, lips, width))),
        "teeth_delta_e": float(mean_of(change, _between_lips(portrait, flow, lips))),
        "detail_kept": creases[1] / max(creases[0], 1e-3),
        "light": light,
    }
    return figures | _degrees(portrait, matte, own, obtained, reached, figures, params)


def recoloured(image: torch.Tensor, matte: torch.Tensor, params: Params, light: float = 1.0) -> torch.Tensor:
    """image [3,H,W] whose lips have the wanted mean colour as it looks in `light`, creases and shading kept."""
    if color_of(params.color) is None or params.intensity == 0:
        return image
    return _with_color(image, matte, _wanted_lab(_own_lab(image, matte), params, light))


def finished(image: torch.Tensor, matte: torch.Tensor, params: Params, width: float) -> torch.Tensor:
    """image [3,H,W] with the highlights of its lips flattened or strengthened; width is the mouth's in pixels."""
    if params.finish == "natural" or params.intensity == 0:
        return image
    lab = srgb_to_lab(image)
    smooth = blurred_within(lab[:1], matte, _GLOSS_SCALE * width)
    peaks = (lab[:1] - smooth).clamp_min(0)
    if params.finish == "matte":
        light, white = lab[:1] - params.intensity * _FLATTEN * peaks, torch.zeros_like(smooth)
    else:
        low, high = (torch.quantile(smooth[matte > 0.5], share) for share in (0.6, 0.97))
        crest = ((smooth - low) / (high - low).clamp_min(1.0)).clamp(0, 1) ** 2
        added = params.intensity * (_SHARPEN * peaks + _SHINE * crest)
        light, white = lab[:1] + added * (1 - lab[:1] / 110).clamp_min(0.1), (added / 60).clamp(0, 0.5)
    shiny = lab_to_srgb(torch.cat([light, lab[1:] * (1 - white)]))
    return image + matte * (shiny - image)


def fullness_flow(portrait: Portrait, matte: torch.Tensor, params: Params) -> torch.Tensor:
    """The flow [2,H,W] that makes each lip higher by `fullness` of its own height, its inner line held."""
    gain = params.fullness
    if gain == 0:
        return torch.zeros(2, *portrait.label.shape, device=portrait.image.device)
    lips = lip_outline(portrait, matte)
    source = torch.cat([lips.upper_outer, lips.lower_outer])
    inner = torch.cat([lips.upper_inner, lips.lower_inner])
    held = torch.cat([inner, _held_points(portrait.points68, lips)])
    target = source + gain * (source - inner)
    return point_flow(portrait.size_px, source, target, held, window=_around_mouth(portrait))


def _around_mouth(portrait: Portrait) -> torch.Tensor:
    """Where the warp may reach [1,H,W]: a disc about the mouth that ends softly."""
    corners = portrait.points68[[RIGHT_CORNER, LEFT_CORNER]]
    away = (pixel_places(portrait.hair).contiguous() - corners.mean(0)).norm(dim=-1)
    away = away / (corners[1] - corners[0]).norm().clamp_min(1e-6)
    return smoothstep((_REACH - away) / (0.3 * _REACH))[None]


def _held_points(points: torch.Tensor, lips: LipOutline) -> torch.Tensor:
    """What stays [J,2]: the mouth's corners, the nose's base, chin, cheeks beside the mouth."""
    corners = points[[RIGHT_CORNER, LEFT_CORNER]]
    middle = corners.mean(0)
    beside = middle + 1.5 * (corners - middle)
    across = corners[1] - corners[0]
    down = torch.stack([-across[1], across[0]])
    under = lips.lower_outer[[2, 4, 6]] + 0.3 * down
    nose, chin = points[NOSE_BASE], points[6:11]
    return torch.cat([corners, beside, beside + 0.25 * down, beside - 0.25 * down, nose, under, chin])


def _degrees(
    portrait: Portrait,
    matte: torch.Tensor,
    own: torch.Tensor,
    obtained: torch.Tensor,
    reached: float,
    figures: dict[str, float],
    params: Params,
) -> dict[str, float]:
    """degree, and color_degree and shape_degree where they were asked for."""
    color, parts = color_of(params.color), {}
    if color is not None:
        way = lab_in_light(color_to_lab(color, like=own), figures["light"]) - own
        told = ((obtained - own) * way).sum() + _TELLABLE * params.intensity
        parts["color_degree"] = float(told / (way.square().sum() + _TELLABLE))
    if params.fullness != 0:
        parts["shape_degree"] = reached
    if parts:
        return parts | {"degree": sum(parts.values()) / len(parts)}
    full = finished(portrait.image, matte, params.model_copy(update={"intensity": 1.0}), mouth_width(portrait.points68))
    lab, lab_full = srgb_to_lab(portrait.image), srgb_to_lab(full)
    wanted = _highlight(lab_full, matte) - _highlight(lab, matte)
    return {"degree": figures["gloss_change"] * wanted / (wanted * wanted + 0.01)}


def _refuse_unusable(portrait: Portrait, matte: torch.Tensor, params: Params) -> None:
    lips = labelled(portrait, "u_lip", "l_lip")
    share = float(lips.mean())
    if share < params.min_lip_share:
        raise SketchRefused(
            f"{portrait.name}: lips cover only {100 * share:.2f} % of the crop "
            f"(min_lip_share {100 * params.min_lip_share:g} %); no lips to edit"
        )
    if color_of(params.color) is not None:
        refuse_print(portrait, params.min_redness, "a colour on its lips would be a patch")
    # Fully seen lips hold some of the skin's edge too, so that the whole may be more than the label's.
    upper, lower = labelled(portrait, "u_lip"), labelled(portrait, "l_lip")
    for name, found, limit in (
        ("lips show", matte.sum() / lips.sum(), "min_found"),
        ("upper lip shows", (matte * upper).sum() / upper.sum().clamp_min(1), "min_found_each"),
        ("lower lip shows", (matte * lower).sum() / lower.sum().clamp_min(1), "min_found_each"),
    ):
        least = getattr(params, limit)
        if float(found) < least:
            raise SketchRefused(
                f"{portrait.name}: only {100 * float(found):.0f} % of the labelled {name} a colour of its own "
                f"({limit} {100 * least:g} %); hidden, or not to be told from skin and beard"
            )
    height = float(matte.sum()) / 2 / max(mouth_width(portrait.points68), 1e-6)
    if height < params.min_height_px:
        raise SketchRefused(
            f"{portrait.name}: lips only {height:.1f} px high each (min_height_px {params.min_height_px:g}) in a crop "
            f"of {portrait.size_px} px; too narrow to edit at this size"
        )


def _wanted_lab(own: torch.Tensor, params: Params, light: float) -> torch.Tensor:
    color = color_of(params.color)
    return own if color is None else own + params.intensity * (lab_in_light(color_to_lab(color, like=own), light) - own)


def _with_color(image: torch.Tensor, matte: torch.Tensor, lab: torch.Tensor) -> torch.Tensor:
    """image [3,H,W] whose lips have the colour lab [3,1,1] in the mean, creases and shading kept."""
    flat = lab_to_srgb(lab)
    return transfer_detail(image, image, image * (1 - matte) + flat * matte, matte)


def _own_lab(image: torch.Tensor, matte: torch.Tensor) -> torch.Tensor:
    """Mean Lab [3,1,1] of the lips, of what is all lip above all: on thin ones half of the pixels are part skin."""
    return mean_of(srgb_to_lab(image), matte**4)


def _lab_shift(before: torch.Tensor, after: torch.Tensor, matte: torch.Tensor) -> torch.Tensor:
    """The change of the lips' colour in Lab [3,1,1] that, in proportion to the matte, explains the image's best."""
    change = srgb_to_lab(after) - srgb_to_lab(before)
    return (change * matte).sum((-2, -1), keepdim=True) / matte.square().sum().clamp_min(1e-6)


def _reached_share(
    portrait: Portrait, after: torch.Tensor, matte: torch.Tensor, full: torch.Tensor, params: Params
) -> float:
    """Which share of the full warp the after image shows; found on the photo recoloured as it was, so that the lips'
    edges are as strong in both."""
    if params.fullness == 0:
        return 0.0
    before, region, reached = portrait.image, changed_region(full), params.intensity
    own, color = _own_lab(before, matte), color_of(params.color) is not None
    for _ in range(2 if color else 1):
        start = before
        if color:
            shift = _lab_shift(warp_image(before, reached * full), after, warp_image(matte, reached * full))
            start = _with_color(before, matte, own + shift)

        def warped(share: float, start: torch.Tensor = start) -> torch.Tensor:
            return warp_image(start, share * full)

        reached = match_degree(start, after, warped, region).degree
    return reached


def _contrast(lab: torch.Tensor, matte: torch.Tensor, width: float) -> float:
    """Root mean square of lightness over the lips about its surroundings, at the scale of creases."""
    inside = matte**8  # the lips' edges are no creases
    detail = lab[:1] - blurred_within(lab[:1], inside, max(0.7, _CREASE_SCALE * width))
    return float(mean_of(detail.square(), inside).sqrt())


def _highlight(lab: torch.Tensor, matte: torch.Tensor) -> float:
    """How far the lips' highlights lie over their middle lightness, in L."""
    light = lab[0][matte[0] > 0.5]
    return float(torch.quantile(light, 0.95) - light.median()) if light.numel() else 0.0


def _skin_ring(portrait: Portrait, flow: torch.Tensor, lips: torch.Tensor, width: float) -> torch.Tensor:
    """Skin [1,H,W] just outside the lips, where nothing but the warp may show."""
    skin = (warp_label(portrait.label, flow) == CLASS["skin"])[None].float()
    near = grown((lips > 0.05).float(), 1)
    return (grown(near, _RING * width) - near) * skin


def _between_lips(portrait: Portrait, flow: torch.Tensor, lips: torch.Tensor) -> torch.Tensor:
    """What is seen between the lips [1,H,W], without the pixels that are partly lip."""
    return (warp_label(portrait.label, flow) == CLASS["mouth"])[None].float() * (lips < 0.1)


def _widened(mask: torch.Tensor, width: float) -> torch.Tensor:
    """The mask grown by about `width` pixels, its new edge soft."""
    return torch.maximum(blurred(grown(mask, 1.5 * width), max(0.5, width / 2)), mask).clamp(0, 1)
