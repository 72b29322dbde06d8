"""The outline of the hair along rays from the face, and the warp that pushes it outwards or draws it in.

Rays start between the eyes, their angle counted from straight up. On each, hair is the longest run of the matte: from
the hairline (or the ear, the cheek) to the outline. The warp moves hair only, along the rays, by nothing at the
hairline and by the whole way at the outline and beyond: the face cannot move.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from stylepairs.datagen.portraits.portrait import CLASS, Portrait
from stylepairs.datagen.sketching.tools.curves import half_crossing

# Half the rays' fan, from straight up, and how many there are: further down is beard, neck and clothing.
REACH_DEGREES = 150.0
RAYS = 241
# Of the side: samples along a ray, how long it is; gaps in the hair that do not end it.
_STEP = 0.004
_LENGTH = 0.85
_GAP = 0.02
# Of the side: how far beyond the outline one must see background or clothing for the outline to be free to move.
_FREE = 0.03
_FREE_CLASSES = ("background", "cloth", "neck")


@dataclass(frozen=True)
class HairOutline:
    """Hair along rays: centre [2] (x, y); angles [K] in degrees from straight up, positive to the picture's right;
    inner, outer [K]: where hair starts and ends on each ray, in pixels from the centre, smoothed over neighbours and
    carried over where there is none; free [K] in [0,1]: hair is there and nothing but background beyond it; room [K]:
    pixels from the centre to the picture's border."""

    centre: torch.Tensor
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


def head_width_px(portrait: Portrait) -> float:
    """From ear to ear, in pixels: the distance between the ends of the jaw line."""
    return max(float((portrait.points68[16] - portrait.points68[0]).norm()), 1.0)


def hair_outline(portrait: Portrait, matte: torch.Tensor) -> HairOutline:
    """The outline of the hair whose matte [1,H,W] is given."""
    size = portrait.size_px
    centre = portrait.points68[27].float()
    angles = torch.linspace(-REACH_DEGREES, REACH_DEGREES, RAYS)
    radii = torch.arange(0, _LENGTH * size, max(_STEP * size, 0.5))
    free_class = torch.isin(portrait.label, torch.tensor([CLASS[name] for name in _FREE_CLASSES])).float()[None]
    room = _room(centre, angles, size)
    profile = sample_rays(torch.cat([matte, free_class]), centre, angles, radii).numpy()
    step = float(radii[1])
    limits = room.numpy() / step
    found = np.array([_longest_run(line, limit, step, size) for line, limit in zip(profile[0], limits, strict=True)])
    there = found[:, 1] > found[:, 0]
    beyond = np.array(
        [
            _free_share(line, end, limit, step, size)
            for line, (_, end), limit in zip(profile[1], found, limits, strict=True)
        ]
    )
    weight = there.astype(np.float64)
    inner, outer = (_smoothed(_carried_over(found[:, side], there), weight) * step for side in (0, 1))
    free = _smoothed(there * beyond, np.ones(RAYS))
    outer = np.maximum(outer, inner + 1)
    return HairOutline(centre, angles, _tensor(inner), _tensor(outer), _tensor(free), room)


def sample_rays(maps: torch.Tensor, centre: torch.Tensor, angles: torch.Tensor, radii: torch.Tensor) -> torch.Tensor:
    """maps [C,H,W] along rays [C,K,R], bilinear, the border's values beyond it; radii [R] or [K,R] in pixels."""
    radians = torch.deg2rad(angles)
    direction = torch.stack([radians.sin(), -radians.cos()], -1)
    points = centre + direction[:, None] * radii.expand(len(angles), -1)[..., None]
    grid = points * (2 / (maps.shape[-1] - 1)) - 1
    return F.grid_sample(maps[None], grid[None], mode="bilinear", padding_mode="border", align_corners=True)[0]


