"""Hairline: moved up or down the forehead with its own shape kept, or its temple corners filled.

The line is found as a curve and moved by a smooth warp along the face's up direction (sketching/hairline_curve.py):
the soft transition from skin to hair travels as it is, with its baby hair, so there is no second edge and no rim; the
hair above is the person's own, drawn down or taken back, and the forehead's skin follows down to the brows.

Figures of `measure` (along the line, where it is to move by a quarter of the most or more):
  displacement       mean displacement of the transition, matched in the image, as a share of the wanted one; 1 is all
  line_match         how well the transition found there equals the old one, 1 is the same, 0 is nothing alike
  shape_deviation    deviation of the displacement from the wanted one once their mean difference is taken out, in
                     forehead heights; 0 keeps the shape
  double_edge        strength of the old transition that is left where it was, beyond what the sketch has there; 0 none,
                     1 all of it
  strip_detail       local contrast of what lies between the old and the new line, after / sketch; 0 is flat paint
  strip_delta_e      CIEDE2000 between after and sketch in that strip, both at the scale of locks
  seen_displacement  share of the wanted displacement by the analyser's own mattes of both halves; 0 if it finds no line
  degree             how far the strip went from its own colours to those of the full change, 0 none, 1 all
"""

from __future__ import annotations

import numpy as np
import torch
from pydantic import Field, model_validator

from stylepairs.datagen.images.colors import delta_e_2000, srgb_to_lab
from stylepairs.datagen.images.filters import read_at
from stylepairs.datagen.portraits.landmarks import eye_distance
from stylepairs.datagen.portraits.portrait import CLASS, Portrait
from stylepairs.datagen.portraits.regions import dilate, feather
from stylepairs.datagen.portraits.sketch import AnalysedPair, FeatureParams, Sketch, SketchRefused
from stylepairs.datagen.sketching.hair.hairline_curve import (
    ANGLES,
    FRONT,
    Hairline,
    find_hairline,
    line_flow,
    refuse_hidden_hairline,
    refuse_unclear_hairline,
    smoothed,
)
from stylepairs.datagen.sketching.tools.texture import (
    LOCKS,
    blurred_by_share,
    grain_strength,
    inner_contrast,
    with_grain,
)
from stylepairs.datagen.sketching.tools.warp import changed_region, warp_image, warp_label

# Of the angle that the shift reaches: up to here the line moves by all of it, from here on it eases off.
_FULL_SHARE = 0.4
_REACH = np.radians(70.0)
# A filled corner is rounded as this superellipse; its depth counts up to this share of the forehead's height.
_ROUNDNESS = 2.2
_MAX_CORNER = 0.5
# A corner shallower than this share of the forehead's height is none.
_MIN_CORNER = 0.06
# Raising leaves at least this share of the hair between line and outline; lowering draws it out to at most this times.
_MIN_HAIR_LEFT = 0.15
_MAX_STRETCH = 3.3
# A shift that there is no room for is taken back in steps to these shares of it.
_TAKEN_BACK = (0.85, 0.7, 0.55, 0.4)
# Eye distances of forehead that a lowered line leaves everywhere: less is a fringe.
_MIN_FOREHEAD_LEFT = 0.22
# Of the side: half the length of the profile across the line that is matched, and its step.
_PROFILE, _PROFILE_STEP = 0.03, 1 / 512
# Of the side: the neutral band around the edit mask.
_BAND = 0.02


class Params(FeatureParams):
    """Where the hairline goes.

    shift: share of the forehead's height (brows to hairline, in the middle) by which the line moves: negative lowers it
    (more hair), positive raises it; where there is no room for all of it, less, but no less than min_shift. corners:
    share of the recession at the temples that is filled with hair, 0 to 1; works with shift 0. reach: how far to the
    temples the shift goes, as a share of the way; it eases off from two fifths of that. intensity: the degree, 0 no
    change, 1 all of it. seed: of the grain.
    Refused are portraits with a hat; whose hairline is found on less than min_found of the front (bald); with less than
    min_hair eye distances of hair above the line (shaven) or less than min_forehead of skin below it (a fringe hides
    the line); whose line is ragged by more than max_ragged eye distances, or differs in colour from one side to the
    other by less than min_contrast (CIEDE2000), so that it is not to be trusted.
    """

    shift: float = Field(-0.25, ge=-0.6, le=0.6)
    min_shift: float = Field(0.12, gt=0, le=0.6)
    corners: float = Field(0.0, ge=0, le=1)
    reach: float = Field(1.0, ge=0.3, le=1)
    intensity: float = Field(1.0, ge=0, le=1)
    seed: int = 0
    reference_px: int = Field(16, ge=4, le=256)
    min_found: float = Field(0.9, gt=0, le=1)
    min_hair: float = Field(0.2, ge=0)
    min_forehead: float = Field(0.33, ge=0)
    max_ragged: float = Field(0.05, ge=0)
    min_contrast: float = Field(10.0, ge=0)

    @model_validator(mode="after")
    def _asks_for_something(self) -> Params:
        if self.shift == 0 and self.corners == 0:
            raise ValueError("shift and corners are both 0: nothing to do")
        return self


