"""Smile: its degree raised or lowered, by a warp of the photo.

The corners of the mouth go up and outwards along a curve over the lips, the cheeks rise with them, the lower lids a
little, and the fold from nose to mouth deepens softly; the middle of the lips stays, so that teeth that show keep their
shape. A closed mouth stays closed: this is how far a warp goes, and what goes further (a mouth that is already
stretched, corners that would hang) is refused.

Figures of `measure`:
  degree           how far the image went along this very edit, 0 as before, 1 the full change (see sketching.matching)
  degree_error     distance of `degree` from the intensity asked for; the figure to gate on
  explained        share of the change that this edit accounts for, in [0,1]; low for any other change
  corners_raised   by the landmarks found: rise of the mouth's corners over its middle, in eye distances; signed
  mouth_widened    by the landmarks found: growth of the mouth's width, in eye distances; signed
  still_shift      by the landmarks found: mean shift of upper lids, brows, nose and jaw, in eye distances; 0 is perfect
  detail_kept      fine texture in the region after / before; under 1 is smeared
"""

from __future__ import annotations

from functools import partial

import torch
from pydantic import Field, field_validator

from stylepairs.datagen.portraits.face_frame import FaceFrame
from stylepairs.datagen.portraits.landmarks import (
    BROWS,
    CHIN,
    FACE_OUTLINE,
    JAW,
    LEFT_CORNER,
    LOWER_LIP,
    MOUTH,
    NOSE,
    RIGHT_CORNER,
    UPPER_LIP,
    mouth_width,
)
from stylepairs.datagen.portraits.portrait import Portrait
from stylepairs.datagen.portraits.regions import feather, polygon
from stylepairs.datagen.portraits.sketch import AnalysedPair, FeatureParams, Sketch, SketchRefused
from stylepairs.datagen.sketching.tools.curves import soft_line
from stylepairs.datagen.sketching.tools.matching import detail_ratio, match_degree
from stylepairs.datagen.sketching.tools.warp import changed_region, point_flow, warp_image
from stylepairs.datagen.sketching.tools.warped import warped_sketch

# In eye distances, for a smile of 1: how far the mouth's corners go up and out, the cheeks and the lower lids up.
_UP, _OUT, _CHEEK, _LID = 0.13, 0.075, 0.05, 0.02
# How the rise grows from the middle of the mouth to its corners: |x| to this power.
_CURVE = 1.7
# Cheeks are raised about here: (across, down) from between the eyes, in eye distances, for the left one.
_CHEEKS = ((0.62, 0.62), (0.78, 0.5))
# Darkening of the fold beside the mouth at a smile of 1; its width in eye distances.
_FOLD, _FOLD_WIDTH = 0.1, 0.045
# Of the side: how softly the edit ends along the face's outline.
_FADE = 0.02
_LOWER_LIDS = (40, 41, 46, 47)
_UPPER_LIDS = (36, 37, 38, 39, 42, 43, 44, 45)


class Params(FeatureParams):
    """What to do with the smile.

    smile: the change of degree, 1 a hearty smile more, -0.5 half of one less. intensity: the share of it, 0 none, 1
    all. Refused are mouths that would be curved by more than max_curve or less than min_curve (rise of the corners over
    the middle of the lips, in eye distances) or be wider than max_width eye distances. reference_px: side of the
    downsampled sketch that reconstruction matches.
    """

    smile: float = Field(0.6, ge=-0.5, le=1)
    intensity: float = Field(1.0, ge=0, le=1)
    max_curve: float = Field(0.28, gt=0)
    min_curve: float = 0.015
    max_width: float = Field(1.32, gt=0)
    reference_px: int = Field(32, ge=4, le=256)

    @field_validator("smile")
    @classmethod
    def _asks_for_something(cls, value: float) -> float:
        if value == 0:
            raise ValueError("0 changes nothing; ask for more or less of a smile")
        return value


def sketch(portrait: Portrait, params: Params) -> Sketch:
    """The portrait smiling more, or less.

    Raises SketchRefused where the mouth is already as curved or as wide as a warp can make it, or would hang.
    """
    _refuse_extremes(portrait, params)
    flow, fold = _full_flow(portrait, params), _folds(portrait)
    image = _edited(portrait.image, flow, fold, params, params.intensity)
    return warped_sketch(portrait, image, flow, params.intensity, (20 * fold).clamp(0, 1), params.reference_px)


def measure(portrait: Portrait, seen: AnalysedPair, params: Params) -> dict[str, float]:
    """How far the smile was reached and what it cost: the figures of the file's docstring."""
    portrait = portrait.resized(seen.before.size_px)
    flow, fold = _full_flow(portrait, params), _folds(portrait)
    before, after = seen.before.image, seen.after.image
    region = changed_region(flow)
    match = match_degree(before, after, partial(_edited, before, flow, fold, params), region)
    frame = FaceFrame.of_eyes(seen.before.points68)
    shift = (seen.after.points68 - seen.before.points68) / frame.unit_px
    still = torch.cat([shift[BROWS], shift[NOSE], shift[list(_UPPER_LIDS)], shift[2:15]])
    return match.figures(params.intensity) | {
        "corners_raised": _curve(seen.after.points68, frame) - _curve(seen.before.points68, frame),
        "mouth_widened": (mouth_width(seen.after.points68) - mouth_width(seen.before.points68)) / frame.unit_px,
        "still_shift": float(still.norm(dim=-1).mean()),
        "detail_kept": detail_ratio(before, after, region),
    }


