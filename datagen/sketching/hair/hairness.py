"""How much each pixel is hair, by colour where hair and skin differ, and by the face analyser's matte where not."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from stylepairs.datagen.images.colors import srgb_to_lab
from stylepairs.datagen.images.filters import blurred
from stylepairs.datagen.sketching.hair.strands import HairPalette

# Squared Lab distance between hair and skin at which colour can half tell them apart.
_TELLABLE = 150.0
# Of the side: colours are compared smoothed by this much, so that single strands do not count.
_COMPARE_SIGMA = 0.008


def smooth_lab(image: torch.Tensor) -> torch.Tensor:
    """Lab [3,H,W] of an image [3,H,W], smoothed so that single strands do not count."""
    return blurred(srgb_to_lab(image), max(0.5, _COMPARE_SIGMA * image.shape[-1]))


@dataclass(frozen=True)
class Told:
    """What hair is told from skin by: the skin's smooth Lab [3,H,W], the hair's palette, and the Lab [3,H,W] of the
    fringe that is to go (None: one is to come)."""

    skin: torch.Tensor
    palette: HairPalette
    fringe: torch.Tensor | None


def hairness(lab: torch.Tensor, matte: torch.Tensor, told: Told) -> torch.Tensor:
    """How much each pixel of lab [3,H,W] is hair [1,H,W]: nearer to the own hair's colours than to the skin's; by the
    matte where the two are too alike."""
    if told.fringe is None:
        low, mean, high = (
            color.to(lab)[:, None, None] for color in (told.palette.shadow, told.palette.mean, told.palette.highlight)
        )
        axis = high - low
        at = (((lab - low) * axis).sum(0, keepdim=True) / axis.square().sum().clamp_min(1.0)).clamp(0, 1)
        near, usual = low + at * axis, mean
    else:
        near = usual = told.fringe
    pairs = ((lab, near), (lab, told.skin), (usual, told.skin))
    from_hair, from_skin, apart = ((one - other).square().sum(0, keepdim=True) for one, other in pairs)
    trust = apart / (apart + _TELLABLE)
    return trust * from_skin / (from_skin + from_hair).clamp_min(1.0) + (1 - trust) * matte
