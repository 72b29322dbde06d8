"""One pass from photo to edited photo through a frozen StyleGAN, at equal input and output size.

After GLEAN (Chan et al. 2021), whose fusion is replaced by scale-and-shift that starts at the identity (as in GFPGAN,
Wang et al. 2021), and with what editing needs: conditions as channels, a predicted soft mask, the photo outside of it.
What recolours scales and shifts the photo's colours; what moves takes them from elsewhere in the photo before; what
tints brings one part's mean to a colour; what draws new pixels shows the image that decoder and generator make.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import nn

from stylepairs.datagen.images.colors import lab_to_paled_srgb, paled, srgb_to_lab
from stylepairs.datagen.images.tones import rechromed, steepened, toned_to
from stylepairs.datagen.stylegan.generator import Generator
from stylepairs.i2i.models.adapters import is_frozen
from stylepairs.i2i.models.conditions import color_or

Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)

# The mask is a stretched sigmoid, so that it reaches exactly 0 and 1 (the photo is untouched where it is 0).
MASK_STRETCH = 1.06
# Contrast grows at most by this and one: more would turn the noise of dark pixels into grain.
MAX_GAIN = 2.0
# Of the side: no pixel is taken from further away.
MAX_SHIFT = 0.2
# Where pixels are moved, colours change in so many cells a side, smoothly: detail has to come by the flow, or the edit
# would be drawn at the network's size and blurred at the photo's.
SHADE_CELLS = 32
# What is tinted, a sigmoid: at first next to nothing; stretched, so that it reaches exactly 1.
UNTINTED, TINT_STRETCH = 3.0, 1.05
_LEAST_TINTED = 1e-6  # pixels
# Fixed-point steps of a tint's tone curve; the mean is then within 0.1 L.
_TONE_STEPS = 4
# Lab distance at which a tint no longer keeps all of the photo's variation of hue.
_HUE_FADE = 6.0
# A tint gives detail finer than the network sees at most this and one times its contrast.
_MOST_SLOPE = 1.0


@dataclass(frozen=True)
class GleanConfig:
    """Shapes of what is trained; features at resolution r have min(channel_base // r, channel_max) channels.

    draws: the edit is an image of its own (hair where there was skin), not the photo recoloured. moves: it is the
    photo's own pixels, moved and recoloured (a smile, more volume). tints: a map says what is coloured, and its mean
    colour goes to the one that the style code begins with. thawed: the generator's synthesis learns on.
    """

    style_channels: int = 3
    channel_base: int = 2048
    channel_max: int = 128
    draws: bool = False
    thawed: bool = False
    moves: bool = False
    tints: bool = False

    def __post_init__(self) -> None:
        if self.draws and (self.moves or self.tints):
            raise ValueError("what makes an image of its own cannot move or tint the photo's")
        if self.tints and self.style_channels < 3:
            raise ValueError("what tints is told a colour")

    @property
    def maps(self) -> int:
        """How many maps a decoder gives: of colour, of where pixels come from, of what is tinted, and the mask."""
        return 4 if self.draws else 7 + 2 * self.moves + self.tints

    def channels(self, resolution: int) -> int:
        return max(min(self.channel_base // resolution, self.channel_max), 8)


class Asked(NamedTuple):
    """What one pass is given: see `Glean.forward`."""

    photo: torch.Tensor
    region: torch.Tensor
    degree: torch.Tensor
    style: torch.Tensor


class Edit(NamedTuple):
    """What one pass gives; images [N,3,H,W] not clamped, mask [N,1,H,W] in [0,1], flow [N,2,H,W], ws [N,L,C],
    confidence_logits [N].

    output = moved + mask * (gain * (moved + 1) + bias), where moved(x) = photo(x + mask * flow(x)): what the photo
    shows is taken from so far away (x and y, as shares of the side; 0 unless the model moves), scaled from black and
    shifted, so its detail need not be drawn anew, and the same maps fit the photo at any resolution. A model that draws
    has gain -1, which leaves nothing of the photo. edit is the same for a mask of 1. generated is the frozen
    generator's own image after fusion.
    """

    output: torch.Tensor
    edit: torch.Tensor
    mask: torch.Tensor
    mask_logits: torch.Tensor
    gain: torch.Tensor
    bias: torch.Tensor
    flow: torch.Tensor
    generated: torch.Tensor
    ws: torch.Tensor
    confidence_logits: torch.Tensor

    @property
    def confidence(self) -> torch.Tensor:
        """How surely the feature applies to each photo at all, [N] in [0,1]: low for a bald head that is to be dyed."""
        return torch.sigmoid(self.confidence_logits)


class Glean(nn.Module):
    """Encoder -> latents and features -> frozen generator, features fused at each resolution -> light decoder.

    Works at the generator's resolution. At initialisation ws = w_avg, fusion is the identity, and the edit is the photo
    (hardly tinted, where the model tints) or, where it draws, the generator's image.
    """

    def __init__(self, generator: Generator, config: GleanConfig):
        super().__init__()
        self.config = config
        self.generator = generator.eval().requires_grad_(False)
        generator.synthesis.requires_grad_(config.thawed)
        resolutions = generator.config.resolutions
        self.encoder = Encoder(4 + 1 + config.style_channels + config.draws, resolutions, config)
        self.to_latents = LatentHead(config.channels(4), generator.num_ws, generator.config.w_dim)
        self.applies = zeroed(nn.Linear(config.channels(4) * 16, 1))
        self.fusion = nn.ModuleDict(
            {str(r): ScaleAndShift(config.channels(r), generator.synthesis.channels(r)) for r in resolutions}
        )
        self.decoder = Decoder([generator.synthesis.channels(r) for r in resolutions], resolutions, config)

    @property
    def size_px(self) -> int:
        """Side of the images that go in and come out."""
        return self.generator.config.img_resolution

    def forward(self, photo: torch.Tensor, region: torch.Tensor, degree: torch.Tensor, style: torch.Tensor) -> Edit:
        """Edit a batch of aligned photos.

        photo [N,3,H,W] in [-1,1]; region [N,1,H,W] in [0,1] limits where, all 1 leaves it to the network; degree [N] in
        [0,1] how much; style [N,style_channels] which kind (see `stylepairs.i2i.models.conditions`). H = W = size_px.
        """
        # What strands grow from: the generator's own finest noise, the same for every photo.
        noise = self.generator.noise_maps()[-1] if self.config.draws else None
        features = self.encoder(told_of(photo, region, degree, style, noise, self.size_px))
        ws = self.generator.mapping.w_avg + self.to_latents(features[4])
        fused: dict[int, torch.Tensor] = {}

        def fuse(resolution: int, x: torch.Tensor) -> torch.Tensor:
            fused[resolution] = self.fusion[str(resolution)](x, features[resolution])
            return fused[resolution]

        generated = self.generator.synthesis(ws, fuse=fuse)
        out = self.decoder(fused, features, generated)
        applies = self.applies(features[4].flatten(1))[:, 0].float()
        return composed(self.config, out, Asked(photo, region, degree, style), generated, ws, applies)

    def trainable_state(self) -> dict[str, torch.Tensor]:
        """Everything that learns, by name: a frozen generator does not, nor a base's weights."""
        frozen = "generator.mapping." if self.config.thawed else "generator."
        state = self.state_dict().items()
        return {name: value for name, value in state if not name.startswith(frozen) and not is_frozen(name)}


def told_of(
    photo: torch.Tensor,
    region: torch.Tensor,
    degree: torch.Tensor,
    style: torch.Tensor,
    noise: torch.Tensor | None,
    size_px: int,
) -> torch.Tensor:
    """What an encoder is given [N,C,H,W]: the inputs of `Glean.forward` as channels, then noise [1,1,H,W]; None: it
    draws nothing. Raises ValueError for a photo of another side than size_px."""
    n, _, h, w = photo.shape
    if h != size_px or w != size_px:
        raise ValueError(f"photo is {w} x {h} px, this model works at {size_px} px")
    conditions = torch.cat([degree[:, None], style], dim=1)[:, :, None, None].expand(-1, -1, h, w)
    told = [photo, region * 2 - 1, conditions]
    return torch.cat(told if noise is None else [*told, noise.expand(n, -1, -1, -1)], dim=1)


def composed(
    config: GleanConfig,
    out: torch.Tensor,
    asked: Asked,
    generated: torch.Tensor,
    ws: torch.Tensor,
    confidence_logits: torch.Tensor,
) -> Edit:
    """The edit that a decoder's maps [N,out_channels,H,W] say."""
    photo, mask_logits = asked.photo, out[:, -1:]
    mask = torch.minimum(stretched_sigmoid(mask_logits), asked.region)
    flow, far = photo.new_zeros(photo.shape[0], 2, *photo.shape[2:]), photo
    if config.moves:
        flow = MAX_SHIFT * torch.tanh(out[:, 6:8])
        far = taken_from(photo, flow)
    if config.draws:
        edit = generated + out[:, :3]
        gain, bias = torch.full_like(photo, -1.0), edit + 1
    else:
        colors = smoothed(out[:, :6]) if config.moves else out[:, :6]
        gain, bias = MAX_GAIN * torch.tanh(colors[:, :3] / MAX_GAIN), colors[:, 3:]
        if config.tints:
            contrast, shift = tint(far, tinted_share(out[:, -2:-1]), mask, asked)
            gain, bias = gain + contrast, bias + shift
        edit = far + gain * (far + 1) + bias
    output = moved_by(photo, mask, flow, gain, bias) if config.moves else photo + mask * (edit - photo)
    return Edit(output, edit, mask, mask_logits, gain, bias, flow, generated, ws, confidence_logits)


def moved_by(
    photo: torch.Tensor, mask: torch.Tensor, flow: torch.Tensor, gain: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    """What the maps of an edit that moves make of the photo: `Edit.output`."""
    # Reading a picture at its own pixels rounds: where the mask is 0 it is the photo.
    moved = torch.where(mask > 0, taken_from(photo, mask * flow), photo)
    return moved + mask * (gain * (moved + 1) + bias)


def tinted_share(logits: torch.Tensor) -> torch.Tensor:
    """How far each pixel goes to the asked colour, [N,1,H,W] in [0,1]."""
    return (TINT_STRETCH * torch.sigmoid(logits - UNTINTED)).clamp(max=1)


def tint(
    photo: torch.Tensor, where: torch.Tensor, mask: torch.Tensor, asked: Asked
) -> tuple[torch.Tensor, torch.Tensor]:
    """(gain [N,1,H,W], bias [N,3,H,W]) of a photo [N,3,H,W]: photo + gain (photo + 1) + bias has, where `where`
    [N,1,H,W] says and as far as mask [N,1,H,W] shows it, the asked colour in the mean, as far as the degree goes.

    As hair colour's pairs are composed: lightness goes along one tone curve (`datagen.images.tones`), the asked hue has
    the light and shade that results. The gain is for detail that is finer than the photo that the network sees.
    """
    weight = where * mask
    total = weight.sum((2, 3), keepdim=True)

    def mean(values: torch.Tensor) -> torch.Tensor:
        return (values * weight).sum((2, 3), keepdim=True) / total.clamp_min(_LEAST_TINTED)

    # What the mask shows in part is part hair: it goes the hair's way, not that of the wall behind.
    hair = mean(photo).lerp(photo, mask)
    lab = srgb_to_lab(hair)
    own = mean(lab)
    way = (color_or(asked.style, own[..., 0, 0])[..., None, None] - own) * asked.degree[:, None, None, None]
    wanted = own + way
    light = toned_to(lab[:, :1], wanted[:, :1], mean, _TONE_STEPS)
    chroma = rechromed(lab, light, own, wanted, torch.exp(-(way / _HUE_FADE).square().sum(1, keepdim=True)))
    tinted = torch.cat([light, chroma + wanted[:, 1:] - mean(chroma)], dim=1)
    # Of an empty mask there is no mean, and a video carries the maps over to frames where it is not empty.
    share = where * (total > _LEAST_TINTED)
    change = share * (lab_to_paled_srgb(tinted) - paled(hair, lab[:, :1]))
    gain = share * (steepened(lab[:, :1], light) - 1).clamp(max=_MOST_SLOPE)
    return gain, change - gain * (photo + 1)


def smoothed(maps: torch.Tensor) -> torch.Tensor:
    """Maps [N,M,H,W] as bilinear in SHADE_CELLS cells a side."""
    cell = max(maps.shape[-1] // SHADE_CELLS, 1)
    return F.interpolate(F.avg_pool2d(maps, cell), scale_factor=float(cell), mode="bilinear")


def taken_from(photo: torch.Tensor, flow: torch.Tensor) -> torch.Tensor:
    """The photo [N,3,H,W] with each pixel from flow [N,2,H,W] (x, y in shares of the side) away; its border goes on."""
    down, across = (torch.arange(side, device=photo.device, dtype=photo.dtype) for side in photo.shape[2:])
    x, y = ((2 * axis + 1) / len(axis) - 1 for axis in (across, down))
    grid = torch.stack([x[None, None] + 2 * flow[:, 0], y[None, :, None] + 2 * flow[:, 1]], dim=-1)
    return F.grid_sample(photo, grid, mode="bilinear", padding_mode="border", align_corners=False)


class Encoder(nn.Module):
    """[N,Cin,R,R] -> {r: [N,channels(r),r,r]} for r = R, R/2, ..., 4."""

    def __init__(self, channels_in: int, resolutions: list[int], config: GleanConfig):
        super().__init__()
        self.resolutions = resolutions[::-1]
        self.stem = nn.Conv2d(channels_in, config.channels(self.resolutions[0]), 3, padding=1)
        channels = [config.channels(resolution) for resolution in self.resolutions]
        self.downs = nn.ModuleList([DownBlock(high, low) for high, low in pairwise(channels)])

    def forward(self, x: torch.Tensor) -> dict[int, torch.Tensor]:
        x = activation(self.stem(x))
        features = {self.resolutions[0]: x}
        for resolution, down in zip(self.resolutions[1:], self.downs, strict=True):
            x = down(x)
            features[resolution] = x
        return features


class DownBlock(nn.Module):
    """Halve the resolution: two convolutions around an average pooling, beside a pooled 1x1 skip."""

    def __init__(self, channels_in: int, channels_out: int):
        super().__init__()
        self.conv0 = nn.Conv2d(channels_in, channels_in, 3, padding=1)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.skip = nn.Conv2d(channels_in, channels_out, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = activation(self.conv1(F.avg_pool2d(activation(self.conv0(x)), 2)))
        halved: torch.Tensor = (y + self.skip(F.avg_pool2d(x, 2))) * math.sqrt(0.5)
        return halved


class LatentHead(nn.Module):
    """[N,C,4,4] -> offsets from w_avg, [N,L,w_dim]; zero at initialisation."""

    def __init__(self, channels: int, num_ws: int, w_dim: int, width: int = 128):
        super().__init__()
        self.num_ws = num_ws
        self.hidden = nn.Linear(channels * 16, width)
        self.offsets = zeroed(nn.Linear(width, num_ws * w_dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        offsets = self.offsets(activation(self.hidden(x.flatten(1)))).float()
        rows: torch.Tensor = offsets.unflatten(1, (self.num_ws, -1))
        return rows


class ScaleAndShift(nn.Module):
    """x * (1 + scale) + shift, both from the encoder's feature of the same resolution; at first the identity."""

    def __init__(self, feature_channels: int, channels: int):
        super().__init__()
        self.conv = zeroed(nn.Conv2d(feature_channels, 2 * channels, 3, padding=1))

    def forward(self, x: torch.Tensor, feature: torch.Tensor) -> torch.Tensor:
        scale, shift = self.conv(feature).chunk(2, dim=1)
        fused: torch.Tensor = x * (1 + scale) + shift
        return fused


class Decoder(nn.Module):
    """Fused generator features and encoder features, coarse to fine -> maps [N,M,R,R]: gain 3, bias 3, where the model
    moves flow 2, where it tints logits of what 1, mask logits 1; where it draws, what is added to the generator's image
    3, mask logits 1.

    The generator's image joins at the last level. All is zero at initialisation.
    """

    def __init__(self, generator_channels: list[int], resolutions: list[int], config: GleanConfig):
        super().__init__()
        self.resolutions = resolutions
        channels = [config.channels(resolution) for resolution in resolutions]
        # Narrowed before upsampling: the widest convolution at full resolution would otherwise be the costliest of all.
        self.narrow = nn.ModuleList([nn.Conv2d(low, high, 1) for low, high in pairwise(channels)])
        self.convs = nn.ModuleList()
        for index, (here, from_generator) in enumerate(zip(channels, generator_channels, strict=True)):
            self.convs.append(nn.Conv2d((here if index else 0) + from_generator + here, here, 3, padding=1))
        self.last = nn.Conv2d(channels[-1] + 3, channels[-1], 3, padding=1)
        self.out = zeroed(nn.Conv2d(channels[-1], config.maps, 3, padding=1))

    def forward(
        self, fused: dict[int, torch.Tensor], features: dict[int, torch.Tensor], generated: torch.Tensor
    ) -> torch.Tensor:
        x: torch.Tensor | None = None
        for index, (resolution, conv) in enumerate(zip(self.resolutions, self.convs, strict=True)):
            inputs = [fused[resolution], features[resolution]]
            if x is not None:
                inputs.append(F.interpolate(self.narrow[index - 1](x), scale_factor=2, mode="bilinear"))
            x = activation(conv(torch.cat(inputs, dim=1)))
        assert x is not None
        x = activation(self.last(torch.cat([x, generated.to(x.dtype)], dim=1)))
        out: torch.Tensor = self.out(x).float()
        return out


def activation(x: torch.Tensor) -> torch.Tensor:
    """Leaky ReLU with the gain that keeps the variance, as in StyleGAN2."""
    return F.leaky_relu(x, 0.2) * math.sqrt(2)


def stretched_sigmoid(logits: torch.Tensor) -> torch.Tensor:
    """A sigmoid that reaches exactly 0 and 1, at logits of about -+3.5."""
    return ((torch.sigmoid(logits) - 0.5) * MASK_STRETCH + 0.5).clamp(0, 1)


def zeroed(layer: Layer) -> Layer:
    """The layer with weight and bias set to zero."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
