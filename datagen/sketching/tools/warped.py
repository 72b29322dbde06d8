"""The sketch of an edit that warps the photo, as several features make it."""

from __future__ import annotations

import torch

from stylepairs.datagen.portraits.portrait import Portrait
from stylepairs.datagen.portraits.regions import dilate, feather
from stylepairs.datagen.portraits.sketch import Sketch
from stylepairs.datagen.sketching.tools.warp import changed_region, warp_image, warp_label, warp_points

# Of the side: the band around the region in which neither the sketch nor the photo is enforced.
_BAND, _BAND_FADE = 0.02, 0.01


def warped_sketch(
    portrait: Portrait,
    image: torch.Tensor,
    full_flow: torch.Tensor,
    degree: float,
    painted: torch.Tensor | None,
    reference_px: int,
) -> Sketch:
    """The sketch of image [3,H,W], the photo painted on within painted [1,H,W] in [0,1] (None: not at all), then warped
    by `degree` of full_flow [2,H,W].

    Label map, matte and landmarks move along; all detail is kept. The masks are those of the full change at every
    degree, so that a series of degrees is edited in one place.
    """
    flow, region = degree * full_flow, changed_region(full_flow)
    if painted is not None:
        region = torch.stack([region, *(warp_image(painted, each).clamp(0, 1) for each in (flow, full_flow))]).amax(0)
    return Sketch(
        image=torch.where(region > 0, image, portrait.image),
        edit_mask=region,
        keep_mask=1 - feather(dilate(region, _BAND), _BAND_FADE).maximum(region),
        reference_px=min(reference_px, portrait.size_px),
        sketch_detail=1.0,
        harmony=0.0,  # the photo's own light, moved
        label=warp_label(portrait.label, flow),
        hair=warp_image(portrait.hair, flow).clamp(0, 1),
        points68=warp_points(portrait.points68, flow),
    )
