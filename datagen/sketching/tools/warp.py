"""Smooth warps of a portrait that move some points and hold others: moving least squares (Schaefer, McPhail, Warren
2006) and thin-plate splines (Bookstein 1989), computed on a coarse grid of nodes.

A flow [2,H,W] is a backward displacement (x, y) in pixels: out(x) = in(x + flow(x)). It is exactly zero where nothing
moves, so that those pixels stay to the bit.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F

from stylepairs.datagen.images.filters import read_at
from stylepairs.datagen.portraits.face_frame import pixel_places
from stylepairs.datagen.portraits.regions import feather
from stylepairs.datagen.sketching.tools.curves import smoothstep

# Nodes along a side. A warp by face landmarks (at 64 shares of the side or coarser) is smooth between 97 of them; all
# of them against 120 points take about 20 ms.
_NODES = 97
# Along each side of the image: points that are held, besides the window that makes the border exactly still.
_BORDER_PINS = 8
# Of the side: the flow fades to zero over this width at the border; what moves less than _STILL stays altogether.
_BORDER_FADE = 0.04
_STILL = 0.0004
# The least factor by which a warp may shrink an area, as the determinant of the backward map's Jacobian; 0 is a fold.
MIN_JACOBIAN = 0.15


def point_flow(
    size_px: int,
    source: torch.Tensor,
    target: torch.Tensor,
    pinned: torch.Tensor | None = None,
    method: Literal["mls", "tps"] = "mls",
    window: torch.Tensor | None = None,
    may_fold: bool = False,
) -> torch.Tensor:
    """The flow [2,H,W] that moves source [K,2] to target [K,2] and holds pinned [J,2] (None: only the border).

    method: moving least squares of similarities ("mls"), local and stiff, or thin-plate splines ("tps"), the smoothest,
    which reach further. window [1,H,W] in [0,1] (None: all 1) scales the flow pointwise, to
    keep it within a region; it should be smooth. Where the moves are too large the whole flow is scaled back until
    nothing folds (see `unfolded`), unless it may_fold. Points in pixels of an image of side size_px.
    """
    if source.shape != target.shape or source.ndim != 2 or source.shape[-1] != 2:
        raise ValueError(f"source and target must both be [K,2], not {list(source.shape)} and {list(target.shape)}")
    held = [_border_points(size_px)] + ([] if pinned is None else [pinned.detach().cpu().double().numpy()])
    start, end = (np.concatenate([x.detach().cpu().double().numpy(), *held]) for x in (source, target))
    axis = np.linspace(0, size_px - 1, min(size_px, _NODES))
    nodes = np.stack(np.meshgrid(axis, axis, indexing="xy"), -1).reshape(-1, 2)
    # The map is backward, so it is fitted from where the points end to where they start.
    moved = _thin_plate(nodes, end, start) if method == "tps" else _least_squares(nodes, end, start)
    coarse = torch.from_numpy(moved - nodes).float().T.reshape(1, 2, len(axis), len(axis))
    flow = F.interpolate(coarse, size=(size_px, size_px), mode="bicubic", align_corners=True)[0].to(source.device)
    flow = flow * _border_window(size_px).to(flow)
    flow = _without_stillness(flow if window is None else flow * window)
    return flow if may_fold else unfolded(flow)


def warp_image(image: torch.Tensor, flow: torch.Tensor) -> torch.Tensor:
    """image [C,H,W] moved by the flow, bicubic, reflected at the border; to the bit where the flow is zero."""
    low, high = image.amin((-2, -1), keepdim=True), image.amax((-2, -1), keepdim=True)
    warped = _sampled(image, flow, "bicubic").clamp(low, high)  # bicubic overshoots at edges
    return torch.where((flow == 0).all(0), image, warped)


def warp_label(label: torch.Tensor, flow: torch.Tensor) -> torch.Tensor:
    """label [H,W] uint8 moved by the flow, nearest neighbour."""
    return _sampled(label[None].float(), flow, "nearest")[0].round().to(label.dtype)


def warp_points(points: torch.Tensor, flow: torch.Tensor) -> torch.Tensor:
    """Where points [K,2] of the image lie after it was warped: the y with y + flow(y) = point, by Newton's method."""
    field = torch.cat([flow, _jacobian(flow).flatten(0, 1)])  # [6,H,W]: flow and the four entries of I + its gradient
    moved = points.clone()
    for _ in range(12):
        at = read_at(field, moved).T
        residual = moved + at[:, :2] - points
        step = torch.linalg.solve(at[:, 2:].reshape(-1, 2, 2), residual)
        longest = 0.1 * flow.shape[-1]
        moved = moved - step.clamp(-longest, longest)
    return moved


def changed_region(flow: torch.Tensor, threshold_share: float = 0.002) -> torch.Tensor:
    """Where the flow changes the picture [1,H,W]: 1 where it moves by threshold_share of the side or more, fading to 0
    where it is zero; never 0 where it is not.
    """
    length = flow.norm(dim=0, keepdim=True)
    share = (length / (threshold_share * flow.shape[-1])).clamp(0, 1)
    region = torch.maximum(share.sqrt(), feather((share >= 1).float(), threshold_share) * (length > 0))
    return region.clamp(0, 1)


