"""Puts the generated edit back into the photo: blended by Laplacian pyramids (Burt & Adelson 1983) inside the edited
region, the photo to the bit outside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from stylepairs.datagen.compositing.detail import transfer_detail
from stylepairs.datagen.images.filters import blurred, grown
from stylepairs.datagen.portraits.portrait import Portrait
from stylepairs.datagen.portraits.sketch import Sketch
from stylepairs.datagen.reconstruction.reconstruct import Reconstruction

# Of the image's side: how far beyond the edit mask pixels may change, and how softly that ends.
DILATION = 0.024
FEATHER = 0.012
LEVELS = 4
# Of a cell of the reference: what is coarser follows the generator where the sketch keeps its own detail.
_HARMONY_SCALE = 0.75


@dataclass(frozen=True)
class Composed:
    """after [3,H,W] in [-1,1]; mask [1,H,W] in [0,1], in steps of 1/255: where it is 0, after is the photo to the
    bit."""

    after: torch.Tensor
    mask: torch.Tensor


@torch.no_grad()
def compose(portrait: Portrait, reconstruction: Reconstruction, sketch: Sketch) -> Composed:
    """The pair's after image: the generated edit inside, the photo outside."""
    mask = region_mask(sketch.edit_mask)
    before, after = (image.clamp(-1, 1) for image in (reconstruction.generated_before, reconstruction.generated_after))
    composed = portrait.image
    parts = sketch.parts or (sketch,)
    for at, part in enumerate(parts):
        composed = with_part(composed, before, _before_recoloring(after, part, parts[at + 1 :]), part)
        before = composed  # the next part's own change starts from what this one made
    return Composed(torch.where(mask > 0, composed, portrait.image).clamp(-1, 1), mask)


def _before_recoloring(after: torch.Tensor, part: Sketch, later: Sequence[Sketch]) -> torch.Tensor:
    """after [3,H,W] as if `later` parts had recoloured nothing: the part's own sketch where they do. A fringe that had
    the new colour already would be given it twice."""
    for other in later:
        if other.photo_detail > 0:
            after = after.lerp(part.image, other.edit_mask)
    return after


def with_part(photo: torch.Tensor, before: torch.Tensor, after: torch.Tensor, part: Sketch) -> torch.Tensor:
    """photo [3,H,W] with one edit in it, which the generator made `after` of `before`; to the bit outside its mask."""
    mask = region_mask(part.edit_mask)
    edited = laplacian_blend(photo, after, part.edit_mask)
    if part.sketch_detail > 0:
        edited = edited.lerp(harmonised(part, after), part.sketch_detail)
    if part.photo_detail > 0:
        edited = edited.lerp(transfer_detail(photo, before, after, part.edit_mask), part.photo_detail)
    return torch.where(mask > 0, photo + mask * (edited - photo), photo)


def harmonised(sketch: Sketch, generated: torch.Tensor) -> torch.Tensor:
    """The sketch, moved inside its edit mask by what the generator made of it at its reference resolution [3,H,W].

    Light and colour are then the generator's, as far as the sketch's `harmony` says, all that is finer the sketch's;
    outside the mask the sketch stays.
    """
    if sketch.harmony == 0:
        return sketch.image
    mask, size_px = sketch.edit_mask, sketch.image.shape[-1]
    sigma = max(0.5, _HARMONY_SCALE * size_px / sketch.reference_px)
    change = blurred(torch.cat([(generated - sketch.image) * mask, mask]), sigma)
    moved = mask * change[:3] / change[3:].clamp_min(1e-3)
    return (sketch.image + sketch.harmony * moved).clamp(-1, 1)


def region_mask(edit_mask: torch.Tensor, size_px: int | None = None) -> torch.Tensor:
    """The edit mask [1,H,W] dilated and feathered, in steps of 1/255 so that it is stored as it was used.

    size_px: the side that both widths are shares of; None: the mask's own.
    """
    size_px = size_px or edit_mask.shape[-1]
    soft = blurred(grown(edit_mask, DILATION * size_px), max(0.5, FEATHER * size_px))
    return (soft.clamp(0, 1) * 255).round() / 255


def tightened(mask: torch.Tensor, size_px: int | None = None) -> torch.Tensor:
    """The mask [...,H,W] of a pair without composition's dilation: nearly the feature's own edit mask, soft.

    size_px: as in `region_mask`.
    """
    return -grown(-mask, DILATION * (size_px or mask.shape[-1]))


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
    return F.avg_pool2d(blurred(image, 1.0, radius_px=2), 2, ceil_mode=True)


def _expand(image: torch.Tensor, size: torch.Size | list[int]) -> torch.Tensor:
    return F.interpolate(image, size=size, mode="bilinear", align_corners=False)
