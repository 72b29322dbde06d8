"""A small network for phones: inverted residuals (MobileNetV2, Sandler et al. 2018) down and up again, with skips.

All runs at half the resolution and below: the first convolution halves it, the last one's channels unfold to pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from stylepairs.i2i.models.glean import zeroed

# Channels at 1/2, 1/4, ... of the side, and inverted residuals on the way down beside the one that halves.
WIDTHS, DEPTHS = (16, 24, 40, 80, 160), (0, 1, 2, 2, 3)
EXPANSION, JOINED_EXPANSION = 3, 2


class Light(nn.Module):
    """pixels [N,Cin,H,W], told [N,T] (numbers that hold everywhere) -> maps [N,Cout,H,W], confidence logits [N];
    sides multiples of 32. The maps and the logits are zero at initialisation."""

    def __init__(self, channels_in: int, told: int, channels_out: int):
        super().__init__()
        self.stem = nn.Sequential(*_convolution(channels_in, WIDTHS[0], 5, stride=2))
        self.downs, self.ups, self.told = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        here = WIDTHS[0]
        for width, depth in zip(WIDTHS, DEPTHS, strict=True):
            halving = [] if width == here else [InvertedResidual(here, width, EXPANSION, stride=2)]
            self.downs.append(nn.Sequential(*halving, *(InvertedResidual(width, width) for _ in range(depth))))
            self.told.append(nn.Linear(told, width))
            here = width
        for width in WIDTHS[-2::-1]:
            narrow = nn.Sequential(*_convolution(here, width, 1, acts=False))
            join = InvertedResidual(2 * width, width, JOINED_EXPANSION)
            self.ups.append(nn.ModuleDict({"narrow": narrow, "join": join, "refine": InvertedResidual(width, width)}))
            here = width
        self.out = zeroed(nn.Conv2d(here, 4 * channels_out, 3, padding=1))
        self.applies = zeroed(nn.Linear(WIDTHS[-1], 1))

    def forward(self, pixels: torch.Tensor, told: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x, skips = self.stem(pixels), []
        for down, say in zip(self.downs, self.told, strict=True):
            x = down(x)
            x = x + say(told)[:, :, None, None]
            skips.append(x)
        applies = self.applies(x.mean((2, 3)))[:, 0].float()
        for up, skip in zip(self.ups, skips[-2::-1], strict=True):
            assert isinstance(up, nn.ModuleDict)
            x = F.interpolate(up["narrow"](x), scale_factor=2.0, mode="nearest")
            x = up["refine"](up["join"](torch.cat([x, skip], dim=1)))
        return F.pixel_shuffle(self.out(x).float(), 2), applies


class InvertedResidual(nn.Module):
    """Widened by a 1x1 convolution, filtered channel by channel, narrowed again; added to x where the shapes agree."""

    def __init__(self, channels_in: int, channels_out: int, expansion: int = EXPANSION, stride: int = 1):
        super().__init__()
        wide = channels_in * expansion
        self.layers = nn.Sequential(
            *_convolution(channels_in, wide, 1),
            *_convolution(wide, wide, 3, stride, groups=wide),
            *_convolution(wide, channels_out, 1, acts=False),
        )
        self.adds = stride == 1 and channels_in == channels_out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.layers(x)
        return x + y if self.adds else y


def _convolution(
    channels_in: int, channels_out: int, kernel: int, stride: int = 1, groups: int = 1, acts: bool = True
) -> list[nn.Module]:
    """A convolution, batch norm and, where it acts, ReLU6."""
    conv = nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(channels_out), *([nn.ReLU6()] if acts else [])]
