"""The line where a person's forehead ends and the hair begins: found along rays (`rays`), and moved.

Moving is a smooth warp along the face's up direction: the transition at the line travels as it is, the forehead is
stretched or shortened down to the brows, the hair up to its outline.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from stylepairs.datagen.images.filters import read_at
from stylepairs.datagen.portraits.face_frame import FaceFrame, pixel_places
from stylepairs.datagen.portraits.landmarks import BROWS, eye_distance
from stylepairs.datagen.portraits.portrait import CLASS, Portrait
from stylepairs.datagen.portraits.regions import dilate
from stylepairs.datagen.portraits.sketch import SketchRefused
from stylepairs.datagen.sketching.hair.rays import crossing, hair_runs, polar, ray_places

ANGLES = np.radians(np.arange(-76.0, 77.0, 2.0))
# The angles between which the forehead's height is read, and those of the whole front of the line.
CENTRAL = np.radians(20.0)
FRONT = np.radians(40.0)
# Of the side: rays are read in steps of this, and start this far above the brow.
_STEP = 1 / 512
_BROW_MARGIN = 0.02
# Of the side: the line is where the matte passes 0.5 and stays above it, in the mean, for this long.
_SUSTAINED = 0.015
# Of the side: thinner gaps in the hair (loose curls) do not end it.
_GAP = 0.04
# Of the skin between brow and line: the least share that the label map must call skin (the rest: hat, hand, hair).
_MIN_SKIN = 0.6
# Of the side: half the width that travels unchanged at the line; how far inside the hair's outline motion has ended;
# how softly its profile is rounded; what moves less than _STILL stays altogether.
_RIGID = 0.012
_OUTLINE_MARGIN = 0.012
_ROUNDING = 0.008
_STILL = 0.0004
# Nodes of the warp per side of the image, across and along the up direction.
_NODES_ACROSS, _NODES_ALONG = 128, 384
# The least slope of the motion's map along the up direction: 0 would fold.
_MIN_SLOPE = 0.1


@dataclass(frozen=True)
class Hairline:
    """Radii in pixels at the angles ANGLES [K]: brow (where the forehead starts), line, outline (where the hair ends).

    line is NaN where a ray meets no hair beyond skin, or none that lasts; outline likewise.
    """

    frame: FaceFrame
    brow: np.ndarray
    line: np.ndarray
    outline: np.ndarray

    @property
    def found(self) -> np.ndarray:
        """Where the line was found, bool [K]."""
        return np.asarray(np.isfinite(self.line))

    def height(self, within: float = CENTRAL) -> float:
        """The forehead's height in pixels: the median of line - brow over the angles up to `within`; NaN if nothing."""
        heights = (self.line - self.brow)[np.abs(ANGLES) <= within]
        return float(np.nanmedian(heights)) if np.isfinite(heights).any() else float("nan")

    def places(self, radii: np.ndarray) -> torch.Tensor:
        """The places [K,2] in the image at radii [K] pixels along the rays; NaN where a radius is."""
        return ray_places(self.frame, torch.from_numpy(ANGLES), torch.from_numpy(radii))

    def raggedness(self) -> float:
        """Root mean square distance in pixels of the line's front from itself smoothed over 6 degrees."""
        known = self.filled().line
        apart = (known - smoothed(known, np.radians(6)))[np.abs(ANGLES) <= FRONT]
        return float(np.sqrt(np.mean(apart**2)))

    def moved(self, displacement: np.ndarray) -> np.ndarray:
        """The radii [K] at ANGLES of the line moved up by displacement [K] pixels."""
        known = self.filled().line
        across, along = known * np.sin(ANGLES), known * np.cos(ANGLES) + displacement
        angle = np.arctan2(across, along)
        order = np.argsort(angle)
        return np.asarray(np.interp(ANGLES, angle[order], np.hypot(across, along)[order]))

    def filled(self) -> Hairline:
        """The same with gaps bridged linearly, and the ends continued."""
        known = self.found
        if not known.any():
            return self
        line, outline = (np.interp(ANGLES, ANGLES[known], radii[known]) for radii in (self.line, self.outline))
        return replace(self, line=line, outline=outline)