def settled(portrait: Portrait, params: Params) -> Params:
    """The parameters with as much of the shift as this portrait has room for. Raises as `sketch` does."""
    line = find_hairline(portrait)
    _refuse_unusable(portrait, line, params)
    if _no_room(portrait, line, params) is None:
        return params
    shifts = (round(share * params.shift, 3) for share in _TAKEN_BACK)
    less = [params.model_copy(update={"shift": shift}) for shift in shifts if abs(shift) >= params.min_shift]
    return next((one for one in less if _no_room(portrait, line, one) is None), params)


def sketch(portrait: Portrait, params: Params) -> Sketch:
    """The portrait with its hairline moved.

    Raises SketchRefused where there is no hairline to be trusted, or no room to move it.
    """
    line = find_hairline(portrait)
    _refuse_unusable(portrait, line, params)
    reason = _no_room(portrait, line, params)
    if reason is not None:
        raise SketchRefused(f"{portrait.name}: {reason}")
    full = wanted_displacement(line, params)
    size_px = portrait.size_px
    mask = changed_region(line_flow(line, full, size_px))
    flow = line_flow(line, params.intensity * full, size_px)
    image = _warped(portrait, flow, params.seed)
    return Sketch(
        image=torch.where(mask > 0, image, portrait.image),
        edit_mask=mask,
        keep_mask=1 - feather(dilate((mask > 0.05).float(), _BAND), _BAND / 2),
        reference_px=min(params.reference_px, size_px),
        sketch_detail=1.0,
        harmony=0.0,  # the photo's own light, moved
        label=warp_label(portrait.label, flow),
        hair=warp_image(portrait.hair, flow),
    )


def measure(portrait: Portrait, seen: AnalysedPair, params: Params) -> dict[str, float]:
    """How far the line moved and what it cost: the figures of the file's docstring."""
    portrait = portrait.resized(seen.before.size_px)
    line = find_hairline(portrait)
    full = wanted_displacement(line, params)
    wanted = params.intensity * full
    active = line.found & (np.abs(full) >= 0.25 * np.abs(full).max())
    before, after = srgb_to_lab(seen.before.image), srgb_to_lab(seen.after.image)
    found, match = _matched_displacement(line, before, after, full)
    height = line.height()
    total = np.abs(wanted[active]).sum()
    deviation = (found - wanted)[active]
    drawn = warp_image(portrait.image, line_flow(line, wanted, portrait.size_px))
    figures = {
        "displacement": (np.sign(wanted) * found)[active].sum() / max(total, 1e-6),
        "line_match": match[active].mean(),
        "shape_deviation": np.sqrt(np.mean((deviation - deviation.mean()) ** 2)) / height,
        "double_edge": _old_edge_left(line, active, before, after, srgb_to_lab(drawn)),
        "seen_displacement": _seen_displacement(seen, line, wanted, active),
    }
    return {name: float(value) for name, value in figures.items()} | _strip_figures(portrait, line, full, drawn, seen)


def wanted_displacement(line: Hairline, params: Params) -> np.ndarray:
    """How far the line is to move up the face, in pixels, at ANGLES [K], for intensity 1."""
    reach = params.reach * _REACH
    share = np.clip((reach - np.abs(ANGLES)) / ((1 - _FULL_SHARE) * reach), 0, 1)
    shifted = params.shift * line.height() * share * share * (3 - 2 * share)
    return np.asarray(shifted - params.corners * corner_depth(line))


def corner_depth(line: Hairline) -> np.ndarray:
    """How far the line at ANGLES [K] lies above a rounded line through its middle and its ends, in pixels, >= 0."""
    radius = smoothed(line.filled().line, np.radians(2))
    across, along = radius * np.sin(ANGLES), radius * np.cos(ANGLES)
    middle = float(np.median(along[np.abs(ANGLES) <= np.radians(8)]))
    depth = np.zeros(len(ANGLES))
    for side in (-1, 1):
        end = int(np.argmin(np.abs(ANGLES - side * _REACH)))
        way = np.clip(np.abs(across) / max(abs(across[end]), 1e-6), 0, 1)
        rounded = along[end] + (middle - along[end]) * (1 - way**_ROUNDNESS) ** (1 / _ROUNDNESS)
        here = (np.sign(ANGLES) == side) & (np.abs(ANGLES) <= _REACH)
        depth[here] = np.clip(along - rounded, 0, _MAX_CORNER * line.height())[here]
    return smoothed(depth, np.radians(3))


