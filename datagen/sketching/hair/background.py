"""Continues a background into a hole: what would be seen if what stands before it were not there.

Light and slow gradients come from local planes fitted to the known surroundings at every scale (normalised convolution
of first order, Knutsson & Westin 1993), the finest scale that knows enough deciding; texture and grain are the
surroundings' own, mirrored at the hole's edge, of which deep in the hole only grain is left. Nothing is drawn out into
lines, and the work is that of a small picture plus a few passes over the large one.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from stylepairs.datagen.images.filters import blurred

# Side of the picture in which gradients are fitted, and standard deviation there of the fits' window.
_BASE_PX = 128
_SIGMA_PX = 1.5
_COARSEST_PX = 4
# A window that knows this share of itself decides half, the coarser scale the rest.
_HALF_KNOWN = 0.03
# In pixels squared of each scale: how strongly slopes are drawn to zero. Far from anything known a slope is a guess.
_SLOPE_RIDGE = 0.1
# How many times its share a plane's misfit counts against its slope: edges and patterns must not be extrapolated.
_MISFIT = 6.0
# Of the side: the depth at which mirrored texture has faded to grain; and the blur that parts grain from texture.
_TEXTURE_DEPTH = 0.04
_GRAIN_SCALE = 0.006
# Where fine detail exceeds so many robust standard deviations of it there is an edge, which is not repeated as grain.
_EDGE = 2.0
# Pixels with a larger share of hole teach nothing.
_TAINTED = 0.02


@torch.no_grad()
def continue_background(image: torch.Tensor, hole: torch.Tensor) -> torch.Tensor:
    """The image [3,H,W] in [-1,1] with its surroundings continued into the hole [1,H,W] in [0,1].

    Where the hole is 0 the image stays to the bit; where it is soft, image and continuation mix. All that is no
    background belongs into the hole, or it is continued as well: behind a head that is the whole head, a little grown.
    Deterministic, without random draws. Raises ValueError if the hole leaves nothing to continue.
    """
    known = (hole <= _TAINTED).float()
    if known.sum() == 0:
        raise ValueError("the hole covers the whole image: there is no background to continue")
    if known.all():
        return image + (hole * 0)
    base = _base(image, known)
    texture = (image - base) * known
    filled = base + _mirrored(texture, _grain(texture, known), known)
    return torch.where(hole > 0, image.lerp(filled.clamp(-1, 1), hole), image)


def _base(image: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Smooth surroundings, continued everywhere [3,H,W]."""
    size = image.shape[-2:]
    factor = max(1, max(size) // _BASE_PX)
    share = F.avg_pool2d(known[None], factor, ceil_mode=True)
    colors = F.avg_pool2d((image * known)[None], factor, ceil_mode=True) / share.clamp_min(1e-6)
    lowest, highest = _range(colors, share)
    planes = _planes(colors, share)
    filled = F.interpolate(planes, size=size, mode="bicubic", align_corners=False)[0]
    return torch.minimum(torch.maximum(filled, lowest), highest)


def _planes(colors: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """Local planes [1,3,h,w] through the known colours; share [1,1,h,w]: how much of each pixel is known."""
    fitted, trust = _fit(colors, share)
    if max(colors.shape[-2:]) <= _COARSEST_PX:
        rest = (colors * share).sum((-2, -1), keepdim=True) / share.sum().clamp_min(1e-6)
    else:
        half = F.avg_pool2d(share, 2, ceil_mode=True)
        below = F.avg_pool2d(colors * share, 2, ceil_mode=True) / half.clamp_min(1e-6)
        coarse = _planes(below, half.clamp(0, 1))
        rest = F.interpolate(coarse, size=colors.shape[-2:], mode="bilinear", align_corners=False)
    return rest + trust * (fitted - rest)


def _fit(colors: torch.Tensor, share: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted least squares of a plane about every pixel: its value there [1,3,h,w], and its trust in [0,1]."""
    weight = _moments(share)
    value, along_x, along_y = (_moments(colors * share, order=1)[name] for name in ("1", "x", "y"))
    total = weight["1"].clamp_min(1e-6)
    mean = value / total
    mean_x, mean_y = weight["x"] / total, weight["y"] / total
    xx = weight["xx"] / total - mean_x.square() + _SLOPE_RIDGE
    yy = weight["yy"] / total - mean_y.square() + _SLOPE_RIDGE
    xy = weight["xy"] / total - mean_x * mean_y
    fx, fy = along_x / total - mean * mean_x, along_y / total - mean * mean_y
    determinant = (xx * yy - xy.square()).clamp_min(1e-6)
    slope_x, slope_y = (yy * fx - xy * fy) / determinant, (xx * fy - xy * fx) / determinant
    spread = (_moments(colors.square() * share, order=0)["1"] / total - mean.square()).sum(1, keepdim=True)
    explained = (slope_x * fx + slope_y * fy).sum(1, keepdim=True).clamp_min(0)
    # What the ridge keeps the plane from explaining is no misfit.
    ridge = _SLOPE_RIDGE * (slope_x.square() + slope_y.square()).sum(1, keepdim=True)
    held = ridge * (1 + ridge / (explained - ridge).clamp_min(1e-6))
    misfit = (spread - explained - held).clamp_min(0)
    sound = explained / (explained + _MISFIT * misfit + 1e-6)
    value = mean - sound * (slope_x * mean_x + slope_y * mean_y)
    return value, weight["1"] / (weight["1"] + _HALF_KNOWN)


def _moments(values: torch.Tensor, order: int = 2) -> dict[str, torch.Tensor]:
    """Sums of [1,C,h,w] under a Gaussian window, weighed by 1, x, y (order 1), xx, xy and yy (order 2)."""
    radius = int(np.ceil(3 * _SIGMA_PX))
    step = torch.arange(-radius, radius + 1, dtype=values.dtype, device=values.device)
    window = torch.exp(-0.5 * (step / _SIGMA_PX) ** 2)
    window = window / window.sum()
    powers = [window * step**power for power in range(order + 1)]
    across = [_filtered(values, kernel, horizontal=True) for kernel in powers]
    names = {"1": (0, 0), "x": (1, 0), "y": (0, 1), "xx": (2, 0), "xy": (1, 1), "yy": (0, 2)}
    return {name: _filtered(across[x], powers[y], horizontal=False) for name, (x, y) in names.items() if x + y <= order}


def _filtered(values: torch.Tensor, kernel: torch.Tensor, horizontal: bool) -> torch.Tensor:
    """[1,C,h,w] correlated with a kernel along one axis; nothing is known beyond the border."""
    channels, radius = values.shape[1], len(kernel) // 2
    shape = (1, len(kernel)) if horizontal else (len(kernel), 1)
    padding = (0, radius) if horizontal else (radius, 0)
    return F.conv2d(values, kernel.view(1, 1, *shape).expand(channels, -1, -1, -1), padding=padding, groups=channels)


def _range(colors: torch.Tensor, share: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Lowest and highest value [3,1,1] of each channel among the known, with a tenth of their span to spare."""
    seen = share > 0.5 if bool((share > 0.5).any()) else share > 0
    values = colors[0][:, seen[0, 0]]
    lowest, highest = values.amin(1), values.amax(1)
    spare = 0.1 * (highest - lowest)
    return (lowest - spare)[:, None, None], (highest + spare)[:, None, None]


def _grain(texture: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """The finest part of the texture [3,H,W] without edges."""
    sigma = max(0.8, _GRAIN_SCALE * texture.shape[-1])
    fine = (texture - blurred(texture, sigma) / blurred(known, sigma).clamp_min(1e-3)) * known
    usual = 1.48 * fine[:, known[0] > 0].abs().median(1).values[:, None, None]
    energy = blurred(fine.square(), sigma) / (_EDGE * usual).square().clamp_min(1e-8)
    return fine / (1 + energy.square())


def _mirrored(texture: torch.Tensor, grain: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Texture and grain [3,H,W] taken from the other side of the hole's edge; 0 where they are known."""
    depth, rows, columns = _other_side(known)
    at = (rows.to(texture.device), columns.to(texture.device))
    height, width = texture.shape[-2:]
    fade = torch.exp(-((depth / (_TEXTURE_DEPTH * max(height, width))) ** 2)).to(texture)
    return grain[:, *at] + fade * (texture - grain)[:, *at]


def _other_side(known: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Depth in the hole [H,W] in pixels, and for each pixel row and column of a known one.

    That is the mirror image of the pixel at its nearest known one, folded back into the picture; where that is hole too
    or beyond it, some other known one, no two neighbours the same.
    """
    hole = (known[0] == 0).cpu().numpy().astype(np.uint8)
    depth, nearest = cv2.distanceTransformWithLabels(hole, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    row, column = np.indices(hole.shape)
    known_row, known_column = np.nonzero(hole == 0)
    order = np.zeros(nearest.max() + 1, np.int64)
    order[nearest[known_row, known_column]] = np.arange(len(known_row))
    index = order[nearest]
    edge_row, edge_column = known_row[index], known_column[index]
    rows = _folded(2 * edge_row - row, hole.shape[0])
    columns = _folded(2 * edge_column - column, hole.shape[1])
    lost = hole[rows, columns] > 0
    # Multiplying by a large odd number scatters neighbours over the whole known region, the same way every time.
    scattered = ((row * hole.shape[1] + column) * 2654435761 % len(known_row))[lost]
    rows[lost], columns[lost] = known_row[scattered], known_column[scattered]
    return torch.from_numpy(depth), torch.from_numpy(rows), torch.from_numpy(columns)


def _folded(index: np.ndarray, size: int) -> np.ndarray:
    """Indices reflected at the picture's border, as often as needed."""
    period = max(1, 2 * (size - 1))
    wrapped = np.abs(index) % period
    return np.asarray(np.minimum(wrapped, period - wrapped))
