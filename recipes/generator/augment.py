"""Differentiable augmentation of what the discriminator sees (Zhao et al. 2020), with its probability adapted to
overfitting (Karras et al. 2020, ADA): each operation is applied per image with probability p."""

from __future__ import annotations

import torch
import torch.nn.functional as F

Images = torch.Tensor
ADA_TARGET = 0.6  # mean sign of real logits that is held
ADA_IMAGES = 10_000  # images over which p may travel from 0 to 1; the 500 000 of the paper come too late for short runs
P_MAX = 0.8  # above it augmentations leak into the samples


def augment(image: Images, p: float, generator: torch.Generator) -> Images:
    """[N,3,H,W] in [-1,1] -> the same, each of brightness, saturation, contrast, shift and cutout with probability
    p."""
    if p <= 0:
        return image
    n, _, h, w = image.shape

    def draw(low: float, high: float) -> torch.Tensor:
        """Uniform [N,1,1,1] in [low, high] with probability p, else 0."""
        value, keep = torch.rand(2, n, generator=generator)
        return ((low + (high - low) * value) * (keep < p)).view(n, 1, 1, 1).to(image.device)

    image = image + draw(-0.4, 0.4)
    grey = image.mean(1, keepdim=True)
    image = grey + (image - grey) * (1 + draw(-0.8, 0.8))
    mean = image.mean((1, 2, 3), keepdim=True)
    image = mean + (image - mean) * (1 + draw(-0.4, 0.4))
    image = _shift(image, draw(-0.125, 0.125) * h, draw(-0.125, 0.125) * w)
    return image * _cutout(n, h, w, p, generator).to(image.device)


def adapt(p: float, mean_sign: float, images: int) -> float:
    """Move p by the sign of (how often real logits are positive) - target."""
    step = images / ADA_IMAGES * (1 if mean_sign > ADA_TARGET else -1)
    return min(max(p + step, 0.0), P_MAX)


def _shift(image: Images, dy: torch.Tensor, dx: torch.Tensor) -> Images:
    """Translate by whole pixels, zeros entering."""
    n, _, h, w = image.shape
    rows, columns = dy.flatten().round().int().tolist(), dx.flatten().round().int().tolist()
    border = max(map(abs, rows + columns))
    if border == 0:
        return image
    padded = F.pad(image, (border, border, border, border))
    shifted = [
        padded[i, :, border - rows[i] : border - rows[i] + h, border - columns[i] : border - columns[i] + w]
        for i in range(n)
    ]
    return torch.stack(shifted)


def _cutout(n: int, h: int, w: int, p: float, generator: torch.Generator) -> torch.Tensor:
    """Masks [N,1,H,W] with a square of half the side blacked out, with probability p."""
    keep, y, x = torch.rand(3, n, 1, 1, generator=generator)
    rows, columns = torch.arange(h).view(1, h, 1), torch.arange(w).view(1, 1, w)
    hit = ((rows - y * h).abs() < h / 4) & ((columns - x * w).abs() < w / 4) & (keep < p)
    return (~hit).float()[:, None]
