"""Augmentation of one training sample with albumentations: a pair moves and is recoloured as one, and then the photo
alone is degraded, as poor originals are.

Every number comes from a generator that the caller seeds. All transforms of a call share it: seeded one by one, as
`Compose(seed=)` does, they decide alike, and what is flipped is always rotated too.
"""

from __future__ import annotations

import math
import os
import random
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from stylepairs.datagen.images.colors import lab_to_paled_srgb, srgb_to_lab
from stylepairs.datagen.images.filters import blurred, grown, mean_of
from stylepairs.datagen.images.tones import in_shade, toned_to

if TYPE_CHECKING:
    import albumentations

    from stylepairs.i2i.train.settings import DataSettings

# What degrades a photo: each of them in half of the degraded samples, up to this much.
BLUR_SIGMA_PX = (0.3, 1.0)
DOWN_SCALE = (0.5, 0.9)
NOISE_STD = (0.0, 0.03)  # of the range from black to white
JPEG_QUALITY = (40, 95)
# Of a dyed sample: any hue, and colours from dull to glaring.
DYED_SATURATION, DYED_HUE = (0.8, 2.5), (-0.5, 0.5)
# CIELAB of a painted sample: chroma up to that of vivid dyes, how much lighter than it was, its mean lightness.
PAINTED_CHROMA, PAINTED_LIGHTER, PAINTED_LIGHTNESS = 75.0, (-15.0, 35.0), (8.0, 88.0)


@dataclass(frozen=True)
class Transforms:
    """In the order in which they are applied: to photo, target and masks; to photo and target; to the photo alone."""

    moving: albumentations.Compose
    recolouring: albumentations.Compose
    degrading: albumentations.Compose


