"""Puts the generated edit back into the photo: blended by Laplacian pyramids (Burt & Adelson 1983) inside the edited
region, the photo to the bit outside."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from kornia.filters import gaussian_blur2d

from stylepairs.datagen.features.base import Sketch
from stylepairs.datagen.portraits.portrait import Portrait
from stylepairs.datagen.reconstruction.detail import transfer_detail
from stylepairs.datagen.reconstruction.reconstruct import Reconstruction

# Of the image's side: how far beyond the edit mask pixels may change, and how softly that ends.
DILATION = 0.024
FEATHER = 0.012
LEVELS = 4


@dataclass(frozen=True)
class Composed:
    """after [3,H,W] in [-1,1]; mask [1,H,W] in [0,1], in steps of 1/255: where it is 0, after is the photo to the
    bit."""

    after: torch.Tensor
    mask: torch.Tensor


@torch.no_grad()
def compose(portrait: Portrait, reconstruction: Reconstruction, sketch: Sketch) -> Composed:
    """The pair's after image: the generated edit inside, the photo outside."""
    photo, mask = portrait.image, region_mask(sketch.edit_mask)
    before, after = (image.clamp(-1, 1) for image in (reconstruction.generated_before, reconstruction.generated_after))
    edited = laplacian_blend(photo, after, sketch.edit_mask)
    if sketch.photo_detail > 0:
        detailed = transfer_detail(photo, before, after, sketch.edit_mask)
        edited = edited.lerp(detailed, sketch.photo_detail)
    composed = torch.where(mask > 0, photo + mask * (edited - photo), photo)
    return Composed(composed.clamp(-1, 1), mask)


def region_mask(edit_mask: torch.Tensor) -> torch.Tensor:
    """The edit mask [1,H,W] dilated and feathered, in steps of 1/255 so that it is stored as it was used."""
    size_px = edit_mask.shape[-1]
    radius = max(1, round(DILATION * size_px))
    wide = F.max_pool2d(edit_mask[None], 2 * radius + 1, 1, radius)
    sigma = max(0.5, FEATHER * size_px)
    soft = gaussian_blur2d(wide, _kernel(sigma), (sigma, sigma))[0]
    return (soft.clamp(0, 1) * 255).round() / 255


def laplacian_blend(
    photo: torch.Tensor, edited: torch.Tensor, mask: torch.Tensor, levels: int = LEVELS
) -> torch.Tensor:
    """photo where mask is 0, edited where it is 1, each band of detail crossing over its own width; images [C,H,W]."""
    weights = [mask[None]]
    bands = [(edited - photo)[None]]
    for _ in range(levels):
        weights.append(_reduce(weights[-1]))
        bands.append(_reduce(bands[-1]))
    total = bands[-1] * weights[-1]
    for level in reversed(range(levels)):
        size = bands[level].shape[-2:]
        detail = bands[level] - _expand(bands[level + 1], size)
        total = _expand(total, size) + detail * weights[level]
    return photo + total[0]


def _reduce(image: torch.Tensor) -> torch.Tensor:
    return F.avg_pool2d(gaussian_blur2d(image, (5, 5), (1.0, 1.0)), 2, ceil_mode=True)


def _expand(image: torch.Tensor, size: torch.Size | list[int]) -> torch.Tensor:
    return F.interpolate(image, size=size, mode="bilinear", align_corners=False)


def _kernel(sigma: float) -> int:
    return 2 * max(1, round(3 * sigma)) + 1
