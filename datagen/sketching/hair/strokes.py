"""Strokes of hair: guides traced along a flow field, strands around them, splatted on a finer canvas and averaged down.

Shades are numbers without unit here; `strands` gives them their colour.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

_GUIDE_POINTS = 40
_STEP_SHARE = 0.012


@dataclass(frozen=True)
class Strokes:
    """How locks are painted; widths in pixels."""

    lock_px: float
    strand_px: float
    density: float
    lock_cover: float
    clumping: float
    ragged: float
    curl: float

    @property
    def per_lock(self) -> int:
        """Strands of a lock so that all of them together cover `density`, as if thrown at random."""
        cover = -np.log(1 - 0.985 * min(self.density, 1.0))
        return max(1, round(cover * self.lock_px / self.strand_px / min(max(self.lock_cover, 0.3), 2.5)))


def trace_guides(
    field: np.ndarray,
    flow: np.ndarray,
    length_share: float | None,
    lock_share: float,
    lock_cover: float,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Centre lines of locks [K,N,2] in pixels, from root to tip, and their lengths [K] in pixels."""
    size = field.shape[-1]
    step = max(_STEP_SHARE * size, 1.0)
    longest = 0.8 if length_share is None else length_share
    steps = max(2, round(longest * size / step))
    area = float(field.sum()) / size**2
    # The mean length of a lock, from a first handful.
    probe, probe_length = _traced(_seeds(field, 24, rng), field, flow, step, steps, length_share is None)
    if len(probe) == 0:
        return probe, probe_length
    mean_length = max(float(probe_length.mean()) / size, lock_share)
    count = int(np.clip(round(lock_cover * area / (lock_share * mean_length)), 3, 4000))
    return _traced(_seeds(field, count, rng), field, flow, step, steps, length_share is None)


