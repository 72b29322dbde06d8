"""The outline of the hair along rays from the face, and the warp that pushes it outwards or draws it in.

On each ray, hair is the longest run of the matte: from the hairline (or the ear, the cheek) to the outline. The warp
moves hair only, along the rays, by nothing at the hairline and by the whole way at the outline and beyond: the face
cannot move.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from stylepairs.datagen.images.filters import read_at
from stylepairs.datagen.portraits.face_frame import FaceFrame, pixel_places
from stylepairs.datagen.portraits.landmarks import JAW
from stylepairs.datagen.portraits.portrait import Portrait
from stylepairs.datagen.portraits.regions import class_region
from stylepairs.datagen.sketching.hair.rays import crossing, hair_runs, polar, ray_places

# Half the rays' fan, from straight up, and how many there are: further down is beard, neck and clothing.
REACH_DEGREES = 150.0
RAYS = 241
# Of the side: samples along a ray, how long it is; gaps in the hair that do not end it.
_STEP = 0.004
_LENGTH = 0.85
_GAP = 0.02
# Of the side: how far beyond the outline one must see background or clothing for the outline to be free to move.
_FREE = 0.03


@dataclass(frozen=True)
class HairOutline:
    """Hair along rays (see `rays`): angles [K] in degrees; inner, outer [K]: where hair starts and ends on each ray, in
    pixels from the frame's origin, smoothed over neighbours and carried over where there is none; free [K] in [0,1]:
    hair is there and nothing but background beyond it; room [K]: pixels from the origin to the picture's border."""

    frame: FaceFrame
    angles: torch.Tensor
    inner: torch.Tensor
    outer: torch.Tensor
    free: torch.Tensor
    room: torch.Tensor

    @property
    def thickness(self) -> torch.Tensor:
        """[K]: hair between hairline and outline in pixels, at least one."""
        return (self.outer - self.inner).clamp_min(1.0)

    @property
    def visible(self) -> torch.Tensor:
        """[K] 0 or 1: whether the picture shows the outline and a little of what is beyond it."""
        return (self.outer < self.room - 1).float()

    def read(self, maps: torch.Tensor, radii: torch.Tensor) -> torch.Tensor:
        """maps [C,H,W] along the rays [C,K,R], the border's values beyond it; radii [R] or [K,R] in pixels."""
        return read_at(maps, ray_places(self.frame, torch.deg2rad(self.angles)[:, None], radii))


def head_width_px(portrait: Portrait) -> float:
    """From ear to ear, in pixels: the distance between the ends of the jaw line."""
    jaw = portrait.points68[JAW]
    return max(float((jaw[-1] - jaw[0]).norm()), 1.0)


def hair_outline(portrait: Portrait, matte: torch.Tensor) -> HairOutline:
    """The outline of the hair whose matte [1,H,W] is given."""
    size = portrait.size_px
    frame = FaceFrame.of_midline(portrait.points68)
    angles = torch.linspace(-REACH_DEGREES, REACH_DEGREES, RAYS)
    step = max(_STEP * size, 0.5)
    free_to_move = class_region(portrait, ["background", "cloth", "neck"], 0.0)
    places = ray_places(frame, torch.deg2rad(angles)[:, None], torch.arange(0, _LENGTH * size, step))
    hair, background = read_at(torch.cat([matte, free_to_move]), places).numpy()
    room = _room(frame, angles, size)
    inner, outer, beyond = np.zeros((3, RAYS))
    for ray, limit in enumerate((room / step).tolist()):
        shown = hair[ray, : max(2, int(limit) + 1)]
        runs = hair_runs(shown, _GAP * size / step)
        if len(runs) == 0:
            continue
        start, end = runs[np.argmax(runs[:, 1] - runs[:, 0])].tolist()
        inner[ray] = crossing(shown, start)
        outer[ray] = limit if end == len(shown) else min(crossing(shown, end), limit)
        # Where the picture shows nothing beyond the outline, nothing is known to be in its way.
        first = math.ceil(outer[ray]) + 1
        stretch = background[ray, first : min(first + max(2, round(_FREE * size / step)), math.floor(limit))]
        beyond[ray] = stretch.mean() if len(stretch) else 1.0
    there = outer > inner
    if there.any():
        inner, outer = (np.interp(np.arange(RAYS), np.flatnonzero(there), side[there]) for side in (inner, outer))
    inner, outer = (_smoothed(side, there.astype(float)) * step for side in (inner, outer))
    free = _smoothed(there * beyond, np.ones(RAYS))
    inner, outer, free = torch.from_numpy(np.stack([inner, np.maximum(outer, inner + 1), free])).float()
    return HairOutline(frame, angles, inner, outer, free, room)


def outline_flow(outline: HairOutline, moved: torch.Tensor, size_px: int) -> torch.Tensor:
    """The backward flow [2,H,W] that moves the outline by moved [K] pixels along each ray (positive: outwards).

    It is zero inside the hairline; from there to the outline its growth is a smoothstep; beyond the outline everything
    moves with it. moved must lie within 0.6 of the hair's thickness, or hair would fold.
    """
    places = pixel_places(torch.zeros(size_px, size_px))
    angle, radius = polar(outline.frame, places)
    radius = radius.clamp_min(1e-3)
    inner, thick, shift = (
        torch.from_numpy(np.interp(torch.rad2deg(angle), outline.angles, values)).float()
        for values in (outline.inner, outline.thickness, moved)
    )
    # The source radius r solves r + shift * g((r - inner) / thick) = radius; Newton's method, started where it ends
    # for all that is beyond the outline.
    source = (radius - shift).clamp_min(0)
    for _ in range(8):
        u = ((source - inner) / thick).clamp(0, 1)
        slope = 1 + shift / thick * 6 * u * (1 - u)
        source = source - (source + shift * u * u * (3 - 2 * u) - radius) / slope.clamp_min(0.1)
    flow = ((places - outline.frame.origin) / radius[..., None]).permute(2, 0, 1) * (source - radius)
    return torch.where((radius > inner) & (shift.abs() > 1e-3), flow, 0.0)


def _room(frame: FaceFrame, angles: torch.Tensor, size: int) -> torch.Tensor:
    """Pixels [K] from the frame's origin to the picture's border along each ray."""
    direction = ray_places(frame, torch.deg2rad(angles), torch.ones(len(angles))) - frame.origin
    ahead = torch.where(direction > 0, size - 1 - frame.origin, frame.origin)
    return (ahead / direction.abs().clamp_min(1e-6)).amin(-1)


def _smoothed(values: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """values [K] by a running median of five rays, then a Gaussian over about three degrees; weight [K]."""
    from scipy.ndimage import gaussian_filter1d, median_filter

    steady = median_filter(values, 5, mode="nearest")
    sigma = 3.0 * (RAYS - 1) / (2 * REACH_DEGREES)
    total = gaussian_filter1d(weight + 1e-3, sigma, mode="nearest")
    return np.asarray(gaussian_filter1d(steady * (weight + 1e-3), sigma, mode="nearest") / total)
