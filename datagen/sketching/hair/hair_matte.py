"""The soft matte of the hair as edits need it, its edge drawn to the image's; and when it is not to be trusted."""

from __future__ import annotations

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from stylepairs.datagen.images.filters import blurred, grown, overall_mean
from stylepairs.datagen.images.matting import matted
from stylepairs.datagen.portraits.landmarks import FACE_OUTLINE
from stylepairs.datagen.portraits.portrait import Portrait
from stylepairs.datagen.portraits.regions import class_region, polygon
from stylepairs.datagen.portraits.sketch import SketchRefused

# Matte values under this are haze of the matting, not hair.
_HAZE = 0.08
# Matte values beyond which hair, or what is none, is sure; of the crop's side: how far from those that are not.
_SURE = 0.9
_EDGE_SLACK = 1 / 64
# Four times the pixels take four times the memory: 0.35 GB at 1024 px.
_FINEST_PX = 1024
# Of the crop's side: how far hair and surroundings are looked for whose colours a pixel at the edge is a mixture of.
_MIXED_OF = 0.024
# Separate pieces with less than this share of all hair are mistakes: spectacle straps, shadows on a collar.
_CRUMB_SHARE = 0.06
# Of the crop's side: how far around them their soft edges reach.
_CRUMB_EDGE = 1 / 128
# Classes in which no head hair can be, whatever the matte says. Not the brows: a fringe hides them, and what is left of
# them in the label map would punch holes into it.
_NEVER_HAIR = ["l_eye", "r_eye", "nose", "mouth", "u_lip", "l_lip", "hat"]


def hair_matte(portrait: Portrait) -> torch.Tensor:
    """The soft hair matte [1,H,W], its edge drawn to the image's, without haze, crumbs and what cannot be hair.

    A matte that is a pixel off leaves a rim of the old colour, so its edge is found anew in the photo (`matting`),
    beginning at least from the share that a pixel's colour has of the hair's, where the rest is of its surroundings'.
    Above 1024 px that is done at 1024.
    """
    if portrait.size_px > _FINEST_PX:
        small = hair_matte(portrait.resized(_FINEST_PX))
        return F.interpolate(small[None], size=portrait.image.shape[-2:], mode="bilinear")[0]
    image, matte = portrait.image, _without_crumbs(_without_haze(portrait.hair))
    slack_px = max(1, round(_EDGE_SLACK * portrait.size_px))
    hair, none = (1 - grown((x < _SURE).float(), slack_px) for x in (matte, 1 - matte))
    known = hair + none > 0
    mixed = torch.where(matte > 1 - _SURE, torch.maximum(matte, _share_by_color(image, matte)), matte)
    refined = matted(image, torch.where(known, hair, mixed), known)
    return refined * (1 - blurred(class_region(portrait, _NEVER_HAIR, 0.0), 0.7)).clamp(0, 1)


def refuse_untrusted_matte(portrait: Portrait, matte: torch.Tensor, max_on_face: float, max_unsure: float) -> None:
    """Raises SketchRefused where matte [1,H,W] lies over more than max_on_face of the face below the brows, or the
    portrait's own has more than max_unsure half-transparent pixels for each that is hair."""
    on_face = float(overall_mean(matte, polygon(portrait, portrait.points68[FACE_OUTLINE].cpu().numpy()).round()))
    if on_face > max_on_face:
        raise SketchRefused(
            f"{portrait.name}: the hair matte covers {100 * on_face:.0f} % of the face "
            f"(max_on_face {100 * max_on_face:g} %); the matte is wrong"
        )
    # Counted at one size, as edges have a width.
    fixed = F.interpolate(portrait.hair[None], size=(128, 128), mode="bilinear", antialias=True)
    unsure = float(((fixed > 0.2) & (fixed < 0.8)).sum() / (fixed > 0.5).sum().clamp_min(1))
    if unsure > max_unsure:
        raise SketchRefused(
            f"{portrait.name}: {unsure:.2f} unsure pixels of the hair matte for each that is hair "
            f"(max_unsure {max_unsure:g}); the hair cannot be told from the rest"
        )


def _without_haze(matte: torch.Tensor) -> torch.Tensor:
    return ((matte - _HAZE) / (1 - 2 * _HAZE)).clamp(0, 1)


def _share_by_color(image: torch.Tensor, matte: torch.Tensor) -> torch.Tensor:
    """The share of hair [1,H,W] in each pixel near the edge, by its colour; the matte where colour says nothing."""
    sigma = max(1.0, _MIXED_OF * image.shape[-1])
    hair = 1 - grown((matte < _SURE).float(), 1)
    around = 1 - grown((matte > 1 - _SURE).float(), 1)
    hair_near, around_near = blurred(hair, sigma), blurred(around, sigma)
    hair_color = blurred(image * hair, sigma) / hair_near.clamp_min(1e-4)
    around_color = blurred(image * around, sigma) / around_near.clamp_min(1e-4)
    axis = hair_color - around_color
    length2 = axis.square().sum(0, keepdim=True)
    share = (((image - around_color) * axis).sum(0, keepdim=True) / length2.clamp_min(1e-4)).clamp(0, 1)
    # Colours closer than a tenth of the range (0.04 = 0.2^2 in [-1,1]) do not tell hair from the rest.
    trust = length2 / (length2 + 0.04) * ((hair_near > 1e-3) & (around_near > 1e-3))
    return trust * share + (1 - trust) * matte


def _without_crumbs(matte: torch.Tensor) -> torch.Tensor:
    """The matte [1,H,W] without separate pieces that are too small to be hair."""
    count, pieces = cv2.connectedComponents((matte[0] > 0.25).cpu().numpy().astype(np.uint8), connectivity=8)
    areas = np.bincount(pieces.ravel(), minlength=count)
    small = [piece for piece in range(1, count) if areas[piece] < _CRUMB_SHARE * areas[1:].sum()]
    crumbs = torch.from_numpy(np.isin(pieces, small)).to(matte.device)[None].float()
    return matte * (1 - grown(crumbs, _CRUMB_EDGE * matte.shape[-1]))
