"""Fluffiness: hair with more (or less) volume at the crown, the sides or both, its outline pushed out from the face.

The hair is a layer of its own over the continued background (I = P + (1 - a) B with P = I - (1 - a) B, so that a layer
that is not moved gives the photo back exactly). The layer is warped along rays from the face: nothing moves at the
hairline, everything at the outline, and the strands in between are gently stretched, never more than they bear. On rays
that pass an ear nothing moves.

Figures of `measure` (along rays on which the picture shows where the outline was and where it is to be):
  outline_gained   how far the outline moved out, as a share of the head's width; negative: in
  reached          the same as a share of what was wanted at this intensity; 1 is all of it
  degree           the same as a share of what intensity 1 would move, 0 none, 1 all the way
  unevenness       spread along the outline of `reached`, sector by sector; 0 is even
  halo_delta_e     how much more the background just outside the new outline differs from that of the photo, or its
                   continuation where it was hidden, than just outside the old one, where strands fly too; mean
                   CIEDE2000, 0 is clean
  rim_gap          how much more background shines through within the new rim than did within the old one: old rims and
                   double outlines; share in [0,1], 0 is none
  face_moved       share of the face that changed visibly (CIEDE2000 over 2); 0 is perfect
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field, model_validator

from stylepairs.datagen.images.colors import delta_e_2000, srgb_to_lab
from stylepairs.datagen.images.filters import overall_mean
from stylepairs.datagen.portraits.portrait import CLASS, Portrait
from stylepairs.datagen.portraits.regions import class_region, dilate, face_region, feather
from stylepairs.datagen.portraits.sketch import AnalysedPair, FeatureParams, Sketch, SketchRefused
from stylepairs.datagen.shell.randomness import random_generator
from stylepairs.datagen.sketching.hair.background import continue_background
from stylepairs.datagen.sketching.hair.flyaways import loose_strands
from stylepairs.datagen.sketching.hair.hair_matte import hair_matte, refuse_untrusted_matte
from stylepairs.datagen.sketching.hair.hair_outline import (
    HairOutline,
    hair_outline,
    head_width_px,
    outline_flow,
)
from stylepairs.datagen.sketching.tools.curves import smoothstep
from stylepairs.datagen.sketching.tools.texture import blurred_by_share
from stylepairs.datagen.sketching.tools.warp import warp_image

# Of the hair's thickness between hairline and outline: how far it may be stretched, and how far pressed together.
_MAX_STRETCH = 0.5
_MAX_PRESS = 0.35
# Of the side: width of the soft edge of hair; of the rim that is looked at for gaps, and of the ring outside for halos.
_EDGE = 0.015
_RIM = 0.05
_RING = 0.03
# Of the side: around the hair, what is not to be taken for background, because hair shines through it.
_TAINTED = 0.008
# Side of the picture in which the hair's colour is spread.
_SMALL_PX = 128
# How opaque a loose strand is. Of the head's width: from the first thickness on hair lets strands loose, from the other
# on all of them; cropped hair has none.
_LOOSE = 0.65
_STRANDS_FROM = (0.1, 0.3)
# Of the side: what moves by so much or more is edited in full.
_MOVES = 0.004
# In degrees from straight up: rays over the forehead, and those beside the face, along which hair's length is read.
_CROWN, _SIDES = (0.0, 45.0), (50.0, 100.0)
_HEAD_CLASSES = ("skin", "l_brow", "r_brow", "l_eye", "r_eye", "eye_g", "l_ear", "r_ear", "ear_r", "nose", "mouth")


class Params(FeatureParams):
    """How the hair's outline moves.

    volume: share of the head's width (ear to ear) by which the outline is pushed out; negative: flatter hair. where:
    crown (above the temples), sides, or both. intensity: the degree, 0 unchanged, 1 the whole volume. seed: of the
    loose strands at the new outline. reference_px: side of the downsampled sketch that reconstruction matches.

    Portraits are refused that wear a hat, have hair on less than min_hair_share of the crop, or a matte that is not to
    be trusted: over more than max_on_face of the face below the brows, or with more than max_unsure half-transparent
    pixels for each that is hair; that is shaven or cropped: thinner between hairline and outline, above and beside the
    face, than min_hair of the head's width. Likewise where hair borders on background along less than min_free of the
    outline (without what ears are before), is too thin to follow by min_reach of the volume, or less than min_visible
    of the new outline is in the picture.
    """

    volume: float = Field(0.1, ge=-0.1, le=0.25)
    where: Literal["crown", "sides", "both"] = "both"
    intensity: float = Field(1.0, ge=0, le=1)
    seed: int = Field(0, ge=0)
    min_hair_share: float = Field(0.03, ge=0, lt=1)
    max_on_face: float = Field(0.25, ge=0, le=1)
    max_unsure: float = Field(1.1, ge=0)
    min_hair: float = Field(0.18, ge=0)
    min_free: float = Field(0.4, ge=0, le=1)
    min_reach: float = Field(0.6, ge=0, le=1)
    min_visible: float = Field(0.35, ge=0, le=1)
    reference_px: int = Field(16, ge=4, le=256)

    @model_validator(mode="after")
    def _asks_for_something(self) -> Params:
        if self.volume == 0:
            raise ValueError("volume is 0: nothing to do")
        return self


@dataclass(frozen=True)
class _Plan:
    """matte [1,H,W] and outline as they are; moved [K]: pixels by which the outline moves at intensity 1; counted [K]:
    how much each ray counts, 0 where the picture does not show the change; clear [K]: 0 where an ear is in the way."""

    matte: torch.Tensor
    outline: HairOutline
    moved: torch.Tensor
    counted: torch.Tensor
    clear: torch.Tensor


def sketch(portrait: Portrait, params: Params) -> Sketch:
    """The portrait with its hair's outline moved over the continued background.

    Raises SketchRefused where there is no hair to move, or no room to move it into.
    """
    device, portrait = portrait.image.device, portrait.to("cpu")  # rays and outlines are small work
    plan = _plan(portrait, params)
    _refuse_unusable(portrait, plan, params)
    flow = outline_flow(plan.outline, params.intensity * plan.moved, portrait.size_px)
    behind = _background(portrait.image, portrait, plan.matte)
    layer = portrait.image - (1 - plan.matte) * behind
    shown = _from_within(flow)  # what would come from beyond the picture is nothing rather than its mirror image
    matte = warp_image(plan.matte, flow).clamp(0, 1) * shown
    image = warp_image(layer, flow) * shown + (1 - matte) * behind
    loose = _loose_strands(portrait, plan, params)
    image = image + loose * (_hair_color(portrait.image, plan.matte) - image)
    matte = torch.maximum(matte, loose)
    mask = _edit_mask(plan.matte, matte, flow)
    return Sketch(
        image=(portrait.image + mask * (image - portrait.image)).clamp(-1, 1).to(device),
        edit_mask=mask.to(device),
        keep_mask=(1 - feather(dilate(mask, _EDGE), _EDGE / 2).maximum(mask)).to(device),
        reference_px=min(params.reference_px, portrait.size_px),
        sketch_detail=1.0,
        harmony=0.0,  # the photo's own light, moved
        label=_label(portrait, matte).to(device),
        hair=matte.to(device),
    )


def measure(portrait: Portrait, seen: AnalysedPair, params: Params) -> dict[str, float]:
    """How far the outline moved and how cleanly: the figures of the file's docstring."""
    portrait = portrait.to("cpu")
    seen = AnalysedPair(*(half.resized(portrait.size_px).to("cpu") for half in (seen.before, seen.after)))
    plan = _plan(portrait, params)
    gained, halo, rim_gap = _read_rays(portrait, seen, plan, params.intensity * plan.moved)
    wanted = float(overall_mean(plan.moved.abs(), plan.counted)) or 1.0
    sign = -1.0 if params.volume < 0 else 1.0
    degree = sign * overall_mean(gained, plan.counted) / wanted
    figures = {
        "outline_gained": overall_mean(gained, plan.counted) / head_width_px(portrait),
        "reached": degree / max(params.intensity, 1e-3),
        "degree": degree,
        "unevenness": _unevenness(gained, plan),
        "halo_delta_e": halo,
        "rim_gap": rim_gap,
        "face_moved": _face_moved(portrait, seen, plan.matte),
    }
    return {name: float(value) for name, value in figures.items()}


