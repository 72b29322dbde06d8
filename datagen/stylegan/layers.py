"""The layers that StyleGAN2's generator and discriminator share (Karras et al. 2020), named as in NVIDIA's PyTorch
release."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from stylepairs.kernels.bias_act import bias_act
from stylepairs.kernels.upfirdn2d import setup_filter, upfirdn2d


class FullyConnected(nn.Module):
    """Linear layer with equalised learning rate: weights are stored divided by lr_multiplier and scaled at run time."""

    def __init__(
        self,
        features_in: int,
        features_out: int,
        act: str = "linear",
        lr_multiplier: float = 1.0,
        bias_init: float = 0.0,
    ):
        super().__init__()
        self.act = act
        self.weight = nn.Parameter(normal(features_out, features_in).mul_(1 / lr_multiplier))
        self.bias = nn.Parameter(torch.full([features_out], float(bias_init)))
        self.weight_gain = lr_multiplier / math.sqrt(features_in)
        self.bias_gain = lr_multiplier

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.addmm(self.bias, x, self.weight.t(), beta=self.bias_gain, alpha=self.weight_gain)
        return bias_act(x, act=self.act)


class Conv2d(nn.Module):
    """Convolution with equalised learning rate, optional FIR downsampling and activation: the discriminator's layer."""

    resample_filter: torch.Tensor

    def __init__(
        self, channels_in: int, channels_out: int, kernel: int, act: str = "linear", down: int = 1, bias: bool = True,
        clamp: float | None = None,
    ):  # fmt: skip
        super().__init__()
        self.act, self.down, self.clamp = act, down, clamp
        self.weight = nn.Parameter(normal(channels_out, channels_in, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(channels_out)) if bias else None
        self.weight_gain = 1 / math.sqrt(channels_in * kernel**2)
        self.register_buffer("resample_filter", setup_filter())

    def forward(self, x: torch.Tensor, gain: float = 1.0) -> torch.Tensor:
        weight = self.weight * self.weight_gain
        padding = weight.shape[-1] // 2
        if self.down > 1:
            taps = self.resample_filter.sum(0)
            before, after = padding + (len(taps) - self.down + 1) // 2, padding + (len(taps) - self.down) // 2
            # A 1x1 convolution sees only the kept pixels, so the filter itself may skip the others.
            filter_down = self.down if padding == 0 else 1
            x = upfirdn2d(x, taps, down=filter_down, padding=(before, after, before, after))
            x = F.conv2d(x, weight, stride=self.down // filter_down)
        else:
            x = F.conv2d(x, weight, padding=padding)
        clamp = None if self.clamp is None else self.clamp * gain
        act_gain = gain * (math.sqrt(2.0) if self.act != "linear" else 1.0)
        return bias_act(x, self.bias, act=self.act, gain=act_gain, clamp=clamp)


def normal(*shape: int) -> torch.Tensor:
    """Normal numbers; on the meta device none, as torch imports its compiler (2 to 4 s) before it draws none there."""
    empty = torch.empty(shape)
    return empty if empty.is_meta else torch.randn(shape)


def refuse_impossible(config: Any, **least: int) -> None:
    """Raises ValueError where a configuration has a number under its least, empty layers, or clamps at nothing."""
    for name, bound in least.items():
        if getattr(config, name) < bound:
            raise ValueError(f"{name} must be at least {bound}, got {getattr(config, name)}")
    if config.channel_base < config.img_resolution:
        raise ValueError(f"channel_base must be at least img_resolution {config.img_resolution}, or layers are empty")
    if config.conv_clamp is not None and not config.conv_clamp > 0:
        raise ValueError(f"conv_clamp must be above 0 or None, got {config.conv_clamp}")


def at_least_float32(x: torch.Tensor) -> torch.Tensor:
    """float16 and bfloat16 as float32; float64, in which gradients are checked, stays."""
    return x if x.dtype == torch.float64 else x.float()
