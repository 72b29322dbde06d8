"""The line where a person's forehead ends and the hair begins: found along rays from between the eyes, and moved.

Rays fan out from the root of the nose; an angle of 0 is straight up the face (from the chin to the root of the nose,
so that turned and tilted heads are followed), positive towards the right of the image. Along a ray come the brow, the
forehead, the hairline, the hair, and the hair's outline. In this frame every hairline is a function of the angle, also
at the temples, where it runs steeply.

Moving is a smooth warp along the face's up direction: the transition at the line travels as it is, the forehead is
stretched or shortened down to the brows, the hair up to its outline.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from stylepairs.datagen.portraits.portrait import CLASS, Portrait
from stylepairs.datagen.sketching.tools.curves import half_crossing

ANGLES = np.radians(np.arange(-76.0, 77.0, 2.0))
# The angles between which the forehead's height is read, and those of the whole front of the line.
CENTRAL = np.radians(20.0)
FRONT = np.radians(40.0)
_BROWS = slice(17, 27)
_ROOT, _CHIN = 27, 8
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
class Frame:
    """The face's own axes: origin (x, y) in pixels, `up` and `right` unit vectors (x, y) of the image."""

    origin: np.ndarray
    up: np.ndarray
    right: np.ndarray

    @classmethod
    def of(cls, portrait: Portrait) -> Frame:
        points = portrait.points68.cpu().double().numpy()
        up = points[_ROOT] - points[_CHIN]
        up = up / max(float(np.hypot(*up)), 1e-6)
        return cls(points[_ROOT], up, np.array([-up[1], up[0]]))

    def polar(self, size_px: int) -> tuple[np.ndarray, np.ndarray]:
        """Angle and radius (pixels) of every pixel, [H,W] each."""
        y, x = np.mgrid[:size_px, :size_px].astype(float)
        across = (x - self.origin[0]) * self.right[0] + (y - self.origin[1]) * self.right[1]
        along = (x - self.origin[0]) * self.up[0] + (y - self.origin[1]) * self.up[1]
        return np.arctan2(across, along), np.hypot(across, along)

    def at(self, angle: np.ndarray, radius: np.ndarray) -> np.ndarray:
        """The image points [...,2] at angles and radii."""
        return (
            self.origin
            + (radius * np.sin(angle))[..., None] * self.right
            + (radius * np.cos(angle))[..., None] * self.up
        )


@dataclass(frozen=True)
class Hairline:
    """Radii in pixels at the angles ANGLES [K]: brow (where the forehead starts), line, outline (where the hair ends).

    line is NaN where a ray meets no hair beyond skin, or none that lasts; outline likewise.
    """

    frame: Frame
    brow: np.ndarray
    line: np.ndarray
    outline: np.ndarray

    @property
    def found(self) -> np.ndarray:
        """Where the line was found, bool [K]."""
        return np.isfinite(self.line)

    def height(self, within: float = CENTRAL) -> float:
        """The forehead's height in pixels: the median of line - brow over the angles up to `within`; NaN if nothing."""
        heights = (self.line - self.brow)[np.abs(ANGLES) <= within]
        return float(np.nanmedian(heights)) if np.isfinite(heights).any() else float("nan")

    def points(self) -> np.ndarray:
        """The line's points [K,2] in the image, NaN where not found."""
        return self.frame.at(ANGLES, self.line)

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
        return np.interp(ANGLES, angle[order], np.hypot(across, along)[order])

    def filled(self) -> Hairline:
        """The same with gaps bridged linearly, and the ends continued."""
        return Hairline(self.frame, self.brow, _bridged(self.line), _bridged(self.outline))


def find_hairline(portrait: Portrait, frame: Frame | None = None) -> Hairline:
    """The portrait's hairline, brow and hair outline along ANGLES; frame None: the portrait's own."""
    size_px = portrait.size_px
    frame = Frame.of(portrait) if frame is None else frame
    brow = _brow_radii(portrait, frame)
    radii = np.arange(0, 1.2, _STEP) * size_px
    places = frame.at(ANGLES[:, None], np.broadcast_to(radii, (len(ANGLES), len(radii))))
    inside = ((places >= 0) & (places <= size_px - 1)).all(-1)
    hair = np.where(inside, sampled(_clean_matte(portrait), places)[0], 0.0)
    skin = sampled((portrait.label == CLASS["skin"]).float()[None], places)[0]
    lasting = max(1, round(_SUSTAINED / _STEP))
    line = np.full(len(ANGLES), np.nan)
    outline = np.full(len(ANGLES), np.nan)
    for k in range(len(ANGLES)):
        first = int(np.searchsorted(radii, brow[k]))
        at = _first_crossing(hair[k], first, lasting)
        if at is None or (at > first + 2 * lasting and skin[k, first : int(at)].mean() < _MIN_SKIN):
            continue
        line[k] = np.interp(at, np.arange(len(radii)), radii)
        outline[k] = radii[_last_of_run(hair[k], int(at) + 1)]
    return Hairline(frame, brow, line, outline)


