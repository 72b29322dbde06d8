"""The Gaussian blur that colours, sketches and composition share."""

from __future__ import annotations

import torch


def blurred(x: torch.Tensor, sigma_px: float, reach: float = 3.0) -> torch.Tensor:
    """Gaussian blur of [C,H,W] or [N,C,H,W], edges reflected; cut off after `reach` deviations (at least a pixel)."""
    from kornia.filters import gaussian_blur2d

    radius = min(max(1, round(reach * sigma_px)), min(x.shape[-2:]) - 1)
    batch = x if x.ndim == 4 else x[None]
    found = gaussian_blur2d(batch, 2 * radius + 1, (sigma_px, sigma_px))
    return found if x.ndim == 4 else found[0]
