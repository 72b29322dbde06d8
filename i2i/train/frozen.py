"""Frozen features of the square around an edit, enlarged to the size at which they see single strands."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from stylepairs.datagen.images.trunk import LEAST_PX, Trunk
from stylepairs.datagen.stylegan.projected import Maps, Mixing

if TYPE_CHECKING:
    from stylepairs.i2i.train.data import PairDataset

# Of the edited square's side, added around it; and the least side, a share of the image's.
SQUARE_MARGIN, LEAST_SQUARE = 0.15, 0.4
# Pairs whose features say each channel's mean and deviation.
MEASURED_PAIRS = 64


class FrozenFeatures(nn.Module):
    """EfficientNet-Lite0's five levels of the square around an edit, each channel by the pairs' own mean and deviation;
    `mixing` alone is kept in a run's state."""

    def __init__(self, trunk: Trunk):
        super().__init__()
        self.trunk, self.mixing = trunk.requires_grad_(False), Mixing()

    def forward(self, image: torch.Tensor, mask: torch.Tensor) -> Maps:
        """Five maps, finest first, of the squares of image [N,3,H,W] around mask [N,1,H,W]."""
        maps: Maps = self.mixing.normalised(self.trunk(edited_squares(image, mask)))
        return maps

    @torch.no_grad()
    def measure(self, dataset: PairDataset) -> None:
        """Take the channels' means and deviations from pairs, as they are."""
        count = min(MEASURED_PAIRS, len(dataset))
        device = next(self.mixing.buffers()).device
        batches = []
        for index in range(count):
            sample = dataset.pair_sample(dataset.records[index * len(dataset) // count])
            image, mask = (sample[name][None].to(device) for name in ("target", "edit_mask"))
            batches.append(self.trunk(edited_squares(image, mask)))
        self.mixing.measure(batches)


def edited_squares(image: torch.Tensor, mask: torch.Tensor, size_px: int = LEAST_PX) -> torch.Tensor:
    """The square of each image [N,3,H,W] around its mask [N,1,H,W] (all of it where the mask is empty), brought to
    size_px."""
    theta = torch.stack([_square(one[0] > 0.5) for one in mask])
    # Of a larger image several points are averaged: single ones would miss most pixels, and what is drawn in them.
    points = -(-image.shape[-1] // size_px)
    grid = F.affine_grid(theta, [len(image), 3, *[points * size_px] * 2], align_corners=False)
    squares: torch.Tensor = F.grid_sample(image.float(), grid, "bilinear", "reflection", align_corners=False)
    return F.avg_pool2d(squares, points) if points > 1 else squares


def _square(inside: torch.Tensor) -> torch.Tensor:
    """The transform [2,3] of `affine_grid` onto the square around the pixels [H,W] that are True."""
    side = inside.shape[-1]
    extents = [torch.nonzero(inside.any(dim)).flatten() for dim in (1, 0)]
    if not all(map(len, extents)):
        return torch.eye(2, 3, device=inside.device)
    low, high = (torch.stack([extent[place] for extent in extents]).float() for place in (0, -1))
    wanted = float((high + 1 - low).max()) * (1 + 2 * SQUARE_MARGIN)
    half = min(max(wanted, LEAST_SQUARE * side), side) / side
    middle = ((low + high + 1) / side - 1).clamp(half - 1, 1 - half)
    rows = [[half, 0, float(middle[1])], [0, half, float(middle[0])]]
    return torch.tensor(rows, device=inside.device)
