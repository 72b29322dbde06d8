"""How much each pixel is hair, by colour where hair and skin differ, and by the face analyser's matte where not."""

from __future__ import annotations

import torch

from stylepairs.datagen.sketching.hair.strands import HairPalette

# Squared Lab distance between hair and skin at which colour can half tell them apart.
_TELLABLE = 150.0


def hairness(
    lab: torch.Tensor, matte: torch.Tensor, skin: torch.Tensor, hair: HairPalette | torch.Tensor
) -> torch.Tensor:
    """How much each pixel of lab [3,H,W] is hair [1,H,W], 0 to 1: nearer to the hair's colours than to the skin's; by
    matte [1,H,W] where the two are too alike.

    skin: the skin's smooth Lab [3,H,W]. hair: its palette, or the Lab [3,H,W] that it has pixel by pixel.
    """
    if isinstance(hair, HairPalette):
        low, usual, high = (color.to(lab)[:, None, None] for color in (hair.shadow, hair.mean, hair.highlight))
        axis = high - low
        at = (((lab - low) * axis).sum(0, keepdim=True) / axis.square().sum().clamp_min(1.0)).clamp(0, 1)
        near = low + at * axis
    else:
        near = usual = hair
    pairs = ((lab, near), (lab, skin), (usual, skin))
    from_hair, from_skin, apart = ((one - other).square().sum(0, keepdim=True) for one, other in pairs)
    trust = apart / (apart + _TELLABLE)
    return trust * from_skin / (from_skin + from_hair).clamp_min(1.0) + (1 - trust) * matte
