"""Encoders to W+: a pyramid with a small network for each row's style (pSp, Richardson et al. 2021), rows as offsets
from the first (e4e, Tov et al. 2021), passes that look at the photo beside the render of the last (ReStyle, Alaluf et
al. 2021). Ours may predict noise maps too."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from stylepairs.datagen.encoders.curvature import Curvature
from stylepairs.datagen.encoders.settings import EncoderTraining
from stylepairs.datagen.reconstruction.objective import downsample
from stylepairs.datagen.reconstruction.prior import WPrior
from stylepairs.datagen.reconstruction.rendering import synthesise
from stylepairs.datagen.stylegan.generator import Generator
from stylepairs.kernels.precision import in_precision

COARSEST_MAP_PX = 32  # coarser noise maps stay as the generator has them: they move the image hardly at all
MOST_INPUT_PX = 256  # as published; noise maps need the image's own size
BOTTOM_PX = 4
# Rows of W+ below the first number are read from 1/16 of the input's side, below the second from 1/8, others from 1/4.
COARSE_ROWS, MIDDLE_ROWS = 3, 7
_Size = Annotated[int, Field(gt=0, le=4096)]


@dataclass(frozen=True)
class EncoderConfig:
    """num_ws, w_dim, maps (sides of the noise maps, the last of the image's): of the generator.

    width: channels at half of the input's side; deep: below; passes, noise, from_first_row: see EncoderTraining.
    """

    num_ws: _Size
    w_dim: _Size
    maps: Annotated[tuple[_Size, ...], Field(min_length=1)]
    width: _Size = 32
    deep: _Size = 48
    passes: Annotated[int, Field(gt=0, le=20)] = 1
    noise: bool = False
    from_first_row: bool = False

    def __post_init__(self) -> None:
        if self.maps[-1] < 8 or self.maps[-1] & (self.maps[-1] - 1):
            raise ValueError(f"{self.maps[-1]} px is no side of a generator")

    @staticmethod
    def of(generator: Generator, training: EncoderTraining) -> EncoderConfig:
        """The configuration for a generator that these settings ask for."""
        maps = tuple(level.shape[-1] for level in generator.noise_maps())
        sizes = generator.num_ws, generator.config.w_dim, maps, training.width, training.deep
        return EncoderConfig(*sizes, training.passes, training.noise, training.from_first_row)

    @property
    def input_px(self) -> int:
        """Side of what the network reads."""
        return self.maps[-1] if self.noise else min(self.maps[-1], MOST_INPUT_PX)

    @property
    def sides(self) -> list[int]:
        """Of the pyramid's levels, the finest first."""
        finest = self.input_px // 2
        return [finest >> level for level in range(int(math.log2(finest // BOTTOM_PX)) + 1)]

    def predicted(self, size_px: int) -> list[int]:
        """Indices of the noise maps of this side that the encoder predicts."""
        return [i for i, side in enumerate(self.maps) if self.noise and side == size_px >= COARSEST_MAP_PX]

    def level_of_row(self, row: int) -> int:
        """The level that a row's style is read from."""
        level = 3 if row < COARSE_ROWS else 2 if row < MIDDLE_ROWS else 1
        return min(level, len(self.sides) - 1)


class Encoder(nn.Module):
    """A pyramid over photo, render, their difference and the noise maps so far; a row's style from the level that suits
    it, a noise map from the level of its own size (those of the image's size from half of it, as its four phases)."""

    basis: torch.Tensor
    scale: torch.Tensor

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.config = config
        identity = torch.zeros(config.w_dim, config.w_dim).fill_diagonal_(1)  # eye on meta imports for seconds
        self.register_buffer("basis", identity)
        self.register_buffer("scale", torch.ones(config.w_dim))
        sides = config.sides
        channels = [config.width] + [config.deep] * (len(sides) - 1)
        finest, own = len(config.predicted(config.input_px)), [len(config.predicted(side)) for side in sides]
        self.first = nn.Conv2d(4 * (9 + finest) + own[0], channels[0], 3, padding=1)
        self.down = nn.ModuleList(
            nn.Conv2d(channels[i - 1] + own[i], channels[i], 3, padding=1) for i in range(1, len(channels))
        )
        self.blocks = nn.ModuleList(_Residual(width) for width in channels)
        levels = [config.level_of_row(row) for row in range(config.num_ws)]
        # The way up, from the second-lowest level to the finest that is read.
        self.lowest = 0 if config.noise else min(levels)
        upper = channels[self.lowest : -1]
        self.up = nn.ModuleList(
            nn.Conv2d(below, width, 1) for below, width in zip(channels[self.lowest + 1 :], upper, strict=True)
        )
        self.merged = nn.ModuleList(_Residual(width) for width in upper)
        self.styles = nn.ModuleDict(
            {
                str(level): Styles(sides[level], channels[level], levels.count(level), config.w_dim)
                for level in sorted(set(levels), reverse=True)
            }
        )
        outputs = [own[level] + (4 * finest if level == 0 else 0) for level in range(len(sides))]
        self.noise = nn.ModuleDict(
            {str(i): nn.Conv2d(channels[i], count, 3, padding=1) for i, count in enumerate(outputs) if count}
        )
        for layer in self.noise.values():
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)

    def know(self, curvature: Curvature) -> None:
        """Take the generator's curvature, rounded as it will be saved."""
        self.basis.copy_(curvature.basis.half())
        self.scale.copy_(curvature.scale.half())

    def forward(
        self,
        photo: torch.Tensor,
        render: torch.Tensor,
        u: torch.Tensor,
        noise: Sequence[torch.Tensor],
        precision: str = "auto",
        free_rows: int | None = None,
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The next u [N,L,C] and noise maps [N,1,r,r], of zero mean and unit variance where they are predicted, after
        those that `render` was made of; photo and render [N,3,H,W] in [-1,1]. precision: of the convolutions.
        free_rows: how many rows have offsets of their own, with from_first_row; None: all."""
        with in_precision(precision, photo.device):
            levels = self._levels(photo, render, noise)
            changes = self._noise_changes(levels)
            rows = torch.cat([head(levels[int(level)]) for level, head in self.styles.items()], 1)
        maps = [standardised(level + changes[i]) if i in changes else level for i, level in enumerate(noise)]
        if self.config.from_first_row:
            own = torch.arange(rows.shape[1], device=rows.device).view(1, -1, 1)
            offsets = rows * ((own > 0) & (own <= (rows.shape[1] if free_rows is None else free_rows)))
            rows = rows[:, :1] + offsets
        # Coordinates along the directions of W: small steps along those that the render answers to most.
        return u + (rows * self.scale) @ self.basis.T, maps

    def _levels(
        self, photo: torch.Tensor, render: torch.Tensor, noise: Sequence[torch.Tensor]
    ) -> dict[int, torch.Tensor]:
        """The pyramid's maps by level, those that are read."""
        config, sides = self.config, self.config.sides
        photo, render = downsample(photo, config.input_px), downsample(render, config.input_px)
        finest = config.predicted(config.input_px)
        images = [photo, render.clamp(-1.5, 1.5), 3 * (photo - render).clamp(-1, 1), *(noise[i] for i in finest)]
        below = [noise[i] for i in config.predicted(sides[0])]
        x = torch.cat([F.pixel_unshuffle(torch.cat(images, 1), 2), *below], 1)
        x = self.blocks[0](self.first(x.contiguous(memory_format=torch.channels_last)))
        skips = [x]
        for side, down, block in zip(sides[1:], self.down, self.blocks[1:], strict=True):
            x = block(down(torch.cat([F.avg_pool2d(x, 2), *(noise[i] for i in config.predicted(side))], 1)))
            skips.append(x)
        levels = {len(skips) - 1: x}
        for index in reversed(range(len(self.merged))):
            level = index + self.lowest
            x = self.merged[index](skips[level] + F.interpolate(self.up[index](x), scale_factor=2))
            levels[level] = x
        return levels

    def _noise_changes(self, levels: dict[int, torch.Tensor]) -> dict[int, torch.Tensor]:
        """The change of each predicted noise map, by its index."""
        config = self.config
        changes: dict[int, torch.Tensor] = {}
        for name, layer in self.noise.items():
            level = int(name)
            out = layer(_leaky(levels[level])).float()
            own = config.predicted(config.sides[level])
            changes |= {index: out[:, i : i + 1] for i, index in enumerate(own)}
            if level == 0:
                fine = F.pixel_shuffle(out[:, len(own) :], 2)
                changes |= {index: fine[:, i : i + 1] for i, index in enumerate(config.predicted(config.input_px))}
        return changes


class Styles(nn.Module):
    """pSp's map2style for several rows that read one level: convolutions of stride 2 down to one place, each row by
    itself, then a linear map that begins at zero. x [N,channels,side,side] -> [N,rows,w_dim]."""

    def __init__(self, side: int, channels: int, rows: int, w_dim: int):
        super().__init__()
        self.rows = rows
        self.convs = nn.ModuleList(
            nn.Conv2d(rows * channels if i else channels, rows * channels, 3, 2, 1, groups=rows if i else 1)
            for i in range(int(math.log2(side)))
        )
        self.weight = nn.Parameter(torch.zeros(rows, channels, w_dim))
        self.bias = nn.Parameter(torch.zeros(rows, w_dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for conv in self.convs:
            x = _leaky(conv(x))
        with torch.autocast(x.device.type, enabled=False):
            found = torch.einsum("nrc,rcd->nrd", x.float().reshape(len(x), self.rows, -1), self.weight)
            return found + self.bias


class _Residual(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv0 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        with torch.no_grad():
            self.conv1.weight *= 0.1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = x + self.conv1(_leaky(self.conv0(_leaky(x))))
        return y


def _leaky(x: torch.Tensor) -> torch.Tensor:
    return F.leaky_relu(x, 0.2)


def standardised(noise: torch.Tensor) -> torch.Tensor:
    """Noise maps [N,1,r,r] brought to zero mean and unit variance, as stage 0 keeps them."""
    noise = noise - noise.mean((1, 2, 3), keepdim=True)
    return noise * noise.square().mean((1, 2, 3), keepdim=True).clamp_min(1e-8).rsqrt()


def empty_start(encoder: Encoder, generator: Generator, count: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Where the passes begin: the mean latent [N,L,C] and, where noise maps are predicted, none."""
    config = encoder.config
    u = torch.zeros(count, config.num_ws, config.w_dim, device=generator.mapping.w_avg.device)
    predicted = [bool(config.predicted(side)) for side in config.maps]
    maps = [level.repeat(count, 1, 1, 1) for level in generator.noise_maps()[: len(config.maps)]]
    return u, [torch.zeros_like(level) if own else level for level, own in zip(maps, predicted, strict=True)]


def encoded(
    encoder: Encoder, generator: Generator, prior: WPrior, photo: torch.Tensor, precision: str = "auto"
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """u [N,L,C] and noise maps [N,1,r,r] for photos [N,3,H,W] of the generator's size, with gradients.

    An encoder of the generator's lower part sees photos at that part's size; finer rows of u are its last one, finer
    noise maps the generator's own.
    """
    side = encoder.config.maps[-1]
    photo = downsample(photo, side)
    u, noise = empty_start(encoder, generator, len(photo))
    for _ in range(encoder.config.passes):
        render = synthesise(generator, prior.unwhiten(u), noise, precision, size_px=side)
        u, noise = encoder(photo, render, u, noise, precision)
    last = u[:, -1:].expand(-1, generator.num_ws - u.shape[1], -1)
    finer = [level.repeat(len(photo), 1, 1, 1) for level in generator.noise_maps()[len(noise) :]]
    return torch.cat([u, last], 1), [*noise, *finer]


@torch.no_grad()
def predict_start(
    encoder: Encoder, generator: Generator, prior: WPrior, photo: torch.Tensor, precision: str = "auto"
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """u [L,C] and noise maps [r,r] for a photo [3,H,W] of the generator's size; one at a time, so that its bits do
    not depend on others."""
    u, noise = encoded(encoder, generator, prior, photo[None], precision)
    return u[0], [level[0, 0] for level in noise]
