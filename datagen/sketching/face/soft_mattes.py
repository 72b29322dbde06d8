"""Small parts of a portrait as soft mattes with the image's own edges: what lips and brows share.

Such parts are a few pixels high at 128 px, and label maps are a pixel or two off. So the label map only says where to
look; what belongs to the part is decided by colour, as in GrabCut (Rother, Kolmogorov, Blake 2004) but with soft
results: a Gaussian of colours for the part and for what is around it, on a magnified cut-out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from stylepairs.datagen.images.filters import blurred_within, guided
from stylepairs.datagen.sketching.tools.curves import half_crossing

# The part's width, in pixels, at which colours are told apart; smaller parts are magnified by a whole factor.
_WORK_PX = 96
_MAX_FACTOR = 8
# Variances (L, a, b) added to every colour: noise, and what a Gaussian of few pixels cannot know.
_FLOOR = (9.0, 4.0, 4.0)
_ROUNDS = 3


@dataclass(frozen=True)
class CutOut:
    """A magnified piece of a portrait: rows y0 to y1, columns x0 to x1, each pixel `factor` wide."""

    y0: int
    y1: int
    x0: int
    x1: int
    factor: int

    @staticmethod
    def around(mask: torch.Tensor, width: float, margin: float) -> CutOut:
        """What is set in mask [1,H,W] and `margin` around it, for a part that is `width` pixels wide."""
        rows, columns = mask[0].any(1).nonzero()[:, 0], mask[0].any(0).nonzero()[:, 0]
        pad, size = round(margin), mask.shape[-1]
        return CutOut(
            max(0, int(rows[0]) - pad),
            min(size, int(rows[-1]) + pad + 1),
            max(0, int(columns[0]) - pad),
            min(size, int(columns[-1]) + pad + 1),
            max(1, min(_MAX_FACTOR, round(_WORK_PX / max(width, 1.0)))),
        )

    def magnified(self, planes: torch.Tensor, mode: str = "bilinear") -> torch.Tensor:
        """The piece of planes [C,H,W] -> [C,h,w]."""
        piece = planes[None, :, self.y0 : self.y1, self.x0 : self.x1]
        return piece[0] if self.factor == 1 else F.interpolate(piece, scale_factor=self.factor, mode=mode)[0]

    def put_back(self, found: torch.Tensor, size_px: int) -> torch.Tensor:
        """found [1,h,w] averaged down and placed in [1,H,W], 0 elsewhere."""
        plane = torch.zeros(1, size_px, size_px, device=found.device)
        plane[:, self.y0 : self.y1, self.x0 : self.x1] = F.avg_pool2d(found[None], self.factor)[0]
        return plane


def told_by_color(
    features: torch.Tensor,
    part: torch.Tensor,
    around: torch.Tensor,
    chances: tuple[torch.Tensor, torch.Tensor],
    allowed: torch.Tensor,
    sure: tuple[float, torch.Tensor],
    others: list[torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The share of a part [1,h,w] in each pixel of features [3,h,w], and weights of what surely is part and what is
    not: the colours of both are found anew from what they explain, a few times.

    part, around: what begins as part and as its surroundings; the latter is looked for nowhere else. chances: of part
    and of surroundings, before colours are looked at. allowed: how much of a part may be there. sure: the share over
    which a pixel tells the part's colour, and where it may. others: log-likelihoods, with chances, of what is neither.
    """
    here, beside, share = part, around, part
    for _ in range(_ROUNDS):
        terms = [log_likelihood(features, here) + chances[0].log(), log_likelihood(features, beside) + chances[1].log()]
        shares = torch.softmax(torch.cat([*terms, *others]), 0)
        share = shares[:1] * allowed
        here, beside = (share > sure[0]) * sure[1] + 1e-6, around * (shares[1:2] > 0.5) + 1e-6
    return share, here, beside


def with_own_edges(matte: torch.Tensor, image: torch.Tensor, radius: float, eps: float) -> torch.Tensor:
    """The matte [1,h,w] with the edges of image [3,h,w] in [-1,1] (guided filter, He et al. 2010); radius in pixels."""
    return guided(matte, image, max(1, round(radius)), eps).clamp(0, 1)


def interpolated(at: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The polyline through (x, y) [N], read at `at` [K] -> [K]."""
    order = torch.argsort(x)
    found = np.interp(at.cpu().numpy(), x[order].cpu().numpy(), y[order].cpu().numpy())
    return torch.from_numpy(found).to(at)


def log_likelihood(features: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """[1,h,w]: log density, up to a constant, under the Gaussian of the weighted pixels of features [3,h,w]."""
    flat, share = features.flatten(1), weight.flatten() / weight.sum().clamp_min(1e-6)
    away = flat - (flat * share).sum(1, keepdim=True)
    spread = (away * share) @ away.T + torch.diag(torch.tensor(_FLOOR, device=flat.device))
    distance = (away * torch.linalg.solve(spread, away)).sum(0)
    found: torch.Tensor = -0.5 * distance - 0.5 * torch.logdet(spread)
    return found.view(1, *features.shape[1:])


def relative_to(lab: torch.Tensor, around: torch.Tensor, sigma: float) -> torch.Tensor:
    """Lab [3,h,w] less the colour of what `around` [1,h,w] marks nearby: a face lit from the side becomes even."""
    return lab - blurred_within(lab, around, sigma)


def first_run(share: torch.Tensor, reach: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where along each row of share [K,N], read at distances reach [N], the part begins and where it ends [K]: the
    first run over a half, to a fraction of a step; equal where there is none."""
    within = share > 0.5
    count = torch.arange(share.shape[1], device=share.device)
    first = torch.where(within, count, share.shape[1]).amin(1)
    # The last of the run that begins first: a shadow beyond the part is not part of it.
    gap = (~within) & (count > first[:, None])
    last = torch.where(gap, count, share.shape[1]).amin(1) - 1
    none = first >= share.shape[1]
    first, last = first.clamp(max=share.shape[1] - 1), last.clamp(0, share.shape[1] - 1)
    begin, end = _crossing(share, first - 1, reach), _crossing(share, last, reach)
    begin = torch.where(first == 0, torch.zeros_like(begin), begin)
    return torch.where(none, 0 * begin, begin), torch.where(none, 0 * end, end)


def smoothed(values: torch.Tensor) -> torch.Tensor:
    """values [K] with single outliers removed (median of three) and a little smoothed; ends as they are."""
    padded = torch.cat([values[:1], values, values[-1:]])
    median = padded.unfold(0, 3, 1).median(1).values
    padded = torch.cat([median[:1], median, median[-1:]])
    return padded.unfold(0, 3, 1) @ torch.tensor([0.25, 0.5, 0.25], device=values.device)


def _crossing(share: torch.Tensor, index: torch.Tensor, reach: torch.Tensor) -> torch.Tensor:
    """The distance at which share passes a half between index and index + 1."""
    low = index.clamp(0, share.shape[1] - 2)[:, None]
    part = half_crossing(share.gather(1, low)[:, 0], share.gather(1, low + 1)[:, 0])
    return reach[low[:, 0]] + part * (reach[1] - reach[0])
