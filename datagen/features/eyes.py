"""Eyes: larger or smaller by a share, and the crease of the upper lid drawn or softened.

Size scales each eye about its middle, whole between the lids and fading to nothing at the brow, the bridge of the nose
and the cheek (local scaling, Gustafson 1993). The crease is a soft line that follows the upper lid, put where the photo
has one already if it has; its strength darkens it, or fills it with the skin beside it.

Figures of `measure`:
  degree           how far the image went along this very edit, 0 as before, 1 the full change (see sketching.matching)
  degree_error     distance of `degree` from the intensity asked for; the figure to gate on
  explained        share of the change that this edit accounts for, in [0,1]; low for any other change
  eye_grown        by the landmarks found: growth of the eyes' mean width and opening, as a share; signed; far short of
                   the truth, as landmark models put eyes at their usual size: not to be gated on
  crease_darkened  how much darker the crease became against the lid and the skin above, in image units; signed
  still_shift      by the landmarks found: mean shift of brows, nose and mouth, in eye distances; 0 is perfect
  detail_kept      fine texture in the region after / in the photo edited without a generator; under 1 is smeared
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Literal

import torch
from pydantic import Field, model_validator

from stylepairs.datagen.images.colors import srgb_to_lab
from stylepairs.datagen.images.filters import overall_mean, read_at
from stylepairs.datagen.portraits.face_frame import FaceFrame, pixel_places
from stylepairs.datagen.portraits.landmarks import BROWS, LEFT_EYE, MOUTH, NOSE, RIGHT_EYE, eye_distance
from stylepairs.datagen.portraits.portrait import CLASS, Portrait
from stylepairs.datagen.portraits.regions import labelled
from stylepairs.datagen.portraits.sketch import AnalysedPair, FeatureParams, Sketch, SketchRefused
from stylepairs.datagen.sketching.face.glasses import wears_glasses
from stylepairs.datagen.sketching.tools.curves import smooth_curve, smoothstep, soft_line
from stylepairs.datagen.sketching.tools.matching import detail_ratio, match_degree
from stylepairs.datagen.sketching.tools.texture import blurred_by_share
from stylepairs.datagen.sketching.tools.warp import changed_region, unfolded, warp_image
from stylepairs.datagen.sketching.tools.warped import warped_sketch

# Reach of the scaling across and down, in half eye widths: all of it inside the first ellipse, none outside the second.
_WHOLE, _NONE = (1.0, 0.6), (1.9, 1.45)
# Of half an eye's width: where a crease can lie above the lid's edge, where it is drawn if there is none, its width.
_CREASE_FROM, _CREASE_TO, _CREASE_USUAL, _CREASE_WIDTH = 0.22, 0.62, 0.36, 0.13
# Second difference of lightness above which there is a crease; darkening of red, green and blue at a strength of 1.
_CREASE_SEEN = 0.06
_CREASE_TONE = (0.36, 0.44, 0.44)
# Of half an eye's width: the two halves of an opening, above and below the line of its corners, whose light tells lids
# that are down.
_HALF_ACROSS, _HALF_DOWN = 0.5, 0.3
# Pixels of the eye's class in the label map, per square of half its width: under this many the eye is hidden.
_LEAST_SEEN = 0.15
# Share of the ellipse that is scaled whole that hair may cover: of 157 portraits one has 0.2, where the strand over the
# eye is bent around it, all others 0.06 and less.
_MOST_HAIR = 0.12

Side = Literal["both", "left", "right"]


class Params(FeatureParams):
    """What to do with the eyes.

    size: share by which they grow (negative: shrink). crease: strength of the upper lid's crease, 1 a marked one more,
    -1 what there is smoothed away. side: the subject's. intensity: the degree, 0 none of it, 1 all. Refused are
    eyes whose lids are down (landmark models open them all the same): whose upper half is lighter than the lower one by
    more than max_lid_light of the spread of light there, skin over lashes instead of lashes over white; those that the
    label map does not see or hair hangs over, and glasses. Of 231 portraits, 5 with lowered lids have 0.8 to 1.8, all
    others up to 0.5. reference_px: side of the downsampled sketch that reconstruction matches.
    """

    size: float = Field(0.15, ge=-0.15, le=0.3)
    crease: float = Field(0.0, ge=-1, le=1)
    side: Side = "both"
    intensity: float = Field(1.0, ge=0, le=1)
    max_lid_light: float = Field(0.65, ge=0)
    reference_px: int = Field(32, ge=4, le=256)

    @model_validator(mode="after")
    def _asks_for_something(self) -> Params:
        if self.size == self.crease == 0:
            raise ValueError("size and crease are both 0; ask for one of them")
        return self


def sketch(portrait: Portrait, params: Params) -> Sketch:
    """The portrait with its eyes scaled and their creases drawn.

    Raises SketchRefused for lowered or hidden eyes and for glasses.
    """
    _refuse_unusable(portrait, params)
    flow, crease = _full_flow(portrait, params), _creases(portrait, params)
    image = _edited(portrait.image, flow, crease, params, params.intensity)
    return warped_sketch(portrait, image, flow, params.intensity, (20 * crease).clamp(0, 1), params.reference_px)


def measure(portrait: Portrait, seen: AnalysedPair, params: Params) -> dict[str, float]:
    """How far the eyes were changed and what it cost: the figures of the file's docstring."""
    portrait = portrait.resized(seen.before.size_px)
    flow, crease = _full_flow(portrait, params), _creases(portrait, params)
    before, after = seen.before.image, seen.after.image
    region = torch.maximum(changed_region(flow), crease * (params.crease != 0))
    match = match_degree(before, after, partial(_edited, before, flow, crease, params), region)
    shift = seen.after.points68 - seen.before.points68
    still = torch.cat([shift[BROWS], shift[NOSE], shift[MOUTH]])
    moved = warp_image(crease, params.intensity * flow)
    return match.figures(params.intensity) | {
        "eye_grown": _eye_size(seen.after.points68, params.side) / _eye_size(seen.before.points68, params.side) - 1,
        "crease_darkened": _line_contrast(before, crease) - _line_contrast(after, moved),
        "still_shift": float(still.norm(dim=-1).mean() / eye_distance(seen.before.points68)),
        "detail_kept": detail_ratio(_edited(before, flow, crease, params, params.intensity), after, region),
    }


