"""Bangs: a fringe in the person's own hair, of a style or in a region of the user's; or taken away.

Who wears a fringe already has it taken away, and the pair runs backwards, from the bared forehead to the photo: its
parameters are the style and length that the photo's fringe is most like.

The sketch paints strands of the own hair's colour and texture that fall from the hairline over the forehead, with the
soft shadow they throw; what is finer than the reference resolution is the sketch's own in the pair (sketch_detail).

Figures of `measure` ("wanted" is where the sketch has put hair on what was not hair; for style "none", where it has
taken it away):
  coverage        share of the wanted region that is hair afterwards (none: that is free of it), by colour, and where
                  hair and skin are too alike by the face analyser's matte; higher is better
  coverage_gain   the same less what it was before the edit; 0 for an unchanged image
  forehead_free   share of the rest of the forehead that has not become hair (none: and not ceased to be); higher
  overspill       hair gained beside the wanted region, as a share of that of the full fringe; 0 is perfect
  texture         likeness of the contrast and direction of strands to the own hair's (none: of the contrast to the own
                  skin's), 1 alike, 0 flat paint or noise; 1 too where the fringe is too narrow to show strands, which
                  is so up to a degree of about 0.3, or where those painted do not show (black hair)
  gaps            share of skin in the fringe's upper four fifths, where it should be closed; 0 is closed (none, and
                  wispy, whose locks stand apart: always 0)
  length_spread   standard deviation of its strands' lengths, column by column, as a share of the full length; likewise
  strand_width    how wide what differs in lightness in it is against the own hair's; over 1.5 it hangs in drips
  color_delta_e   CIEDE2000 between the mean colour in the wanted region and that of the sketch
  degree          measured share of the full fringe's change (intensity 1), 0 none, 1 all of it
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field, field_validator, model_validator

from stylepairs.datagen.images.colors import delta_e_2000, srgb_to_lab
from stylepairs.datagen.images.filters import mean_of, overall_mean
from stylepairs.datagen.portraits.landmarks import EYES, eye_distance
from stylepairs.datagen.portraits.portrait import CLASS, Portrait
from stylepairs.datagen.portraits.regions import dilate, feather
from stylepairs.datagen.portraits.sketch import AnalysedPair, FeatureParams, Sketch, SketchRefused
from stylepairs.datagen.shell.randomness import random_generator
from stylepairs.datagen.sketching.hair.bared_foreheads import APPEARS, bare_forehead, fringe_share
from stylepairs.datagen.sketching.hair.foreheads import (
    Forehead,
    forehead,
    skin_tone,
    sure_skin,
    usual_hairline,
)
from stylepairs.datagen.sketching.hair.fringes import (
    Fringe,
    custom_fringe,
    fringe_gaps,
    hat_share,
    styled_fringe,
    worn_fringe,
)
from stylepairs.datagen.sketching.hair.hair_and_skin import hairness
from stylepairs.datagen.sketching.hair.strands import (
    HairPalette,
    contrast_likeness,
    grow_hair,
    hair_palette,
    shade_skin,
    strand_likeness,
    strand_width,
)
from stylepairs.datagen.sketching.hair.strokes import StrandStyle
from stylepairs.datagen.sketching.tools.regions_given import Region, checked_region, region_mask
from stylepairs.datagen.sketching.tools.texture import blurred_by_share

# Share of the columns of a region of the user's that must begin within so much of the side from hair.
_MIN_ROOTED, _ROOT_REACH = 0.5, 0.04
# Hair hangs down if so much of it lies farther below the eyes than this many eye distances.
_MIN_HANGING, _BELOW_EYES = 0.05, 0.3
# A fringe narrower than twice the first, a share of the side, is all edge, and an edge runs across its strands: those
# are told where so much of the crop lies farther inside. At 128 px, 65 pixels: most full fringes have 70 to 870 at
# degree 1, and under 65 (where strands as painted measured 0) up to a degree of 0.3.
_STRAND_ROOM, _ROOM_NEEDED = 0.008, 0.004
_STRANDS_SHOW = 0.1  # the `texture` of strands as painted, from which on a picture of them can be judged
# Of the side: colours are compared smoothed by this much.
_COMPARE_SIGMA, _FINE_SIGMA = 0.008, 0.003
# Fewer pixels tell nothing.
_FEWEST_PX = 4
# How a fringe's hair is laid: closed down to its tips, or in locks that stand apart.
_CLOSED = StrandStyle(lock_cover=3.0, lock_width=0.013, clumping=0.1, ragged=0.12, root_shadow=0.0, closed=0.88)
_WISPY = StrandStyle(
    density=0.55, lock_cover=1.6, lock_width=0.012, clumping=0.75, ragged=0.38, root_shadow=0.0, closed=0.8
)
FILE_PARAMS = ("region",)


class Params(FeatureParams):
    """Which fringe.

    style: "none" takes bangs away; left and right are the subject's own, the side that the fringe is swept to. length:
    how far down the forehead it reaches, 0 the hairline, 1 the brows, 1.2 the lids ("micro" takes half of it). density:
    share of the skin under it that is covered. intensity: the degree, a fringe that has grown (or, for "none", been
    taken away) to that share of its length. region: where to grow it instead, the whole of it: the path of a mask image
    (white: hair; square, framed as the aligned crop), a polygon as [[x, y], ...] in shares of the crop, or the same as
    text, "0.3,0.2 0.7,0.2 0.5,0.4"; in a recipe, where a list means choices, a polygon is one choice: [[[x, y], ...]].
    seed: other strands. made_from: people without a fringe, who are given one; people with a "fringe" over at least
    min_worn of the forehead's middle, which is taken away for a pair that runs backwards; or either, by what they wear
    (of no account for "none" and a region).

    Portraits are refused that have a hat over more than max_hat of the forehead, hair over less than min_hair_above of
    the place that a fringe falls from, hair that is too short to fall (less than min_hair eye distances from the
    hairline to its outline; or that ends above the eyes and is curled by more than max_short_curl), already hair over
    more than max_covered of where it would be; for "none", hair over less than min_fringe of the forehead's middle;
    whose own fringe, to be taken away, is like none of the styles (overlap under min_likeness).
    reference_px: side of the downsampled sketch that reconstruction matches. sketch_detail: share of the painted
    strands that composition keeps; 0 leaves all to the generator.
    """

    style: Literal["full", "side_left", "side_right", "curtain", "wispy", "micro", "none"] = "full"
    length: float = Field(0.85, ge=0, le=1.2)
    density: float = Field(1.0, ge=0, le=1)
    intensity: float = Field(1.0, ge=0, le=1)
    region: Region | None = None
    seed: int = 0
    made_from: Literal["bare", "fringe", "either"] = "bare"
    min_worn: float = Field(0.3, ge=0, le=1)
    min_likeness: float = Field(0.6, ge=0, le=1)
    max_hat: float = Field(0.1, ge=0, le=1)
    min_hair_above: float = Field(0.5, ge=0, le=1)
    min_hair: float = Field(0.37, ge=0)
    max_short_curl: float = Field(0.5, ge=0, le=1)
    max_covered: float = Field(0.7, ge=0, le=1)
    min_fringe: float = Field(0.08, ge=0, le=1)
    reference_px: int = Field(16, ge=4, le=256)
    sketch_detail: float = Field(1.0, ge=0, le=1)

    @field_validator("region", mode="before")
    @classmethod
    def _usable_region(cls, value: object) -> Region | None:
        return None if value is None else checked_region(value)

    @model_validator(mode="after")
    def _region_is_for_growing(self) -> Params:
        if self.region is not None and self.style == "none":
            raise ValueError('a region says where bangs are to grow; leave it out with style "none"')
        return self


def settled(portrait: Portrait, params: Params) -> Params:
    """The parameters with the style and length of the fringe that is worn, where the pair runs backwards; with the
    defaults of both where a region says the shape.

    Raises SketchRefused where a worn fringe is like none of the styles.
    """
    if params.region is not None:
        return params.model_copy(update={name: Params.model_fields[name].default for name in ("style", "length")})
    face = forehead(portrait)
    if not _is_worn(portrait, face, params) or fringe_share(portrait, face) < params.min_worn:
        return params
    worn = worn_fringe(face)
    if worn.likeness < params.min_likeness:
        raise SketchRefused(
            f"{portrait.name}: the fringe overlaps {100 * worn.likeness:.0f} % with the style that is most like it, "
            f"{worn.style} (min_likeness {100 * params.min_likeness:g} %); it cannot be named"
        )
    return params.model_copy(update={"style": worn.style, "length": worn.length})


def directed(params: Params, backwards: bool) -> Params:
    """The parameters with `made_from` as a pair of this direction has it."""
    made_from = "fringe" if backwards else "bare"
    return params.model_copy(update={"made_from": made_from}) if params.made_from == "either" else params


def sketch(portrait: Portrait, params: Params) -> Sketch:
    """The portrait with the fringe painted on it, or without the one that it has.

    Raises SketchRefused where there is no hair to learn from or to fall, a hat, or nothing to be done.
    """
    face = forehead(portrait)
    backwards = _is_worn(portrait, face, params)
    if backwards:
        # A matte that takes a bald head's shine for a fringe.
        _refuse_bald(portrait, face, face.across.abs() < 0.6, params)
        params = _taking_away(params)
    if hat_share(portrait, face) > params.max_hat:
        raise SketchRefused(
            f"{portrait.name}: a hat covers the forehead (max_hat {params.max_hat:g}); no bangs to make"
        )
    if params.style == "none":
        rng = random_generator("no bangs", params.seed, portrait.digest)
        bare = bare_forehead(portrait, face, params.min_fringe, params.intensity, rng)
        made = _made(portrait, params, bare.image, bare.painted, bare.label, bare.hair)
        return replace(made, backwards=backwards)
    return _with_bangs(portrait, face, params)


def measure(portrait: Portrait, seen: AnalysedPair, params: Params) -> dict[str, float]:
    """How much of the wanted fringe is there, what is beside it, and whether it is hair: the file's figures."""
    face = forehead(portrait)
    if _is_worn(portrait, face, params):
        params = _taking_away(params)
    made = sketch(portrait, params)
    full = made if params.intensity == 1 else sketch(portrait, params.model_copy(update={"intensity": 1.0}))
    removed = params.style == "none"
    seen = AnalysedPair(seen.before.resized(portrait.size_px), seen.after.resized(portrait.size_px))
    before, after = (_smooth_lab(image) for image in (portrait.image, seen.after.image))
    wanted, wanted_full = (_changed(portrait, edit, removed) for edit in (made, full))
    palette, skin = hair_palette(portrait), skin_tone(portrait, face, wanted_full)
    hair = before if removed else palette
    had, has = (hairness(lab, half.hair, skin, hair) for lab, half in ((before, seen.before), (after, seen.after)))
    gained = (had - has if removed else has - had).clamp(0, 1)
    beside = dilate((made.edit_mask > 0.02).float(), 0.03) * (1 - dilate((wanted > 0.1).float(), 0.012))
    beside = beside.clamp(0, 1) * (1 - feather(face.hairy, 0.004))
    forehead_skin = ((portrait.label == CLASS["skin"])[None] & (face.up > 0.05) & (face.up < face.hairline)).float()
    rest = forehead_skin * (face.across.abs() < 0.9) * (1 - dilate((wanted > 0.1).float(), 0.02)).clamp(0, 1)
    gaps, length_spread, width = 0.0, 0.0, 1.0
    fringe = None if removed else _fringe(portrait, face, params, params.intensity)
    if fringe is not None and fringe.gaps == 0:
        fine = blurred_by_share(srgb_to_lab(seen.after.image), _FINE_SIGMA)
        gaps, length_spread = fringe_gaps(fringe, face, hairness(fine, seen.after.hair, skin, palette))
        width = strand_width(fine[:1], ((fringe.region > 0.5) & (face.hairy < 0.5)).float(), palette)
    reached = float(overall_mean(1 - has if removed else has, wanted))
    sketched, obtained = (mean_of(lab, wanted) for lab in (_smooth_lab(made.image), after))
    return {
        "coverage": reached,
        "coverage_gain": reached - float(overall_mean(1 - had if removed else had, wanted)),
        "forehead_free": 1 - float(overall_mean((has - had).clamp(0, 1), rest))
        if float(rest.sum()) > _FEWEST_PX
        else 1.0,
        "overspill": float((gained * beside).sum() / wanted_full.sum().clamp_min(1)),
        "texture": _texture(portrait, face, seen, made, fringe, wanted, palette),
        "color_delta_e": float(delta_e_2000(sketched, obtained)),
        "gaps": gaps,
        "length_spread": length_spread,
        "strand_width": width,
        "degree": _degree(before, after, _smooth_lab(full.image), wanted_full),
    }