def outline_flow(outline: HairOutline, moved: torch.Tensor, size_px: int) -> torch.Tensor:
    """The backward flow [2,H,W] that moves the outline by moved [K] pixels along each ray (positive: outwards).

    It is zero inside the hairline; from there to the outline its growth is a smoothstep; beyond the outline everything
    moves with it. moved must lie within 0.6 of the hair's thickness, or hair would fold.
    """
    at = torch.arange(size_px).float()
    away = (
        torch.stack([at.expand(size_px, size_px), at[:, None].expand(size_px, size_px)]) - outline.centre[:, None, None]
    )
    radius = away.norm(dim=0).clamp_min(1e-3)
    inner, thick, shift = _at_angles(torch.stack([outline.inner, outline.thickness, moved]), outline.angles, away)
    # The source radius r solves r + shift * g((r - inner) / thick) = radius; Newton's method, started where it ends
    # for all that is beyond the outline.
    source = (radius - shift).clamp_min(0)
    for _ in range(8):
        u = ((source - inner) / thick).clamp(0, 1)
        slope = 1 + shift / thick * 6 * u * (1 - u)
        source = source - (source + shift * u * u * (3 - 2 * u) - radius) / slope.clamp_min(0.1)
    flow = away / radius * (source - radius)
    return torch.where((radius > inner) & (shift.abs() > 1e-3), flow, 0.0)


def _at_angles(values: torch.Tensor, angles: torch.Tensor, away: torch.Tensor) -> torch.Tensor:
    """values [N,K] given on rays -> [N,H,W] at the angle of each pixel; the last ray's beyond the fan."""
    angle = torch.rad2deg(torch.atan2(away[0], -away[1]))
    place = ((angle - angles[0]) / (angles[1] - angles[0])).clamp(0, len(angles) - 1.001)
    low = place.long()
    part = place - low
    return values[:, low] * (1 - part) + values[:, low + 1] * part


def _room(centre: torch.Tensor, angles: torch.Tensor, size: int) -> torch.Tensor:
    """Pixels [K] from the centre to the picture's border along each ray."""
    radians = torch.deg2rad(angles)
    x, y = radians.sin(), -radians.cos()
    across = torch.where(x > 0, size - 1 - centre[0], centre[0]) / x.abs().clamp_min(1e-6)
    down = torch.where(y > 0, size - 1 - centre[1], centre[1]) / y.abs().clamp_min(1e-6)
    return torch.minimum(across, down)


def _longest_run(line: np.ndarray, limit: float, step: float, size: int) -> tuple[float, float]:
    """Start and end, in samples, of the longest run of hair on a ray, short gaps bridged; (0, 0) for none."""
    inside = line[: max(2, int(limit) + 1)] > 0.5
    edges = np.flatnonzero(np.diff(np.concatenate([[0], inside.astype(np.int8), [0]])))
    runs = edges.reshape(-1, 2)
    if len(runs) == 0:
        return 0.0, 0.0
    merged = [list(runs[0])]
    for start, end in runs[1:]:
        if (start - merged[-1][1]) * step <= _GAP * size:
            merged[-1][1] = end
        else:
            merged.append([start, end])
    start, end = max(merged, key=lambda run: run[1] - run[0])
    return _crossing(line, start), limit if end == len(inside) else min(_crossing(line, end), limit)


def _crossing(line: np.ndarray, index: int) -> float:
    """Where between the samples index - 1 and index the line crosses one half."""
    if index == 0 or index >= len(line):
        return float(index)
    return index - 1 + float(half_crossing(*torch.from_numpy(line[index - 1 : index + 1]).double()))


def _free_share(line: np.ndarray, end: float, limit: float, step: float, size: int) -> float:
    """Share of what may be covered in the stretch just beyond the outline; 1 where the picture does not show it."""
    first = math.ceil(end) + 1
    beyond = line[first : min(first + max(2, round(_FREE * size / step)), math.floor(limit))]
    return float(beyond.mean()) if len(beyond) else 1.0


def _carried_over(values: np.ndarray, there: np.ndarray) -> np.ndarray:
    """values [K] with those that are not there interpolated from their neighbours."""
    if not there.any():
        return np.zeros_like(values)
    index = np.arange(len(values))
    return np.interp(index, index[there], values[there])


def _smoothed(values: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """values [K] by a running median of five rays, then a Gaussian over about three degrees; weight [K]."""
    from scipy.ndimage import gaussian_filter1d, median_filter

    steady = median_filter(values, 5, mode="nearest")
    sigma = 3.0 * (RAYS - 1) / (2 * REACH_DEGREES)
    total = gaussian_filter1d(weight + 1e-3, sigma, mode="nearest")
    return np.asarray(gaussian_filter1d(steady * (weight + 1e-3), sigma, mode="nearest") / total)


def _tensor(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(values).float()
