"""Soft masks of the parts of a portrait, from its label map, hair matte and landmarks.

All are [1,H,W] float32 in [0,1], on the portrait's device, for a portrait of H = W pixels; sizes named _share are
shares of its side, so that a region is the same at every resolution.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch

from stylepairs.datagen.portraits.portrait import CLASS, Portrait

FEATHER_SHARE = 0.008  # of the side: 2 pixels at 256
_JAW, _RIGHT_BROW, _LEFT_BROW, _RIGHT_EYE, _LEFT_EYE, _LIPS = (
    slice(0, 17),
    slice(17, 22),
    slice(22, 27),
    slice(36, 42),
    slice(42, 48),
    slice(48, 60),
)
_FACE_CLASSES = ("skin", "l_brow", "r_brow", "l_eye", "r_eye", "eye_g", "nose", "mouth", "u_lip", "l_lip")


def class_region(
    portrait: Portrait, names: tuple[str, ...] | list[str], feather_share: float = FEATHER_SHARE
) -> torch.Tensor:
    """Where the label map has one of the classes `names` (see CLASS_NAMES)."""
    wanted = torch.tensor([CLASS[name] for name in names], device=portrait.label.device)
    return feather(torch.isin(portrait.label.long(), wanted).float()[None], feather_share)


def hair_region(portrait: Portrait, grow_share: float = 0.0, feather_share: float = FEATHER_SHARE) -> torch.Tensor:
    """The hair: matte and label map together, grown by grow_share; what the matte gives beyond the label's
    surroundings is dropped.
    """
    label = (portrait.label == CLASS["hair"]).float()[None]
    near = dilate(label, 0.05)
    return feather(
        dilate(torch.maximum(portrait.hair * near, label * portrait.hair.clamp(min=0.5)), grow_share), feather_share
    )


def face_region(portrait: Portrait, feather_share: float = FEATHER_SHARE) -> torch.Tensor:
    """The face with brows, eyes, nose and mouth, without ears, neck and hair."""
    return class_region(portrait, _FACE_CLASSES, feather_share)


def head_region(portrait: Portrait, grow_share: float = 0.0, feather_share: float = FEATHER_SHARE) -> torch.Tensor:
    """Face, ears, hair and what is worn on them."""
    whole = class_region(portrait, [*_FACE_CLASSES, "l_ear", "r_ear", "ear_r", "hair", "hat"], 0.0)
    return feather(dilate(torch.maximum(whole, portrait.hair * dilate(whole, 0.05)), grow_share), feather_share)


def person_region(portrait: Portrait, feather_share: float = FEATHER_SHARE) -> torch.Tensor:
    """Everything but the background."""
    return feather((portrait.label != CLASS["background"]).float()[None], feather_share)


def forehead_region(portrait: Portrait, feather_share: float = FEATHER_SHARE) -> torch.Tensor:
    """The skin above the brows, between the temples."""
    points = portrait.points68.cpu().numpy()
    brows = np.concatenate([points[_RIGHT_BROW], points[_LEFT_BROW]])
    # Up the face: from the chin to between the eyes, which is right for turned heads too.
    up = points[27] - points[8]
    up = up / max(float(np.hypot(*up)), 1e-6)
    outline = np.concatenate(
        [points[[0]], brows, points[[16]], points[[16]] + up * portrait.size_px, points[[0]] + up * portrait.size_px]
    )
    skin = (portrait.label == CLASS["skin"]).float()[None]
    return feather(polygon(portrait, outline) * skin, feather_share)


def brow_region(
    portrait: Portrait, side: str = "both", grow_share: float = 0.0, feather_share: float = FEATHER_SHARE
) -> torch.Tensor:
    """The eyebrows; side is "left", "right" (the subject's) or "both"."""
    return feather(dilate(class_region(portrait, _sided("brow", side), 0.0), grow_share), feather_share)


def eye_region(
    portrait: Portrait, side: str = "both", grow_share: float = 0.0, feather_share: float = FEATHER_SHARE
) -> torch.Tensor:
    """The eyes between their lids, from the landmarks and the label map."""
    slices = {"right": [_RIGHT_EYE], "left": [_LEFT_EYE], "both": [_RIGHT_EYE, _LEFT_EYE]}[side]
    mask = class_region(portrait, _sided("eye", side), 0.0)
    for part in slices:
        mask = torch.maximum(mask, polygon(portrait, portrait.points68[part].cpu().numpy()))
    return feather(dilate(mask, grow_share), feather_share)


def mouth_region(portrait: Portrait, grow_share: float = 0.0, feather_share: float = FEATHER_SHARE) -> torch.Tensor:
    """Lips and what is between them."""
    mask = torch.maximum(
        class_region(portrait, ["mouth", "u_lip", "l_lip"], 0.0),
        polygon(portrait, portrait.points68[_LIPS].cpu().numpy()),
    )
    return feather(dilate(mask, grow_share), feather_share)


def dilate(mask: torch.Tensor, share: float) -> torch.Tensor:
    """mask [1,H,W] grown by a disc whose radius is `share` of the side (negative: shrunk)."""
    radius = round(abs(share) * mask.shape[-1])
    if radius == 0:
        return mask
    steps = np.arange(-radius, radius + 1)
    disc = (steps[:, None] ** 2 + steps**2 <= (radius + 0.5) ** 2).astype(np.uint8)
    if mask.device.type == "cpu":
        # The same as kornia's and, at 1024 pixels, many times faster: that copies the mask per element of the disc.
        changed = (cv2.dilate if share > 0 else cv2.erode)(mask[0].detach().numpy(), disc)
        return torch.from_numpy(changed)[None].clamp(0, 1)
    from kornia.morphology import dilation, erosion

    grow = dilation if share > 0 else erosion
    kernel = torch.from_numpy(disc).to(mask)
    return grow(mask[None], kernel, engine="convolution" if radius < 4 else "unfold")[0].clamp(0, 1)


def feather(mask: torch.Tensor, share: float) -> torch.Tensor:
    """mask [1,H,W] with edges softened by a Gaussian whose sigma is `share` of the side."""
    sigma = share * mask.shape[-1]
    if sigma < 0.1:
        return mask
    from kornia.filters import gaussian_blur2d

    size = 2 * min(int(np.ceil(3 * sigma)), (mask.shape[-1] - 1) // 2) + 1
    return gaussian_blur2d(mask[None], (size, size), (sigma, sigma))[0].clamp(0, 1)


def polygon(portrait: Portrait, outline: np.ndarray) -> torch.Tensor:
    """The inside of `outline` [K,2], antialiased, [1,H,W]."""
    mask = np.zeros((portrait.size_px, portrait.size_px), np.uint8)
    cv2.fillPoly(mask, [np.rint(outline * 16).astype(np.int32)], 255, cv2.LINE_AA, shift=4)
    return torch.from_numpy(mask).to(portrait.label.device).float()[None] / 255


def _sided(name: str, side: str) -> list[str]:
    if side not in ("left", "right", "both"):
        raise ValueError(f"side must be left, right or both, not {side!r}")
    return [f"l_{name}", f"r_{name}"] if side == "both" else [f"{side[0]}_{name}"]
