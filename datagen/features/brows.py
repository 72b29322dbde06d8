"""Brows: lifted, arched, thicker or thinner, fuller, darker or lighter; one or both.

The shape is a warp of the brow's own edges (`brow_line`), with eyes, lids' crease and forehead held; density adds hairs
of the brow's own colour, thrown along it, where skin shows through; shade moves the lightness of the hairs alone.
Portraits with glasses, as far as they are seen, and brows under a fringe are refused.

Figures of `measure` (of the brows asked for):
  degree          how far the picture has gone along the edit, 0 none, 1 all of it: the degree at which the edited photo
                  looks most like the after image, mean of the brows
  explained       share of the picture's change around the brows that the edit at that degree accounts for; the least
                  of the brows; to gate on
  line_shift      how far the brow's upper line went up, read from the mattes of both images, in brow lengths, mean
  line_error      |line_shift - the wanted one|
  hair_gain       brow hair after / before - 1, by darkness (or lightness) against the skin
  hair_reached    that darkness gained / the wanted one; 1 where none was asked for
  hair_error      |that gained - the wanted one| / the wanted one, or a quarter of what the brow had where less was
                  wanted: of dense brows little is, and what is missing of it does not show; 0 where none was asked for
  asymmetry       |degree of the right brow - that of the left|; 0 for one side
  skin_delta_e    mean CIEDE2000 on the skin around, after against the warped photo; 0 is perfect
  detail_kept     fine texture of the brows after / that of the sketch's warped photo
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from pydantic import Field

from stylepairs.datagen.images.colors import delta_e_2000, lab_to_srgb, srgb_to_lab
from stylepairs.datagen.images.filters import grown, mean_of
from stylepairs.datagen.portraits.face_frame import pixel_places
from stylepairs.datagen.portraits.landmarks import BROW, EYE, NOSE_BRIDGE, SIDES, Side
from stylepairs.datagen.portraits.portrait import Portrait
from stylepairs.datagen.portraits.regions import labelled
from stylepairs.datagen.portraits.sketch import AnalysedPair, FeatureParams, Sketch, SketchRefused
from stylepairs.datagen.shell.randomness import random_generator
from stylepairs.datagen.sketching.face.brow_matte import (
    BrowLine,
    brow_line,
    brow_matte,
    hidden_share,
    labelled_brow,
)
from stylepairs.datagen.sketching.face.fine_hairs import strew_hairs
from stylepairs.datagen.sketching.face.glasses import wears_glasses
from stylepairs.datagen.sketching.tools.curves import smoothstep
from stylepairs.datagen.sketching.tools.matching import detail_ratio, match_degree
from stylepairs.datagen.sketching.tools.warp import changed_region, fold_limit, point_flow, warp_image, warp_label
from stylepairs.datagen.sketching.tools.warped import warped_sketch

# Where along the brow its arch is highest, and how wide the arch is, in brow lengths.
_PEAK, _PEAK_WIDTH = 0.64, 0.42
# Landmarks of the upper lids; in brow lengths, how far above them the skin begins to move.
_UPPER_LID = {"right": [37, 38], "left": [43, 44]}
_LID_ROOM = 0.08
# In brow lengths: hairs that are added, and the softness of the edges of the region they grow in.
_HAIR_LENGTH, _EDGE_SOFTNESS = 0.16, 0.05
# Share of the region that hairs of density 1 hide; how much less of that falls on hair that is there; how much farther
# from the skin's colour than the brow as a whole a hair is.
_FULL_COVER, _OWN_KEPT, _HAIR_DEPTH = 0.9, 0.4, 0.35
# Of the side: how far around a brow its skin is looked at.
_SKIN_RING = 3 / 128
# Of a brow's own darkness: a gain that errors are shares of at least.
_LEAST_HAIR = 0.25
_SHAPE = ("lift", "arch", "thickness")
# Where a warp would fold, what is asked for is taken back in steps of this share of it.
_STEP_BACK = 0.05
# A brow whose matte holds less than this share of the label's is not to be told from the skin.
_MIN_FOUND = 0.3
_MAX_HIDDEN = 0.3


class Params(FeatureParams):
    """What to do with the brows.

    lift: the whole brow, arch: its highest part, upwards by a share of the brow's length (negative: down, flatter).
    thickness: to gain, as a share of its own. density: share of the gaps between its hairs to fill. shade: lightness L
    to add to the hairs (negative: darker). side: the subject's. intensity: the degree, 0 own brows, 1 all of it.
    seed: draws the hairs. reference_px: side of the downsampled sketch that reconstruction matches.

    Lift, arch and thickness are scaled down together where there is too little skin around a brow for all of them
    without a fold; portraits are refused where less than min_reach of them would be left.
    """

    lift: float = Field(0.0, ge=-0.15, le=0.2)
    arch: float = Field(0.12, ge=-0.15, le=0.2)
    thickness: float = Field(0.0, ge=-0.4, le=0.6)
    density: float = Field(0.0, ge=0, le=1)
    shade: float = Field(0.0, ge=-25, le=25)
    side: Literal["both", "left", "right"] = "both"
    intensity: float = Field(1.0, ge=0, le=1)
    seed: int = Field(0, ge=0)
    min_reach: float = Field(0.5, ge=0, le=1)
    reference_px: int = Field(32, ge=4, le=256)

    @property
    def sides(self) -> tuple[Side, ...]:
        return SIDES if self.side == "both" else (self.side,)


def settled(portrait: Portrait, params: Params) -> Params:
    """The parameters with as much of lift, arch and thickness as there is room for. Raises as `sketch` does."""
    mattes = _usable_mattes(portrait, params)
    return _within_reach(portrait, _lines(portrait, mattes), params)


def sketch(portrait: Portrait, params: Params) -> Sketch:
    """The portrait with its brows refilled, shaded and warped.

    Raises SketchRefused where the brows are hidden, not to be told from the skin, or without room to move, and where
    nothing is asked for.
    """
    mattes = _usable_mattes(portrait, params)
    lines = _lines(portrait, mattes)
    params = _within_reach(portrait, lines, params)
    image, full, painted = portrait.image, torch.zeros_like(portrait.image[:2]), torch.zeros_like(portrait.image[:1])
    for side, matte in mattes.items():
        line = lines[side]
        refilled, region = painted_brow(portrait, side, matte, line, params)
        image = image + params.intensity * (refilled - portrait.image)
        painted = torch.maximum(painted, region)
        full = full + shape_flow(portrait, side, line, params)
    image = warp_image(image, params.intensity * full).clamp(-1, 1)
    return warped_sketch(portrait, image, full, params.intensity, painted, params.reference_px)


def measure(portrait: Portrait, seen: AnalysedPair, params: Params) -> dict[str, float]:
    """How far the wanted brows were reached and what it cost: the figures of the file's docstring."""
    found = [_measured_side(portrait, seen, side, params) for side in params.sides]
    figures = {name: float(np.mean([one[name] for one in found])) for name in found[0]}
    degrees = [one["degree"] for one in found]
    return figures | {
        "explained": min(one["explained"] for one in found),
        "asymmetry": max(degrees) - min(degrees),
        "skin_delta_e": max(one["skin_delta_e"] for one in found),
    }


