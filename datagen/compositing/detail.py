"""Puts a photo's own strands and shading into a generated edit, so that a recoloured region is neither soft nor flat.

The generator decides what colour the region has (its low frequencies, before and after); the photo decides everything
finer. Lightness moves through one tone curve (`images.tones`), as far in each place as its surroundings.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from stylepairs.datagen.images.colors import delta_e_2000, lab_to_paled_srgb, srgb_to_lab
from stylepairs.datagen.images.filters import blurred
from stylepairs.datagen.images.tones import rechromed, toned_to

# Of the image's side: what is coarser follows the generator, what is finer follows the photo.
_SCALE = 0.16
# CIEDE2000 of a generated change at which the inversion's own colour error stops being carried over.
_FADE_DELTA_E = 4.0
# Passes in which the target is corrected until the mean over the solid region is right: what mixed pixels at the edge
# and smoothing lose is 2 to 4 L when black hair becomes blond (dE 6.5 before, 3.7 after: that of the generated image).
_AIM_STEPS = 3
# Fixed-point steps of the tone curve; the regional mean is then within 0.2 L.
_STEPS = 4


def transfer_detail(
    photo: torch.Tensor, generated_before: torch.Tensor, generated_after: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """The photo, its masked region recoloured as from generated_before to generated_after, with its own detail [3,H,W].

    photo, generated_*: [3,H,W] in [-1,1]; mask [1,H,W] soft matte in [0,1]. Where the two generated images are equal
    the photo comes back (to 1e-5), and where the mask is 0 to the bit. Where they differ clearly, the region's mean
    colour becomes that of generated_after.
    """
    region = mask.to(photo.dtype)
    if not bool(region.any()):
        return photo
    lab, lab_before, lab_after = (srgb_to_lab(image) for image in (photo, generated_before, generated_after))
    sigma = _SCALE * photo.shape[-1]
    # In mixed pixels of the matte's edge only the region's share changes: they are coloured as if they were all region,
    # and the difference that this makes is added in proportion.
    unmixed = region * lab + (1 - region) * _regional_mean(lab, region, sigma)
    low = _regional_mean(unmixed, region, sigma)
    low_before, low_after = (_regional_mean(x, region, sigma) for x in (lab_before, lab_after))
    fade = _fade(low_before, low_after)
    target = low_after + fade * (low - low_before)
    wanted = _aim(lab, lab_before, lab_after, region)
    moved, own = photo, lab_to_paled_srgb(unmixed)
    for _ in range(_AIM_STEPS):
        light = toned_to(unmixed[:1], target[:1], lambda moved: _regional_mean(moved, region, sigma), _STEPS)
        recoloured = torch.cat([light, rechromed(unmixed, light, low, target, fade)])
        moved = (photo + region * (lab_to_paled_srgb(recoloured) - own)).clamp(-1, 1)
        target = target + wanted - _solid_mean(srgb_to_lab(moved), region)
    return torch.where(mask > 0, moved, photo)


def _aim(
    photo: torch.Tensor, generated_before: torch.Tensor, generated_after: torch.Tensor, region: torch.Tensor
) -> torch.Tensor:
    """The mean Lab [3,1,1] that the solid part of the region shall have in the end."""
    own, before, after = (_solid_mean(lab, region) for lab in (photo, generated_before, generated_after))
    return after + _fade(before, after) * (own - before)


def _fade(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """1 where the generated colours are equal, 0 where they differ clearly [1,...]."""
    return torch.exp(-((delta_e_2000(before, after)[None] / _FADE_DELTA_E) ** 2))


def _solid_mean(values: torch.Tensor, region: torch.Tensor) -> torch.Tensor:
    """Mean [C,1,1] over the region's solid part, or over all of it where nothing is solid."""
    solid = (region > 0.5).to(values.dtype)
    weight = solid if bool(solid.any()) else region
    return (values * weight).sum((-2, -1), keepdim=True) / weight.sum()


def _regional_mean(values: torch.Tensor, region: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gaussian mean of [C,H,W] over the region only (normalised convolution), sigma in pixels."""
    # Worked out at a coarser size, where a sigma of 20 px is one of 2.5: 64 times less work, no visible difference.
    shrink = max(1, int(sigma / 2.5))
    weighted = blurred(F.avg_pool2d(torch.cat([values * region, region])[None], shrink, ceil_mode=True), sigma / shrink)
    mean = weighted[:, :-1] / weighted[:, -1:].clamp_min(1e-6)
    return F.interpolate(mean, size=values.shape[-2:], mode="bilinear")[0]