def line_flow(hairline: Hairline, displacement: np.ndarray, size_px: int) -> torch.Tensor:
    """The backward flow [2,H,W] (see `warp`) that moves the line by displacement [K] pixels along the up direction.

    Exactly zero below the brows, beyond the hair's outline, and everywhere where displacement is zero.
    """
    from scipy.ndimage import map_coordinates

    frame = hairline.frame
    across = np.linspace(-1, 1, 2 * _NODES_ACROSS) * size_px
    along = np.linspace(-0.2, 1.2, round(1.4 * _NODES_ALONG)) * size_px
    moved = along + _motion(hairline, displacement, size_px, across, along)
    least = _MIN_SLOPE * (along[1] - along[0]) * np.arange(len(along))
    moved = np.maximum.accumulate(moved - least, axis=1) + least
    # out(y) = in(x) with moved(x) = y, so the flow is x - y at y.
    back = np.stack([np.interp(along, row, along) - along for row in moved])
    back = back * np.maximum(0, 1 - (_STILL * size_px / np.maximum(np.abs(back), 1e-9)) ** 2)
    y, x = np.mgrid[:size_px, :size_px].astype(float)
    dx, dy = x - frame.origin[0], y - frame.origin[1]
    s, t = dx * frame.right[0] + dy * frame.right[1], dx * frame.up[0] + dy * frame.up[1]
    nodes = [(s - across[0]) / (across[1] - across[0]), (t - along[0]) / (along[1] - along[0])]
    length = map_coordinates(back, nodes, order=1, mode="nearest")
    return torch.from_numpy(np.stack([length * frame.up[0], length * frame.up[1]])).float()


def sampled(image: torch.Tensor, places: np.ndarray) -> np.ndarray:
    """image [C,H,W] read bilinearly at places [...,2] (x, y), the border continued -> [C,...]."""
    from scipy.ndimage import map_coordinates

    planes = image.detach().cpu().double().numpy()
    where = np.stack([places[..., 1], places[..., 0]])
    return np.stack([map_coordinates(plane, where, order=1, mode="nearest") for plane in planes])


def smoothed(values: np.ndarray, sigma: float) -> np.ndarray:
    """values [K] at ANGLES, smoothed over `sigma` radians, the ends continued."""
    from scipy.ndimage import gaussian_filter1d

    return gaussian_filter1d(values, sigma / (ANGLES[1] - ANGLES[0]), mode="nearest")


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


def _clean_matte(portrait: Portrait) -> torch.Tensor:
    """The hair matte near what the label map calls hair, so that brows and shadows of it are no hairline."""
    from stylepairs.datagen.portraits.regions import dilate

    near = dilate((portrait.label == CLASS["hair"]).float()[None], 0.03)
    return portrait.hair * near


def _brow_radii(portrait: Portrait, frame: Frame) -> np.ndarray:
    """The radius [K] of the brows' upper edge with a margin, level with their ends beyond them."""
    points = portrait.points68[_BROWS].cpu().double().numpy() - frame.origin
    angle, radius = np.arctan2(points @ frame.right, points @ frame.up), np.hypot(*points.T)
    order = np.argsort(angle)
    # Dense along the brows' polygon, so that a ray between two points meets the segment and not the chord in angle.
    dense = np.linspace(0, len(points) - 1, 200)
    x, y = (np.interp(dense, np.arange(len(points)), points[order] @ axis) for axis in (frame.right, frame.up))
    dense_angle = np.arctan2(x, y)
    by_angle = np.argsort(dense_angle)
    radii = np.interp(ANGLES, dense_angle[by_angle], np.hypot(x, y)[by_angle])
    # Between the brows the polygon dips towards the origin: the forehead starts no lower than a third of their height.
    floor = 0.35 * float(np.median(radius))
    return np.maximum(radii, floor) + _BROW_MARGIN * portrait.size_px


def _first_crossing(hair: np.ndarray, first: int, lasting: int) -> float | None:
    """The fractional index from `first` on where hair [R] passes 0.5 for good; None where it never does."""
    means = np.convolve(hair, np.ones(lasting) / lasting)[lasting - 1 :]  # of hair[i : i + lasting]
    candidates = np.flatnonzero((hair[first:] >= 0.5) & (means[first : first + len(hair[first:])] >= 0.5))
    if len(candidates) == 0:
        return None
    at = first + int(candidates[0])
    if at == first:
        return float(at)
    return at - 1 + float(half_crossing(*torch.from_numpy(hair[at - 1 : at + 1]))) if hair[at - 1] < 0.5 else float(at)


def _last_of_run(hair: np.ndarray, start: int) -> int:
    """The last index of the hair >= 0.5 that begins at `start`, over gaps of up to _GAP."""
    there = start + np.flatnonzero(hair[start:] >= 0.5)
    if len(there) == 0:
        return start
    ends = np.flatnonzero(np.diff(there) > _GAP / _STEP)
    return int(there[ends[0]] if len(ends) else there[-1])


def _bridged(values: np.ndarray) -> np.ndarray:
    known = np.isfinite(values)
    return np.interp(ANGLES, ANGLES[known], values[known]) if known.any() else values