def shape_flow(portrait: Portrait, side: Side, line: BrowLine, params: Params, may_fold: bool = False) -> torch.Tensor:
    """The flow [2,H,W] that gives one brow the wanted shape, as if intensity were 1; zero away from it; scaled back
    where it would fold, unless it may_fold."""
    rise = params.lift + params.arch * torch.exp(-(((line.at - _PEAK) / _PEAK_WIDTH) ** 2))
    rise = line.length * rise[:, None] * line.up
    swell = params.thickness * (line.upper - line.lower) / 2
    if not bool((rise != 0).any() | (swell != 0).any()):
        return torch.zeros_like(portrait.image[:2])
    source = torch.cat([line.upper, line.lower])
    target = source + torch.cat([rise + swell, rise - swell])
    window = _window(portrait, side, line, target[len(line.upper) :])
    held = _held_points(portrait, side, line)
    return point_flow(portrait.size_px, source, target, held, window=window, may_fold=may_fold)


def painted_brow(
    portrait: Portrait, side: Side, matte: torch.Tensor, line: BrowLine, params: Params
) -> tuple[torch.Tensor, torch.Tensor]:
    """The photo with one brow shaded and refilled as if intensity were 1 [3,H,W], and where it was painted [1,H,W]."""
    image, painted = portrait.image, torch.zeros_like(matte)
    if params.shade != 0:
        image, painted = image + matte * (_shaded(image, params.shade) - image), (matte / 0.05).clamp(0, 1)
    if params.density > 0 and bool(matte.any()):
        shape = _filled_shape(portrait, line) * (1 - grown(labelled(portrait, "l_eye", "r_eye"), 1))
        rng = random_generator(f"brow_{side}", params.seed, portrait.digest)
        length = _HAIR_LENGTH * line.length
        alpha, light = strew_hairs(shape, hair_flow(portrait, line), length, _FULL_COVER * params.density, rng)
        # Hairs that are there keep their own look.
        alpha = alpha * shape * (1 - _OWN_KEPT * matte)
        image = image + alpha * (_hair_color(portrait.image, matte, light) - image)
        painted = torch.maximum(painted, (alpha / 0.05).clamp(0, 1))
    return image, painted * (image != portrait.image).any(0, keepdim=True)


