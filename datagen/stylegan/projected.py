"""A discriminator of small networks on frozen, randomly mixed features, and its losses (Projected GANs, Sauer et al.
2021)."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from stylepairs.datagen.images.trunk import LEVEL_CHANNELS

MIXED_CHANNELS = (16, 64, 64, 64, 64)
HALF = 0.5**0.5  # keeps the variance of a sum of two
SLOPE = 0.2
LEAST_DEVIATION = 1e-3
Maps = list[torch.Tensor]


def generator_loss(logits: Maps) -> torch.Tensor:
    """The generator's side of the hinge loss: minus the mean logit, summed over levels."""
    return -torch.stack([level.float().mean() for level in logits]).sum()


def heads_loss(real: Maps, fake: Maps) -> torch.Tensor:
    """Hinge loss (Lim & Ye 2017), mean over each map, summed over levels."""
    levels = [F.relu(1 - r.float()).mean() + F.relu(1 + f.float()).mean() for r, f in zip(real, fake, strict=True)]
    return torch.stack(levels).sum()


class Mixing(nn.Module):
    """Features of a portrait, normalised by the portraits' own mean and deviation, then mixed across channels (1x1) and
    from coarse to fine across scales (3x3), by random weights that never learn."""

    def __init__(self) -> None:
        super().__init__()
        widths = MIXED_CHANNELS
        self.across = nn.ModuleList(nn.Conv2d(i, o, 1) for i, o in zip(LEVEL_CHANNELS, widths, strict=True))
        self.down = nn.ModuleList(nn.Conv2d(i, o, 3, padding=1) for o, i in itertools.pairwise(widths))
        for conv in (*self.across, *self.down):
            assert isinstance(conv, nn.Conv2d)
            assert conv.bias is not None
            nn.init.kaiming_normal_(conv.weight, nonlinearity="linear")
            nn.init.zeros_(conv.bias)
        for level, channels in enumerate(LEVEL_CHANNELS):
            self.register_buffer(f"mean{level}", torch.zeros(channels))
            self.register_buffer(f"deviation{level}", torch.ones(channels))
        self.requires_grad_(False)

    def measure(self, batches: list[Maps]) -> None:
        """Take each channel's mean and deviation from the features of portraits."""
        for level, maps in enumerate(zip(*batches, strict=True)):
            values = torch.cat(maps).float()
            getattr(self, f"mean{level}").copy_(values.mean((0, 2, 3)))
            getattr(self, f"deviation{level}").copy_(values.std((0, 2, 3)).clamp_min(LEAST_DEVIATION))

    def normalised(self, features: Maps) -> Maps:
        shaped = [(getattr(self, f"mean{i}"), getattr(self, f"deviation{i}")) for i in range(len(features))]
        return [
            (x - mean[:, None, None].to(x.dtype)) / deviation[:, None, None].to(x.dtype)
            for x, (mean, deviation) in zip(features, shaped, strict=True)
        ]

    def forward(self, normalised: Maps) -> Maps:
        """Five maps, normalised -> five maps of MIXED_CHANNELS at the same sizes."""
        mixed = [conv(x) for conv, x in zip(self.across, normalised, strict=True)]
        for level in reversed(range(len(self.down))):
            coarse = F.interpolate(mixed[level + 1], scale_factor=2.0, mode="nearest")
            mixed[level] = (mixed[level] + self.down[level](coarse)) * HALF
        return mixed


class Heads(nn.Module):
    """Mixed features -> one map of logits per level."""

    def __init__(self) -> None:
        super().__init__()
        self.levels = nn.ModuleList(_head(*layers) for layers in _LAYERS)

    def forward(self, mixed: Maps) -> Maps:
        return [head(x) for head, x in zip(self.levels, mixed, strict=True)]


# Channels, kernel and stride of a head's three layers: about 4 x 4 logits or fewer, each of a wide view.
_LAYERS = (
    ((16, 48, 4, 2), (48, 64, 4, 2), (64, 1, 3, 1)),
    ((64, 64, 4, 2), (64, 128, 4, 2), (128, 1, 3, 1)),
    ((64, 128, 4, 2), (128, 128, 4, 2), (128, 1, 3, 1)),
    ((64, 128, 4, 2), (128, 128, 3, 1), (128, 1, 3, 1)),
    ((64, 128, 3, 1), (128, 128, 3, 1), (128, 1, 4, 1)),
)


class _BatchStatistics(nn.Module):
    """Batch norm by the batch's own statistics always: real and generated batches are told apart by themselves."""

    def __init__(self, channels: int):
        super().__init__()
        self.gain, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.batch_norm(x, None, None, self.gain, self.bias, training=True)


def _head(*layers: tuple[int, int, int, int]) -> nn.Sequential:
    parts: list[nn.Module] = []
    for channels_in, channels_out, kernel, stride in layers:
        last = channels_out == 1
        padding = 0 if last and kernel == 4 else 1
        parts.append(spectral_norm(nn.Conv2d(channels_in, channels_out, kernel, stride, padding, bias=last)))
        if not last:
            parts += [_BatchStatistics(channels_out), nn.LeakyReLU(SLOPE)]
    return nn.Sequential(*parts)
