"""Editors without a generator: the light student, the editor's own encoder and decoder alone, published networks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from stylepairs.i2i.models.adapters import is_frozen
from stylepairs.i2i.models.glean import Asked, Decoder, Edit, Encoder, GleanConfig, composed, zeroed
from stylepairs.i2i.models.light import Light
from stylepairs.i2i.models.published import GlobalGenerator, UNet

PlainKind = Literal["light", "cut", "unet", "pix2pixhd"]
PUBLISHED = ("unet", "pix2pixhd")
LEAST_PX, MOST_PX = 32, 4096
# What networks without such a head say: the feature applies.
_SURE = 10.0


@dataclass(frozen=True)
class PlainConfig:
    """kind: which network; size_px: side of its images, a power of two; width: channels of a published network's first
    layer; channel_base, channel_max: of `cut`, as in `GleanConfig`; draws, moves, tints: as there."""

    kind: PlainKind
    size_px: int
    style_channels: int = 3
    draws: bool = False
    width: int = 64
    channel_base: int = 2048
    channel_max: int = 128
    moves: bool = False
    tints: bool = False

    def __post_init__(self) -> None:
        if (self.moves or self.tints) and (self.draws or self.kind in PUBLISHED):
            raise ValueError("what makes an image of its own cannot move or tint the photo's")
        if not LEAST_PX <= self.size_px <= MOST_PX or self.size_px & (self.size_px - 1):
            raise ValueError(f"size_px {self.size_px}: must be a power of two from {LEAST_PX} to {MOST_PX}")
        if not 0 < self.width <= MOST_PX:
            raise ValueError(f"width {self.width}: must be from 1 to {MOST_PX}")


class Plain(nn.Module):
    """Called as a `Glean` is. At first the edit is the photo, but for published networks, whose edit is the whole image
    and whose mask is the region."""

    noise: torch.Tensor

    def __init__(self, config: PlainConfig):
        super().__init__()
        self.config, self.size_px = config, config.size_px
        said = 1 + config.style_channels
        # What strands grow from, the same for every photo.
        self.register_buffer("noise", torch.zeros(1, 1, config.size_px, config.size_px))
        self.network: nn.Module
        if config.kind == "light":
            self.network = Light(4 + config.draws, said, shapes_of(config).maps)
        elif config.kind == "cut":
            self.network = EncoderDecoder(4 + said + config.draws, config)
        elif config.kind == "unet":
            self.network = UNet(4 + said, 3, config.size_px, config.width)
        else:
            self.network = GlobalGenerator(4 + said, 3, config.width)

    def forward(self, photo: torch.Tensor, region: torch.Tensor, degree: torch.Tensor, style: torch.Tensor) -> Edit:
        """As `Glean.forward`; generated is the edit, ws are empty."""
        n, _, h, w = photo.shape
        if h != self.size_px or w != self.size_px:
            raise ValueError(f"photo is {w} x {h} px, this model works at {self.size_px} px")
        pixels, told = [photo, region * 2 - 1], torch.cat([degree[:, None], style], dim=1)
        ws = photo.new_zeros(n, 1, 1)
        if self.config.kind in PUBLISHED:
            image = self.network(torch.cat([*pixels, everywhere(told, photo)], dim=1)).float()
            sure = region * (2 * _SURE) - _SURE
            output, gain = photo + region * (image - photo), torch.full_like(photo, -1.0)
            flow, applies = photo.new_zeros(n, 2, h, w), photo.new_full((n,), _SURE)
            return Edit(output, image, region, sure, gain, image + 1, flow, image, ws, applies)
        if self.config.draws:
            pixels.append(self.noise.expand(n, -1, -1, -1))
        out, applies = self.network(torch.cat(pixels, dim=1), told)
        edit = composed(shapes_of(self.config), out, Asked(photo, region, degree, style), photo, ws, applies)
        return edit._replace(generated=edit.edit)

    def trainable_state(self) -> dict[str, torch.Tensor]:
        """All of it but a base's weights, by name."""
        return {name: value for name, value in self.state_dict().items() if not is_frozen(name)}


def makes_anew(config: GleanConfig | PlainConfig) -> bool:
    """Whether the edit is an image of its own: the photo cannot be recoloured by it beyond the crop."""
    return config.draws or (isinstance(config, PlainConfig) and config.kind in PUBLISHED)


def everywhere(told: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Numbers [N,T] as channels [N,T,H,W] of an image."""
    return told[:, :, None, None].expand(-1, -1, *like.shape[2:])


def shapes_of(config: PlainConfig) -> GleanConfig:
    """The shapes of an encoder and a decoder, as a `Glean` has them."""
    sizes = config.style_channels, config.channel_base, config.channel_max
    return GleanConfig(*sizes, draws=config.draws, moves=config.moves, tints=config.tints)


class EncoderDecoder(nn.Module):
    """`Glean`'s encoder and decoder without the generator between them: what the generator is worth."""

    def __init__(self, channels_in: int, config: PlainConfig):
        super().__init__()
        shapes = shapes_of(config)
        resolutions = [2**power for power in range(2, config.size_px.bit_length())]
        self.encoder = Encoder(channels_in, resolutions, shapes)
        self.decoder = Decoder([0] * len(resolutions), resolutions, shapes)
        self.applies = zeroed(nn.Linear(shapes.channels(4) * 16, 1))

    def forward(self, pixels: torch.Tensor, told: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As `Light.forward`."""
        features = self.encoder(torch.cat([pixels, everywhere(told, pixels)], dim=1))
        nothing = {resolution: feature[:, :0] for resolution, feature in features.items()}
        out = self.decoder(nothing, features, pixels[:, :3])
        return out, self.applies(features[4].flatten(1))[:, 0].float()
