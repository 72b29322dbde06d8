"""The forehead's own coordinates: across from temple to temple, up from the brows to the hairline."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from stylepairs.datagen.images.colors import lab_to_srgb, srgb_to_lab
from stylepairs.datagen.portraits.face_frame import FaceFrame, pixel_places
from stylepairs.datagen.portraits.landmarks import JAW, NOSE_FOOT
from stylepairs.datagen.portraits.portrait import Portrait
from stylepairs.datagen.portraits.regions import class_region, dilate
from stylepairs.datagen.sketching.hair.hairline_curve import ANGLES, FRONT, find_hairline
from stylepairs.datagen.sketching.tools.texture import blurred_by_share, blurred_within_by_share

# In units of the distance from the brows to below the nose, which the forehead's height equals in the canon of thirds.
USUAL_HEIGHT = 0.95
_LEAST_HEIGHT, _GREATEST_HEIGHT = 0.5, 1.35
# Where hair begins lower than this the hairline itself is hidden by it.
_HIDDEN_BELOW = 0.5
# `across` of the columns in which the hairline is read.
_COLUMNS = np.linspace(-0.95, 0.95, 41)
# Places on the upper edge of the brows, less their ends.
_BROW_TOPS = [18, 19, 20, 23, 24, 25]
# Of the side: the bands of a skin's grain.
_GRAIN = (0.003, 0.012)
_GRAIN_KEPT = 0.35
_SEAM, _SEAM_LIGHT = 0.05, 0.45


@dataclass(frozen=True)
class Forehead:
    """A portrait's forehead; fields [1,H,W] over the whole crop.

    across: -1 and 1 at the temples (image left, right). up: 0 at the top of the brows, 1 at the middle of the hairline.
    hairline: `up` of the hairline in each pixel's own column. frame: the face's axes. height_px: one unit of `up`.
    half_width_px: one of `across`, the mean of both sides. third_px: from the brows to below the nose, what a forehead
    is usually high. hairy: 1 where hair is, by label or matte. hair_px: the hair between the hairline and its outline
    (infinite where no hairline is seen).
    """

    across: torch.Tensor
    up: torch.Tensor
    hairline: torch.Tensor
    frame: FaceFrame
    height_px: float
    half_width_px: float
    third_px: float
    hairy: torch.Tensor
    hair_px: float


def forehead(portrait: Portrait) -> Forehead:
    """Measures the forehead of a portrait, also of a bald one or one behind a fringe, where its height is the usual."""
    frame = FaceFrame.of_both(portrait.points68.to(portrait.image))

    def in_face(places: torch.Tensor) -> torch.Tensor:
        return frame.unit_px * frame.coordinates(places)  # pixels across and down from the root of the nose

    landmarks = in_face(portrait.points68.to(portrait.image))
    base = float(landmarks[_BROW_TOPS, 1].mean())
    third = max(float(landmarks[NOSE_FOOT, 1]) - base, 1.0)
    # A turned head shows little of one side, never nothing.
    sides = landmarks[JAW][[0, -1], 0].abs()
    left_px, right_px = torch.maximum(0.93 * sides, 0.25 * sides.sum()).tolist()

    def across_and_above(places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        aside, down = in_face(places).unbind(-1)
        return torch.where(aside < 0, aside / left_px, aside / right_px), base - down

    line = find_hairline(portrait)
    hair_px = (line.outline - line.line)[np.abs(ANGLES) <= FRONT]
    at, heights = (x.cpu().numpy() for x in across_and_above(line.filled().places(line.filled().line).to(frame.origin)))
    order = np.argsort(at)
    heights, seen = (np.interp(_COLUMNS, at[order], x[order], left=0, right=0) for x in (heights, line.found))
    seen, middle = seen > 0.5, np.abs(_COLUMNS) < 0.45
    usual = USUAL_HEIGHT * third
    height = usual if seen[middle].mean() < 0.5 else float(np.median(heights[middle & seen]))
    if height < _HIDDEN_BELOW * third:
        height, seen = usual, np.zeros_like(seen)
    height = float(np.clip(height, _LEAST_HEIGHT * third, _GREATEST_HEIGHT * third))
    across, above = (field[None] for field in across_and_above(pixel_places(portrait.image)))
    hairline = np.interp(across.cpu().numpy(), _COLUMNS, _smooth_line(heights / height, seen))
    return Forehead(
        across=across,
        up=above / height,
        hairline=torch.from_numpy(hairline).to(across),
        frame=frame,
        height_px=height,
        half_width_px=(left_px + right_px) / 2,
        third_px=third,
        hair_px=float(np.nanmedian(hair_px)) if np.isfinite(hair_px).any() else float("inf"),
        hairy=torch.maximum(class_region(portrait, ["hair"], 0.0), (portrait.hair > 0.5).float()),
    )


def usual_hairline(across: torch.Tensor) -> torch.Tensor:
    """`up` of a common hairline: flat over the brows, falling at the temples."""
    aside = across.abs().clamp(max=1)
    return 1 - 0.12 * aside**2 - 0.45 * aside**6


def continue_skin(portrait: Portrait, face: Forehead, hole: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """The image [3,H,W] with the forehead's skin carried on into hole [1,H,W]: tone and shading from the skin that is
    seen, its grain renewed."""
    lab = srgb_to_lab(portrait.image)
    known = sure_skin(portrait, face, hole)
    smooth = carried_on(lab, known)
    # Beside the hole it takes the colour of the skin that is seen there, its light only partly: that may be shadow.
    beside = class_region(portrait, ["skin"], 0.0) * (1 - dilate(face.hairy, 0.02)).clamp(0, 1).round()
    beside = beside * ((face.across.abs() < 0.9) & (face.up > -0.1) & (face.up < 1)).float()
    reach = blurred_by_share(beside, _SEAM)
    off = blurred_by_share((lab - smooth) * beside, _SEAM) / (reach + 0.05)
    smooth = smooth + off * torch.tensor([_SEAM_LIGHT, 1.0, 1.0]).to(lab)[:, None, None]
    # A forehead bends away under the hairline and at the temples: less light.
    bent = 0.06 * ((face.up - 0.6) / 0.4).clamp(0, 1.5) + 0.08 * face.across.abs().clamp(max=1) ** 3
    smooth = torch.cat([smooth[:1] * (1 - bent * (face.up / 0.3).clamp(0, 1)), smooth[1:]])
    noise = torch.from_numpy(rng.normal(size=lab[:1].shape)).to(lab)
    light, own, new = smooth[:1], lab[:1], noise
    for sigma in _GRAIN:
        coarser_own, coarser_new = blurred_within_by_share(lab[:1], known, sigma), blurred_by_share(noise, sigma)
        # Median of what varies: wrinkles and shines are not grain. New grain, without pores to sit in, is held back.
        spread = _GRAIN_KEPT * (own - coarser_own)[known > 0.5].abs().median() if bool((known > 0.5).any()) else 0.0
        light = light + (new - coarser_new) / (new - coarser_new).std().clamp_min(1e-6) * spread
        own, new = coarser_own, coarser_new
    skin = lab_to_srgb(torch.cat([light, smooth[1:]])).clamp(-1, 1)
    return portrait.image + (skin - portrait.image) * hole


def skin_tone(portrait: Portrait, face: Forehead, hole: torch.Tensor) -> torch.Tensor:
    """The skin's smooth colour [3,H,W] in Lab, carried on over all that is not skin, and over hole [1,H,W]."""
    return carried_on(srgb_to_lab(portrait.image), sure_skin(portrait, face, hole))


