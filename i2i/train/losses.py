"""Loss terms of the single-pass editor, one function each; none keeps state.

Images [N,3,H,W] in [-1,1], masks [N,1,H,W] in [0,1]. Adversarial terms: non-saturating logistic loss with R1 on real
images (Goodfellow et al. 2014; Mescheder et al. 2018), as in StyleGAN2.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from stylepairs.datagen.images.colors import srgb_to_lab

# Lab distances are divided by this, so that a clearly visible error counts about as much as in the other terms.
LAB_SCALE = 100.0


def pixel_l1(image: torch.Tensor, target: torch.Tensor, region: torch.Tensor, region_weight: float) -> torch.Tensor:
    """Mean absolute difference, with pixels inside the region counted 1 + region_weight times."""
    weight = 1 + region_weight * region
    return ((image - target).abs() * weight).sum() / (weight.sum() * image.shape[1])


def perceptual_l2(features: Sequence[torch.Tensor], target: Sequence[torch.Tensor]) -> torch.Tensor:
    """Squared difference of unit-normalised features, mean over pixels, sum over levels (LPIPS-like)."""
    return torch.stack([(a - b).square().sum(1).mean() for a, b in zip(features, target, strict=True)]).sum()


def mask_cross_entropy(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the predicted mask; on the logits, so that it pulls where the stretched mask is clamped too."""
    return F.binary_cross_entropy_with_logits(logits, target)


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


def r1_penalty(real: torch.Tensor, real_logits: torch.Tensor) -> torch.Tensor:
    """Half the squared gradient norm of the logits on real images, mean over N; real must require gradients."""
    (gradient,) = torch.autograd.grad(real_logits.sum(), real, create_graph=True)
    return 0.5 * gradient.square().sum((1, 2, 3)).mean()
