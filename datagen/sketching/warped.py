"""The sketch of an edit that warps the photo, as several features make it."""

from __future__ import annotations

import torch

from stylepairs.datagen.features.base import Sketch
from stylepairs.datagen.portraits.portrait import Portrait
from stylepairs.datagen.portraits.regions import dilate, feather
from stylepairs.datagen.sketching.warp import changed_region, warp_image, warp_label, warp_points

# Of the side: the band around the region in which neither the sketch nor the photo is enforced.
_BAND, _BAND_FADE = 0.02, 0.01


def warped_sketch(
    portrait: Portrait, image: torch.Tensor, flow: torch.Tensor, painted: torch.Tensor | None, reference_px: int
) -> Sketch:
    """The sketch of image [3,H,W], which differs from the photo where the flow [2,H,W] moves it and where it was
    painted on, [1,H,W] in [0,1] (None: nowhere). Label map, matte and landmarks move along; all detail is kept.
    """
    region = changed_region(flow)
    if painted is not None:
        region = torch.maximum(region, painted)
    return Sketch(
        image=torch.where(region > 0, image, portrait.image),
        edit_mask=region,
        keep_mask=1 - feather(dilate(region, _BAND), _BAND_FADE).maximum(region),
        reference_px=min(reference_px, portrait.size_px),
        sketch_detail=1.0,
        label=warp_label(portrait.label, flow),
        hair=warp_image(portrait.hair, flow).clamp(0, 1),
        points68=warp_points(portrait.points68, flow),
    )