def hair_flow(portrait: Portrait, line: BrowLine) -> torch.Tensor:
    """Where brow hairs point [2,H,W], unit vectors: up at the inner end, along the brow, a little down at its tail."""
    share = (((pixel_places(portrait.image) - line.inner) @ line.along) / line.length).clamp(0, 1)
    rise = 1.1 - 1.5 * share
    flow: torch.Tensor = line.along + rise[..., None] * line.up
    length: torch.Tensor = flow.norm(dim=-1, keepdim=True)
    return (flow / length).permute(2, 0, 1)


def _measured_side(portrait: Portrait, seen: AnalysedPair, side: Side, params: Params) -> dict[str, float]:
    before, after = portrait.image, seen.after.image
    matte = brow_matte(portrait, side)
    line = brow_line(portrait, side, matte)
    refilled, painted = painted_brow(portrait, side, matte, line, params)
    full = shape_flow(portrait, side, line, params)

    def edited(share: float) -> torch.Tensor:
        return warp_image(before + share * (refilled - before), share * full)

    region = torch.maximum(grown((painted > 0).float(), 1), changed_region(full))
    found = match_degree(before, after, edited, region)
    flow = found.degree * full
    hair, photo, wanted = warp_image(matte, flow), warp_image(before, flow), edited(params.intensity)
    around = _around(portrait, line, torch.maximum(warp_image(painted, flow), hair))
    change = delta_e_2000(srgb_to_lab(photo), srgb_to_lab(after))[None]
    filled = torch.maximum(hair, warp_image(painted, flow).clamp(0, 1))
    gained, asked = _hair_gain(photo, after, filled, around), _hair_gain(photo, wanted, filled, around)
    moved = replace(portrait, image=after, label=warp_label(portrait.label, flow))
    risen = brow_line(moved, side, brow_matte(moved, side)).upper - line.upper
    shift, wanted_shift = float((risen[1:-1] @ line.up).median()) / line.length, _wanted_shift(line, params)
    asks_for_hair = params.density > 0 or params.shade != 0
    return {
        "degree": found.degree,
        "explained": found.explained,
        "line_shift": shift,
        "line_error": abs(shift - wanted_shift),
        "hair_gain": gained,
        "hair_reached": gained / asked if asks_for_hair and abs(asked) > 1e-3 else 1.0,
        "hair_error": abs(gained - asked) / max(abs(asked), _LEAST_HAIR) if asks_for_hair else 0.0,
        "skin_delta_e": float(mean_of(change, around)),
        "detail_kept": detail_ratio(edited(found.degree), after, (hair > 0.3).float()),
    }


def _hair_gain(photo: torch.Tensor, after: torch.Tensor, region: torch.Tensor, around: torch.Tensor) -> float:
    """Lightness lost within region [1,H,W], in terms of what the brow's hairs take from that of the skin around."""
    light_photo, light_after = srgb_to_lab(photo)[:1], srgb_to_lab(after)[:1]
    taken = float(((mean_of(light_photo, around) - light_photo) * region).sum())
    lost = float(((light_photo - light_after) * region).sum())
    return lost / max(taken, 1.0, key=abs)


