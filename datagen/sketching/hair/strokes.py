"""Strokes of hair: guides traced along a flow field, strands around them, splatted on a finer canvas and averaged down.

Shades are numbers without unit here; `strands` gives them their colour.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from stylepairs.datagen.images.filters import read_at

_GUIDE_POINTS = 40
_STEP_SHARE = 0.012
# Thinner than this many pixels a strand is only noise once it is averaged down.
_MIN_STRAND_PX = 0.6
# About the finer canvas's side: on one of 768 px the strands of a 256 px crop were one pixel wide in place of two.
_CANVAS_PX = 1024


@dataclass(frozen=True)
class StrandStyle:
    """How hair is laid; all lengths and widths are shares of the crop's side.

    density in [0,1]: how much of what the hair lies over is covered. length: of hair that grows all over its region
    (None: each strand runs through it, from where the flow enters to where it leaves). lock_width, strand_width.
    lock_cover: locks over each point, under 1 leaves gaps between them. clumping in [0,1]: how far strands draw
    together at the tips. ragged in [0,1]: how differently long they are. root_shadow in [0,1]: how much darker they
    begin. closed in [0,1]: up to where on their way the gaps that chance leaves between dense strands are closed.
    """

    density: float = 1.0
    length: float | None = None
    lock_width: float = 0.022
    strand_width: float = 0.0026
    lock_cover: float = 2.5
    clumping: float = 0.6
    ragged: float = 0.15
    root_shadow: float = 0.5
    closed: float = 0.55

    def strand_px(self, size: int) -> float:
        """The width of a strand as it is drawn on a crop of side `size`."""
        return max(self.strand_width * size, _MIN_STRAND_PX)

    def strands_per_lock(self, size: int) -> int:
        """So many that all locks together cover `density`, as if thrown at random."""
        cover = -math.log(1 - 0.985 * min(self.density, 1.0))
        per_lock = cover * self.lock_width * size / self.strand_px(size)
        return max(1, round(per_lock / min(max(self.lock_cover, 0.3), 2.5)))


def trace_guides(
    field: torch.Tensor, flow: torch.Tensor, style: StrandStyle, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Centre lines of locks [K,N,2] in pixels, from root to tip, and their lengths [K] in pixels.

    field [1,H,W]: where hair grows, the fewer locks the lower it is; flow [2,H,W]: which way.
    """
    size = field.shape[-1]
    maps = torch.cat([flow, field]).cpu().double()
    # The mean length of a lock, from a first handful.
    probe, probe_length = _traced(_seeds(maps, 24, rng), maps, style)
    if len(probe) == 0:
        return probe, probe_length
    mean_length = max(float(probe_length.mean()) / size, style.lock_width)
    area = float(field.sum()) / size**2
    count = int(np.clip(round(style.lock_cover * area / (style.lock_width * mean_length)), 3, 4000))
    return _traced(_seeds(maps, count, rng), maps, style)


