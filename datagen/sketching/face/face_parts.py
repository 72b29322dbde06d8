"""The parts of a face that are taken from one portrait to another: brows, eyes, nose and mouth; where they lie, and
whether they can be seen.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from stylepairs.datagen.images.colors import srgb_to_lab
from stylepairs.datagen.images.filters import mean_of
from stylepairs.datagen.portraits.face_frame import FaceFrame
from stylepairs.datagen.portraits.portrait import Portrait
from stylepairs.datagen.portraits.regions import dilate, labelled, polygon
from stylepairs.datagen.sketching.face.glasses import wears_glasses

# Each part's pieces: positions among the 68 landmarks, and which of them are laid on the portrait's own. A mouth hangs
# on its upper lip: open or shut, that is where the skull holds it.
PIECES: dict[str, tuple[tuple[range, list[int]], ...]] = {
    "brows": ((range(17, 22), [*range(17, 22)]), (range(22, 27), [*range(22, 27)])),
    "eyes": ((range(36, 42), [36, 39]), (range(42, 48), [42, 45])),
    "nose": ((range(27, 36), [*range(27, 36)]),),
    "mouth": ((range(48, 68), [*range(48, 55)]),),
}
PARTS = tuple(PIECES)
PART_CLASSES = {
    "brows": ("l_brow", "r_brow"),
    "eyes": ("l_eye", "r_eye"),
    "nose": ("nose",),
    "mouth": ("mouth", "u_lip", "l_lip"),
}
_WORK_PX = 256
# What covers more than this share of a part hides it: hair, a hat, an eye patch.
_MAX_HIDDEN = 0.12
# Slope of lightness across a spectacle's bridge, in shares of the skin's lightness an eye distance. Of references there
# are enough to be strict: bare faces have 0.1 to 1.2, frames that `wears_glasses` may miss are among the higher.
_MAX_BRIDGE_OF_REFERENCE = 0.55
# Lightness by which brows must be darker than the skin around them to be worth taking.
MIN_BROW_CONTRAST = 7.0
# Spread of lightness between the lids: a quarter of portraits have less, squinting, blurred or in deep shadow.
MIN_EYE_CONTRAST = 14.5


def hidden_part(portrait: Portrait, parts: tuple[str, ...]) -> str:
    """Why one of the parts cannot be seen plainly, or ""."""
    for part in parts:
        core = part_hulls(portrait, [portrait.points68], part)
        share = float((core * covering(portrait)).sum() / core.sum().clamp_min(1e-6))
        if share > _MAX_HIDDEN:
            return f"{100 * share:.0f} % of the {part} are hidden by hair or what is worn"
    beside = [part for part in parts if part != "mouth"]
    if beside and wears_glasses(portrait):
        return f"glasses, or shadows that look like them, hide the {', '.join(beside)}"
    return ""


def bare_bridge(portrait: Portrait) -> bool:
    """Whether the nose between the eyes is so plain that no bridge of glasses can lie over it."""
    return _bridge_contrast(portrait) <= _MAX_BRIDGE_OF_REFERENCE


def part_hulls(portrait: Portrait, shapes: list[torch.Tensor], part: str) -> torch.Tensor:
    """The convex hulls [1,H,W] of the part's pieces, each of all `shapes` [68,2] together, antialiased."""
    mask = torch.zeros_like(portrait.hair)
    for piece, _ in PIECES[part]:
        points = torch.cat([shape[list(piece)] for shape in shapes]).cpu().numpy().astype(np.float32)
        mask = torch.maximum(mask, polygon(portrait, cv2.convexHull(points)[:, 0]))
    return mask


def covering(portrait: Portrait) -> torch.Tensor:
    """What lies over a face, or beside it [1,H,W]: hair, hat, spectacles, background, clothes, neck."""
    worn = labelled(portrait, "background", "eye_g", "hair", "hat", "cloth", "neck", "necklace", "ear_r")
    return torch.maximum(worn, (portrait.hair > 0.5).float() * (1 - labelled(portrait, "l_brow", "r_brow")))


def bare_skin(portrait: Portrait) -> torch.Tensor:
    """Skin of face and nose [1,H,W], without the hair over it."""
    return labelled(portrait, "skin", "nose") * (1 - portrait.hair)


def widened(mask: torch.Tensor, share: float) -> torch.Tensor:
    """mask [1,H,W] grown by a disc whose radius is `share` of the side; large ones at a lower resolution, where a disc
    of a tenth of the face costs no gigabytes."""
    size = mask.shape[-1]
    if size <= _WORK_PX:
        return dilate(mask, share)
    small = F.interpolate(mask[None], size=(_WORK_PX, _WORK_PX), mode="area")[0]
    grown = F.interpolate(dilate(small, share)[None], size=(size, size), mode="bilinear")[0]
    return torch.maximum(grown, mask)


def brow_contrast(portrait: Portrait) -> float:
    """By how much lightness the brows are darker than the skin close to them."""
    light = srgb_to_lab(portrait.image)[:1]
    brows = labelled(portrait, *PART_CLASSES["brows"])
    around = widened(brows, 0.03) * labelled(portrait, "skin") * (1 - widened(brows, 0.01))
    return float(mean_of(light, around) - mean_of(light, brows))


def eye_contrast(portrait: Portrait) -> float:
    """Standard deviation of lightness between the lids."""
    between = part_hulls(portrait, [portrait.points68], "eyes")[0] > 0.5
    return float(srgb_to_lab(portrait.image)[0][between].std()) if int(between.sum()) > 1 else 0.0


def _bridge_contrast(portrait: Portrait) -> float:
    """The steepest line across the nose between the eyes, as a share of the skin's lightness: a spectacle's bridge."""
    small = portrait.resized(128)
    light = srgb_to_lab(small.image)[0].cpu().numpy()
    x, y = np.meshgrid(np.linspace(-0.12, 0.12, 9), np.linspace(-0.2, 0.3, 17))
    places = FaceFrame.of_eyes(small.points68.cpu().double()).pixels(torch.from_numpy(np.stack([x, y], -1))).numpy()
    patch = cv2.remap(light, places[..., 0].astype(np.float32), places[..., 1].astype(np.float32), cv2.INTER_LINEAR)
    slope = np.abs(np.gradient(patch, axis=0).mean(1)).max()
    return float(slope * 8 / max(20.0, float(np.median(patch))))