def _edited(
    image: torch.Tensor, flow: torch.Tensor, crease: torch.Tensor, params: Params, degree: float
) -> torch.Tensor:
    """image [3,H,W] with `degree` of the full change; below 0 and beyond 1 it is carried on."""
    strength = params.crease * degree * crease
    tone = torch.tensor(_CREASE_TONE).to(image)[:, None, None]
    if params.crease > 0:
        image = image - (image + 1) * tone * strength
    elif params.crease < 0:
        # Filled by what is beside it: the line's own darkness against a blur several times as wide is taken away.
        image = image + (image - blurred_by_share(image, 0.016)).clamp_max(0) * strength
    return warp_image(image.clamp(-1, 1), degree * flow)


def _full_flow(portrait: Portrait, params: Params) -> torch.Tensor:
    """The flow [2,H,W] of the whole change."""
    places, flow = pixel_places(portrait.image), torch.zeros_like(portrait.image[:2])
    for eye in _eyes(params.side):
        frame = _eye_frame(portrait.points68, eye)
        x, y = frame.coordinates(places).unbind(-1)
        grown = 1 + max(params.size, 0.0)  # the flow is backward: it is whole where the eye ends up
        inner = ((x / _WHOLE[0]).square() + (y / _WHOLE[1]).square()) / grown**2
        outer = (x / _NONE[0]).square() + (y / _NONE[1]).square()
        # From 1 on the inner ellipse to 0 on the outer, along every ray from the middle.
        weight = smoothstep((1 - outer.sqrt()) / (inner.sqrt() - outer.sqrt()).clamp_min(1e-6))
        away = (places - frame.origin).permute(2, 0, 1)
        flow = flow - params.size / (1 + params.size) * weight * away
    return unfolded(flow)


def _creases(portrait: Portrait, params: Params) -> torch.Tensor:
    """[1,H,W] in [0,1]: soft lines along the upper lids' creases."""
    lines = torch.zeros_like(portrait.hair)
    if params.crease == 0:
        return lines
    light = blurred_by_share(portrait.image, 0.004).mean(0, keepdim=True)
    for eye in _eyes(params.side):
        frame = _eye_frame(portrait.points68, eye)
        down, half = frame.down, frame.unit_px
        lid = smooth_curve(portrait.points68[eye][:4], 13)
        offset = _crease_offset(light, lid, down, half)
        # Closer to the lid at the corners, where creases run into it.
        rise = torch.tensor([0.55, 0.9, 1.0, 1.0, 0.9, 0.6]).to(lid)[:, None] * offset * half
        curve = smooth_curve(portrait.points68[eye][:4], 6) - rise * down
        lines = torch.maximum(lines, soft_line(portrait.size_px, curve, _CREASE_WIDTH * half, taper=0.3))
    return lines


