"""Networks that others published, to compare with: pix2pix's U-Net (Isola et al. 2017), pix2pixHD's global generator
and its discriminators at several scales (Wang et al. 2018).

As there they make the whole image anew, with neither mask nor residual. The U-Net is without its dropout.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

SLOPE = 0.2  # of leaky ReLUs
WIDEST = 8  # channels grow to so many times the first layer's
DOWNS, RESIDUAL_BLOCKS = 4, 9  # of the global generator
PATCH_LAYERS = 3  # of a discriminator, beside its first and last


class UNet(nn.Module):
    """[N,Cin,S,S] -> [N,Cout,S,S] in [-1,1]: convolutions of stride 2 down to 1 x 1, skips on the way up."""

    def __init__(self, channels_in: int, channels_out: int, size_px: int, width: int):
        super().__init__()
        depth = int(math.log2(size_px))
        widths = [width * min(2**level, WIDEST) for level in range(depth)]
        self.downs, self.ups = nn.ModuleList([nn.Conv2d(channels_in, width, 4, 2, 1)]), nn.ModuleList()
        for level in range(1, depth):
            conv = nn.Conv2d(widths[level - 1], widths[level], 4, 2, 1)
            norm = [] if level == depth - 1 else [nn.BatchNorm2d(widths[level])]
            self.downs.append(nn.Sequential(nn.LeakyReLU(SLOPE), conv, *norm))
        for level in range(depth - 1, 0, -1):
            joined = widths[level] * (1 if level == depth - 1 else 2)
            up = nn.ConvTranspose2d(joined, widths[level - 1], 4, 2, 1)
            self.ups.append(nn.Sequential(nn.ReLU(), up, nn.BatchNorm2d(widths[level - 1])))
        self.out = nn.Sequential(nn.ReLU(), nn.ConvTranspose2d(2 * width, channels_out, 4, 2, 1), nn.Tanh())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skips = []
        for down in self.downs:
            x = down(x)
            skips.append(x)
        for up, skip in zip(self.ups, skips[-2::-1], strict=True):
            x = torch.cat([up(x), skip], dim=1)
        image: torch.Tensor = self.out(x)
        return image


class GlobalGenerator(nn.Module):
    """[N,Cin,S,S] -> [N,Cout,S,S] in [-1,1]: four halvings, nine residual blocks, four doublings, instance norms."""

    def __init__(self, channels_in: int, channels_out: int, width: int):
        super().__init__()
        layers: list[nn.Module] = [nn.ReflectionPad2d(3), nn.Conv2d(channels_in, width, 7), *_normed(width)]
        for level in range(DOWNS):
            here = width * 2**level
            layers += [nn.Conv2d(here, 2 * here, 3, 2, 1), *_normed(2 * here)]
        layers += [_ResidualBlock(width * 2**DOWNS) for _ in range(RESIDUAL_BLOCKS)]
        for level in range(DOWNS, 0, -1):
            here = width * 2**level
            layers += [nn.ConvTranspose2d(here, here // 2, 3, 2, 1, output_padding=1), *_normed(here // 2)]
        layers += [nn.ReflectionPad2d(3), nn.Conv2d(width, channels_out, 7), nn.Tanh()]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        image: torch.Tensor = self.layers(x)
        return image


class PatchDiscriminators(nn.Module):
    """[N,Cin,H,W] -> of each scale (the image, halved, ...) the features of every layer, the last of them logits."""

    def __init__(self, channels_in: int, scales: int, width: int):
        super().__init__()
        self.scales = nn.ModuleList(_patches(channels_in, width) for _ in range(scales))

    def forward(self, x: torch.Tensor) -> list[list[torch.Tensor]]:
        found = []
        for layers in self.scales:
            assert isinstance(layers, nn.ModuleList)
            maps = [x]
            for layer in layers:
                maps.append(layer(maps[-1]))
            found.append(maps[1:])
            x = F.avg_pool2d(x, 3, 2, 1, count_include_pad=False)
        return found


class _ResidualBlock(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3),
            *_normed(channels),
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3),
            nn.InstanceNorm2d(channels),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = x + self.layers(x)
        return y


def _normed(channels: int) -> list[nn.Module]:
    return [nn.InstanceNorm2d(channels), nn.ReLU()]


def _patches(channels_in: int, width: int) -> nn.ModuleList:
    """A PatchGAN discriminator, layer by layer."""
    layers = nn.ModuleList([nn.Sequential(nn.Conv2d(channels_in, width, 4, 2, 2), nn.LeakyReLU(SLOPE))])
    here = width
    for level in range(1, PATCH_LAYERS + 1):
        wider, stride = min(2 * here, WIDEST * width), 2 if level < PATCH_LAYERS else 1
        conv = nn.Conv2d(here, wider, 4, stride, 2)
        layers.append(nn.Sequential(conv, nn.InstanceNorm2d(wider), nn.LeakyReLU(SLOPE)))
        here = wider
    layers.append(nn.Conv2d(here, 1, 4, 1, 2))
    return layers