def _edited(image: torch.Tensor, flow: torch.Tensor, fold: torch.Tensor, params: Params, degree: float) -> torch.Tensor:
    """image [3,H,W] with `degree` of the full change; below 0 and beyond 1 it is carried on."""
    shaded = image - (image + 1) * (_FOLD * params.smile * degree * fold)
    return warp_image(shaded.clamp(-1, 1), degree * flow)


def _full_flow(portrait: Portrait, params: Params) -> torch.Tensor:
    """The flow [2,H,W] of the whole change."""
    points = portrait.points68
    frame = FaceFrame.of_eyes(points)
    cheeks = frame.pixels(torch.tensor([(sign * x, y) for x, y in _CHEEKS for sign in (-1, 1)]).to(points))
    lids = points[list(_LOWER_LIDS)]
    source = torch.cat([points[MOUTH], cheeks, lids])
    move = torch.cat([_lip_moves(points, frame), _risen(cheeks, _CHEEK), _risen(lids, _LID)])
    # Between lower lip and chin, so that the chin keeps its shape.
    chin = points[LOWER_LIP].lerp(points[CHIN], 0.6)
    chin = chin + torch.tensor([[-0.5], [0.0], [0.5]]).to(points) * (points[10] - points[6])
    pinned = torch.cat([points[JAW], points[BROWS], points[NOSE], points[list(_UPPER_LIDS)], chin])
    # Thin-plate splines bend everything a little, hair and background too.
    window = feather(polygon(portrait, points[FACE_OUTLINE].cpu().numpy()), _FADE)
    target = source + params.smile * frame.move(move)
    return point_flow(portrait.size_px, source, target, pinned, method="tps", window=window)


def _lip_moves(points: torch.Tensor, frame: FaceFrame) -> torch.Tensor:
    """How each point of the mouth [20,2] moves for a smile of 1, (across, down) in eye distances."""
    mouth = frame.coordinates(points[MOUTH])
    right, left = frame.coordinates(points[[RIGHT_CORNER, LEFT_CORNER]])
    x = ((mouth - (right + left) / 2) @ (left - right) / ((left - right).square().sum() / 2)).clamp(-1.2, 1.2)
    return torch.stack([_OUT * x, -_UP * x.abs() ** _CURVE], -1)


def _risen(points: torch.Tensor, rise: float) -> torch.Tensor:
    return torch.tensor([0.0, -rise]).to(points).expand(len(points), 2)


def _folds(portrait: Portrait) -> torch.Tensor:
    """[1,H,W] in [0,1]: the folds from the wings of the nose past the corners of the mouth, soft."""
    frame = FaceFrame.of_eyes(portrait.points68)
    both = torch.zeros_like(portrait.hair)
    for wing, corner, sign in ((31, RIGHT_CORNER, -1), (35, LEFT_CORNER, 1)):
        start = portrait.points68[wing] + frame.move(torch.tensor([sign * 0.08, -0.02]).to(portrait.points68))
        end = portrait.points68[corner] + frame.move(torch.tensor([sign * 0.16, 0.02]).to(portrait.points68))
        bow = start.lerp(end, 0.55) + frame.move(torch.tensor([sign * 0.06, -0.02]).to(portrait.points68))
        line = soft_line(portrait.size_px, torch.stack([start, bow, end]), _FOLD_WIDTH * frame.unit_px)
        both = torch.maximum(both, line.to(both))
    return both


def _curve(points: torch.Tensor, frame: FaceFrame) -> float:
    """Rise of the mouth's corners over the middle of its lips, in eye distances."""
    down = frame.coordinates(points)[:, 1]
    return float((down[UPPER_LIP] + down[LOWER_LIP] - down[RIGHT_CORNER] - down[LEFT_CORNER]) / 2)


def _refuse_extremes(portrait: Portrait, params: Params) -> None:
    frame = FaceFrame.of_eyes(portrait.points68)
    curve = _curve(portrait.points68, frame) + params.smile * _UP
    width = mouth_width(portrait.points68) / frame.unit_px + params.smile * 2 * _OUT
    would = f"its mouth would be curved by {curve:.2f}"
    if params.smile > 0 and (curve > params.max_curve or width > params.max_width):
        raise SketchRefused(
            f"{portrait.name}: smiling already; {would} (max_curve {params.max_curve:g}) and {width:.2f} eye distances "
            f"wide (max_width {params.max_width:g})"
        )
    if params.smile < 0 and curve < params.min_curve:
        raise SketchRefused(f"{portrait.name}: hardly smiling; {would} (min_curve {params.min_curve:g})")