def _crease_offset(light: torch.Tensor, lid: torch.Tensor, down: torch.Tensor, half: float) -> float:
    """How far above the lid [K,2] the darkest line along it lies in light [1,H,W], in half eye widths."""
    offsets = torch.arange(_CREASE_FROM - 0.12, _CREASE_TO + 0.13, 0.04).to(lid)
    inner = lid[3:-3]
    profile = torch.stack([read_at(light, inner - offset * half * down).mean() for offset in offsets])
    bend = profile[:-6] + profile[6:] - 2 * profile[3:-3]
    best = int(bend.argmax())
    return float(offsets[3 + best]) if float(bend[best]) > _CREASE_SEEN else _CREASE_USUAL


def _eye_frame(points: torch.Tensor, eye: slice) -> FaceFrame:
    """From the eye's middle, along the line of its corners, in halves of its width."""
    frame = FaceFrame.between(points[eye][0], points[eye][3])
    return replace(frame, origin=points[eye].mean(0), unit_px=frame.unit_px / 2)


def _hair_over(portrait: Portrait, eye: slice) -> float:
    """The share of what is scaled whole that hair covers, by label or matte."""
    x, y = _eye_frame(portrait.points68, eye).coordinates(pixel_places(portrait.image)).unbind(-1)
    whole = ((x / _WHOLE[0]).square() + (y / _WHOLE[1]).square() < 1)[None]
    return float(overall_mean(torch.maximum(portrait.hair, labelled(portrait, "hair")), whole.float()))


def _lid_light(portrait: Portrait, eye: slice) -> float:
    """How much lighter the upper half of the eye's opening is than the lower one, in standard deviations of lightness
    in and around it."""
    rows, columns = torch.linspace(-0.6, 0.6, 49), torch.linspace(-0.9, 0.9, 37)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    places = _eye_frame(portrait.points68, eye).pixels(torch.stack([x, y], -1).to(portrait.points68))
    light = read_at(srgb_to_lab(portrait.image)[:1], places)[0]
    middle = light[:, columns.abs() <= _HALF_ACROSS]
    upper, lower = ((way * rows > 0.02) & (way * rows < _HALF_DOWN) for way in (-1, 1))
    return float((middle[upper].mean() - middle[lower].mean()) / light.std().clamp_min(1.0))


def _eyes(side: Side) -> list[slice]:
    return {"both": [RIGHT_EYE, LEFT_EYE], "right": [RIGHT_EYE], "left": [LEFT_EYE]}[side]


def _opening(points: torch.Tensor, eye: slice) -> float:
    """The opening of the lids as a share of the eye's width."""
    p = points[eye]
    return float(((p[1] - p[5]).norm() + (p[2] - p[4]).norm()) / 2 / (p[3] - p[0]).norm().clamp_min(1e-6))


def _eye_size(points: torch.Tensor, side: Side) -> float:
    """Mean over the eyes of the geometric mean of width and opening, in pixels."""
    sizes = [float((points[eye][3] - points[eye][0]).norm()) * math.sqrt(_opening(points, eye)) for eye in _eyes(side)]
    return max(sum(sizes) / len(sizes), 1e-6)


def _line_contrast(image: torch.Tensor, line: torch.Tensor) -> float:
    """Lightness on the line [1,H,W] less that beside it; 0 where there is none."""
    if float(line.sum()) < 1e-3:
        return 0.0
    beside = (blurred_by_share(line, 0.02) - line).clamp_min(0)
    light = image.mean(0, keepdim=True)
    return float((light * line).sum() / line.sum() - (light * beside).sum() / beside.sum().clamp_min(1e-6))


def _refuse_unusable(portrait: Portrait, params: Params) -> None:
    seen = portrait.label.long()
    for eye, name in ((RIGHT_EYE, "right"), (LEFT_EYE, "left")):
        if params.side not in ("both", name):
            continue
        half = _eye_frame(portrait.points68, eye).unit_px
        if float((seen == CLASS[f"{name[0]}_eye"]).sum()) < _LEAST_SEEN * half**2:
            raise SketchRefused(f"{portrait.name}: the {name} eye is hidden")
        hair = _hair_over(portrait, eye)
        if hair > _MOST_HAIR:
            raise SketchRefused(f"{portrait.name}: hair hangs over {100 * hair:.0f} % of the {name} eye")
        lid_light = _lid_light(portrait, eye)
        if lid_light > params.max_lid_light:
            raise SketchRefused(
                f"{portrait.name}: the lids of the {name} eye are down; its upper half is lighter by {lid_light:.2f} "
                f"of the spread of light (max_lid_light {params.max_lid_light:g})"
            )
    if wears_glasses(portrait):
        raise SketchRefused(f"{portrait.name}: glasses, or shadows that look like them, around the eyes")
