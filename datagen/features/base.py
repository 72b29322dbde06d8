"""What a product feature hands to reconstruction: the rough edit and where it counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from stylepairs.datagen.errors import InputError


@dataclass(frozen=True)
class Sketch:
    """A rough edit of a portrait.

    image [3,H,W] float32 in [-1,1]: the portrait with the edit painted on it.
    edit_mask [1,H,W] in [0,1]: where the sketch is to be met at low resolution (inside).
    keep_mask [1,H,W] in [0,1]: where the photo is to be met at full resolution (outside); the two need not sum to one.
    reference_px: side of the downsampled sketch that the reconstruction must equal (power of two).
    space: colour space of that comparison; "lab" for colour features, so that shading is free to stay.
    photo_detail: share in [0,1] of the photo's own fine detail (what the inversion could not render) that composition
    puts back inside the mask; 1 where the edit keeps the texture (colour), 0 where it paints new shapes.
    """

    image: torch.Tensor
    edit_mask: torch.Tensor
    keep_mask: torch.Tensor
    reference_px: int
    space: Literal["rgb", "lab"] = "rgb"
    photo_detail: float = 0.0


class SketchRefused(InputError):
    """The feature does not apply to this portrait (no hair to colour, ...). The message is the reason, one line.

    A build records it as the rejection reason of the pair and goes on.
    """