def _plan(portrait: Portrait, params: Params) -> _Plan:
    matte = hair_matte(portrait)
    outline = hair_outline(portrait, matte)
    weight = _where(outline.angles, params.where) * outline.free
    thickness = outline.thickness
    wanted = params.volume * head_width_px(portrait) * weight
    moved = torch.minimum(torch.maximum(wanted, -_MAX_PRESS * thickness), _MAX_STRETCH * thickness)
    if params.volume < 0:
        # What lies beyond the picture cannot be drawn into it.
        moved = moved * _along(outline.visible).square()
    clear = 1 - _passes_ear(portrait, outline)
    moved, weight = _along(moved) * clear, weight * clear
    shown = outline.outer + moved.clamp_min(0) + _EDGE * portrait.size_px < outline.room
    return _Plan(matte, outline, moved, weight * outline.visible * shown, clear)


def _passes_ear(portrait: Portrait, outline: HairOutline) -> torch.Tensor:
    """1 for rays [K] that pass an ear before they leave the hair, softly less beside them: all that is on a ray moves,
    and an ear would be drawn out with the hair."""
    ears = class_region(portrait, ["l_ear", "r_ear"], 0.0) * (portrait.hair < 0.5)
    radii = torch.linspace(0, 1, 50) * (outline.outer + _EDGE * portrait.size_px)[:, None]
    return (2 * _along((outline.read(ears, radii)[0] > 0.5).any(1).float())).clamp(0, 1)