def _wanted_shift(line: BrowLine, params: Params) -> float:
    rise = params.lift + params.arch * torch.exp(-(((line.at - _PEAK) / _PEAK_WIDTH) ** 2))
    swell = params.thickness * ((line.upper - line.lower) @ line.up) / 2 / line.length
    return params.intensity * float((rise + swell)[1:-1].median())


def _held_points(portrait: Portrait, side: Side, line: BrowLine) -> torch.Tensor:
    """What stays [J,2]: the eye, the other brow, the bridge of the nose, an arc over the forehead and the temple."""
    points, other_side = portrait.points68, SIDES[1] if side == SIDES[0] else SIDES[0]
    spread = torch.tensor([-0.35, 0.0, 0.25, 0.5, 0.75, 1.0, 1.3], device=line.up.device)[:, None]
    arc = line.inner + line.length * (spread * line.along + 0.75 * line.up)
    temple = line.inner + line.length * (
        1.35 * line.along + torch.tensor([[0.3], [-0.1], [-0.5]]).to(line.up) * line.up
    )
    return torch.cat([points[EYE[side]], points[BROW[other_side]], points[NOSE_BRIDGE][:2], arc, temple])


def _window(portrait: Portrait, side: Side, line: BrowLine, moved_lower: torch.Tensor) -> torch.Tensor:
    """Where the warp of one brow, whose lower edge goes to moved_lower [K,2], may reach [1,H,W]: a soft oval around it
    that ends above the eye's upper lid.
    """
    grid = pixel_places(portrait.image) - line.inner
    along, upward = grid @ line.along / line.length, grid @ line.up / line.length
    radius = (((along - 0.5) / 0.85).square() + ((upward - 0.05) / 0.75).square()).sqrt()
    lid = (portrait.points68[_UPPER_LID[side]] - line.inner) @ line.up / line.length
    # Of a raised brow where it comes to lie: all the skin from the lid up to there is stretched, so that little folds.
    lower = max(float(((edge - line.inner) @ line.up).mean()) / line.length for edge in (line.lower, moved_lower))
    top = float(lid.max()) + _LID_ROOM
    # 0 at the lid, 1 at the brow's lower edge; a brow that lies on its lid moves against the little skin there is.
    above = (upward - top) / max(lower - top, _LID_ROOM)
    return (smoothstep(1 - (radius - 0.75) / 0.25) * _even_step(above))[None]


def _even_step(x: torch.Tensor) -> torch.Tensor:
    """From 0 at 0 to 1 at 1, nearly straight with round ends: the less steep (`smoothstep` is by a quarter more), the
    farther skin stretches before it folds."""
    x, ends = x.clamp(0, 1), 1 / 6
    start, end = x.square() / (2 * ends), 1 - ends - (1 - x).square() / (2 * ends)
    return torch.where(x < ends, start, torch.where(x > 1 - ends, end, x - ends / 2)) / (1 - ends)


def _filled_shape(portrait: Portrait, line: BrowLine) -> torch.Tensor:
    """The brow without gaps [1,H,W]: 1 inside, falling to 0 at its edges and over its ends, so that it grows denser and
    no larger.
    """
    grid = pixel_places(portrait.image) - line.inner
    along, upward = (grid @ line.along / line.length).cpu().numpy(), grid @ line.up
    edges = [((edge - line.inner) @ line.up).cpu().numpy() for edge in (line.upper, line.lower)]
    upper, lower = (torch.from_numpy(np.interp(along, line.at.cpu().numpy(), edge)).to(upward) for edge in edges)
    soft = max(1.0, _EDGE_SOFTNESS * line.length)
    ends = torch.from_numpy(np.minimum(along, 1 - along) / 0.12).to(upward)
    return (smoothstep((upper - upward) / soft + 0.3) * smoothstep((upward - lower) / soft + 0.3) * smoothstep(ends))[
        None
    ]


