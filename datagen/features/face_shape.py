"""Face shape: the jaw and the cheeks slimmed (or widened) by a share of their width, a double chin reduced.

The sketch is the photo itself, warped by thin-plate splines along the jaw line: its points move towards the midline
of the face, eyes, brows, nose and mouth stay, and so does everything further than a hand's breadth outside the face;
clothes stay where they do not touch the jaw. A double chin is reduced by drawing the jaw line tight between its angle
and the chin, smoothing the fold under it and deepening the shadow there.

Figures of `measure`:
  degree           how far the image went along this very edit, 0 as before, 1 the full change (see sketching.matching)
  degree_error     distance of `degree` from the intensity asked for; the figure to gate on
  explained        share of the change that this edit accounts for, in [0,1]; low for any other change
  jaw_narrowed     by the landmarks found: share of the jaw's width that was lost; signed; about half of the truth, as
                   landmark models lean to usual faces
  jaw_error        by the landmarks found: mean distance of the jaw line from where it should be, in eye distances
  still_shift      by the landmarks found: mean shift of eyes, brows and nose, in eye distances; 0 is perfect
  detail_kept      fine texture in the region after / before; under 1 is smeared
"""

from __future__ import annotations

from functools import partial

import cv2
import numpy as np
import torch
from pydantic import Field, model_validator

from stylepairs.datagen.images.colors import srgb_to_lab
from stylepairs.datagen.portraits.face_frame import FaceFrame, pixel_places
from stylepairs.datagen.portraits.landmarks import BROWS, EYES, FACE_OUTLINE, JAW, NOSE, eye_distance
from stylepairs.datagen.portraits.portrait import Portrait
from stylepairs.datagen.portraits.regions import feather, labelled
from stylepairs.datagen.portraits.sketch import AnalysedPair, FeatureParams, Sketch, SketchRefused
from stylepairs.datagen.sketching.tools.curves import smooth_curve, smoothstep
from stylepairs.datagen.sketching.tools.matching import detail_ratio, match_degree
from stylepairs.datagen.sketching.tools.texture import blurred_by_share
from stylepairs.datagen.sketching.tools.warp import changed_region, point_flow, warp_image, warp_points
from stylepairs.datagen.sketching.tools.warped import warped_sketch

# Of the side: how far outside the jaw line the picture moves at least, and how much further for each pixel of the
# largest move (less and the surroundings would be torn along).
_REACH, _REACH_PER_MOVE = 0.08, 1.1
# Points along the jaw line, and of the grid (a share of the side apart) at which clothes are held.
_JAW_POINTS = 33
_HOLD_STEP = 0.04
# How much of the way to the straight line between jaw angle and chin a tightened jaw line goes.
_TIGHTEN = 0.55
# Under the chin, of the side: depth of the skin that is relit; scale of folds (finer is grain); darkening at most.
_UNDER_CHIN = 0.09
_FOLD_SCALES = 0.006, 0.03
_SHADOW = 0.3
# Of the face's lightness: skin that is darker than the first lies in shadow already, from the second on it may take all
# of the shadow. Of the side: how softly the region ends within the skin's edges, which label maps draw raggedly.
_DARK, _LIT = 0.45, 0.85
_EDGE = 0.012


class Params(FeatureParams):
    """What to do with the outline of the face.

    jaw, cheeks: share of the jaw's and of the cheeks' width to take away (negative: to add). chin: share of a double
    chin to take away, in [0,1]. intensity: the degree, 0 none of it, 1 all. Portraits are refused whose head is turned
    so far that one side of the jaw is under min_side_share of its width, and for `chin` those with less lit skin under
    the chin than min_under_chin_share of the region where it would be. reference_px: side of the downsampled sketch
    that reconstruction matches.
    """

    jaw: float = Field(0.12, ge=-0.2, le=0.25)
    cheeks: float = Field(0.0, ge=-0.1, le=0.15)
    chin: float = Field(0.0, ge=0, le=1)
    intensity: float = Field(1.0, ge=0, le=1)
    min_side_share: float = Field(0.3, ge=0, le=0.5)
    min_under_chin_share: float = Field(0.08, ge=0, le=1)
    reference_px: int = Field(32, ge=4, le=256)

    @model_validator(mode="after")
    def _asks_for_something(self) -> Params:
        if self.jaw == self.cheeks == self.chin == 0:
            raise ValueError("jaw, cheeks and chin are all 0; ask for one of them")
        return self


def sketch(portrait: Portrait, params: Params) -> Sketch:
    """The portrait with its jaw line moved.

    Raises SketchRefused if the head is turned too far, or there is no skin under the chin to relight.
    """
    _refuse_unusable(portrait, params)
    flow, shade = _full_flow(portrait, params), _under_chin(portrait) * (params.chin > 0)
    image = _edited(portrait.image, flow, shade, params, params.intensity)
    return warped_sketch(portrait, image, flow, params.intensity, shade, params.reference_px)


