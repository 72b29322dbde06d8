"""Scales of a picture taken apart: blurs by shares of the side, the contrast of strands, and grain brought back."""

from __future__ import annotations

import torch

from stylepairs.datagen.images import filters
from stylepairs.datagen.portraits.portrait import Portrait
from stylepairs.datagen.portraits.regions import dilate
from stylepairs.datagen.shell.randomness import random_generator

# Of the side: locks (above), strands (below), and the finest band, of grain.
LOCKS, STRANDS, GRAIN = 0.012, 0.006, 0.004


def blurred_by_share(image: torch.Tensor, share: float) -> torch.Tensor:
    """Gaussian blur of [C,H,W] by a sigma that is `share` of the side, edges reflected."""
    return filters.blurred(image, _sigma_px(image, share))


def blurred_within_by_share(image: torch.Tensor, inside: torch.Tensor, share: float) -> torch.Tensor:
    """`blurred_by_share` of what lies inside [1,H,W] alone, carried on a little beyond it: [C,H,W]."""
    return filters.blurred_within(image, inside, _sigma_px(image, share))


def inner_contrast(lab: torch.Tensor, region: torch.Tensor) -> float:
    """Standard deviation of the lightness of strands inside region [1,H,W], well away from its edges; lab [3,H,W].

    Where the region is too narrow to have an inside, all of it counts. Colours from outside it do not: its edge is no
    strand.
    """
    core = (region > 0.8).float()
    insides = (dilate(core, -LOCKS), core, region)
    inside = next((one for one in insides if one.sum() >= 0.2 * region.sum()), region)
    light = lab[:1]
    strands = light - blurred_within_by_share(light, inside, STRANDS)
    return float(((strands.square() * inside).sum() / inside.sum().clamp_min(1e-6)).sqrt())


def with_grain(
    image: torch.Tensor, wanted: torch.Tensor, where: torch.Tensor, portrait: Portrait, seed: int
) -> torch.Tensor:
    """image [3,H,W] with noise added to its finest band where its strength there falls short of wanted [1,H,W].

    wanted: mean square of the finest band, as `grain_strength` gives it; where [1,H,W] scales the noise, which is drawn
    from seed and the portrait's digest.
    """
    lack = (wanted - grain_strength(image)).clamp_min(0).sqrt()
    noise = random_generator("grain", seed, portrait.digest).standard_normal(image.shape[-2:])
    grain = _finest(torch.from_numpy(noise).float()[None].to(image))
    return (image + where * lack * grain / grain.std().clamp_min(1e-6)).clamp(-1, 1)


def grain_strength(image: torch.Tensor) -> torch.Tensor:
    """Mean square [1,H,W] of the finest band of image [3,H,W], smoothed."""
    return blurred_by_share(_finest(image).square(), 2 * GRAIN).clamp_min(0)


def _sigma_px(image: torch.Tensor, share: float) -> float:
    return max(share * image.shape[-1], 0.4)


def _finest(image: torch.Tensor) -> torch.Tensor:
    return (image - blurred_by_share(image, GRAIN)).mean(0, keepdim=True)