def _warped(portrait: Portrait, flow: torch.Tensor, seed: int) -> torch.Tensor:
    """The portrait's image moved by the flow, with the grain that stretching takes from it."""
    moved = (flow != 0).any(0, keepdim=True).float()
    wanted = warp_image(grain_strength(portrait.image), flow)
    return with_grain(warp_image(portrait.image, flow), wanted, moved, portrait, seed)


def _refuse_unusable(portrait: Portrait, line: Hairline, params: Params) -> None:
    name = portrait.name
    hat = float((portrait.label == CLASS["hat"]).float().mean())
    if hat > 0.005:
        raise SketchRefused(f"{name}: a hat covers {100 * hat:.1f} % of the crop; the hairline is hidden")
    refuse_unclear_hairline(portrait, line, params.min_found, params.max_ragged)
    front, eyes = np.abs(ANGLES) <= FRONT, eye_distance(portrait.points68)
    hair = float(np.nanmedian((line.outline - line.line)[front])) / eyes
    if hair < params.min_hair:
        raise SketchRefused(
            f"{name}: {hair:.3f} eye distances of hair above the line (min_hair {params.min_hair:g}); bald or shaven"
        )
    refuse_hidden_hairline(portrait, line, params.min_forehead)
    contrast = _contrast_across(portrait, line)
    if contrast < params.min_contrast:
        raise SketchRefused(
            f"{name}: hair and skin differ by {contrast:.3f} across the line (min_contrast {params.min_contrast:g}, "
            "CIEDE2000)"
        )


def _no_room(portrait: Portrait, line: Hairline, params: Params) -> str | None:
    """Why the line cannot go where it is to: raising needs hair to take back, lowering hair to draw out, filling
    corners that are there."""
    known, full = line.filled(), wanted_displacement(line, params)
    front = np.abs(ANGLES) <= FRONT
    share = (full * np.cos(ANGLES) / np.maximum(known.outline - known.line, 1e-6))[front]
    left = 1 - np.quantile(share, 0.9)
    if left < _MIN_HAIR_LEFT:
        return (
            f"the hair above the line would shrink to {100 * max(left, 0):.0f} % of its height "
            f"(at least {100 * _MIN_HAIR_LEFT:g} %); the line cannot be raised so far"
        )
    stretch = 1 + np.quantile(-share, 0.9)
    if stretch > _MAX_STRETCH:
        return (
            f"the hair above the line would be drawn out {stretch:.1f} times "
            f"(at most {_MAX_STRETCH:g}); the line cannot be lowered so far"
        )
    bare = float(np.quantile((known.line + full - known.brow)[front], 0.05)) / eye_distance(portrait.points68)
    if bare < _MIN_FOREHEAD_LEFT:
        return (
            f"{bare:.2f} eye distances of forehead would be left (at least {_MIN_FOREHEAD_LEFT:g}); "
            "the line cannot be lowered so far"
        )
    if params.shift == 0 and np.abs(full).max() < params.corners * _MIN_CORNER * line.height():
        return "no corners to fill; the hairline is round already"
    return None


def _contrast_across(portrait: Portrait, line: Hairline) -> float:
    """Median CIEDE2000 between hair just above and skin just below the line's front."""
    lab = srgb_to_lab(portrait.image)
    front = line.found & (np.abs(ANGLES) <= FRONT)
    step = 0.03 * portrait.size_px
    skin, hair = (read_at(lab, line.places(line.line + way * step)[front].to(lab))[:, None] for way in (-1, 1))
    return float(delta_e_2000(skin, hair).median())