def measure(portrait: Portrait, seen: AnalysedPair, params: Params) -> dict[str, float]:
    """How far the outline was moved and what it cost: the figures of the file's docstring."""
    portrait = portrait.resized(seen.before.size_px)
    flow, shade = _full_flow(portrait, params), _under_chin(portrait) * (params.chin > 0)
    before, after = seen.before.image, seen.after.image
    region = torch.maximum(changed_region(flow), shade)
    match = match_degree(before, after, partial(_edited, before, flow, shade, params), region)
    eyes_px = eye_distance(portrait.points68)
    shift = seen.after.points68 - seen.before.points68
    wanted = warp_points(portrait.points68, params.intensity * flow) - portrait.points68
    still = torch.cat([shift[BROWS], shift[EYES], shift[NOSE]])
    return match.figures(params.intensity) | {
        "jaw_narrowed": 1 - _jaw_width(seen.after.points68) / max(_jaw_width(seen.before.points68), 1e-6),
        "jaw_error": float((shift[JAW] - wanted[JAW].to(shift))[2:15].norm(dim=-1).mean()) / eyes_px,
        "still_shift": float(still.norm(dim=-1).mean()) / eyes_px,
        "detail_kept": detail_ratio(before, after, region),
    }


def _edited(
    image: torch.Tensor, flow: torch.Tensor, shade: torch.Tensor, params: Params, degree: float
) -> torch.Tensor:
    """image [3,H,W] with `degree` of the full change; below 0 and beyond 1 it is carried on."""
    relit = image if params.chin == 0 else _relit(image, shade * params.chin * degree)
    return warp_image(relit, degree * flow)


def _full_flow(portrait: Portrait, params: Params) -> torch.Tensor:
    """The flow [2,H,W] of the whole change."""
    points, size_px = portrait.points68.cpu(), portrait.size_px
    jaw = smooth_curve(points[JAW], _JAW_POINTS)
    moved = _moved_jaw(points, jaw, params)
    reach_px = _REACH * size_px + _REACH_PER_MOVE * float((moved - jaw).norm(dim=-1).max())
    pinned = torch.cat([_outwards(points, jaw, reach_px), points[17:], _held_clothes(portrait, reach_px)])
    # Thin plates: moving least squares ripple the contour between points that are this close.
    flow = point_flow(size_px, jaw, moved, pinned, method="tps", window=_window(portrait, reach_px))
    return flow.to(portrait.image.device)


def _moved_jaw(points: torch.Tensor, jaw: torch.Tensor, params: Params) -> torch.Tensor:
    """Where the points of the jaw line [K,2] go: towards the midline, by their share of the distance to it."""
    frame = FaceFrame.of_midline(points)
    offset = jaw - frame.origin
    height, side = offset @ frame.down / frame.unit_px, offset @ frame.across  # 0 between the eyes, 1 at the chin
    lower = smoothstep(height, 0.2, 0.75)
    middle = torch.exp(-(((height - 0.45) / 0.2) ** 2)) * smoothstep(height, 0.0, 0.3)
    moved = jaw - ((params.jaw * lower + params.cheeks * middle) * side)[:, None] * frame.across
    return moved.lerp(_tight(moved), _TIGHTEN * params.chin) if params.chin > 0 else moved