def _is_worn(portrait: Portrait, face: Forehead, params: Params) -> bool:
    """Whether the pair is made of a fringe that is worn, and runs backwards."""
    if params.made_from == "bare" or params.style == "none" or params.region is not None:
        return False
    return params.made_from == "fringe" or fringe_share(portrait, face) >= params.min_worn


def _taking_away(params: Params) -> Params:
    return params.model_copy(update={"style": "none", "min_fringe": params.min_worn})


def _with_bangs(portrait: Portrait, face: Forehead, params: Params) -> Sketch:
    palette, rng = hair_palette(portrait), random_generator("bangs", params.seed, portrait.digest)
    fringe = _fringe(portrait, face, params, params.intensity)
    # Whether it applies does not hang on the degree.
    full = fringe if params.intensity == 1 else _fringe(portrait, face, params, 1.0)
    _refuse_unusable(portrait, face, full, params)
    _refuse_too_short(portrait, face, palette, params)
    style = _WISPY if fringe.gaps > 0 else _CLOSED
    painted, alpha = grow_hair(
        portrait,
        fringe.region,
        fringe.flow,
        replace(style, density=params.density * style.density),
        rng,
        palette,
        fringe.light,
    )
    # The hair behind the hairline is laid anew as soon as there is a fringe, but not at once.
    alpha = alpha * fringe.blend * min(1.0, params.intensity / APPEARS)
    own = feather(face.hairy, 0.004)
    skin = shade_skin(portrait.image, alpha)
    skin = portrait.image + (skin - portrait.image) * (1 - own)
    image = skin + (painted - skin) * alpha
    hair = torch.maximum(portrait.hair, alpha)
    label = torch.where((alpha[0] > 0.5), CLASS["hair"], portrait.label.int()).to(torch.uint8)
    return _made(portrait, params, image, alpha, label, hair)