def find_hairline(portrait: Portrait, frame: FaceFrame | None = None) -> Hairline:
    """The portrait's hairline, brow and hair outline along ANGLES; frame None: the portrait's own, by its midline."""
    size_px = portrait.size_px
    frame = FaceFrame.of_midline(portrait.points68.cpu().double()) if frame is None else frame
    brow = _brow_radii(portrait, frame)
    radii = np.arange(0, 1.2, _STEP) * size_px
    places = ray_places(frame, torch.from_numpy(ANGLES)[:, None], torch.from_numpy(radii))
    # Brows and shadows that the matte takes for hair, away from what the label map calls hair, are no hairline.
    matte = portrait.hair * dilate((portrait.label == CLASS["hair"]).float()[None], 0.03)
    planes = torch.cat([matte, (portrait.label == CLASS["skin"]).float()[None]]).cpu().double()
    hair, skin = read_at(planes, places).numpy()
    hair = np.where(((places >= 0) & (places <= size_px - 1)).all(-1).numpy(), hair, 0.0)
    lasting = max(1, round(_SUSTAINED / _STEP))
    line, outline = np.full((2, len(ANGLES)), np.nan)
    for k in range(len(ANGLES)):
        first = int(np.searchsorted(radii, brow[k]))
        mean_ahead = np.convolve(hair[k], np.ones(lasting) / lasting)[lasting - 1 :]
        begins = first + np.flatnonzero((hair[k, first:] > 0.5) & (mean_ahead[first : len(radii)] >= 0.5))
        if len(begins) == 0:
            continue
        at = int(begins[0])
        if at > first + 2 * lasting and skin[k, first:at].mean() < _MIN_SKIN:
            continue
        # Hair that lies over the brow already has no line above it.
        exact = crossing(hair[k], at) if at > first and hair[k, at - 1] <= 0.5 else at
        line[k] = exact * _STEP * size_px
        runs = hair_runs(hair[k], _GAP / _STEP)
        outline[k] = radii[runs[runs[:, 0] <= at][-1, 1] - 1]
    return Hairline(frame, brow, line, outline)


def refuse_unclear_hairline(portrait: Portrait, line: Hairline, min_found: float, max_ragged: float) -> None:
    """Raises SketchRefused where the line is found on less than min_found of its front, or is ragged by more than
    max_ragged eye distances."""
    found = float(line.found[np.abs(ANGLES) <= FRONT].mean())
    if found < min_found:
        raise SketchRefused(
            f"{portrait.name}: a hairline is found on {100 * found:.0f} % of the front "
            f"(min_found {100 * min_found:g} %)"
        )
    ragged = line.raggedness() / eye_distance(portrait.points68)
    if ragged > max_ragged:
        raise SketchRefused(
            f"{portrait.name}: the hairline is ragged by {ragged:.3f} eye distances (max_ragged {max_ragged:g})"
        )


def refuse_hidden_hairline(portrait: Portrait, line: Hairline, min_forehead: float, min_open: float = 0.95) -> None:
    """Raises SketchRefused where along more than 1 - min_open of its front less than min_forehead eye distances of
    forehead lie below the line found: it is the edge of a fringe."""
    heights = (line.line - line.brow)[np.abs(ANGLES) <= FRONT]
    forehead = float(np.nanquantile(heights, 1 - min_open)) / eye_distance(portrait.points68)
    if forehead < min_forehead:
        raise SketchRefused(
            f"{portrait.name}: {forehead:.3f} eye distances of forehead below the line "
            f"(min_forehead {min_forehead:g}); hair hides the line"
        )