def _tight(jaw: torch.Tensor) -> torch.Tensor:
    """The jaw line [K,2] with what sags below the straight lines from its angles to its chin drawn up to them."""
    tight, middle = jaw.clone(), len(jaw) // 2
    for angle in (len(jaw) // 4, len(jaw) - 1 - len(jaw) // 4):
        chin = middle + (3 if angle > middle else -3)  # the chin's own roundness stays
        low, high = min(angle, chin), max(angle, chin)
        along = (jaw[high] - jaw[low]) / (jaw[high] - jaw[low]).norm().clamp_min(1e-6)
        part = jaw[low : high + 1] - jaw[low]
        tight[low : high + 1] = jaw[low] + (part @ along)[:, None] * along
    return tight


def _outwards(points: torch.Tensor, jaw: torch.Tensor, distance_px: float) -> torch.Tensor:
    """The jaw line moved out from the middle of the face."""
    away: torch.Tensor = jaw - points[NOSE].mean(0)
    length: torch.Tensor = away.norm(dim=-1, keepdim=True).clamp_min(1e-6)
    return jaw + distance_px * away / length


def _held_clothes(portrait: Portrait, reach_px: float) -> torch.Tensor:
    """Points [K,2] on clothes a little away from the jaw line, which they would otherwise follow."""
    size_px = portrait.size_px
    cloth = labelled(portrait, "cloth", "necklace")[0].cpu() > 0
    away = torch.from_numpy(_distance(portrait) > 0.3 * reach_px)
    step = max(1, round(_HOLD_STEP * size_px))
    rows, columns = torch.nonzero((cloth & away)[::step, ::step], as_tuple=True)
    return torch.stack([columns, rows], -1).float() * step


def _window(portrait: Portrait, reach_px: float) -> torch.Tensor:
    """[1,H,W]: 1 on the lower face, smoothly 0 from reach_px outside it and above the eyes."""
    near = 1 - torch.from_numpy(_distance(portrait)).float() / reach_px
    height = FaceFrame.of_midline(portrait.points68.cpu()).coordinates(pixel_places(near))[..., 1]
    return (smoothstep(near, 0.0, 0.7) * smoothstep(height, -0.1, 0.2))[None]


def _distance(portrait: Portrait) -> np.ndarray:
    """[H,W]: pixels to the face within the jaw line and the brows, 0 inside."""
    points = portrait.points68.cpu().numpy()
    outline = points[FACE_OUTLINE].round().astype(np.int32)
    face = cv2.fillPoly(np.zeros((portrait.size_px,) * 2, np.uint8), [outline], 1)
    return cv2.distanceTransform(1 - face, cv2.DIST_L2, 5)


def _under_chin(portrait: Portrait) -> torch.Tensor:
    """[1,H,W] in [0,1]: the skin under the jaw line, from one jaw angle to the other, fading downwards and to its own
    edges; less where it lies in shadow already."""
    size_px = portrait.size_px
    points = portrait.points68
    skin = (2 * blurred_by_share(labelled(portrait, "skin", "neck"), _EDGE) - 1).clamp_min(0)[0]
    light = srgb_to_lab(portrait.image)[:1]
    face = light[labelled(portrait, "skin", "nose") > 0]
    usual = float(face.median()) if len(face) else 50.0
    lit = smoothstep(blurred_by_share(light, _FOLD_SCALES[1])[0] / max(usual, 1.0), _DARK, _LIT)
    below = torch.from_numpy(_distance(portrait)).to(portrait.image) / (_UNDER_CHIN * size_px)
    at = torch.arange(size_px, device=points.device).float()
    ramp = 0.1 * float((points[12] - points[4]).norm())
    between = smoothstep(torch.minimum(at - points[4, 0], points[12, 0] - at), 0.0, ramp)
    lower = smoothstep(at, float(points[[4, 12], 1].mean()), float(points[[4, 12], 1].mean()) + ramp)
    depth = smoothstep(below, 0.0, 0.12) * (1 - smoothstep(below, 0.2, 0.9))
    return feather((depth * skin * lit * between * lower[:, None])[None], 0.006)


def _relit(image: torch.Tensor, shade: torch.Tensor) -> torch.Tensor:
    """image [3,H,W] with folds smoothed and the light dimmed where shade [1,H,W] is; grain stays."""
    fine, coarse = blurred_by_share(image, _FOLD_SCALES[0]), blurred_by_share(image, _FOLD_SCALES[1])
    folds = fine - coarse
    smoothed = image - 0.8 * shade * folds
    return (smoothed - (smoothed + 1) * _SHADOW * shade).clamp(-1, 1)


def _jaw_width(points: torch.Tensor) -> float:
    """The mean width of the jaw between its angle and the chin."""
    return float((points[[13, 12, 11, 10]] - points[[3, 4, 5, 6]]).norm(dim=-1).mean())


def _refuse_unusable(portrait: Portrait, params: Params) -> None:
    points = portrait.points68.cpu()
    frame = FaceFrame.of_midline(points)
    right, left = ((points[[4, 12]] - frame.origin) @ frame.across * torch.tensor([-1.0, 1.0])).tolist()
    side = min(right, left) / max(right + left, 1e-6)
    if side < params.min_side_share:
        raise SketchRefused(
            f"{portrait.name}: the head is turned away; one side of the jaw is {100 * side:.0f} % of its width "
            f"(min_side_share {100 * params.min_side_share:g} %)"
        )
    if params.chin > 0:
        place = _UNDER_CHIN * portrait.size_px * float((points[12] - points[4]).norm())
        share = float((_under_chin(portrait) > 0.3).sum()) / max(place, 1.0)
        if share < params.min_under_chin_share:
            raise SketchRefused(
                f"{portrait.name}: skin in the light under the chin fills {100 * share:.0f} % of its place "
                f"(min_under_chin_share {100 * params.min_under_chin_share:g} %); no double chin to be seen"
            )