def _seeds(field: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """About `count` points [K,2], evenly strewn (R2 sequence: Roberts 2018), fewer where the region is lower."""
    size = field.shape[-1]
    rows, columns = np.nonzero(field > 0.02)
    if len(rows) == 0:
        return np.zeros((0, 2))
    low = np.array([columns.min(), rows.min()]) - 0.5
    span = np.array([columns.max(), rows.max()]) + 0.5 - low
    tries = int(np.clip(np.ceil(count * span.prod() / max(float(field.sum()), 1e-6)), count, 40 * count))
    ratio = 1.32471795724474602596
    points = (rng.random(2) + np.arange(1, tries + 1)[:, None] / np.array([ratio, ratio**2])) % 1 * span + low
    kept = rng.random(tries) < _sample(field[None], points, size)[:, 0]
    return rng.permutation(points[kept])


def _traced(
    seeds: np.ndarray, field: np.ndarray, flow: np.ndarray, step: float, steps: int, both_ways: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Streamlines through the seeds [K,2] -> [K,N,2] at even distances, and their lengths [K]."""
    if len(seeds) == 0:
        return np.zeros((0, _GUIDE_POINTS, 2)), np.zeros(0)
    forward, ahead = _walk(seeds, field, flow, step, steps)
    backward, behind = _walk(seeds, field, flow, -step, steps if both_ways else 0)
    whole = np.concatenate([backward[:, :0:-1], forward], axis=1)
    first = backward.shape[1] - 1 - behind
    at = first[:, None] + np.linspace(0, 1, _GUIDE_POINTS) * (ahead + behind)[:, None]
    floor = np.minimum(at.astype(int), whole.shape[1] - 2)
    rows = np.arange(len(seeds))[:, None]
    part = (at - floor)[..., None]
    lines = whole[rows, floor] * (1 - part) + whole[rows, floor + 1] * part
    lengths = (ahead + behind) * step
    long_enough = lengths > 1.5 * step
    return lines[long_enough], lengths[long_enough]


def _walk(
    seeds: np.ndarray, field: np.ndarray, flow: np.ndarray, step: float, steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """Points [K,steps+1,2] along the flow, and how many steps [K] stay inside the region."""
    size = field.shape[-1]
    maps = np.concatenate([flow, field[None]])
    points, alive = [seeds], [np.ones(len(seeds), bool)]
    for _ in range(steps):
        here = points[-1]
        middle = _sample(maps, here + 0.5 * step * _sample(maps, here, size)[:, :2], size)
        there = here + step * middle[:, :2]
        inside = (_sample(maps, there, size)[:, 2] > 0.05) & (there >= 0).all(1) & (there <= size - 1).all(1)
        points.append(there)
        alive.append(alive[-1] & inside)
        if not alive[-1].any():
            break
    while len(points) < 2:
        points.append(points[-1])
        alive.append(np.zeros(len(seeds), bool))
    return np.stack(points, 1), np.stack(alive, 1).sum(1) - 1


def _sample(maps: np.ndarray, points: np.ndarray, size: int) -> np.ndarray:
    """maps [C,H,W] at points [K,2], bilinear, edges repeated -> [K,C]."""
    at = points.clip(0, size - 1.001)
    low = at.astype(int)
    x, y = low[:, 0], low[:, 1]
    fx, fy = (at - low).T
    top = maps[:, y, x] * (1 - fx) + maps[:, y, x + 1] * fx
    bottom = maps[:, y + 1, x] * (1 - fx) + maps[:, y + 1, x + 1] * fx
    return (top * (1 - fy) + bottom * fy).T


def paint(
    size: int, guides: np.ndarray, lengths: np.ndarray, strokes: Strokes, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """All strands on a finer canvas, averaged down: shade [2,H,W] (lightness without unit; 0 root to 1 tip) and alpha
    [1,H,W]. Later strands lie over earlier ones."""
    finer = int(np.clip(768 // size, 2, 4))
    canvas = np.zeros((size * finer * size * finer, 3), np.float32)
    side = size * finer
    count = len(guides)
    guides = _bent(guides, lengths, strokes, rng)
    light = rng.normal(size=count)
    phase = rng.uniform(0, 2 * np.pi, (count, 2))
    # The shadow between strands: a narrower, darker ribbon under each lock.
    under = _ribbons(guides, lengths, 0.7 * strokes.lock_px, 0.0, 0.85, finer, taper=0.4)
    _splat(canvas, side, *under, (light - 1.0)[:, None], min(1.0, strokes.density) ** 1.5)
    chunk = max(1, int(3e6 / (strokes.per_lock * max(lengths.max(), 1) * finer * max(strokes.strand_px * finer, 1))))
    for first in range(0, count, chunk):
        part = slice(first, first + chunk)
        lines, extents, own = _strands(guides[part], lengths[part], light[part], strokes, rng)
        ribbon = _ribbons(lines, extents, strokes.strand_px, 0.0, 1.0, finer, taper=0.35)
        along = np.linspace(0, 1, ribbon[0].shape[1])
        bend = np.repeat(phase[part], strokes.per_lock, axis=0)
        wave = 0.7 * np.sin(bend[:, :1] + 4 * along) + 0.3 * np.sin(bend[:, 1:] + 11 * along)
        _splat(canvas, side, *ribbon, own[:, None] + wave, 1.0)
    pixels = torch.from_numpy(canvas).view(side, side, 3).permute(2, 0, 1)[None]
    pixels = F.avg_pool2d(pixels, finer)[0]
    alpha = pixels[2:]
    return pixels[:2] / alpha.clamp_min(1e-4), alpha.clamp(0, 1)


def _bent(guides: np.ndarray, lengths: np.ndarray, strokes: Strokes, rng: np.random.Generator) -> np.ndarray:
    """Guides [K,N,2] with a drift of their own, so that locks cross, and with waves where the hair is curly."""
    count, points = guides.shape[:2]
    u = np.linspace(0, 1, points)
    drift = 0.7 * rng.normal(size=(count, 1)) * u**1.5 + 0.25 * rng.normal(size=(count, 1)) * np.sin(np.pi * u)
    turns = lengths[:, None] / (strokes.lock_px * rng.uniform(3.5, 6.5, (count, 1)))
    waves = strokes.curl * 0.7 * np.sin(2 * np.pi * (turns * u + rng.random((count, 1)))) * np.minimum(1, 3 * u)
    return guides + _normals(guides) * ((drift + waves) * strokes.lock_px)[..., None]


def _normals(lines: np.ndarray) -> np.ndarray:
    """Unit normals [K,N,2] of lines [K,N,2]."""
    tangent = np.gradient(lines, axis=1)
    normal = np.stack([-tangent[..., 1], tangent[..., 0]], -1)
    return normal / (np.linalg.norm(normal, axis=-1, keepdims=True) + 1e-9)


def _strands(
    guides: np.ndarray, lengths: np.ndarray, light: np.ndarray, strokes: Strokes, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The strands of some locks: lines [K*S,N,2], lengths [K*S] and shade [K*S]."""
    count, points, per_lock = *guides.shape[:2], strokes.per_lock
    u = np.linspace(0, 1, points)
    normal = _normals(guides)
    width = strokes.lock_px * np.exp(0.4 * rng.normal(size=(count, 1, 1, 1)))
    offset = np.clip(rng.normal(size=(count, per_lock)) * 0.55, -1.3, 1.3)
    stray = rng.normal(size=(count, per_lock)) * 0.25
    wave = rng.uniform(0, 2 * np.pi, (count, per_lock, 1))
    drawn = offset[..., None] * (1 - strokes.clumping * u**1.5) + stray[..., None] * u**2
    drawn = drawn + 0.1 * np.sin(wave + 5 * u) * u
    lines = guides[:, None] + normal[:, None] * drawn[..., None] * 0.65 * width
    start = rng.random((count, per_lock)) * 0.12 * (strokes.ragged > 0)
    # Locks end at different lengths, and the strands of a lock the earlier the farther out they are.
    uneven = rng.random((count, 1)) + rng.random((count, per_lock)) * (0.3 + np.abs(offset))
    end = 1 - strokes.ragged * uneven.clip(0, 1.6)
    lines = _between(lines.reshape(-1, points, 2), start.reshape(-1), end.reshape(-1))
    extents = np.repeat(lengths, per_lock) * (end - start).reshape(-1)
    own = (light[:, None] + 0.9 * rng.normal(size=(count, per_lock)) - 0.5 * offset**2).reshape(-1)
    return lines, extents, own


def _between(lines: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """The part of each line [K,N,2] from share start [K] to end [K] of its way, at N points again."""
    points = lines.shape[1]
    at = (start[:, None] + np.linspace(0, 1, points) * (end - start)[:, None]).clip(0, 1) * (points - 1)
    low = np.minimum(at.astype(int), points - 2)
    rows = np.arange(len(lines))[:, None]
    part = (at - low)[..., None]
    return lines[rows, low] * (1 - part) + lines[rows, low + 1] * part


def _ribbons(
    lines: np.ndarray, lengths: np.ndarray, width_px: float, start: float, end: float, finer: int, taper: float
) -> tuple[np.ndarray, np.ndarray]:
    """Points [K,P,W,2] on the finer canvas that fill lines of the given width, and which of them count [K,P,W]."""
    along = int(np.clip(np.ceil(1.15 * lengths.max() * finer), 2, 4096))
    u = np.linspace(start, end, along)
    at = u * (lines.shape[1] - 1)
    low = np.minimum(at.astype(int), lines.shape[1] - 2)
    part = (at - low)[None, :, None]
    centre = lines[:, low] * (1 - part) + lines[:, low + 1] * part
    tangent = (lines[:, low + 1] - lines[:, low]) + 1e-9
    normal = np.stack([-tangent[..., 1], tangent[..., 0]], -1) / np.linalg.norm(tangent, axis=-1, keepdims=True)
    half = 0.5 * width_px * finer
    across = np.arange(-np.floor(half), np.floor(half) + 1) if half >= 1 else np.zeros(1)
    v = (u - start) / (end - start)
    thick = half * np.minimum(1, ((1 - v) / taper).clip(0) ** 0.7) * np.minimum(1, 0.4 + v / 0.1)
    points = (centre[:, :, None] + 0.5) * finer - 0.5 + normal[:, :, None] * across[:, None]
    shown = np.broadcast_to(np.abs(across) <= np.maximum(thick, 0.3)[:, None], (len(lines), along, len(across)))
    return points, shown


def _splat(
    canvas: np.ndarray, side: int, points: np.ndarray, shown: np.ndarray, shade: np.ndarray, opacity: float
) -> None:
    """Write shade [K,P or 1], the way along and opacity into the canvas [side*side,3]; the last stroke stays."""
    x, y = np.rint(points[..., 0]).astype(np.int32), np.rint(points[..., 1]).astype(np.int32)
    shown = shown & (x >= 0) & (y >= 0) & (x < side) & (y < side)
    shape = shown.shape
    along = np.broadcast_to(np.linspace(0, 1, shape[1], dtype=np.float32)[None, :, None], shape)
    value = np.broadcast_to(np.asarray(shade, np.float32)[:, :, None], shape)
    at = (y * side + x)[shown]
    canvas[at, 0] = value[shown] * opacity
    canvas[at, 1] = along[shown] * opacity
    canvas[at, 2] = opacity