@lru_cache(maxsize=8)
def transforms_of(settings: DataSettings) -> Transforms:
    """The transforms with these settings; made once, as it takes longer than to apply them."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # or importing it asks the network for a newer version
    import albumentations as A

    shift, turn = settings.shift_share, settings.rotation_degrees
    affine = A.Affine(
        scale=_around_one(settings.scale_share),
        keep_ratio=True,
        translate_percent=(-shift, shift),
        rotate=(-turn, turn),
        interpolation=cv2.INTER_CUBIC,  # linear resampling would teach the model a softer target
        mask_interpolation=cv2.INTER_LINEAR,
        border_mode=cv2.BORDER_REFLECT_101,
        p=settings.affine_share,
    )
    # Neither looks at the picture's mean, so that photo and target stay equal where they are.
    lightness = A.RandomBrightnessContrast(settings.brightness / 2, settings.contrast, brightness_by_max=True, p=1)
    saturation = A.ColorJitter((1, 1), (1, 1), _around_one(settings.saturation), (0, 0), p=1)
    recolouring: list[Any] = [A.Sequential([lightness, saturation], p=settings.photometric_share)]
    if settings.dyed_share:
        recolouring.append(A.ColorJitter((1, 1), (1, 1), DYED_SATURATION, DYED_HUE, p=settings.dyed_share))
    poor = [
        A.GaussianBlur(blur_limit=0, sigma_limit=BLUR_SIGMA_PX, p=0.5),
        A.Downscale(DOWN_SCALE, {"downscale": cv2.INTER_AREA, "upscale": cv2.INTER_LINEAR}, p=0.5),
        A.GaussNoise(NOISE_STD, p=0.5),
        _jpeg(quality_range=JPEG_QUALITY, p=0.5),
    ]
    pair: dict[str, Any] = {"additional_targets": {"target": "image", "edit_mask": "mask"}, "save_applied_params": True}
    return Transforms(
        moving=A.Compose([A.HorizontalFlip(p=settings.flip_share), affine], **pair),
        recolouring=A.Compose(recolouring, **pair),
        degrading=A.Compose([A.Sequential(poor, p=settings.degrade_share)]),
    )


def applied(
    transforms: albumentations.Compose, rng: np.random.Generator, **images: np.ndarray
) -> tuple[dict[str, np.ndarray], bool]:
    """uint8 images (`image`, `target` [H,W,3]; `mask`, `edit_mask` [H,W]) transformed alike; and whether any was."""
    transforms.set_random_state(rng, random.Random(int(rng.integers(2**63))))
    result = transforms(**images)
    return {name: result[name] for name in images}, bool(result.get("applied_transforms"))


def painted(image: torch.Tensor, mask: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """An image [3,H,W] in [-1,1] whose mean colour inside the mask [1,H,W] is any other, in its own light and shade."""
    lab, inside = srgb_to_lab(image), (mask > 0.5).float()
    hue, chroma, lighter = rng.uniform(0, 2 * math.pi), rng.uniform(0, PAINTED_CHROMA), rng.uniform(*PAINTED_LIGHTER)
    own = mean_of(lab[:1], inside)
    lightness = (own + lighter).clamp(*PAINTED_LIGHTNESS)
    color = chroma * torch.tensor([math.cos(hue), math.sin(hue)])[:, None, None]
    light = toned_to(lab[:1], lightness, partial(mean_of, weight=inside), 3)
    paint = torch.cat([light, in_shade(color.expand(-1, *light.shape[1:]), lightness, light)])
    return image.lerp(lab_to_paled_srgb(paint), mask)


def region(mask: torch.Tensor, settings: DataSettings, rng: np.random.Generator) -> torch.Tensor:
    """What the model is told of the mask [1,H,W]: nothing (all 1), a rough hand's box or brush around it, or what an
    analyser might give."""
    kind, broad, seen = rng.random(), rough_region(mask, rng), analysed_region(mask, settings.region_share, rng)
    if kind < settings.region_dropped_share or not mask.any():
        return torch.ones_like(mask)
    return broad if kind < settings.region_dropped_share + settings.region_rough_share else seen


def rough_region(mask: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """A box around the mask [1,H,W], or the mask as a brush of up to a tenth of the side paints it; none of it is
    cut off."""
    is_box, spread = rng.random() < 0.5, rng.uniform(0.01, 0.1, size=4)
    margins = np.ceil(spread * mask.shape[-1]).astype(int)
    if not is_box:
        return grown((mask > 0).float(), int(margins[0]))
    box = torch.zeros_like(mask)
    rows, columns = (torch.nonzero(mask[0].amax(dim)).flatten() for dim in (1, 0))
    if len(rows):
        top, left = max(int(rows[0]) - margins[0], 0), max(int(columns[0]) - margins[1], 0)
        box[:, top : int(rows[-1]) + margins[2] + 1, left : int(columns[-1]) + margins[3] + 1] = 1
    return box


def analysed_region(mask: torch.Tensor, share: float, rng: np.random.Generator) -> torch.Tensor:
    """The mask [1,H,W] as an analyser might give it: in a share of cases softer or harder, a bit larger or smaller, a
    pixel off."""
    wanted = rng.random() < share
    sigma, hardness, grow = rng.uniform(0.3, 2.0), rng.uniform(1.0, 2.0), rng.uniform(-0.25, 0.25)
    down, right = rng.integers(-1, 2, size=2).tolist()
    if not wanted:
        return mask
    height, width = mask.shape[-2:]
    soft = F.pad(blurred(mask, sigma)[None], (1, 1, 1, 1), "replicate")[0]
    soft = soft[:, 1 - down : 1 - down + height, 1 - right : 1 - right + width]
    return ((soft - 0.5) * hardness + 0.5 + grow * 4 * soft * (1 - soft)).clamp(0, 1)


def _jpeg(**settings: Any) -> Any:
    """albumentations' JPEG in OpenCV's order of colours, which it leaves to its caller."""
    import albumentations as A

    class Jpeg(A.ImageCompression):  # type: ignore[misc]
        def apply(self, img: np.ndarray, *args: Any, **params: Any) -> np.ndarray:
            coded = super().apply(np.ascontiguousarray(img[..., ::-1]), *args, **params)
            return np.ascontiguousarray(coded[..., ::-1])

    return Jpeg(**settings)


def _around_one(share: float) -> tuple[float, float]:
    return 1 - share, 1 + share