def line_flow(hairline: Hairline, displacement: np.ndarray, size_px: int) -> torch.Tensor:
    """The backward flow [2,H,W] (see `warp`) that moves the line by displacement [K] pixels along the up direction.

    Exactly zero below the brows, beyond the hair's outline, and everywhere where displacement is zero.
    """
    frame = hairline.frame
    across = np.linspace(-1, 1, 2 * _NODES_ACROSS) * size_px
    along = np.linspace(-0.2, 1.2, round(1.4 * _NODES_ALONG)) * size_px
    moved = along + _motion(hairline, displacement, size_px, across, along)
    least = _MIN_SLOPE * (along[1] - along[0]) * np.arange(len(along))
    moved = np.maximum.accumulate(moved - least, axis=1) + least
    # out(y) = in(x) with moved(x) = y, so the flow is x - y at y.
    back = np.stack([np.interp(along, row, along) - along for row in moved])
    back = back * np.maximum(0, 1 - (_STILL * size_px / np.maximum(np.abs(back), 1e-9)) ** 2)
    first, last = (torch.tensor([axis[end] for axis in (along, across)]) for end in (0, -1))
    pixels = frame.unit_px * frame.coordinates(pixel_places(torch.zeros(size_px, size_px).double()))
    nodes = (pixels.flip(-1) * torch.tensor([-1, 1]) - first) / (last - first) * torch.tensor(back.shape[::-1]).sub(1)
    length = read_at(torch.from_numpy(back)[None], nodes)
    return (-length * frame.down[:, None, None]).float()


def smoothed(values: np.ndarray, sigma: float) -> np.ndarray:
    """values [K] at ANGLES, smoothed over `sigma` radians, the ends continued."""
    from scipy.ndimage import gaussian_filter1d

    return np.asarray(gaussian_filter1d(values, sigma / (ANGLES[1] - ANGLES[0]), mode="nearest"))


def _motion(
    hairline: Hairline, displacement: np.ndarray, size_px: int, across: np.ndarray, along: np.ndarray
) -> np.ndarray:
    """How far every node [S,T] moves up: all of the displacement at the line, none at the brows and the outline."""
    from scipy.ndimage import gaussian_filter, minimum_filter1d

    known = hairline.filled()
    line = smoothed(known.line, np.radians(4))
    # The hair's outline as low as it gets nearby: bent hair must not pull background in.
    outline = smoothed(minimum_filter1d(known.outline, 5, mode="nearest"), np.radians(3)) - _OUTLINE_MARGIN * size_px
    s, t = np.meshgrid(across, along, indexing="ij")
    angle, radius = np.arctan2(s, t), np.hypot(s, t)
    line_at, brow_at, outline_at, full = (
        np.interp(angle, ANGLES, values) for values in (line, known.brow, outline, displacement)
    )
    rigid = _RIGID * size_px
    rise = (radius - brow_at) / np.maximum(line_at - rigid - brow_at, 1e-3 * size_px)
    fall = (outline_at - radius) / np.maximum(outline_at - line_at - rigid, 1e-3 * size_px)
    motion = full * np.clip(np.where(radius < line_at, rise, fall), 0, 1)
    nodes_px = across[1] - across[0], along[1] - along[0]
    return np.asarray(gaussian_filter(motion, [_ROUNDING * size_px / step for step in nodes_px]))


def _brow_radii(portrait: Portrait, frame: FaceFrame) -> np.ndarray:
    """The radius [K] of the brows' upper edge with a margin, level with their ends beyond them."""
    points = portrait.points68[BROWS].cpu().double()
    angle, radius = polar(frame, points)
    # Dense along the brows' polygon, so that a ray between two points meets the segment and not the chord in angle.
    corners, dense = points[angle.argsort()].numpy(), np.linspace(0, len(points) - 1, 200)
    outline = np.stack([np.interp(dense, np.arange(len(points)), axis) for axis in corners.T], -1)
    dense_angle, dense_radius = polar(frame, torch.from_numpy(outline))
    order = dense_angle.argsort()
    radii = np.interp(ANGLES, dense_angle[order].numpy(), dense_radius[order].numpy())
    # Between the brows the polygon dips towards the origin: the forehead starts no lower than a third of their height.
    floor = 0.35 * float(radius.median())
    return np.asarray(np.maximum(radii, floor)) + _BROW_MARGIN * portrait.size_px