def _fringe(portrait: Portrait, face: Forehead, params: Params, grown: float) -> Fringe:
    if params.region is not None:
        return custom_fringe(portrait, face, region_mask(params.region, portrait), grown)
    assert params.style != "none"
    # Its own generator, so that the edge does not change with the strands.
    rng = random_generator("fringe", params.seed, portrait.digest)
    return styled_fringe(portrait, face, params.style, params.length * grown, rng)


def _refuse_unusable(portrait: Portrait, face: Forehead, fringe: Fringe, params: Params) -> None:
    if params.region is not None:
        region = region_mask(params.region, portrait)
        person = (portrait.label != CLASS["background"]).float()[None]
        on_person = float(overall_mean(person, region))
        if on_person < 0.5:
            raise SketchRefused(f"{portrait.name}: {100 * (1 - on_person):.0f} % of the region lies off the person")
        rooted = _rooted_share(face, region)
        if rooted < _MIN_ROOTED:
            raise SketchRefused(
                f"{portrait.name}: {100 * rooted:.0f} % of the region's upper edge lies at the hair "
                f"({100 * _MIN_ROOTED:g} % needed); bangs there would hang from nothing, let it begin at the hairline"
            )
        # A matte that takes a bald head's shine for roots.
        _refuse_bald(portrait, face, (region[0] > 0.5).any(0), params)
        return
    _refuse_bald(portrait, face, face.across.abs() < 0.6, params)
    front = fringe.region * (face.up < face.hairline - 0.05)
    # By what the parser saw as hair well below the hairline that is usual for this face.
    usual = usual_hairline(face.across) * 0.95 * face.third_px / face.height_px
    front = torch.maximum(front, fringe.region * (face.up < 0.7 * usual))
    covered = float(overall_mean(face.hairy, front))
    if covered > params.max_covered:
        raise SketchRefused(
            f"{portrait.name}: hair covers {100 * covered:.0f} % of where the bangs would be "
            f"(max_covered {100 * params.max_covered:g} %); there are bangs already"
        )


