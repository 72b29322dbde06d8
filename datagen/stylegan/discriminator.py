"""StyleGAN2 discriminator (Karras et al. 2020): the residual network with minibatch standard deviation, NVIDIA's
names."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from stylepairs.datagen.stylegan.layers import Conv2d, FullyConnected, at_least_float32, refuse_impossible
from stylepairs.kernels.dispatch import without_autocast
from stylepairs.kernels.upfirdn2d import setup_filter


@dataclass(frozen=True)
class DiscriminatorConfig:
    """What fixes every shape; cond_channels are image-shaped conditions concatenated to the image by the caller."""

    img_resolution: int = 1024
    img_channels: int = 3
    channel_base: int = 32768
    channel_max: int = 512
    cond_channels: int = 0
    mbstd_group_size: int = 4
    conv_clamp: float | None = None

    def __post_init__(self) -> None:
        refuse_impossible(self, img_channels=1, cond_channels=0, channel_max=1, mbstd_group_size=1)

    def channels(self, resolution: int) -> int:
        return min(self.channel_base // resolution, self.channel_max)

    @property
    def resolutions(self) -> list[int]:
        return [2**k for k in range(int(math.log2(self.img_resolution)), 2, -1)]


class Discriminator(nn.Module):
    """image [N,img_channels+cond_channels,H,W] -> logits [N,1]; positive means real."""

    def __init__(self, config: DiscriminatorConfig):
        super().__init__()
        self.config = config
        for resolution in config.resolutions:
            setattr(self, f"b{resolution}", DiscriminatorBlock(config, resolution))
        self.b4 = DiscriminatorEpilogue(config)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = image
        for resolution in self.config.resolutions:
            x = getattr(self, f"b{resolution}")(x)
        logits: torch.Tensor = self.b4(x)
        return logits


class DiscriminatorBlock(nn.Module):
    """Halve the resolution: two convolutions beside a 1x1 skip, both outputs scaled to keep the variance."""

    def __init__(self, config: DiscriminatorConfig, resolution: int):
        super().__init__()
        here, below = config.channels(resolution), config.channels(resolution // 2)
        clamp = config.conv_clamp
        self.register_buffer("resample_filter", setup_filter())
        self.is_first = resolution == config.img_resolution
        if self.is_first:
            self.fromrgb = Conv2d(config.img_channels + config.cond_channels, here, 1, "lrelu", clamp=clamp)
        self.conv0 = Conv2d(here, here, 3, "lrelu", clamp=clamp)
        self.conv1 = Conv2d(here, below, 3, "lrelu", down=2, clamp=clamp)
        self.skip = Conv2d(here, below, 1, down=2, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.is_first:
            x = self.fromrgb(x)
        gain = math.sqrt(0.5)
        y: torch.Tensor = self.skip(x, gain=gain) + self.conv1(self.conv0(x), gain=gain)
        return y


class DiscriminatorEpilogue(nn.Module):
    """4x4 features -> one logit, with the minibatch standard deviation as one more channel (Karras et al. 2018); in
    full precision under autocast too, as in the official release."""

    def __init__(self, config: DiscriminatorConfig):
        super().__init__()
        channels = config.channels(4)
        self.group_size = config.mbstd_group_size
        self.conv = Conv2d(channels + 1, channels, 3, "lrelu", clamp=config.conv_clamp)
        self.fc = FullyConnected(channels * 16, channels, "lrelu")
        self.out = FullyConnected(channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with without_autocast(x.device.type):
            x = at_least_float32(x)
            x = self.conv(torch.cat([x, minibatch_stddev(x, self.group_size)], dim=1))
            logits: torch.Tensor = self.out(self.fc(x.flatten(1)))
        return logits


def minibatch_stddev(x: torch.Tensor, group_size: int) -> torch.Tensor:
    """Mean standard deviation within each group of the batch, as one channel [N,1,H,W]; groups interleave the batch."""
    n, _, h, w = x.shape
    group = min(group_size, n)
    if n % group:
        raise ValueError(f"minibatch_stddev: batch {n} is not a multiple of the group size {group}")
    y = x.reshape(group, -1, *x.shape[1:])
    y = (y - y.mean(0)).square().mean(0)
    y = (y + 1e-8).sqrt().mean(dim=(1, 2, 3))
    return y.reshape(-1, 1, 1, 1).repeat(group, 1, h, w)