def _matched_displacement(
    line: Hairline, before: torch.Tensor, after: torch.Tensor, full: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """How far up [K] the transition across the line went in pixels, and how well it matches there [K], 0 to 1.

    Profiles along the up direction are compared by Lin's concordance (1989), which sees contrast and colour change
    too, summed over three neighbouring rays.
    """
    from scipy.ndimage import uniform_filter1d

    size_px = before.shape[-1]
    step = _PROFILE_STEP * size_px
    half = round(_PROFILE / _PROFILE_STEP)
    slack = round((1.3 * np.abs(full).max() + 0.01 * size_px) / step)
    old = _profiles(line, before, np.arange(-half, half + 1) * step)
    new = _profiles(line, after, np.arange(-half - slack, half + slack + 1) * step)
    windows = np.lib.stride_tricks.sliding_window_view(new, 2 * half + 1, axis=-1)  # [3,K,D,2 half + 1]
    scores = np.asarray(uniform_filter1d(_concordance(old[:, :, None], windows), 3, axis=0, mode="nearest"))
    moves = (np.arange(scores.shape[1]) - slack) * step
    # From a little the wrong way to a little too far: elsewhere it is another edge that looks alike.
    share = moves * np.sign(full)[:, None]
    scores[(share < -0.3 * np.abs(full)[:, None] - step) | (share > 1.3 * np.abs(full)[:, None] + step)] = -1
    best = scores.argmax(1)
    rows = np.arange(len(ANGLES))
    middle = best.clip(1, scores.shape[1] - 2)
    below, peak, above = (scores[rows, middle + way] for way in (-1, 0, 1))
    bend = below - 2 * peak + above
    offset = np.where((bend < -1e-9) & (middle == best), 0.5 * (below - above) / np.minimum(bend, -1e-9), 0.0)
    return (best + np.clip(offset, -0.5, 0.5) - slack) * step, scores[rows, best].clip(0, 1)


def _profiles(line: Hairline, lab: torch.Tensor, offsets: np.ndarray) -> np.ndarray:
    """Colours [3,K,R] at offsets [R] pixels up from the line's points."""
    places = line.places(line.filled().line)[:, None] - torch.from_numpy(offsets)[:, None] * line.frame.down
    return np.asarray(read_at(lab.double(), places.to(lab.device)).cpu().numpy())


def _concordance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Lin's concordance of profiles [3,...,R] -> [...]: 1 equal, 0 unrelated."""
    covariance = ((a - a.mean(-1, keepdims=True)) * (b - b.mean(-1, keepdims=True))).mean(-1).sum(0)
    spread = a.var(-1).sum(0) + b.var(-1).sum(0) + ((a.mean(-1) - b.mean(-1)) ** 2).sum(0)
    return np.asarray(2 * covariance / np.maximum(spread, 1e-6))


def _old_edge_left(
    line: Hairline, active: np.ndarray, before: torch.Tensor, after: torch.Tensor, drawn: torch.Tensor
) -> float:
    """The share of the old transition's gradient that is still at its place, beyond what is there in the sketch."""
    size_px = before.shape[-1]
    offsets = np.arange(-1, 1.01, 0.1) * 0.5 * _PROFILE * size_px
    slopes = [np.diff(_profiles(line, lab, offsets)[:, active], axis=-1) for lab in (before, after, drawn)]
    energy = max(float((slopes[0] ** 2).sum()), 1e-6)
    return max(0.0, float((slopes[0] * (slopes[1] - slopes[2])).sum()) / energy)


def _seen_displacement(seen: AnalysedPair, line: Hairline, wanted: np.ndarray, active: np.ndarray) -> float:
    """Mean motion of the analyser's hairline as a share of the wanted one, both along the rays of `line`."""
    before, after = (find_hairline(one, line.frame).line for one in (seen.before, seen.after))
    target = line.moved(wanted)
    both = active & np.isfinite(before) & np.isfinite(after)
    if both.sum() < 0.5 * active.sum():
        return 0.0
    asked = (target - line.line)[both]
    return float((np.sign(asked) * (after - before)[both]).sum() / max(np.abs(asked).sum(), 1e-6))


def _strip_figures(
    portrait: Portrait, line: Hairline, full: np.ndarray, drawn: torch.Tensor, seen: AnalysedPair
) -> dict[str, float]:
    """Colour, contrast and degree of what lies between the old line and that of the full change."""
    flow = line_flow(line, full, portrait.size_px)
    strip = (warp_image(portrait.hair, flow) - portrait.hair).abs()
    weight = strip / strip.sum().clamp_min(1e-6)
    images = (seen.before.image, seen.after.image, drawn, warp_image(portrait.image, flow))
    before, after, asked, goal = (srgb_to_lab(image) for image in images)
    smooth_before, smooth_after, smooth_asked, smooth_goal = (
        blurred_by_share(lab, LOCKS) for lab in (before, after, asked, goal)
    )
    change = (smooth_goal - smooth_before) * strip
    contrast = [inner_contrast(lab, strip) for lab in (after, asked)]
    return {
        "strip_detail": contrast[0] / max(contrast[1], 1e-3),
        "strip_delta_e": float((delta_e_2000(smooth_after, smooth_asked)[None] * weight).sum()),
        "degree": float((change * (smooth_after - smooth_before)).sum())
        / max(float((change * (smooth_goal - smooth_before)).sum()), 1e-6),
    }
