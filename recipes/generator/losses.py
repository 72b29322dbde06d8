"""What the generator lowers beside the hinge loss, the likeness of a portrait and its rendering, and the balance of
both."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

NORM_FLOOR = 1e-2  # added to squared norms: where all channels are silent, noise must not become signal
PIXEL_WEIGHT = 2.0
BALANCE_KEEP = 0.7  # of a weight's logarithm from one measurement to the next
Maps = list[torch.Tensor]
Mean = Callable[[torch.Tensor], torch.Tensor]


def accuracy(real: Maps, fake: Maps) -> torch.Tensor:
    """How often a logit's sign is right."""
    levels = [((r > 0).float().mean() + (f < 0).float().mean()) / 2 for r, f in zip(real, fake, strict=True)]
    return torch.stack(levels).mean()


def likeness_loss(image: torch.Tensor, portrait: torch.Tensor, maps: Maps, portrait_maps: Maps) -> torch.Tensor:
    """Squared distance of unit channel vectors (as LPIPS, Zhang et al. 2018), mean over places and levels, and the
    mean absolute difference of pixels and of their 4 x 4 means."""
    levels = [(_unit(a) - _unit(b)).square().sum(1).mean() for a, b in zip(maps, portrait_maps, strict=True)]
    difference = image - portrait
    pixels = difference.abs().mean() + F.avg_pool2d(difference, 4).abs().mean()
    return torch.stack(levels).mean() + PIXEL_WEIGHT * pixels


def decibel(image: torch.Tensor, portrait: torch.Tensor) -> torch.Tensor:
    """Mean PSNR of images in [-1,1]."""
    error = (image.clamp(-1, 1) - portrait).square().mean((1, 2, 3))
    return 10 * (4 / error.clamp_min(1e-10)).log10().mean()


def balanced(
    old: torch.Tensor | None,
    share: float,
    leading: torch.Tensor,
    own: torch.Tensor,
    image: torch.Tensor,
    rows: slice,
    mean: Mean,
) -> float:
    """The weight with which `own`'s gradient on these rows of the image is `share` of `leading`'s, smoothed over
    measurements; `mean` is over all processes."""
    gradients = [torch.autograd.grad(loss, image, retain_graph=True)[0][rows].norm() for loss in (leading, own)]
    measured = float(mean(share * gradients[0] / gradients[1].clamp_min(1e-12)).clamp_min(1e-6))
    return measured if old is None else float(old) ** BALANCE_KEEP * measured ** (1 - BALANCE_KEEP)


def _unit(x: torch.Tensor) -> torch.Tensor:
    x = x.float()
    return x * (x.square().sum(1, keepdim=True) + NORM_FLOOR).rsqrt()