def _where(angles: torch.Tensor, where: str) -> torch.Tensor:
    """How much each ray takes part [K]: the crown ends above the temples, the sides below the ears."""
    at = angles.abs()
    crown, sides = 1 - smoothstep(at, 40, 80), smoothstep(at, 30, 70) * (1 - smoothstep(at, 105, 140))
    return {"crown": crown, "sides": sides, "both": 1 - smoothstep(at, 105, 140)}[where]


def _refuse_unusable(portrait: Portrait, plan: _Plan, params: Params) -> None:
    name, outline = portrait.name, plan.outline
    hat = float((portrait.label == CLASS["hat"]).float().mean())
    if hat > 0.01:
        raise SketchRefused(f"{name}: wears a hat ({100 * hat:.0f} % of the crop); its hair cannot be made fluffier")
    share = float((plan.matte > 0.5).float().mean())
    if share < params.min_hair_share:
        raise SketchRefused(
            f"{name}: hair covers only {100 * share:.1f} % of the crop "
            f"(min_hair_share {100 * params.min_hair_share:g} %)"
        )
    refuse_untrusted_matte(portrait, plan.matte, params.max_on_face, params.max_unsure)
    hair = _hair_length(outline) / head_width_px(portrait)
    if hair < params.min_hair:
        raise SketchRefused(
            f"{name}: {hair:.3f} head widths of hair from hairline to outline (min_hair {params.min_hair:g}); too "
            "short to be made fluffier"
        )
    asked = _where(outline.angles, params.where) * plan.clear
    free = asked * outline.free
    if free.sum() < params.min_free * asked.sum():
        raise SketchRefused(
            f"{name}: hair borders on background along only {100 * float(free.sum() / asked.sum()):.0f} % "
            f"of the outline (min_free {100 * params.min_free:g} %)"
        )
    reach = float(plan.moved.abs().sum() / (abs(params.volume) * head_width_px(portrait) * free).sum().clamp_min(1e-6))
    if reach < params.min_reach:
        raise SketchRefused(
            f"{name}: the hair is too thin: it could follow only {100 * reach:.0f} % of the volume "
            f"(min_reach {100 * params.min_reach:g} %)"
        )
    visible = float(plan.counted.sum() / free.sum().clamp_min(1e-6))
    if visible < params.min_visible:
        raise SketchRefused(
            f"{name}: no room: only {100 * visible:.0f} % of the new outline would be in the picture "
            f"(min_visible {100 * params.min_visible:g} %)"
        )


