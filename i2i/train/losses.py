"""Loss terms of the single-pass editor, one function each; none keeps state.

Images [N,3,H,W] in [-1,1], masks [N,1,H,W] in [0,1]. Adversarial terms: non-saturating logistic loss with R1 on real
images (Goodfellow et al. 2014; Mescheder et al. 2018), as in StyleGAN2. What draws hair is not to be punished for
other strands than the pair's: it is compared by `smoothed_l1` and `texture_distance`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from stylepairs.datagen.images.colors import srgb_to_lab
from stylepairs.datagen.images.filters import grown

# Lab distances are divided by this, so that a clearly visible error counts about as much as in the other terms.
LAB_SCALE = 100.0
# Of a soft mask: what is under it is outside.
_TOUCHED = 0.02


def pixel_l1(image: torch.Tensor, target: torch.Tensor, region: torch.Tensor, region_weight: float) -> torch.Tensor:
    """Mean absolute difference, with pixels inside the region counted 1 + region_weight times."""
    weight = 1 + region_weight * region
    return ((image - target).abs() * weight).sum() / (weight.sum() * image.shape[1])


def smoothed_l1(image: torch.Tensor, target: torch.Tensor, mask: torch.Tensor, cells: int) -> torch.Tensor:
    """Mean absolute difference inside the mask of the means over `cells` x `cells` places (strands of a cell do not
    count); an empty mask gives 0."""
    size = max(1, image.shape[-1] // cells)
    difference, weight = (F.avg_pool2d(x, size) for x in ((image - target) * mask, mask))
    return difference.abs().sum() / (weight.sum() * image.shape[1]).clamp_min(1e-6)


def texture_distance(
    features: Sequence[torch.Tensor], target: Sequence[torch.Tensor], mask: torch.Tensor, cell_px: int
) -> torch.Tensor:
    """Difference of features' local mean and deviation inside the mask, channel by channel, mean over channels and
    places, sum over levels: a Gram matrix's diagonal, place by place (Gatys et al. 2015), so that contrast and
    direction of strands count and where each of them lies does not.

    features: lists of [N,C,h,w]; mask [N,1,H,W]; cell_px: side in the mask's pixels of what is one place.
    """
    total = mask.new_zeros(())
    for a, b in zip(features, target, strict=True):
        stride = mask.shape[-1] // a.shape[-1]
        weight = F.avg_pool2d(mask, stride)
        size = max(1, cell_px // stride)
        share = F.avg_pool2d(weight, size)
        (mean_a, std_a), (mean_b, std_b) = (_local_moments(x.float(), weight, share, size) for x in (a, b))
        difference = (mean_a - mean_b).abs() + (std_a - std_b).abs()
        total = total + (difference * share).sum() / (share.sum() * a.shape[1]).clamp_min(1e-6)
    return total


def _local_moments(
    x: torch.Tensor, weight: torch.Tensor, share: torch.Tensor, size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted mean and deviation of x [N,C,h,w] over places of size x size, [N,C,h/size,w/size]."""
    mean = F.avg_pool2d(x * weight, size) / share.clamp_min(1e-3)
    square = F.avg_pool2d(x.square() * weight, size) / share.clamp_min(1e-3)
    return mean, (square - mean.square()).clamp_min(1e-4).sqrt()


def perceptual_l2(features: Sequence[torch.Tensor], target: Sequence[torch.Tensor]) -> torch.Tensor:
    """Squared difference of unit-normalised features, mean over pixels, sum over levels (LPIPS-like)."""
    return torch.stack([(a - b).square().sum(1).mean() for a, b in zip(features, target, strict=True)]).sum()


