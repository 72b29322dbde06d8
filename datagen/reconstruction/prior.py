"""StyleGAN's own latent distribution: W made Gaussian by undoing the last leaky ReLU (PULSE, Menon et al. 2020), then
whitened by PCA (Barbershop, Zhu et al. 2021). Latents are optimised in these coordinates, where the prior is a plain
norm."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from stylepairs.datagen.stylegan.generator import Generator

SAMPLES = 20_000
# Components thinner than this share of the widest carry rounding, not faces; whitening must not blow them up.
LEAST_DEVIATION = 0.01
FARTHEST = 2.5  # whitened entries are of unit variance


@dataclass(frozen=True)
class WPrior:
    """mean [C], basis [C,C] (rows: principal components), deviation [C], all of the Gaussianised W."""

    mean: torch.Tensor
    basis: torch.Tensor
    deviation: torch.Tensor

    @staticmethod
    def fit(generator: Generator, samples: int = SAMPLES, seed: int = 0) -> WPrior:
        """Estimate from `samples` random latents of this generator; the same seed gives the same prior."""
        device = generator.mapping.w_avg.device
        draw = torch.Generator().manual_seed(seed)
        z = torch.randn(samples, generator.config.z_dim, generator=draw).to(device)
        with torch.no_grad():
            gaussian = _gaussianise(torch.cat([generator.mapping.to_w(part) for part in z.split(4096)])).double()
        mean = gaussian.mean(0)
        centred = gaussian - mean
        variance, basis = torch.linalg.eigh(centred.T @ centred / (samples - 1))
        deviation = variance.clamp_min(0).sqrt()
        deviation = deviation.clamp_min(LEAST_DEVIATION * deviation.max())
        return WPrior(mean.float(), signed(basis.T).contiguous().float(), deviation.float())

    def whiten(self, w: torch.Tensor) -> torch.Tensor:
        """w [...,C] -> u [...,C], of unit variance for samples of the mapping network."""
        return ((_gaussianise(w) - self.mean) @ self.basis.T) / self.deviation

    def unwhiten(self, u: torch.Tensor) -> torch.Tensor:
        """The inverse of `whiten`."""
        return F.leaky_relu((u * self.deviation) @ self.basis + self.mean, 0.2)

    def distance(self, ws: torch.Tensor) -> torch.Tensor:
        """Mahalanobis distance per dimension, root mean square over rows: ws [...,L,C] -> [...]; about 1 for
        samples."""
        return self.whiten(ws).square().mean((-2, -1)).sqrt()

    def held(self, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        """Moved latents [...,L,C] with no whitened entry beyond FARTHEST deviations, unless it was so before.

        A straight step in W is none in the space that W is made of: entries below zero are a fifth of theirs, so a step
        counts five times there. Three inverted portraits that a direction made smile went from 1.0 to 1.8, held
        to 1.2 (`distance`), for as much of a smile.
        """
        old, new = self.whiten(before), self.whiten(after)
        return self.unwhiten(torch.maximum(torch.minimum(new, old.clamp_min(FARTHEST)), old.clamp_max(-FARTHEST)))

    def to(self, device: torch.device) -> WPrior:
        return WPrior(self.mean.to(device), self.basis.to(device), self.deviation.to(device))


def signed(basis: torch.Tensor) -> torch.Tensor:
    """Rows [K,C] with the largest entry positive: which sign an eigenvector comes with is the library's affair."""
    largest = basis.gather(1, basis.abs().argmax(1, keepdim=True))
    return basis * largest.sign()


def _gaussianise(w: torch.Tensor) -> torch.Tensor:
    return F.leaky_relu(w, 5.0)