def paint(
    size: int, guides: np.ndarray, lengths: np.ndarray, style: StrandStyle, curl: float, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """All strands on a finer canvas, averaged down: shade [2,H,W] (lightness without unit; 0 root to 1 tip) and alpha
    [1,H,W]. Later strands lie over earlier ones; curl in [0,1]: how wavy they are."""
    finer = int(np.clip(_CANVAS_PX // size, 2, 4))
    side, count, per_lock = size * finer, len(guides), style.strands_per_lock(size)
    canvas = np.zeros((side * side, 3), np.float32)
    lock_px, strand_px = style.lock_width * size, style.strand_px(size)
    guides = _bent(guides, lengths, lock_px, curl, rng)
    light = rng.normal(size=count)
    phase = rng.uniform(0, 2 * np.pi, (count, 2))
    # The shadow between strands: a narrower, darker ribbon under each lock.
    under = _ribbons(guides, lengths, 0.7 * lock_px, 0.85, finer, taper=0.4)
    _splat(canvas, side, *under, (light - 1.0)[:, None], min(1.0, style.density) ** 1.5)
    chunk = max(1, int(3e6 / (per_lock * max(lengths.max(), 1) * finer * max(strand_px * finer, 1))))
    for first in range(0, count, chunk):
        part = slice(first, first + chunk)
        lines, extents, own = _strands(guides[part], lengths[part], light[part], style, size, rng)
        ribbon = _ribbons(lines, extents, strand_px, 1.0, finer, taper=0.35)
        along = np.linspace(0, 1, ribbon[0].shape[1])
        bend = np.repeat(phase[part], per_lock, axis=0)
        wave = 0.7 * np.sin(bend[:, :1] + 4 * along) + 0.3 * np.sin(bend[:, 1:] + 11 * along)
        _splat(canvas, side, *ribbon, own[:, None] + wave, 1.0)
    pixels = F.avg_pool2d(torch.from_numpy(canvas).view(side, side, 3).permute(2, 0, 1)[None], finer)[0]
    alpha = pixels[2:]
    return pixels[:2] / alpha.clamp_min(1e-4), alpha.clamp(0, 1)


def _seeds(maps: torch.Tensor, count: int, rng: np.random.Generator) -> np.ndarray:
    """About `count` points [K,2], evenly strewn (R2 sequence: Roberts 2018), fewer where the region is lower."""
    field = maps[2].numpy()
    rows, columns = np.nonzero(field > 0.02)
    if len(rows) == 0:
        return np.zeros((0, 2))
    low = np.array([columns.min(), rows.min()]) - 0.5
    span = np.array([columns.max(), rows.max()]) + 0.5 - low
    tries = int(np.clip(np.ceil(count * span.prod() / max(float(field.sum()), 1e-6)), count, 40 * count))
    ratio = 1.32471795724474602596
    points = (rng.random(2) + np.arange(1, tries + 1)[:, None] / np.array([ratio, ratio**2])) % 1 * span + low
    return rng.permutation(points[rng.random(tries) < _read(maps, points)[:, 2]])


def _traced(seeds: np.ndarray, maps: torch.Tensor, style: StrandStyle) -> tuple[np.ndarray, np.ndarray]:
    """Streamlines through the seeds [K,2] -> [K,N,2] at even distances, and their lengths [K]."""
    if len(seeds) == 0:
        return np.zeros((0, _GUIDE_POINTS, 2)), np.zeros(0)
    size = maps.shape[-1]
    step = max(_STEP_SHARE * size, 1.0)
    steps = max(2, round((0.8 if style.length is None else style.length) * size / step))
    forward, ahead = _walk(seeds, maps, step, steps)
    backward, behind = _walk(seeds, maps, -step, steps if style.length is None else 0)
    whole = np.concatenate([backward[:, :0:-1], forward], axis=1)
    first = backward.shape[1] - 1 - behind
    lines = _points_along(whole, first[:, None] + np.linspace(0, 1, _GUIDE_POINTS) * (ahead + behind)[:, None])
    lengths = (ahead + behind) * step
    long_enough = lengths > 1.5 * step
    return lines[long_enough], lengths[long_enough]


def _walk(seeds: np.ndarray, maps: torch.Tensor, step: float, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Points [K,S,2] along the flow, at most `steps` on, and how many steps [K] stay inside the region."""
    last = maps.shape[-1] - 1
    points, alive = [seeds], [np.ones(len(seeds), bool)]
    for _ in range(steps):
        here = points[-1]
        middle = here + 0.5 * step * _read(maps, here)[:, :2]
        there = here + step * _read(maps, middle)[:, :2]
        inside = (_read(maps, there)[:, 2] > 0.05) & (there >= 0).all(1) & (there <= last).all(1)
        points.append(there)
        alive.append(alive[-1] & inside)
        if not alive[-1].any():
            break
    return np.stack(points, 1), np.stack(alive, 1).sum(1) - 1


def _read(maps: torch.Tensor, points: np.ndarray) -> np.ndarray:
    """maps [C,H,W] at points [K,2] -> [K,C]."""
    return np.asarray(read_at(maps, torch.from_numpy(points)).T.numpy())


def _bent(guides: np.ndarray, lengths: np.ndarray, lock_px: float, curl: float, rng: np.random.Generator) -> np.ndarray:
    """Guides [K,N,2] with a drift of their own, so that locks cross, and with waves where the hair is curly."""
    count, points = guides.shape[:2]
    u = np.linspace(0, 1, points)
    drift = 0.7 * rng.normal(size=(count, 1)) * u**1.5 + 0.25 * rng.normal(size=(count, 1)) * np.sin(np.pi * u)
    turns = lengths[:, None] / (lock_px * rng.uniform(3.5, 6.5, (count, 1)))
    waves = curl * 0.7 * np.sin(2 * np.pi * (turns * u + rng.random((count, 1)))) * np.minimum(1, 3 * u)
    return guides + _normals(guides) * ((drift + waves) * lock_px)[..., None]


def _strands(
    guides: np.ndarray, lengths: np.ndarray, light: np.ndarray, style: StrandStyle, size: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The strands of some locks: lines [K*S,N,2], lengths [K*S] and shade [K*S]."""
    count, points, per_lock = *guides.shape[:2], style.strands_per_lock(size)
    u = np.linspace(0, 1, points)
    width = style.lock_width * size * np.exp(0.4 * rng.normal(size=(count, 1, 1, 1)))
    offset = np.clip(rng.normal(size=(count, per_lock)) * 0.55, -1.3, 1.3)
    stray = rng.normal(size=(count, per_lock)) * 0.25
    wave = rng.uniform(0, 2 * np.pi, (count, per_lock, 1))
    drawn = offset[..., None] * (1 - style.clumping * u**1.5) + stray[..., None] * u**2
    drawn = drawn + 0.1 * np.sin(wave + 5 * u) * u
    lines = guides[:, None] + _normals(guides)[:, None] * drawn[..., None] * 0.65 * width
    start = rng.random((count, per_lock)) * 0.12 * (style.ragged > 0)
    # Locks end at different lengths, and the strands of a lock the earlier the farther out they are.
    uneven = rng.random((count, 1)) + rng.random((count, per_lock)) * (0.3 + np.abs(offset))
    end = 1 - style.ragged * uneven.clip(0, 1.6)
    at = (start[..., None] + u * (end - start)[..., None]).clip(0, 1) * (points - 1)
    own = (light[:, None] + 0.9 * rng.normal(size=(count, per_lock)) - 0.5 * offset**2).reshape(-1)
    extents = np.repeat(lengths, per_lock) * (end - start).reshape(-1)
    return _points_along(lines.reshape(-1, points, 2), at.reshape(-1, points)), extents, own


def _normals(lines: np.ndarray) -> np.ndarray:
    """Unit normals [K,N,2] of lines [K,N,2]."""
    tangent = np.gradient(lines, axis=1)
    normal = np.stack([-tangent[..., 1], tangent[..., 0]], -1)
    return np.asarray(normal / (np.linalg.norm(normal, axis=-1, keepdims=True) + 1e-9))


def _points_along(lines: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Points [K,M,2] of lines [K,N,2] at fractional indices [K,M] or [1,M]."""
    low = np.clip(at.astype(int), 0, lines.shape[1] - 2)
    rows, part = np.arange(len(lines))[:, None], (at - low)[..., None]
    return np.asarray(lines[rows, low] * (1 - part) + lines[rows, low + 1] * part)


def _ribbons(
    lines: np.ndarray, lengths: np.ndarray, width_px: float, end: float, finer: int, taper: float
) -> tuple[np.ndarray, np.ndarray]:
    """Points [K,P,W,2] on the finer canvas that fill lines of the given width up to share `end` of their way, and which
    of them count [K,P,W]; taper: the share of it over which they thin out."""
    along = int(np.clip(np.ceil(1.15 * lengths.max() * finer), 2, 4096))
    v = np.linspace(0, 1, along)
    at = end * v[None] * (lines.shape[1] - 1)
    low = np.minimum(at[0].astype(int), lines.shape[1] - 2)
    tangent = (lines[:, low + 1] - lines[:, low]) + 1e-9
    normal = np.stack([-tangent[..., 1], tangent[..., 0]], -1) / np.linalg.norm(tangent, axis=-1, keepdims=True)
    half = 0.5 * width_px * finer
    across = np.arange(-np.floor(half), np.floor(half) + 1) if half >= 1 else np.zeros(1)
    thick = half * np.minimum(1, ((1 - v) / taper).clip(0) ** 0.7) * np.minimum(1, 0.4 + v / 0.1)
    centre = (_points_along(lines, at)[:, :, None] + 0.5) * finer - 0.5
    shown = np.broadcast_to(np.abs(across) <= np.maximum(thick, 0.3)[:, None], (len(lines), along, len(across)))
    return centre + normal[:, :, None] * across[:, None], shown


def _splat(
    canvas: np.ndarray, side: int, points: np.ndarray, shown: np.ndarray, shade: np.ndarray, opacity: float
) -> None:
    """Write shade [K,P or 1], the way along and opacity into the canvas [side*side,3]; the last stroke stays."""
    x, y = np.rint(points[..., 0]).astype(np.int32), np.rint(points[..., 1]).astype(np.int32)
    shown = shown & (x >= 0) & (y >= 0) & (x < side) & (y < side)
    along = np.linspace(0, 1, shown.shape[1], dtype=np.float32)[None, :, None]
    values = (np.asarray(shade, np.float32)[:, :, None] * opacity, along * opacity, np.array(opacity, np.float32))
    at = (y * side + x)[shown]
    for channel, value in enumerate(values):
        canvas[at, channel] = np.broadcast_to(value, shown.shape)[shown]
