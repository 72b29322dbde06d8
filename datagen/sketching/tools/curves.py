"""Smooth curves through points, soft lines along them, smooth steps, and where a matte passes one half."""

from __future__ import annotations

import numpy as np
import torch

from stylepairs.datagen.portraits.face_frame import pixel_places


def smooth_curve(points: torch.Tensor, count: int) -> torch.Tensor:
    """count points [count,2] on the cubic spline through points [K,2], evenly spaced in the points' order."""
    from scipy.interpolate import CubicSpline

    line = CubicSpline(np.arange(len(points)), points.detach().cpu().double().numpy())
    return torch.from_numpy(line(np.linspace(0, len(points) - 1, count))).to(points)


def smoothstep(x: torch.Tensor, start: float = 0.0, end: float = 1.0) -> torch.Tensor:
    """0 up to start, 1 from end on, and the cubic with level ends between; any shape."""
    t = ((x - start) / (end - start)).clamp(0, 1)
    return t * t * (3 - 2 * t)


def half_crossing(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """The share in [0,1] of the way from `before` to `after`, neighbours on a line through a matte, at which it passes
    one half; any shape."""
    rise = after - before
    return ((0.5 - before) / torch.where(rise.abs() < 1e-6, torch.ones_like(rise), rise)).clamp(0, 1)


def soft_line(size_px: int, points: torch.Tensor, width_px: float, taper: float = 0.35) -> torch.Tensor:
    """[1,H,W] in [0,1]: a line along the curve through points [K,2], Gaussian across with sigma = width_px / 2.

    It fades to nothing over `taper` of its length at either end. Lines thinner than the pixels allow are drawn wider
    and fainter by as much, so that they look the same at every size.
    """
    curve = smooth_curve(points, 48)
    nearest = torch.zeros(size_px, size_px).to(points)
    place, square = pixel_places(nearest), torch.full_like(nearest, torch.inf)
    for index, point in enumerate(curve):
        here = (place - point).square().sum(-1)
        nearest = torch.where(here < square, index / (len(curve) - 1), nearest)
        square = torch.minimum(square, here)
    sigma = max(width_px / 2, 0.55)
    end = (torch.minimum(nearest, 1 - nearest) / taper).clamp(0, 1)
    return (torch.exp(-square / (2 * sigma**2)) * end * end * (3 - 2 * end) * min(1.0, width_px / 2 / sigma))[None]