def unfolded(flow: torch.Tensor, min_jacobian: float = MIN_JACOBIAN) -> torch.Tensor:
    """The flow [2,H,W] scaled by the largest s <= 1 for which det(I + s * its gradient) >= min_jacobian everywhere.

    One factor for all of it: the warp keeps its shape and only loses degree. s is found in closed form, as the
    determinant is quadratic in s at each pixel.
    """
    return flow * fold_limit(flow, min_jacobian)


def fold_limit(flow: torch.Tensor, min_jacobian: float = MIN_JACOBIAN) -> float:
    """The factor s in (0,1] of `unfolded`; 1 where nothing folds."""
    (a, b), (c, d) = (_jacobian(flow) - torch.eye(2, device=flow.device)[..., None, None]).double()
    trace, det, rest = a + d, a * d - b * c, 1.0 - min_jacobian
    # The smallest positive root of det s^2 + trace s + rest = 0, written so that det = 0 is no special case.
    root = trace.square() - 4 * det * rest
    below = root.clamp_min(0).sqrt() - trace
    s = torch.where((root >= 0) & (below > 0), 2 * rest / below.clamp_min(1e-12), torch.inf)
    return min(1.0, float(s.min()) * (1 - 1e-6))


def jacobian_determinant(flow: torch.Tensor) -> torch.Tensor:
    """det of the backward map x + flow(x) [1,H,W]: over 1 the picture shrinks there, under 1 it grows, 0 is a fold."""
    (a, b), (c, d) = _jacobian(flow)
    determinant: torch.Tensor = a * d - b * c
    return determinant[None]


def _least_squares(nodes: np.ndarray, p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """nodes [N,2] moved by the best similarity at each for p [K,2] -> q [K,2], weighted 1 / distance^2.

    In complex numbers (Schaefer et al., equations 5 to 8): f(v) = m (v - p*) + q* with m = sum w conj(p^) q^ / sum w
    |p^|^2, p* and q* the weighted centroids, p^ and q^ the points about them.
    """
    v, p, q = nodes @ (1, 1j), p @ (1, 1j), q @ (1, 1j)
    square = np.abs(v[:, None] - p) ** 2
    weight = 1 / np.maximum(square, 1e-6)
    weight /= weight.sum(1, keepdims=True)
    p_mean, q_mean = weight @ p, weight @ q
    # sum w conj(p - p*)(q - q*) and sum w |p - p*|^2, multiplied out so that no [N,K] matrix but the weights is made.
    turn = weight @ (p.conj() * q) - p_mean.conj() * q_mean
    spread = weight @ (np.abs(p) ** 2) - np.abs(p_mean) ** 2
    # At a point the weights are all its own: centroids and nothing about them; any m does, so 1.
    alone = spread < 1e-6
    moved = np.where(alone, 1, turn / np.where(alone, 1, spread)) * (v - p_mean) + q_mean
    return np.stack([moved.real, moved.imag], -1)


def _thin_plate(nodes: np.ndarray, p: np.ndarray, q: np.ndarray) -> np.ndarray:
    from scipy.interpolate import RBFInterpolator

    points, first = np.unique(p, axis=0, return_index=True)  # a point given twice makes the system singular
    moves: np.ndarray = RBFInterpolator(points, (q - p)[first], kernel="thin_plate_spline")(nodes)
    moved: np.ndarray = nodes + moves
    return moved


def _border_points(size_px: int) -> np.ndarray:
    along = np.linspace(0, size_px - 1, _BORDER_PINS + 1)
    return np.array([(x, y) for x in along for y in along if {x, y} & {along[0], along[-1]}])


def _border_window(size_px: int) -> torch.Tensor:
    """[1,H,W]: 0 at the border, 1 from _BORDER_FADE of the side inwards, smooth."""
    at = torch.arange(size_px)
    ramp = smoothstep(torch.minimum(at, size_px - 1 - at) / max(_BORDER_FADE * size_px, 1.0))
    return (ramp[:, None] * ramp)[None]


def _without_stillness(flow: torch.Tensor) -> torch.Tensor:
    """The flow made exactly zero where it is under _STILL of the side, and hardly less where it is well above."""
    square = flow.square().sum(0, keepdim=True)
    return flow * (1 - (_STILL * flow.shape[-1]) ** 2 / square.clamp_min(1e-12)).clamp_min(0)


def _jacobian(flow: torch.Tensor) -> torch.Tensor:
    """[2,2,H,W]: rows are the x and y of x + flow(x), columns their derivatives along x and y."""
    along_y, along_x = torch.gradient(flow, dim=(-2, -1))
    return torch.stack([along_x, along_y], 1) + torch.eye(2, device=flow.device)[..., None, None]


def _sampled(image: torch.Tensor, flow: torch.Tensor, mode: str) -> torch.Tensor:
    return read_at(image, pixel_places(flow) + flow.permute(1, 2, 0), mode, padding="reflection")