def carried_on(values: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """values [C,H,W] smoothed where known [1,H,W] is 1 and carried on from there, near ones first."""
    total = (values * known).sum((1, 2), keepdim=True) / known.sum().clamp_min(1e-3)
    for sigma in (0.25, 0.12, 0.06, 0.03, 0.015):
        weight = blurred_by_share(known, sigma)
        near = blurred_by_share(values * known, sigma) / weight.clamp_min(1e-4)
        total = total + (near - total) * (weight / 0.25).clamp(0, 1)
    return total


def sure_skin(portrait: Portrait, face: Forehead, hole: torch.Tensor) -> torch.Tensor:
    """Skin [1,H,W] of forehead, nose and upper cheeks, 0 or 1, away from hair, its shadow, eyes and brows."""
    seen = class_region(portrait, ["skin", "nose"], 0.0) * (1 - hole.round())
    near = torch.maximum(dilate(face.hairy, 0.03), dilate(1 - seen, 0.016))
    sure = (1 - near).clamp(0, 1).round() * (face.across.abs() < 0.8).float() * (face.up > -1.2).float()
    light = srgb_to_lab(portrait.image)[:1]
    if float(sure.sum()) < 1:
        return seen
    # Skin in shadow, or seen through hair, would be carried on as a stain.
    middle = light[sure > 0.5].median()
    spread = 1.48 * (light[sure > 0.5] - middle).abs().median()
    return sure * ((light > middle - 1.5 * spread) & (light < middle + 3 * spread)).float()


def _smooth_line(heights: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """The hairline [C] at _COLUMNS: what was seen, smoothed, nowhere far from the usual one."""
    usual = usual_hairline(torch.from_numpy(_COLUMNS)).numpy()
    line = np.where(seen, np.clip(heights, usual - 0.35, usual + 0.3), usual)
    padded = np.pad(line, 4, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, 9)
    return np.asarray(0.5 * np.median(windows, axis=1) + 0.5 * windows.mean(axis=1))
