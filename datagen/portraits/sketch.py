"""What a product feature hands to reconstruction, the rough edit and where it counts, and what it is measured on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, field_validator

from stylepairs.datagen.portraits.portrait import Portrait
from stylepairs.datagen.shell.errors import InputError


class FeatureParams(BaseModel):
    """The parameters of a feature; it adds its own, `intensity` among them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("reference_px", check_fields=False)
    @classmethod
    def _power_of_two(cls, size_px: int) -> int:
        if size_px & (size_px - 1):
            raise ValueError(f"{size_px} is not a power of two; sketches are compared at 4, 8, 16, ... px")
        return size_px


@dataclass(frozen=True)
class Sketch:
    """A rough edit of a portrait.

    image [3,H,W] float32 in [-1,1]: the portrait with the edit painted on it.
    edit_mask [1,H,W] in [0,1]: where the sketch is to be met at low resolution (inside).
    keep_mask [1,H,W] in [0,1]: where the photo is to be met at full resolution (outside); the two need not sum to one.
    reference_px: side of the downsampled sketch that the reconstruction must equal (power of two).
    space: colour space of that comparison; "lab" for colour features, so that shading is free to stay.
    photo_detail: share in [0,1] of the photo's own fine detail (what the inversion could not render) that composition
    puts back inside the mask; 1 where the edit keeps the texture (one colour in place of another; several side by side
    run into one), 0 where it paints new shapes.
    sketch_detail: share in [0,1] of the sketch's own detail, all that is finer than its reference resolution, that
    composition keeps inside the mask; 1 where the sketch holds real texture (a warped photo, painted strands), 0 where
    only the generator can supply it.
    harmony: share in [0,1] of light and colour at the reference resolution that composition takes from the generator
    where it keeps the sketch's detail; 0 where they are the photo's own (a warped photo).
    backwards: whether the pair runs from the edit to the portrait, which is its after half then. So an edit is learned
    that few portraits have room for, from those who have its outcome already.
    parts: the sketches that this one was combined from, each made on the portrait as the one before leaves it; () where
    it is one edit.
    label [H,W], hair [1,H,W], points68 [68,2]: the portrait's after the edit; None where the edit leaves them as they
    are.
    """

    image: torch.Tensor
    edit_mask: torch.Tensor
    keep_mask: torch.Tensor
    reference_px: int
    space: Literal["rgb", "lab"] = "rgb"
    photo_detail: float = 0.0
    sketch_detail: float = 0.0
    harmony: float = 1.0
    backwards: bool = False
    label: torch.Tensor | None = None
    hair: torch.Tensor | None = None
    points68: torch.Tensor | None = None
    parts: tuple[Sketch, ...] = ()

    def with_detail(self, share: float) -> Sketch:
        """The sketch with `share` of its sketch_detail, its parts likewise."""
        parts = tuple(part.with_detail(share) for part in self.parts)
        return replace(self, sketch_detail=share * self.sketch_detail, parts=parts)

    def applied_to(self, portrait: Portrait) -> Portrait:
        """The portrait as the edit leaves it: what a second feature of the same pair starts from."""
        changed = {name: getattr(self, name) for name in ("label", "hair", "points68")}
        return replace(
            portrait, image=self.image, **{name: value for name, value in changed.items() if value is not None}
        )


@dataclass(frozen=True)
class AnalysedPair:
    """Both halves of a composed pair, each with the label map, hair matte and landmarks that the analyser finds in it.

    What a feature is measured on. Without an analyser both carry the portrait's own.
    """

    before: Portrait
    after: Portrait


class SketchRefused(InputError):
    """The feature does not apply to this portrait (no hair to colour, ...). The message is the reason, one line.

    A build records it as the rejection reason of the pair and goes on.
    """
