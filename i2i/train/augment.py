"""Augmentation of one training sample with kornia: it moves, recolours or degrades, every number drawn from an rng."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from stylepairs.i2i.train.settings import DataSettings


def geometry(stack: torch.Tensor, settings: DataSettings, rng: np.random.Generator) -> tuple[torch.Tensor, bool]:
    """Flip, rotate, scale and shift all channels [C,H,W] alike, edges reflected; also whether anything moved."""
    from kornia.geometry.transform import warp_affine

    flip = rng.random() < settings.flip_share
    affine = rng.random() < settings.affine_share
    angle = math.radians(rng.uniform(-settings.rotation_degrees, settings.rotation_degrees))
    scale = 1 + rng.uniform(-settings.scale_share, settings.scale_share)
    side = stack.shape[-1]
    shift = rng.uniform(-settings.shift_share, settings.shift_share, size=2) * side
    if flip:
        stack = stack.flip(-1)
    if affine:
        cos, sin, centre = math.cos(angle) * scale, math.sin(angle) * scale, (side - 1) / 2
        matrix = torch.tensor(
            [
                [cos, -sin, centre - cos * centre + sin * centre + shift[0]],
                [sin, cos, centre - sin * centre - cos * centre + shift[1]],
            ],
            dtype=torch.float32,
        )
        # Bicubic: bilinear resampling would teach the model a softer target.
        stack = warp_affine(stack[None], matrix[None], (side, side), mode="bicubic", padding_mode="reflection")[0]
    return stack, flip or affine


def photometric(images: torch.Tensor, settings: DataSettings, rng: np.random.Generator) -> torch.Tensor:
    """Brightness, contrast and saturation of all images [N,3,H,W] alike."""
    from kornia.enhance import adjust_contrast, adjust_saturation

    wanted = rng.random() < settings.photometric_share
    brightness = rng.uniform(-settings.brightness, settings.brightness)
    contrast = 1 + rng.uniform(-settings.contrast, settings.contrast)
    saturation = 1 + rng.uniform(-settings.saturation, settings.saturation)
    if not wanted:
        return images
    unit = adjust_contrast(adjust_saturation(images / 2 + 0.5, saturation), contrast)
    return (unit * 2 - 1 + brightness).clamp(-1, 1)


def degrade(photo: torch.Tensor, settings: DataSettings, rng: np.random.Generator) -> torch.Tensor:
    """The photo [3,H,W] a little blurred and noisy, as poor originals are."""
    wanted = rng.random() < settings.degrade_share
    sigma, strength = rng.uniform(0.3, 1.0), rng.uniform(0.0, 0.06)
    noise = torch.from_numpy(rng.standard_normal(tuple(photo.shape), dtype=np.float32))
    if not wanted:
        return photo
    return (blurred(photo, sigma) + noise * strength).clamp(-1, 1)


def region(mask: torch.Tensor, settings: DataSettings, rng: np.random.Generator) -> torch.Tensor:
    """The mask [1,H,W] as an analyser might give it: softer or harder, a bit larger or smaller, a pixel off."""
    wanted = rng.random() < settings.region_share
    sigma, hardness, grow = rng.uniform(0.3, 2.0), rng.uniform(1.0, 2.0), rng.uniform(-0.25, 0.25)
    shift = rng.integers(-1, 2, size=2)
    if not wanted:
        return mask
    soft = blurred(mask, sigma)
    soft = torch.roll(soft, (int(shift[0]), int(shift[1])), dims=(-2, -1))
    return ((soft - 0.5) * hardness + 0.5 + grow * 4 * soft * (1 - soft)).clamp(0, 1)


def blurred(image: torch.Tensor, sigma: float) -> torch.Tensor:
    """[C,H,W] under a Gaussian of sigma pixels."""
    from kornia.filters import gaussian_blur2d

    size = 2 * math.ceil(2 * sigma) + 1
    return gaussian_blur2d(image[None], (size, size), (sigma, sigma))[0]
