"""Soft masks of the parts of a portrait, from its label map, hair matte and landmarks.

All are [1,H,W] float32 in [0,1], on the portrait's device, for a portrait of H = W pixels; sizes named _share are
shares of its side, so that a region is the same at every resolution.
"""

from __future__ import annotations

from math import ceil, inf, isqrt

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from stylepairs.datagen.images.filters import blurred
from stylepairs.datagen.portraits.landmarks import LEFT_EYE, OUTER_LIPS, RIGHT_EYE
from stylepairs.datagen.portraits.portrait import CLASS, Portrait

FEATHER_SHARE = 0.008  # of the side: 2 pixels at 256
_FACE_CLASSES = ("skin", "l_brow", "r_brow", "l_eye", "r_eye", "eye_g", "nose", "mouth", "u_lip", "l_lip")


def labelled(portrait: Portrait, *names: str) -> torch.Tensor:
    """Where the label map has one of the classes `names` (see CLASS_NAMES), 0 or 1."""
    wanted = torch.tensor([CLASS[name] for name in names], device=portrait.label.device)
    return torch.isin(portrait.label.long(), wanted).float()[None]


def class_region(
    portrait: Portrait, names: tuple[str, ...] | list[str], feather_share: float = FEATHER_SHARE
) -> torch.Tensor:
    """Where the label map has one of the classes `names`, with soft edges."""
    return feather(labelled(portrait, *names), feather_share)


def face_region(portrait: Portrait, feather_share: float = FEATHER_SHARE) -> torch.Tensor:
    """The face with brows, eyes, nose and mouth, without ears, neck and hair."""
    return class_region(portrait, _FACE_CLASSES, feather_share)


def eye_region(portrait: Portrait, feather_share: float = FEATHER_SHARE) -> torch.Tensor:
    """The eyes between their lids, from the landmarks and the label map."""
    return _with_outlines(portrait, ("l_eye", "r_eye"), (RIGHT_EYE, LEFT_EYE), feather_share)


def mouth_region(portrait: Portrait, feather_share: float = FEATHER_SHARE) -> torch.Tensor:
    """Lips and what is between them, from the landmarks and the label map."""
    return _with_outlines(portrait, ("mouth", "u_lip", "l_lip"), (OUTER_LIPS,), feather_share)


def _with_outlines(
    portrait: Portrait, names: tuple[str, ...], outlines: tuple[slice, ...], feather_share: float
) -> torch.Tensor:
    mask = labelled(portrait, *names)
    for outline in outlines:
        mask = torch.maximum(mask, polygon(portrait, portrait.points68[outline].cpu().numpy()))
    return feather(mask, feather_share)


def dilate(mask: torch.Tensor, share: float) -> torch.Tensor:
    """mask [1,H,W] grown by a disc whose radius is `share` of the side (negative: shrunk)."""
    radius = round(abs(share) * mask.shape[-1])
    if radius == 0:
        return mask
    if mask.device.type != "cpu":
        return (_grown(mask, radius) if share > 0 else -_grown(-mask, radius)).clamp(0, 1)
    steps = np.arange(-radius, radius + 1)
    disc = (steps[:, None] ** 2 + steps**2 <= (radius + 0.5) ** 2).astype(np.uint8)
    changed = (cv2.dilate if share > 0 else cv2.erode)(mask[0].detach().numpy(), disc)
    return torch.from_numpy(changed)[None].clamp(0, 1)


def _grown(mask: torch.Tensor, radius: int) -> torch.Tensor:
    """cv2's dilation by a disc on any device, row after row of the disc."""
    grown = mask
    for row in range(-radius, radius + 1):
        half = isqrt(radius * (radius + 1) - row**2)  # the widest within radius + 0.5 of the middle
        wide = F.max_pool2d(mask, (1, 2 * half + 1), stride=1, padding=(0, half))
        grown = grown.maximum(F.pad(wide, (0, 0, row, -row), value=-inf))
    return grown


def feather(mask: torch.Tensor, share: float) -> torch.Tensor:
    """mask [1,H,W] with edges softened by a Gaussian whose sigma is `share` of the side."""
    sigma = share * mask.shape[-1]
    return mask if sigma < 0.1 else blurred(mask, sigma, ceil(3 * sigma)).clamp(0, 1)


def polygon(portrait: Portrait, outline: np.ndarray) -> torch.Tensor:
    """The inside of `outline` [K,2], antialiased, [1,H,W]."""
    mask = np.zeros((portrait.size_px, portrait.size_px), np.uint8)
    cv2.fillPoly(mask, [np.rint(outline * 16).astype(np.int32)], 255, cv2.LINE_AA, shift=4)
    return torch.from_numpy(mask).to(portrait.label.device).float()[None] / 255
