"""The terms of the reconstruction objective: each a function of a batch that returns one value per portrait, [N]."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from stylepairs.datagen.images.colors import srgb_to_lab

LAB_SCALE = 50.0  # Lab distances divided by it are of the size of [-1,1] RGB distances
# On a CPU the tail of a tensor, short of whole vectors, gets other roundings of a power: with whole ones for each
# portrait its bits do not depend on its place.
_VECTOR_CELLS = 64


def pyramid_l1(
    image: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None = None, levels: int = 3
) -> torch.Tensor:
    """|M * (G - x)|_1 / |M| averaged over an average-pooled pyramid: the coarse levels guide, the finest decides the
    detail. images [N,3,H,W], mask [N,1,H,W]; mask None counts every pixel."""
    difference = image - target  # pooling is linear: the difference's pyramid is that of both images
    total = _masked_mean(difference, mask)
    for _ in range(levels - 1):
        difference = F.avg_pool2d(difference, 2)
        mask = None if mask is None else F.avg_pool2d(mask, 2)
        total = total + _masked_mean(difference, mask)
    return total / levels


def _masked_mean(difference: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    if mask is None:
        return difference.abs().mean((1, 2, 3))
    return (difference.abs().mean(1, keepdim=True) * mask).sum((1, 2, 3)) / mask.sum((1, 2, 3)).clamp_min(1e-6)


def reference_errors(
    image: torch.Tensor, references: Sequence[torch.Tensor], edit_mask: torch.Tensor, lab: torch.Tensor | None
) -> torch.Tensor:
    """sqrt(|M * (down(G) - s)|^2 / |M|) at the size of each reference -> [sizes,N]: distance of the low-resolution
    render from the sketch, root mean square.

    image [N,3,H,W]; references, finest first, each [N,3,r,r] of `reference_colors`; edit_mask [N,1,H,W]; lab [N] bool:
    compare in Lab / 50 instead of [-1,1] RGB; None where no portrait is, which saves the conversion.
    """
    inside, weight = image * edit_mask, edit_mask
    cells, weights = [], []
    for reference in references:  # averages of averages: each size is made of the next finer
        inside, weight = downsample(inside, reference.shape[-1]), downsample(weight, reference.shape[-1])
        cells.append(_mean_colors(inside, weight).flatten(2))
        weights.append(weight.flatten(2))
    small = torch.cat(cells, 2)[:, :, None]  # [N,3,1,cells of all sizes]: one conversion for all
    wanted = torch.cat([reference.flatten(2) for reference in references], 2)[:, :, None]
    error = (in_space(small, lab) - wanted).square().mean(1)
    if lab is not None:
        # Lab knows no colour beyond [-1,1], so it cannot pull back a render that has left it: this does.
        overshoot = (small - small.clamp(-1, 1)).square().mean(1)
        error = error + overshoot * lab.view(-1, 1, 1)
    means = [
        (part * share[:, 0]).sum(1) / share[:, 0].sum(1).clamp_min(1e-6)
        for part, share in zip(error[:, 0].split([cell.shape[2] for cell in cells], 1), weights, strict=True)
    ]
    return (torch.stack(means) + 1e-8).sqrt()


def reference_colors(
    image: torch.Tensor, mask: torch.Tensor, size_px: int, lab: torch.Tensor | None = None
) -> torch.Tensor:
    """What `reference_errors` compares with: `masked_downsample`, in Lab / 50 where lab [N] says so."""
    return in_space(masked_downsample(image, mask, size_px), lab)


def in_space(image: torch.Tensor, lab: torch.Tensor | None) -> torch.Tensor:
    """image [N,3,H,W] in [-1,1] as it is; in Lab / 50 where lab [N] is True."""
    if lab is None:
        return image
    cells = image.flatten(2)
    padded = F.pad(cells.clamp(-1, 1), (0, -cells.shape[2] % _VECTOR_CELLS))[:, :, None]
    converted = srgb_to_lab(padded)[:, :, 0, : cells.shape[2]].view_as(image)
    return torch.where(lab.view(-1, 1, 1, 1), converted / LAB_SCALE, image)


def masked_downsample(image: torch.Tensor, mask: torch.Tensor, size_px: int) -> torch.Tensor:
    """Each cell's mean colour under the mask: what lies outside does not bleed into the cells on the edge."""
    return _mean_colors(downsample(image * mask, size_px), downsample(mask, size_px))


def _mean_colors(inside: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return inside / weight.clamp_min(1e-4) * (weight > 1e-4)


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
    count = maps[0].shape[0]
    total = torch.zeros(count, device=maps[0].device)
    size_px = max(noise.shape[-1] for noise in maps)
    # Maps of one size go through the pyramid together, coarser ones joining on the way: a fifth of the operations.
    level = maps[0].new_empty(0, 1, size_px, size_px)
    while size_px >= 8:
        level = torch.cat([level, *(noise for noise in maps if noise.shape[-1] == size_px)])
        for axis in (2, 3):
            correlation = (level * level.roll(1, axis)).mean((1, 2, 3))
            total = total + correlation.square().view(-1, count).sum(0)
        level = F.avg_pool2d(level, 2) * 2  # * 2 keeps unit variance
        size_px //= 2
    return total


def downsample(image: torch.Tensor, size_px: int) -> torch.Tensor:
    """Area average to size_px, a divisor of the image's side; an image that is smaller stays as it is."""
    side = image.shape[-1]
    if side > size_px and side % size_px:
        raise ValueError(f"downsample: {size_px} is no divisor of the image's side, {side}")
    return F.avg_pool2d(image, side // size_px) if side > size_px else image