def _hair_length(outline: HairOutline) -> float:
    """Pixels from hairline to outline in the median above the face, or beside it where they are more."""
    at = outline.angles.abs()
    return max(float(outline.thickness[(at >= low) & (at <= high)].median()) for low, high in (_CROWN, _SIDES))


def _background(image: torch.Tensor, portrait: Portrait, matte: torch.Tensor) -> torch.Tensor:
    """The image [3,H,W] without the head: its surroundings continued behind hair and face."""
    head = torch.maximum(class_region(portrait, _HEAD_CLASSES, 0.0), (matte > 0.02).float())
    return continue_background(image, dilate(head, _TAINTED))


def _from_within(flow: torch.Tensor) -> torch.Tensor:
    """[1,H,W]: 1 where a pixel comes from within the picture, 0 where from a pixel or more beyond it."""
    size = flow.shape[-1]
    at = torch.arange(size).float()
    x, y = at + flow[0], at[:, None] + flow[1]
    beyond = torch.stack([-x, -y, x - (size - 1), y - (size - 1)]).amax(0, keepdim=True)
    return (1 - beyond).clamp(0, 1)


def _loose_strands(portrait: Portrait, plan: _Plan, params: Params) -> torch.Tensor:
    """[1,H,W]: how much the strands cover that a fuller hair lets loose; none for flatter hair."""
    most = 0.1 * head_width_px(portrait)
    long_enough = smoothstep(plan.outline.thickness / head_width_px(portrait), *_STRANDS_FROM)
    amount = (plan.moved / most).clamp(0, 1) * long_enough
    loose = loose_strands(
        plan.outline,
        params.intensity * plan.moved,
        amount,
        portrait.size_px,
        random_generator("loose", params.seed, portrait.digest),
    )
    return params.intensity * _LOOSE * loose


def _edit_mask(before: torch.Tensor, after: torch.Tensor, flow: torch.Tensor) -> torch.Tensor:
    """[1,H,W]: hair that moves, where it was and where it is, and its soft edges; 0 where nothing moves."""
    moves = (flow.norm(dim=0, keepdim=True) / (_MOVES * flow.shape[-1])).clamp(0, 1)
    hair = dilate((torch.maximum(before, after) > 0.02).float(), _EDGE)
    return feather(hair * moves, _EDGE / 3) * (dilate(moves, 0.004) > 0)


def _label(portrait: Portrait, matte: torch.Tensor) -> torch.Tensor:
    """The label map [H,W]: hair where there is some now that was not, background where hair has gone."""
    label = portrait.label.clone()
    free = torch.isin(label, torch.tensor([CLASS[name] for name in ("background", "cloth", "neck")]))
    label[free & (matte[0] > 0.5)] = CLASS["hair"]
    label[(portrait.label == CLASS["hair"]) & (portrait.hair[0] > 0.5) & (matte[0] < 0.5)] = CLASS["background"]
    return label


