"""Which directions of W a generator's renders answer to: they do so very unevenly, so that a prediction of one size
along all of them fits none."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from stylepairs.datagen.images.perceptual import Perceptual
from stylepairs.datagen.reconstruction.prior import WPrior
from stylepairs.datagen.reconstruction.rendering import synthesise
from stylepairs.datagen.stylegan.generator import Generator

DAMPING = 1e-2  # of the largest eigenvalue: below it, directions are scaled alike
BATCH = 4


@dataclass(frozen=True)
class Curvature:
    """basis [C,C]: its columns are orthonormal directions of whitened W, the strongest first; scale [C]: the inverse of
    what a step along them does to a render, 1 for directions that hardly matter."""

    basis: torch.Tensor
    scale: torch.Tensor


def fit_curvature(generator: Generator, perceptual: Perceptual, prior: WPrior, probes: int, seed: int = 0) -> Curvature:
    """The eigenvectors of the averaged Gauss-Newton matrix E[J^T J], J that of pixels and perceptual features by a step
    of whitened W that all rows take.

    The matrix is the mean outer product of J^T v for white noise v, over `probes` of them at samples of the generator
    with some noise on their latents. No portrait is needed; the same seed gives the same curvature.
    """
    draw = torch.Generator().manual_seed(seed)
    gradients = []
    for _ in range(-(-probes // BATCH)):
        u = _spread_latents(generator, prior, draw).requires_grad_()
        image = synthesise(generator, prior.unwhiten(u), generator.noise_maps(), "auto")
        answer = image.new_zeros(())
        for level in (image, F.avg_pool2d(image, 2), F.avg_pool2d(image, 4)):
            answer = answer + (level * _white(level, draw)).sum() / level[0].numel() ** 0.5 / 3
        for level in perceptual.guiding(image):
            answer = answer + 0.8 * (level * _white(level, draw)).sum() / level[0, 0].numel() ** 0.5
        gradients.append(torch.autograd.grad(answer, u)[0].sum(1).cpu())
    stacked = torch.cat(gradients).double()
    values, vectors = torch.linalg.eigh(stacked.T @ stacked)
    relative = (values.flip(0) / values[-1].clamp_min(1e-30)).clamp_min(0)
    return Curvature(vectors.flip(1).float(), (DAMPING / (relative + DAMPING)).sqrt().float())


def _spread_latents(generator: Generator, prior: WPrior, draw: torch.Generator) -> torch.Tensor:
    """Whitened latents [BATCH,L,C] as stage 0 meets them: between the mean and samples, layers mixed, rows apart."""
    config = generator.config
    z = torch.randn(2 * BATCH, config.z_dim, generator=draw).to(generator.mapping.w_avg.device)
    with torch.no_grad():
        one, other = prior.whiten(generator.mapping.to_w(z))[:, None].expand(-1, generator.num_ws, -1).split(BATCH)
    spread = 0.35 + 0.35 * torch.rand(BATCH, 1, 1, generator=draw)
    crossover = torch.randint(1, 2 * generator.num_ws, (BATCH, 1, 1), generator=draw)  # half beyond the last row
    mixed = torch.where((torch.arange(generator.num_ws).view(1, -1, 1) < crossover).to(one.device), one, other)
    apart = 0.4 * torch.randn(mixed.shape, generator=draw)
    return mixed * spread.to(one.device) + apart.to(one.device)


def _white(like: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
    return torch.randn(like.shape, generator=draw).to(like.device)