def _refuse_bald(portrait: Portrait, face: Forehead, where: torch.Tensor, params: Params) -> None:
    """Refuse where there is too little hair above the hairline, in the pixels (or columns) `where`."""
    above = where & (face.up > face.hairline + 0.03) & (face.up < face.hairline + 0.22)
    hairy = float(overall_mean(portrait.hair.clamp(0, 1), above.float()))
    if hairy < params.min_hair_above:
        raise SketchRefused(
            f"{portrait.name}: hair covers {100 * hairy:.0f} % of the place that a fringe falls from "
            f"(min_hair_above {100 * params.min_hair_above:g} %); no bangs to be had from it"
        )


def _refuse_too_short(portrait: Portrait, face: Forehead, palette: HairPalette, params: Params) -> None:
    """Refuse hair that cannot reach down the forehead: cropped hair without a direction would hang in drips."""
    eyes_px = eye_distance(portrait.points68)
    if face.hair_px < params.min_hair * eyes_px:
        raise SketchRefused(
            f"{portrait.name}: {face.hair_px / eyes_px:.3f} eye distances of hair above the hairline "
            f"(min_hair {params.min_hair:g}); too short to fall over the forehead"
        )
    rows = torch.arange(portrait.size_px, device=portrait.hair.device)[:, None]
    below = (rows > float(portrait.points68[EYES, 1].mean()) + _BELOW_EYES * eyes_px).float()
    hanging = float(overall_mean(below.expand_as(portrait.hair), portrait.hair * face.hairy))
    if palette.curl > params.max_short_curl and hanging < _MIN_HANGING:
        raise SketchRefused(
            f"{portrait.name}: hair of curl {palette.curl:.2f} that ends above the eyes "
            f"(max_short_curl {params.max_short_curl:g}); too short and curly to fall over the forehead"
        )