def _hair_color(image: torch.Tensor, matte: torch.Tensor, light: torch.Tensor) -> torch.Tensor:
    """Hairs [3,H,W] of the brow's own colour, lighter and darker by `light` [1,H,W] times its own spread."""
    lab, core = srgb_to_lab(image), matte**4
    mean = mean_of(lab, core)
    spread = mean_of((lab[:1] - mean[:1]).square(), core).sqrt().clamp(1.5, 5.0)
    # What is all hair in the photo still has skin between its hairs, so single hairs are darker than it.
    brow = (matte > 0.1).float()
    skin = mean_of(lab, grown(brow, _SKIN_RING * brow.shape[-1]) - brow)
    own = mean + _HAIR_DEPTH * (mean - skin)
    return lab_to_srgb(torch.cat([(own[:1] + spread * light).clamp(1, 99), own[1:] + torch.zeros_like(lab[1:])]))


def _shaded(image: torch.Tensor, shade: float) -> torch.Tensor:
    """image [3,H,W] with `shade` added to its lightness, within what there is, its chroma following as on a surface."""
    lab = srgb_to_lab(image)
    light = lab[:1] + shade * (4 * (lab[:1] / 100) * (1 - lab[:1] / 100)).clamp(0.35, 1)
    light = light.clamp(2, 98)
    return lab_to_srgb(torch.cat([light, lab[1:] * (light + 16) / (lab[:1] + 16)]))


def _around(portrait: Portrait, line: BrowLine, brow: torch.Tensor) -> torch.Tensor:
    """Skin [1,H,W] around the brow."""
    near = grown((brow > 0.05).float(), 1)
    return (grown(near, 0.15 * line.length) - near) * labelled(portrait, "skin")


def _lines(portrait: Portrait, mattes: dict[Side, torch.Tensor]) -> dict[Side, BrowLine]:
    return {side: brow_line(portrait, side, matte) for side, matte in mattes.items()}


def _within_reach(portrait: Portrait, lines: dict[Side, BrowLine], params: Params) -> Params:
    """The parameters with lift, arch and thickness scaled to what neither brow's warp folds at; as they are where
    nothing does. Raises SketchRefused where less than min_reach of them is left."""
    share, less = 1.0, params
    while (limit := _fold_limit(portrait, lines, less)) < 1:
        # The flow is no straight function of the parameters: the limit of one share only says where to look next.
        share = min(share - _STEP_BACK, math.floor(share * limit / _STEP_BACK) * _STEP_BACK)
        if share < params.min_reach - 1e-6:
            raise SketchRefused(
                f"{portrait.name}: the brows could follow only {100 * share:.0f} % of lift, arch and thickness without "
                f"a fold (min_reach {100 * params.min_reach:g} %)"
            )
        less = params.model_copy(update={name: round(share * getattr(params, name), 4) for name in _SHAPE})
    return less


def _fold_limit(portrait: Portrait, lines: dict[Side, BrowLine], params: Params) -> float:
    """The factor in (0,1] of the edit at which the first of its warps folds; 1 where none does."""
    flows = (shape_flow(portrait, side, line, params, may_fold=True) for side, line in lines.items())
    return min(fold_limit(flow) for flow in flows)


def _usable_mattes(portrait: Portrait, params: Params) -> dict[Side, torch.Tensor]:
    """The mattes of the brows asked for. Raises SketchRefused where one is hidden, or nothing is asked for."""
    asked = (params.lift, params.arch, params.thickness, params.density, params.shade)
    if not any(asked):
        raise SketchRefused(f"{portrait.name}: lift, arch, thickness, density and shade are 0; nothing to change")
    if wears_glasses(portrait):
        raise SketchRefused(f"{portrait.name}: glasses, or shadows that look like them, over the brows")
    mattes: dict[Side, torch.Tensor] = {}
    for side in params.sides:
        hidden = hidden_share(portrait, side)
        if hidden > _MAX_HIDDEN:
            raise SketchRefused(f"{portrait.name}: hair hides {100 * hidden:.0f} % of the {side} brow")
        mattes[side] = brow_matte(portrait, side)
        label = labelled_brow(portrait, side)
        found = float(mattes[side].sum() / label.sum().clamp_min(1))
        if found < _MIN_FOUND:
            raise SketchRefused(
                f"{portrait.name}: only {100 * found:.0f} % of the labelled {side} brow shows hairs "
                f"({100 * _MIN_FOUND:g} % needed); not to be told from the skin"
            )
    return mattes