def _read_rays(
    portrait: Portrait, seen: AnalysedPair, plan: _Plan, moved: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pixels of hair won outwards [K], halo_delta_e and rim_gap, along the rays, the outline being to move by moved
    [K]."""
    size, outline = portrait.size_px, plan.outline
    before, after = seen.before, seen.after
    behind = _background(before.image, portrait, plan.matte)
    hair = _hair_color(before.image, plan.matte)
    axis = hair - behind
    length2 = axis.square().sum(0, keepdim=True)
    # Colours closer than a tenth of the range (0.04 = 0.2^2 in [-1,1]) do not tell hair from the rest: there, the
    # analyser's mattes do.
    told = length2 / (length2 + 0.04)

    def hairness(half: Portrait) -> torch.Tensor:
        share = (((half.image - behind) * axis).sum(0, keepdim=True) / length2.clamp_min(1e-4)).clamp(0, 1)
        return told * share + (1 - told) * half.hair

    strays = [delta_e_2000(srgb_to_lab(behind), srgb_to_lab(half.image))[None] for half in (before, after)]
    reach = float(plan.moved.abs().max())
    step = max(0.5, 0.004 * size)
    offsets = torch.arange(-reach - (_RIM + _EDGE) * size, reach + (_RING + _EDGE) * size, step)
    radii = (outline.outer[:, None] + offsets).maximum(outline.inner[:, None])
    maps = torch.cat([hairness(before), hairness(after), *strays])
    old, new, old_strays, new_strays = outline.read(maps, radii)
    window = ((offsets > -reach - _EDGE * size) & (offsets < reach + _EDGE * size)).float()

    def between(edge: torch.Tensor, low: float, high: float) -> torch.Tensor:
        beyond = offsets - edge[:, None]
        return ((beyond > low * size) & (beyond <= high * size)).float()

    edges = torch.zeros_like(moved), moved
    halos = [
        overall_mean(strays, between(edge, _EDGE, _EDGE + _RING) * plan.counted[:, None])
        for edge, strays in zip(edges, (old_strays, new_strays), strict=True)
    ]
    halo = (halos[1] - halos[0]).clamp_min(0)
    rims = [between(edge, -_EDGE - _RIM, -_EDGE) for edge in edges]
    gaps = [((1 - hair) * rim).sum(1) / rim.sum(1).clamp_min(1) for hair, rim in zip((old, new), rims, strict=True)]
    return ((new - old) * window).sum(1) * step, halo, overall_mean((gaps[1] - gaps[0]).clamp_min(0), plan.counted)


def _hair_color(image: torch.Tensor, matte: torch.Tensor) -> torch.Tensor:
    """The hair's colour nearby [3,H,W], carried on beyond it; found in a small picture, as it is smooth."""
    core = 1 - dilate((matte < 0.9).float(), _TAINTED)
    core = core if core.sum() > 0 else matte
    factor = max(1, image.shape[-1] // _SMALL_PX)
    small_core, small = (torch.nn.functional.avg_pool2d(x, factor, ceil_mode=True) for x in (core, image * core))
    total = weight = torch.zeros(())
    for share, trust in ((0.03, 1.0), (0.1, 1e-2), (0.3, 1e-5)):
        total = total + trust * blurred_by_share(small, share)
        weight = weight + trust * blurred_by_share(small_core, share)
    colors = (total / weight.clamp_min(1e-9))[None]
    return torch.nn.functional.interpolate(colors, size=image.shape[-2:], mode="bilinear", align_corners=False)[0]


def _unevenness(gained: torch.Tensor, plan: _Plan) -> torch.Tensor:
    """Standard deviation of the share reached, over sectors of about ten degrees, where much was to move."""
    sector = torch.arange(len(gained)) // 8
    count = int(sector.max()) + 1
    weight = plan.counted * (plan.moved.abs() > 0.5 * plan.moved.abs().max())
    won, asked, total = (
        torch.zeros(count).index_add(0, sector, values * weight)
        for values in (gained, plan.moved, torch.ones_like(gained))
    )
    share = won / torch.where(asked.abs() > 1e-6, asked, 1.0)
    return overall_mean((share - overall_mean(share, total)).square(), total).sqrt()


def _face_moved(portrait: Portrait, seen: AnalysedPair, matte: torch.Tensor) -> torch.Tensor:
    changed = delta_e_2000(srgb_to_lab(seen.before.image), srgb_to_lab(seen.after.image))[None] > 2
    return overall_mean(changed.float(), face_region(portrait, 0.0) * (dilate(matte, 0.02) < 0.02))


def _along(values: torch.Tensor) -> torch.Tensor:
    """values [K] along the outline, smoothed over about eight degrees."""
    kernel = torch.exp(-0.5 * (torch.arange(-16, 17) / 6.5) ** 2)
    padded = torch.nn.functional.pad(values[None, None], (16, 16), mode="replicate")
    return torch.nn.functional.conv1d(padded, (kernel / kernel.sum())[None, None])[0, 0]
