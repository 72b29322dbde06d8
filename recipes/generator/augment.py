"""Differentiable augmentation of what the heads see (Zhao et al. 2020): a draw per image, the same for a portrait and
a rendering in its place."""

from __future__ import annotations

from dataclasses import dataclass

import torch

BRIGHTNESS, SATURATION, CONTRAST, SHIFT = 0.4, 0.8, 0.4, 0.125  # largest changes; the shift by the side
CUTOUT = 0.5  # side of the square that is blacked out, by the image's


@dataclass(frozen=True)
class Augmentation:
    """[N] each, zero where an image keeps what it has; cutout [N,2]: the square's centre, negative where there is
    none."""

    brightness: torch.Tensor
    saturation: torch.Tensor
    contrast: torch.Tensor
    shift: torch.Tensor  # [N,2]: down and right, by the side
    cutout: torch.Tensor

    def tensors(self) -> list[torch.Tensor]:
        return [self.brightness, self.saturation, self.contrast, self.shift, self.cutout]

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """[N,3,H,W] in [-1,1] -> the same, differentiably."""
        image = image + _column(self.brightness)
        image = _about(image, image.mean(1, keepdim=True), self.saturation)
        image = _about(image, image.mean((1, 2, 3), keepdim=True), self.contrast)
        image = _shifted(image, (self.shift * image.shape[-1]).round().long())
        return image * self._kept(image)

    def _kept(self, image: torch.Tensor) -> torch.Tensor:
        """[N,1,H,W]: 0 in the squares."""
        n, side = len(image), image.shape[-1]
        place = (torch.arange(side, device=image.device) + 0.5) / side
        near = [(place - at.view(n, 1)).abs() < CUTOUT / 2 for at in self.cutout.unbind(1)]
        hit = near[0][:, :, None] & near[1][:, None] & (self.cutout[:, :1, None] >= 0)
        return (~hit).float()[:, None]


def draw_augmentation(count: int, p: float, draw: torch.Generator, device: torch.device) -> Augmentation:
    """Each operation with probability p; for images on the device."""

    def uniform(most: float, columns: int = 1) -> torch.Tensor:
        values = (torch.rand(count, columns, generator=draw) * 2 - 1) * most
        return values * chosen()

    def chosen() -> torch.Tensor:
        return torch.rand(count, 1, generator=draw) < p

    brightness, saturation, contrast = (uniform(most)[:, 0] for most in (BRIGHTNESS, SATURATION, CONTRAST))
    shift, centre = uniform(SHIFT, 2), torch.rand(count, 2, generator=draw)
    values = brightness, saturation, contrast, shift, torch.where(chosen(), centre, -torch.ones(()))
    return Augmentation(*(sent(each, device) for each in values))


def sent(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """On the device; a GPU is not waited for."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


def _about(image: torch.Tensor, middle: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
    return middle + (image - middle) * (1 + _column(change))


def _column(values: torch.Tensor) -> torch.Tensor:
    return values.view(-1, 1, 1, 1)


def _shifted(image: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
    """Each image moved by whole pixels [N,2], zeros entering; nothing is asked of a GPU."""
    for axis, side in enumerate(image.shape[2:]):
        source = torch.arange(side, device=image.device) - by[:, axis : axis + 1]  # [N,side]
        shape = (len(image), 1, side, 1) if axis == 0 else (len(image), 1, 1, side)
        inside = ((source >= 0) & (source < side)).view(shape)
        image = image.gather(2 + axis, source.clamp(0, side - 1).view(shape).expand_as(image)) * inside
    return image
