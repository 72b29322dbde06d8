"""The terms of the reconstruction objective: each a function of a batch that returns one value per portrait, [N]."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from stylepairs.datagen.colors import srgb_to_lab

LAB_SCALE = 50.0  # Lab distances divided by it are of the size of [-1,1] RGB distances


def masked_l1(image: torch.Tensor, target: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """|M * (G - x)|_1 / |M|; images [N,3,H,W], mask [N,1,H,W]."""
    difference = (image - target).abs().mean(1, keepdim=True)
    return (difference * mask).sum((1, 2, 3)) / mask.sum((1, 2, 3)).clamp_min(1e-6)


def pyramid_l1(image: torch.Tensor, target: torch.Tensor, mask: torch.Tensor, levels: int = 3) -> torch.Tensor:
    """masked_l1 averaged over an average-pooled pyramid: the coarse levels guide, the finest decides the detail."""
    total = masked_l1(image, target, mask)
    for _ in range(levels - 1):
        image, target, mask = (F.avg_pool2d(x, 2) for x in (image, target, mask))
        total = total + masked_l1(image, target, mask)
    return total / levels


def reference_error(
    image: torch.Tensor, reference: torch.Tensor, edit_mask: torch.Tensor, lab: torch.Tensor | None
) -> torch.Tensor:
    """sqrt(|M * (down(G) - s)|^2 / |M|): distance of the low-resolution render from the sketch, root mean square.

    image [N,3,H,W]; reference [N,3,r,r] as `masked_downsample` gives it; edit_mask [N,1,H,W]; lab [N] bool: compare in
    Lab / 50 instead of [-1,1] RGB; None where no portrait is, which saves the conversion.
    """
    size_px = reference.shape[-1]
    small = masked_downsample(image, edit_mask, size_px)
    error = (small - reference).square().mean(1, keepdim=True)
    if lab is not None:
        in_lab = ((srgb_to_lab(small.clamp(-1, 1)) - srgb_to_lab(reference)) / LAB_SCALE).square().mean(1, keepdim=True)
        # Lab knows no colour beyond [-1,1], so it cannot pull back a render that has left it: this does.
        overshoot = (small - small.clamp(-1, 1)).square().mean(1, keepdim=True)
        error = torch.where(lab.view(-1, 1, 1, 1), in_lab + overshoot, error)
    weight = downsample(edit_mask, size_px)
    mean = (error * weight).sum((1, 2, 3)) / weight.sum((1, 2, 3)).clamp_min(1e-6)
    return (mean + 1e-8).sqrt()


def masked_downsample(image: torch.Tensor, mask: torch.Tensor, size_px: int) -> torch.Tensor:
    """Each cell's mean colour under the mask: what lies outside does not bleed into the cells on the edge."""
    weight = downsample(mask, size_px)
    return downsample(image * mask, size_px) / weight.clamp_min(1e-4) * (weight > 1e-4)


def clamped(error: torch.Tensor, tolerance: float) -> torch.Tensor:
    """Zero once the error is within tolerance, so that a met sketch stops pulling (PULSE, Menon et al. 2020)."""
    return F.relu(error - tolerance)


def prior_norm(u: torch.Tensor) -> torch.Tensor:
    """Mean square of whitened latents u [N,L,C]: 1 for samples of StyleGAN's own distribution."""
    return u.square().mean((1, 2))


def row_spread(u: torch.Tensor) -> torch.Tensor:
    """Mean squared distance of the rows of W+ from their mean row: 0 in W (e4e's delta, Tov et al. 2021)."""
    return (u - u.mean(1, keepdim=True)).square().mean((1, 2))


def anchor_distance(u: torch.Tensor, start: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Layer-weighted mean squared distance from the starting latent; weights [L]."""
    return ((u - start).square().mean(2) * weights).mean(1)


def noise_autocorrelation(maps: Sequence[torch.Tensor]) -> torch.Tensor:
    """Squared neighbour correlation of noise maps [N,1,r,r] over a pyramid (StyleGAN2's projector): noise stays
    noise."""
    total = torch.zeros(maps[0].shape[0], device=maps[0].device)
    for noise in maps:
        while noise.shape[-1] >= 8:
            for axis in (2, 3):
                total = total + (noise * noise.roll(1, axis)).mean((1, 2, 3)).square()
            noise = F.avg_pool2d(noise, 2) * 2  # * 2 keeps unit variance
    return total


def downsample(image: torch.Tensor, size_px: int) -> torch.Tensor:
    """Area average to size_px, a divisor of the image's side."""
    return F.avg_pool2d(image, image.shape[-1] // size_px) if image.shape[-1] > size_px else image


def psnr(image: torch.Tensor, target: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio in dB under the mask, images in [-1,1]."""
    error = (image.clamp(-1, 1) - target).square().mean(1, keepdim=True)
    mean = (error * mask).sum((1, 2, 3)) / mask.sum((1, 2, 3)).clamp_min(1e-6)
    return 10 * torch.log10(4 / mean.clamp_min(1e-10))
