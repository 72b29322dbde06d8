"""How near a generator's images are to real portraits: kernel distance (KID, Binkowski et al. 2018), the measure of
its kind that is unbiased for the few dozen portraits of a validation split."""

from __future__ import annotations

import torch

from stylepairs.datagen.images.perceptual import load_perceptual
from stylepairs.datagen.stylegan.generator import Generator

SAMPLES = 512


@torch.no_grad()
def kernel_distance(
    generator: Generator, real: torch.Tensor, samples: int = SAMPLES, seed: int = 2
) -> dict[str, float]:
    """Squared MMD with the cubic kernel, times 1000, between real images uint8 [M,3,R,R] and `samples` generated ones.

    The figure is named after the features that it is computed with; figures of other features cannot be compared.
    """
    perceptual = load_perceptual()
    device = generator.mapping.w_avg.device
    perceptual.to(device)
    draw = torch.Generator().manual_seed(seed)

    def pooled(images: torch.Tensor) -> torch.Tensor:
        levels = perceptual.features(images.to(device))
        return torch.cat([level.mean((2, 3)) for level in levels], dim=1).double()

    z = torch.randn(samples, generator.config.z_dim, generator=draw).to(device)
    fake = torch.cat([pooled(generator(part).clamp(-1, 1)) for part in z.split(16)])
    genuine = torch.cat([pooled(part.float() / 127.5 - 1) for part in real.split(16)])
    # One scale for all: dimensions that hardly vary among real portraits must not decide.
    mean, scale = genuine.mean(0), genuine.std(0).square().mean().sqrt()
    distance = polynomial_mmd((fake - mean) / scale, (genuine - mean) / scale)
    return {f"kid_x1000_{perceptual.name}": round(1000 * distance, 3)}


def polynomial_mmd(a: torch.Tensor, b: torch.Tensor) -> float:
    """Unbiased squared maximum mean discrepancy of rows a [M,D], b [N,D] under (x.y / D + 1)^3."""
    dim = a.shape[1]

    def kernel(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (x @ y.T / dim + 1) ** 3

    def within(x: torch.Tensor) -> torch.Tensor:
        k, n = kernel(x, x), len(x)
        return (k.sum() - k.diagonal().sum()) / (n * (n - 1))

    return float(within(a) + within(b) - 2 * kernel(a, b).mean())