def mask_cross_entropy(logits: torch.Tensor, target: torch.Tensor, applies: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the predicted mask; on the logits, so that it pulls where the stretched mask is clamped too.

    Only of samples that the edit applies to [N]: the mask says where, the confidence whether. One that said both had
    holes wherever a refusal was likely."""
    each = F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean((1, 2, 3))
    return (each * applies).sum() / applies.sum().clamp_min(1)


def spill_l1(output: torch.Tensor, photo: torch.Tensor, mask: torch.Tensor, applies: torch.Tensor) -> torch.Tensor:
    """Mean absolute change of the photo outside the mask, as if it were all as large as the mask; of samples that the
    edit applies to [N]. Where the mask is soft, change is wanted: counted there, it drew masks in."""
    outside = (mask < _TOUCHED) * applies[:, None, None, None]
    return ((output - photo).abs() * outside).sum() / (mask.sum() * photo.shape[1]).clamp_min(1)


def halo_l1(image: torch.Tensor, target: torch.Tensor, mask: torch.Tensor, reach_px: int) -> torch.Tensor:
    """Mean over the mask and channels of how far the image lies above or below all that the target holds within
    `reach_px`: rims brighter than hair and wall, which other losses hardly see; other strands do not count."""
    low, high = -grown(-target, reach_px), grown(target, reach_px)
    beyond = (image - high).clamp_min(0) + (low - image).clamp_min(0)
    return (beyond * mask).sum() / (mask.sum() * image.shape[1]).clamp_min(1e-6)


def mean_color(image: torch.Tensor, region: torch.Tensor) -> torch.Tensor:
    """Mean Lab colour over the region, [N,3]; an empty region gives zeros."""
    return (srgb_to_lab(image) * region).sum((2, 3)) / region.sum((2, 3)).clamp_min(1e-6)


def color_distance(image: torch.Tensor, wanted_lab: torch.Tensor, region: torch.Tensor) -> torch.Tensor:
    """Distance in Lab (divided by LAB_SCALE) between the region's mean colour and the wanted one [N,3], mean over N."""
    difference = (mean_color(image.clamp(-1, 1), region) - wanted_lab) / LAB_SCALE
    present = (region.sum((1, 2, 3)) > 1).float()
    # The small constant keeps the root's gradient finite at a perfect match.
    distance = (difference.square().sum(1) + 1e-8).sqrt()
    return (distance * present).sum() / present.sum().clamp_min(1)


def confidence_cross_entropy(logits: torch.Tensor, applies: torch.Tensor, refused_share: float) -> torch.Tensor:
    """Cross-entropy of whether the feature applies [N], as if as many samples were refused as not; refused_share: how
    many of them are."""
    weight = 2 * torch.where(applies > 0.5, refused_share, 1 - refused_share)
    return (weight * F.binary_cross_entropy_with_logits(logits, applies, reduction="none")).mean()


def latent_l2(ws: torch.Tensor, target: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of latents [N,L,C] over the samples whose stored latent fits; valid [N] in {0,1}."""
    per_sample = (ws - target).square().mean((1, 2))
    return (per_sample * valid).sum() / valid.sum().clamp_min(1)


def generator_adversarial(fake_logits: torch.Tensor) -> torch.Tensor:
    """Non-saturating loss of the generator: softplus(-D(fake))."""
    return F.softplus(-fake_logits).mean()


def discriminator_adversarial(real_logits: torch.Tensor, fake_logits: torch.Tensor) -> torch.Tensor:
    """Logistic loss of the discriminator: softplus(-D(real)) + softplus(D(fake))."""
    return F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()


def least_squares(found: Sequence[Sequence[torch.Tensor]], wanted: float) -> torch.Tensor:
    """Squared distance of the logits, the last features of each scale, from `wanted`, summed over scales (Mao et al.
    2017)."""
    return torch.stack([(maps[-1].float() - wanted).square().mean() for maps in found]).sum()


def layers_l1(found: Sequence[Sequence[torch.Tensor]], wanted: Sequence[Sequence[torch.Tensor]]) -> torch.Tensor:
    """Distance of a discriminator's features but the logits, summed over layers, mean over scales (pix2pixHD's feature
    matching)."""
    layers = [
        (a.float() - b.float()).abs().mean()
        for ours, theirs in zip(found, wanted, strict=True)
        for a, b in zip(ours[:-1], theirs[:-1], strict=True)
    ]
    return torch.stack(layers).sum() / len(found)


def r1_penalty(real: torch.Tensor, real_logits: torch.Tensor) -> torch.Tensor:
    """Half the squared gradient norm of the logits on real images, mean over N; real must require gradients."""
    (gradient,) = torch.autograd.grad(real_logits.sum(), real, create_graph=True)
    return 0.5 * gradient.square().sum((1, 2, 3)).mean()
