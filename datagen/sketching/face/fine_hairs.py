"""Short hairs far thinner than a pixel, strewn over a region: brows. Strands of head hair are in `strands`."""

from __future__ import annotations

import cv2
import numpy as np
import torch
import torch.nn.functional as F

# Hairs are drawn one pixel thin on a canvas on which they are so many pixels long, and averaged down.
_CANVAS_HAIR_PX = 40
_MAX_FACTOR = 16
_POINTS = 5
# How differently long hairs are, and how far their direction strays, in radians.
_RAGGED, _STRAY = 0.35, 0.22


def strew_hairs(
    region: torch.Tensor, flow: torch.Tensor, length_px: float, cover: float, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Hairs rooted in region [1,H,W] (soft: fewer where it is lower), pointing along flow [2,H,W] (x, y; unit vectors),
    length_px long in the mean -> alpha [1,H,W] in [0,1], the share of each pixel that they cover, and shade [1,H,W],
    their mean lightness without unit (0 the mean hair's, deviation 1).

    cover in [0,1]: the share of the region's inside that hairs hide. Nothing is drawn for an empty region.
    """
    weight = region[0].cpu().numpy()
    nothing = torch.zeros_like(region)
    rows, columns = np.nonzero(weight > 0.02)
    if len(rows) == 0 or cover <= 0:
        return nothing, nothing.clone()
    pad = int(np.ceil(length_px)) + 1
    y0, y1 = max(0, rows.min() - pad), min(weight.shape[0], rows.max() + pad + 1)
    x0, x1 = max(0, columns.min() - pad), min(weight.shape[1], columns.max() + pad + 1)
    factor = int(np.clip(round(_CANVAS_HAIR_PX / max(length_px, 1e-3)), 1, _MAX_FACTOR))
    lines, shades = _lines(weight, flow.cpu().numpy(), length_px, factor, cover, rng)
    light = np.zeros(((y1 - y0) * factor, (x1 - x0) * factor), np.uint8)
    drawn = np.zeros_like(light)
    places = np.rint(((lines - (x0, y0) + 0.5) * factor - 0.5) * 16).astype(np.int32)
    for line, shade in zip(places, shades, strict=True):
        cv2.polylines(drawn, [line], False, 255, 1, cv2.LINE_AA, 4)
        cv2.polylines(light, [line], False, int(np.clip(128 + 40 * shade, 1, 255)), 1, cv2.LINE_8, 4)
    alpha = torch.from_numpy(drawn).float() / 255
    shade = (torch.from_numpy(light).float() - 128) / 40 * (torch.from_numpy(light) > 0)
    small = F.avg_pool2d(torch.stack([alpha, shade * alpha])[None], factor)[0].to(region)
    found = torch.cat([nothing, nothing])
    found[:, y0:y1, x0:x1] = small
    return found[:1], found[1:] / found[:1].clamp_min(1e-3)


def _lines(
    weight: np.ndarray, flow: np.ndarray, length_px: float, factor: int, cover: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Hairs as points [K,P,2] in pixels, and their shades [K]."""
    area = float(weight.sum())
    # As if thrown at random: so many hairs, each 1.3 canvas pixels wide with its soft edge, hide `cover` of the area.
    count = int(np.ceil(-np.log(1 - 0.97 * min(cover, 1.0)) * area / (length_px * 1.3 / factor)))
    chance = weight.ravel() / area
    roots = rng.choice(chance.size, size=count, p=chance / chance.sum())
    y, x = np.divmod(roots, weight.shape[1])
    at = np.stack([x, y], -1) + rng.uniform(-0.5, 0.5, (count, 2))
    direction = flow[:, y, x].T
    angle = np.arctan2(direction[:, 1], direction[:, 0]) + _STRAY * rng.normal(size=count)
    length = length_px * np.exp(_RAGGED * rng.normal(size=count) - _RAGGED**2 / 2)
    bend = 0.4 * rng.normal(size=count)
    # The root lies in the middle of what is drawn: else a region's hairs all lie towards where they point.
    along = np.linspace(-0.5, 0.5, _POINTS)
    turned = angle[:, None] + bend[:, None] * along
    step = np.stack([np.cos(turned), np.sin(turned)], -1) * (along * length[:, None])[..., None]
    return at[:, None] + step, rng.normal(size=count)
