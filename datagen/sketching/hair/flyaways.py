"""Loose strands at the outline of hair: thin arcs that leave it, and sometimes come back to it."""

from __future__ import annotations

import cv2
import numpy as np
import torch

from stylepairs.datagen.sketching.hair.hair_outline import HairOutline
from stylepairs.datagen.sketching.hair.rays import ray_places

# All of the side: how far under the outline strands begin, how far they rise over it, how long and how thick they are.
_ROOT = 0.012
_RISE = (0.006, 0.022)
_LENGTH = (0.05, 0.14)
_THICK = (0.0022, 0.0036)
# Strands for each full turn of the outline.
_COUNT = 80
_FINER = 4
_POINTS = 24


def loose_strands(
    outline: HairOutline, moved: torch.Tensor, amount: torch.Tensor, size_px: int, rng: np.random.Generator
) -> torch.Tensor:
    """How much of each pixel [1,H,W] in [0,1] loose strands cover; a strand in the middle of a pixel counts its width.

    outline: that of the hair before it moved by moved [K] pixels; amount [K] in [0,1]: how many strands start on each
    ray. The same rng gives the same strands, at every size.
    """
    angles = np.deg2rad(outline.angles.numpy())
    edge = (outline.outer + moved).numpy()
    count = round(_COUNT * (angles[-1] - angles[0]) / (2 * np.pi))
    # All is drawn for every strand, kept or not: the strands of one ray do not depend on those of another.
    start, kept, side, rise, length, thick, free = rng.random((7, count))
    start = angles[0] + start * (angles[-1] - angles[0])
    kept = kept < np.interp(start, angles, amount.numpy())
    canvas = np.zeros((size_px * _FINER, size_px * _FINER), np.float32)
    t = np.linspace(0, 1, _POINTS)
    for index in np.flatnonzero(kept):
        end = 0.55 + 0.45 * free[index]  # of an arc that would come back to the outline: many do not
        radius = max(float(np.interp(start[index], angles, edge)), 1.0)
        turn = np.copysign(_between(_LENGTH, length[index]) * size_px / radius, side[index] - 0.5)
        at = start[index] + turn * t
        over = (-_ROOT + (_ROOT + _between(_RISE, rise[index])) * np.sin(np.pi * end * t)) * size_px
        away = np.interp(at, angles, edge) + over
        points = ray_places(outline.frame, torch.from_numpy(at), torch.from_numpy(away)).numpy()
        _draw(canvas, points, _between(_THICK, thick[index]) * size_px)
    fine = torch.from_numpy(canvas)[None, None]
    return torch.nn.functional.avg_pool2d(fine, _FINER)[0].clamp(0, 1)


def _draw(canvas: np.ndarray, points: np.ndarray, thick_px: float) -> None:
    """Add one strand, thinning out towards its tip; points [N,2] in pixels of the picture."""
    fine = (((points + 0.5) * _FINER - 0.5) * 16).round().astype(np.int32)
    width = max(1, round(thick_px * _FINER))
    # The part of the canvas around it: all of it takes 0.15 s a strand at 1024 px.
    low = np.maximum(fine.min(0) // 16 - width - 2, 0)
    high = np.maximum(fine.max(0) // 16 + width + 3, 0)
    part = canvas[low[1] : high[1], low[0] : high[0]]
    if part.size == 0:
        return
    fine, one = fine - 16 * low, np.zeros(part.shape, np.uint8)
    for piece, strength in ((slice(0, 12), 255), (slice(11, 18), 200), (slice(17, None), 120)):
        cv2.polylines(one, [fine[piece]], False, strength, width, cv2.LINE_AA, shift=4)
    # A stroke cannot be drawn thinner than one fine pixel: what it is too thick by, it is fainter.
    np.maximum(part, one.astype(np.float32) / 255 * min(1.0, thick_px * _FINER / width), out=part)


def _between(bounds: tuple[float, float], share: float) -> float:
    return bounds[0] + (bounds[1] - bounds[0]) * float(share)
