"""One latent per portrait: draws of z given one to one to the portraits they resemble most, and small offsets in W+
read from a portrait, so that what one z cannot hold is held by latents and not by noise."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from stylepairs.datagen.images.trunk import LEVEL_CHANNELS
from stylepairs.datagen.stylegan.generator import Generator

DRAWS_PER_PORTRAIT = 1.1
PIXEL_WEIGHT = 1.0
GRID = 8  # side of what the offsets are read from


class Offsets(nn.Module):
    """Normalised features of portraits -> offsets [N,L,w_dim] to their latents; zero at first."""

    def __init__(self, num_ws: int, w_dim: int, width: int = 64, hidden: int = 256):
        super().__init__()
        self.shape = (num_ws, w_dim)
        self.squeeze = nn.Conv2d(sum(LEVEL_CHANNELS), width, 1)
        self.shrink = nn.Conv2d(width, width, 3, stride=2, padding=1)
        self.hidden = nn.Linear(width * (GRID // 2) ** 2, hidden)
        self.out = nn.Linear(hidden, num_ws * w_dim)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        x = torch.cat([_on_grid(level.float()) for level in features], 1)
        x = F.leaky_relu(self.shrink(F.leaky_relu(self.squeeze(x), 0.2)), 0.2)
        x = F.leaky_relu(self.hidden(x.flatten(1)), 0.2)
        return torch.unflatten(self.out(x), 1, self.shape)


def _on_grid(x: torch.Tensor) -> torch.Tensor:
    """[N,C,h,w] -> [N,C,GRID,GRID], averaged or repeated."""
    if x.shape[-1] < GRID:
        return F.interpolate(x, size=GRID, mode="nearest")
    return F.adaptive_avg_pool2d(x, GRID)


@torch.no_grad()
def assign_codes(
    generator: Generator, trunk: nn.Module, images: torch.Tensor, seed: int, batch: int = 32
) -> torch.Tensor:
    """images uint8 [M,3,R,R] -> z [M,z_dim], all different draws of the prior: linear assignment by likeness."""
    from scipy.optimize import linear_sum_assignment

    device = generator.mapping.w_avg.device
    draw = torch.Generator().manual_seed(seed)
    z = torch.randn(math.ceil(len(images) * DRAWS_PER_PORTRAIT), generator.config.z_dim, generator=draw)
    looks = torch.cat([_look(trunk, generator(part.to(device), noise_mode="none")) for part in torch.split(z, batch)])
    wanted = torch.cat([_look(trunk, part.to(device).float() / 127.5 - 1) for part in torch.split(images, batch)])
    mean, deviation = wanted.mean(0), wanted.std(0).clamp_min(1e-3)
    cost = torch.cdist((wanted - mean) / deviation, (looks - mean) / deviation)
    _, columns = linear_sum_assignment(cost.cpu().numpy())
    return z[torch.from_numpy(columns)]


def _look(trunk: nn.Module, image: torch.Tensor) -> torch.Tensor:
    """Pooled features and an 8 x 8 image of each, [N,D]."""
    image = image.float().clamp(-1, 1)
    pooled = [level.float().mean((2, 3)) for level in trunk(image)]
    return torch.cat([*pooled, PIXEL_WEIGHT * F.adaptive_avg_pool2d(image, 8).flatten(1)], 1)
