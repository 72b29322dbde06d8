"""A portrait: an aligned crop with all that the features need to know of it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

CLASS_NAMES = (
    "background", "skin", "l_brow", "r_brow", "l_eye", "r_eye", "eye_g", "l_ear", "r_ear", "ear_r",
    "nose", "mouth", "u_lip", "l_lip", "neck", "necklace", "cloth", "hair", "hat",
)  # fmt: skip
CLASS = {name: index for index, name in enumerate(CLASS_NAMES)}


@dataclass(frozen=True)
class Portrait:
    """An aligned crop, square, of side H = W pixels; pixel centres at integers.

    image [3,H,W] float32 RGB in [-1,1]; label [H,W] uint8, CelebAMask-HQ classes; hair [1,H,W] float32 matte in [0,1];
    points68 [68,2] float32 (x, y) in aligned pixels; digest: sha256 of the aligned image's uint8 pixels, which names
    the portrait in caches and provenance.
    """

    name: str
    image: torch.Tensor
    label: torch.Tensor
    hair: torch.Tensor
    points68: torch.Tensor
    digest: str

    @property
    def size_px(self) -> int:
        return int(self.image.shape[-1])

    def to(self, device: torch.device | str) -> Portrait:
        """The same portrait with its tensors on `device`."""
        image, label, hair, points68 = (x.to(device) for x in (self.image, self.label, self.hair, self.points68))
        return replace(self, image=image, label=label, hair=hair, points68=points68)

    def resized(self, size_px: int) -> Portrait:
        """The same portrait at another size: image and matte antialiased, labels by nearest neighbour."""
        if size_px == self.size_px:
            return self
        scale = size_px / self.size_px
        return replace(
            self,
            image=resized_image(self.image, size_px).clamp(-1, 1),
            label=F.interpolate(self.label[None, None].float(), size=(size_px, size_px), mode="nearest-exact")[0, 0].to(
                torch.uint8
            ),
            hair=resized_image(self.hair, size_px).clamp(0, 1),
            points68=(self.points68 + 0.5) * scale - 0.5,
        )


def bare_portrait(name: str, image: torch.Tensor, digest: str = "") -> Portrait:
    """A portrait of which nothing is known but its picture [3,H,W]."""
    label = torch.zeros(image.shape[-2:], dtype=torch.uint8, device=image.device)
    return Portrait(name, image, label, torch.zeros_like(image[:1]), torch.zeros(68, 2, device=image.device), digest)


def resized_image(image: torch.Tensor, size_px: int) -> torch.Tensor:
    """image [C,H,W] brought to size_px, antialiased; its range may be left by a little."""
    return F.interpolate(image[None], size=(size_px, size_px), mode="bicubic", antialias=True, align_corners=False)[0]
