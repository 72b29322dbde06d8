"""Differentiable augmentation of what the heads see (Zhao et al. 2020): a draw per image, the same for a portrait and
a rendering in its place."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

BRIGHTNESS, SATURATION, CONTRAST, SHIFT = 0.4, 0.8, 0.4, 0.125  # largest changes; the shift by the side
CUTOUT = 0.5  # side of the square that is blacked out, by the image's


@dataclass(frozen=True)
class Augmentation:
    """[N] each, zero where an image keeps what it has; cutout [N,2]: the square's centre, negative where there is
    none."""

    brightness: torch.Tensor
    saturation: torch.Tensor
    contrast: torch.Tensor
    shift: torch.Tensor  # [N,2]
    cutout: torch.Tensor

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """[N,3,H,W] in [-1,1] -> the same, differentiably."""
        image = image + _column(self.brightness, image)
        image = _about(image, image.mean(1, keepdim=True), self.saturation)
        image = _about(image, image.mean((1, 2, 3), keepdim=True), self.contrast)
        image = _shifted(image, (self.shift * image.shape[-1]).round().int().tolist())
        return image * self._kept(image)

    def _kept(self, image: torch.Tensor) -> torch.Tensor:
        """[N,1,H,W]: 0 in the squares."""
        n, side = len(image), image.shape[-1]
        place = (torch.arange(side, device=image.device) + 0.5) / side
        near = [(place - at.view(n, 1)).abs() < CUTOUT / 2 for at in self.cutout.to(image.device).unbind(1)]
        hit = near[0][:, :, None] & near[1][:, None] & (self.cutout[:, :1, None] >= 0).to(image.device)
        return (~hit).float()[:, None]


def draw_augmentation(count: int, p: float, draw: torch.Generator) -> Augmentation:
    """Each operation with probability p."""

    def uniform(most: float, columns: int = 1) -> torch.Tensor:
        values = (torch.rand(count, columns, generator=draw) * 2 - 1) * most
        return values * chosen()

    def chosen() -> torch.Tensor:
        return torch.rand(count, 1, generator=draw) < p

    brightness, saturation, contrast = (uniform(most)[:, 0] for most in (BRIGHTNESS, SATURATION, CONTRAST))
    shift, centre = uniform(SHIFT, 2), torch.rand(count, 2, generator=draw)
    return Augmentation(brightness, saturation, contrast, shift, torch.where(chosen(), centre, -torch.ones(())))


def _about(image: torch.Tensor, middle: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
    return middle + (image - middle) * (1 + _column(change, image))


def _column(values: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    return values.to(image.device).view(-1, 1, 1, 1)


def _shifted(image: torch.Tensor, by: list[list[int]]) -> torch.Tensor:
    """Each image moved (down, right) by whole pixels, zeros entering."""
    h, w = image.shape[2:]
    border = max(abs(value) for pair in by for value in pair)
    if border == 0:
        return image
    padded = F.pad(image, (border, border, border, border))
    moved = [padded[i, :, border - y : border - y + h, border - x : border - x + w] for i, (y, x) in enumerate(by)]
    return torch.stack(moved)
