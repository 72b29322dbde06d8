"""The channels of a pixel as a vector: its unit norm and the squared distance of two, in few passes over the memory.

Each is one autograd function; a second derivative raises.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from stylepairs.kernels.dispatch import apply


def unit(x: torch.Tensor, floor: float, length: float = 1.0) -> torch.Tensor:
    """x [N,C,H,W] -> length * x / sqrt(sum over C of x^2 + floor)."""
    return apply(_Unit, x, floor, length)


def squared_distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Sum over C of (a - b)^2: [N,C,H,W] each (a batch of one broadcasts) -> [N,1,H,W]."""
    if a.shape != b.shape or (torch.is_grad_enabled() and b.requires_grad):
        return (a - b).square().sum(1, keepdim=True)
    return apply(_SquaredDistance, a, b)


class _Unit(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, floor: float, length: float) -> torch.Tensor:
        scale = (_squared_norm(x) + floor).rsqrt_().mul_(length)  # [N,1,H,W]
        y = x * scale
        ctx.save_for_backward(y, scale)
        ctx.length = length
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        y, scale = ctx.saved_tensors
        along = (gradient * y).sum(1, keepdim=True)
        return (gradient * scale).addcmul_(y, along.mul_(scale), value=-(ctx.length**-2)), None, None


class _SquaredDistance(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        difference = a - b
        ctx.save_for_backward(difference)
        return _squared_norm(difference)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (difference,) = ctx.saved_tensors
        return difference * (gradient * 2), None


def _squared_norm(x: torch.Tensor) -> torch.Tensor:
    return x.square().sum(1, keepdim=True)  # vector_norm gains little in channels_last; else it takes 10 times as long