def _rooted_share(face: Forehead, region: torch.Tensor) -> float:
    """The share of the columns of region [1,H,W] that begin in hair, or a little below it."""
    size = region.shape[-1]
    inside = region[0] > 0.5
    rows = torch.arange(size, device=region.device)[:, None]
    top = torch.where(inside, rows, size).amin(0)
    near = inside.any(0) & (((rows - top).abs() <= _ROOT_REACH * size) & (face.hairy[0] > 0.5)).any(0)
    return float(near.sum() / inside.any(0).sum().clamp_min(1))


def _made(
    portrait: Portrait,
    params: Params,
    image: torch.Tensor,
    painted: torch.Tensor,
    label: torch.Tensor,
    hair: torch.Tensor,
) -> Sketch:
    """The sketch of an image that differs from the portrait where painted [1,H,W] is, and softly around it."""
    # What shadow there is counts as edited in full from a fortieth of the range.
    differs = ((image - portrait.image).abs().amax(0, keepdim=True) - 0.004).clamp(0) / 0.05
    edit = torch.maximum(painted, feather(differs.clamp(0, 1), 0.006))
    edit = torch.where(edit < 0.01, 0.0, edit).clamp(0, 1)
    image = portrait.image + (image - portrait.image) * (edit / 0.05).clamp(0, 1)
    return Sketch(
        image=image.clamp(-1, 1),
        edit_mask=edit,
        keep_mask=1 - torch.maximum(feather(dilate(edit, 0.03), 0.01), edit).clamp(0, 1),
        reference_px=min(params.reference_px, portrait.size_px),
        sketch_detail=params.sketch_detail,
        label=label,
        hair=hair.clamp(0, 1),
    )


def _changed(portrait: Portrait, made: Sketch, removed: bool) -> torch.Tensor:
    """Where the sketch has put hair on what was not hair, or taken it away [1,H,W]."""
    assert made.hair is not None
    own = torch.maximum(portrait.hair, (portrait.label == CLASS["hair"]).float()[None])
    change = own - made.hair if removed else made.hair - own
    # Label and matte differ along the whole outline of the hair; only what was edited counts.
    return change.clamp(0, 1) * (made.edit_mask > 0.05)


def _texture(
    portrait: Portrait,
    face: Forehead,
    seen: AnalysedPair,
    made: Sketch,
    fringe: Fringe | None,
    wanted: torch.Tensor,
    palette: HairPalette,
) -> float:
    """The figure `texture`; fringe: None where one is taken away."""
    core = (wanted > 0.6).float()
    inner = dilate(core, -_STRAND_ROOM).round()
    if float(inner.mean()) < _ROOM_NEEDED:
        return 1.0
    light = srgb_to_lab(seen.after.image)[:1]
    if fringe is None:
        return contrast_likeness(light, core, sure_skin(portrait, face, wanted))

    def likeness(light: torch.Tensor) -> float:
        # Where it is narrow, the inside alone is too little, and all of it has too much of an edge.
        return max(strand_likeness(light, part, fringe.flow, palette) for part in (core, inner))

    # Black hair, and a short fringe, may show no strands as painted: nothing of them can be asked then.
    return likeness(light) if likeness(srgb_to_lab(made.image)[:1]) >= _STRANDS_SHOW else 1.0


def _smooth_lab(image: torch.Tensor) -> torch.Tensor:
    """Lab [3,H,W] of an image [3,H,W], smoothed so that single strands do not count."""
    return blurred_by_share(srgb_to_lab(image), _COMPARE_SIGMA)


def _degree(before: torch.Tensor, after: torch.Tensor, full: torch.Tensor, wanted: torch.Tensor) -> float:
    """How far the colours [3,H,W] have gone from `before` to `full`, over the wanted region [1,H,W]."""
    way = (full - before) * wanted.clamp(0, 1)
    return float(((after - before) * way).sum() / (way * (full - before)).sum().clamp_min(1e-6))
