"""The editor frozen for inference: constants folded, channels last, bfloat16 where the processor multiplies it.

Same mathematics as `stylepairs.i2i.models.glean.Glean`, to which a parity test holds it: activation gains and the fixed
noise and biases are folded into weights and one map per layer, the path from the latent head to every layer's style is
one matrix, and convolutions over concatenated inputs are sums of convolutions, so that nothing wide is copied.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from itertools import islice
from typing import Union

import torch
import torch.nn.functional as F
from torch import nn

from stylepairs.datagen.stylegan.generator import SynthesisLayer, ToRGB
from stylepairs.datagen.stylegan.layers import FullyConnected
from stylepairs.i2i.models.glean import (
    Asked,
    Decoder,
    DownBlock,
    Edit,
    Encoder,
    Glean,
    ScaleAndShift,
    composed,
    told_of,
)
from stylepairs.i2i.models.plain import Plain
from stylepairs.kernels.modulated_conv2d import DEMODULATION_EPS
from stylepairs.kernels.precision import fastest_dtype
from stylepairs.kernels.upfirdn2d import upsample2d

# What edits an aligned crop: the network as it is trained, or frozen.
Network = Union[Glean, "PreparedGlean", Plain]

# What `glean.activation` multiplies by; leaky ReLU is homogeneous, so the factor moves into the layer before it.
_GAIN = math.sqrt(2)


def prepare(model: Glean | Plain, dtype: torch.dtype | None = None) -> PreparedGlean | Plain:
    """A frozen copy of the editor that is several times faster; the model itself is left as it is.

    dtype: of the convolutions, float32 or bfloat16; None takes `fastest_dtype`. The photo, the mask and the blend stay
    float32. Against the module: 1e-4 in float32; in bfloat16 the 8-bit result differs by a few levels at most. A model
    without a generator is copied as it is, in float32.
    """
    if isinstance(model, Plain):
        copied: Plain = copy.deepcopy(model).eval().requires_grad_(False)
        return copied.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]
    device = next(model.parameters()).device
    with torch.no_grad():
        prepared = PreparedGlean(model, dtype or fastest_dtype(device))
    return prepared.eval().requires_grad_(False)


class PreparedGlean(nn.Module):
    """What `prepare` gives: called as a `Glean` is, with the same results up to rounding, and no gradients."""

    w_avg: torch.Tensor
    noise: torch.Tensor
    const: torch.Tensor
    resample_filter: torch.Tensor
    style_matrix: torch.Tensor
    style_offset: torch.Tensor

    def __init__(self, model: Glean, dtype: torch.dtype):
        super().__init__()
        self.size_px, self.dtype = model.size_px, dtype
        self.resolutions = model.generator.config.resolutions
        self.config = model.config
        self.register_buffer("noise", model.generator.noise_maps()[-1].clone())
        self.encoder = _Encoder(model.encoder, dtype)
        self.applies = copy.deepcopy(model.applies).float()
        self.hidden = copy.deepcopy(model.to_latents.hidden).float()
        for parameter in self.hidden.parameters():
            parameter.mul_(_GAIN)
        self.offsets = copy.deepcopy(model.to_latents.offsets).float()
        self.register_buffer("w_avg", model.generator.mapping.w_avg.clone())
        self.fusion = nn.ModuleList([_fusion(model.fusion[str(r)], dtype) for r in self.resolutions])
        self.decoder = _Decoder(model.decoder, model.generator.synthesis.channels, dtype)

        blocks = model.generator.synthesis.blocks()
        self.register_buffer("const", blocks[0].const[None].to(dtype, memory_format=torch.channels_last, copy=True))
        self.register_buffer("resample_filter", blocks[0].resample_filter.sum(0))
        self.layers, self.to_rgb = nn.ModuleList(), nn.ModuleList()
        affines: list[tuple[int, FullyConnected, float]] = []  # latent row, layer's affine, gain on its styles
        row = 0
        for block in blocks:
            convs = block.convs()
            self.layers.extend(_SynthesisLayer(conv, dtype) for conv in convs)
            self.to_rgb.append(_ToRGB(block.torgb))
            affines += [(row + index, conv.affine, 1.0) for index, conv in enumerate(convs)]
            affines.append((row + len(convs), block.torgb.affine, block.torgb.weight_gain))
            row += len(convs)
        self.style_sizes = [affine.weight.shape[0] for _, affine, _ in affines]
        matrix, offset = _style_matrix(model, affines)
        self.register_buffer("style_matrix", matrix)
        self.register_buffer("style_offset", offset)

    @torch.no_grad()
    def forward(self, photo: torch.Tensor, region: torch.Tensor, degree: torch.Tensor, style: torch.Tensor) -> Edit:
        """As `Glean.forward`."""
        told = told_of(photo, region, degree, style, self.noise if self.config.draws else None, self.size_px)
        features = self.encoder(told.to(self.dtype, memory_format=torch.channels_last))
        coarse = features[0].float().flatten(1)
        hidden = F.leaky_relu(self.hidden(coarse), 0.2)
        ws = self.w_avg + self.offsets(hidden).unflatten(1, (-1, self.w_avg.shape[0]))
        styles = iter(F.linear(hidden, self.style_matrix, self.style_offset).split(self.style_sizes, dim=1))

        x, image, fused = self.const.expand(photo.shape[0], -1, -1, -1), None, []
        layers = iter(self.layers)
        for fuse, to_rgb, feature in zip(self.fusion, self.to_rgb, features, strict=True):
            for layer in islice(layers, 1 if image is None else 2):
                x = layer(x, next(styles))
            scale, shift = fuse(feature).chunk(2, dim=1)
            x = torch.addcmul(shift, x, scale)
            fused.append(x)
            rgb = to_rgb(x, next(styles))
            image = rgb if image is None else rgb + upsample2d(image, self.resample_filter)
        assert image is not None

        out = self.decoder(fused, features, image).float()
        asked = Asked(photo, region, degree, style)
        return composed(self.config, out, asked, image, ws, self.applies(coarse)[:, 0])


class _Encoder(nn.Module):
    """As `glean.Encoder`, but features come as a list, coarse to fine."""

    def __init__(self, encoder: Encoder, dtype: torch.dtype):
        super().__init__()
        self.stem = _folded(encoder.stem, _GAIN, dtype)
        self.downs = nn.ModuleList([_DownBlock(down, dtype) for down in encoder.downs])

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        features = [F.leaky_relu_(self.stem(x), 0.2)]
        for down in self.downs:
            features.append(down(features[-1]))
        return features[::-1]


class _DownBlock(nn.Module):
    def __init__(self, down: nn.Module, dtype: torch.dtype):
        super().__init__()
        assert isinstance(down, DownBlock)
        self.conv0 = _folded(down.conv0, _GAIN, dtype)
        self.conv1 = _folded(down.conv1, 1.0, dtype)  # activation gain times the residual's sqrt(1/2)
        self.skip = _folded(down.skip, math.sqrt(0.5), dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.leaky_relu_(self.conv0(x), 0.2)
        y = F.leaky_relu_(self.conv1(F.avg_pool2d(y, 2)), 0.2)
        halved: torch.Tensor = y + self.skip(F.avg_pool2d(x, 2))
        return halved


class _SynthesisLayer(nn.Module):
    """Modulated convolution (shared weight, scaled input and output), noise, bias and leaky ReLU; styles [N,Cin]."""

    weight: torch.Tensor
    squares: torch.Tensor
    shift: torch.Tensor
    fir: torch.Tensor

    def __init__(self, layer: SynthesisLayer, dtype: torch.dtype):
        super().__init__()
        self.up, self.clamp = layer.up, layer.clamp
        weight = layer.weight.detach()
        shift = (layer.noise_const * layer.noise_strength + layer.bias[:, None, None])[None] * _GAIN
        self.register_buffer("squares", weight.square().sum((2, 3)).t().contiguous())
        self.register_buffer("weight", _laid_out(weight.transpose(0, 1) if self.up == 2 else weight, dtype))
        self.register_buffer("shift", _laid_out(shift, dtype))
        if self.up == 2:
            kernel = layer.resample_filter
            if kernel.shape != (4, 4):
                raise ValueError(f"prepare: resample filter of {tuple(kernel.shape)}, StyleGAN2's has 4 x 4 taps")
            fir = 4 * kernel.flip(0, 1).expand(weight.shape[0], 1, 4, 4)
            self.register_buffer("fir", _laid_out(fir, dtype))

    def forward(self, x: torch.Tensor, styles: torch.Tensor) -> torch.Tensor:
        demodulation = _GAIN * (styles.square() @ self.squares + DEMODULATION_EPS).rsqrt()
        x = x * styles.to(x.dtype)[:, :, None, None]
        if self.up == 2:
            x = F.conv_transpose2d(x, self.weight, stride=2)
            x = F.conv2d(x, self.fir, padding=1, groups=x.shape[1])
        else:
            x = F.conv2d(x, self.weight, padding=1)
        x = F.leaky_relu_(torch.addcmul(self.shift, x, demodulation.to(x.dtype)[:, :, None, None]), 0.2)
        return x if self.clamp is None else x.clamp_(-self.clamp, self.clamp)


class _ToRGB(nn.Module):
    """1x1 convolution to RGB by each sample's own weight, [N,C,r,r] -> float32 [N,3,r,r]; styles hold its gain."""

    weight: torch.Tensor
    bias: torch.Tensor

    def __init__(self, to_rgb: ToRGB):
        super().__init__()
        self.clamp = to_rgb.clamp
        self.register_buffer("weight", to_rgb.weight.detach()[:, :, 0, 0].clone())
        self.register_buffer("bias", to_rgb.bias.detach().clone())

    def forward(self, x: torch.Tensor, styles: torch.Tensor) -> torch.Tensor:
        weight = (self.weight * styles[:, None]).to(x.dtype)  # [N,3,C]
        pixels = x.permute(0, 2, 3, 1).flatten(1, 2)  # [N,r*r,C], a view where channels come last
        rgb = torch.bmm(pixels, weight.transpose(1, 2)).float() + self.bias
        rgb = rgb if self.clamp is None else rgb.clamp_(-self.clamp, self.clamp)
        image: torch.Tensor = rgb.transpose(1, 2).unflatten(2, x.shape[2:])
        return image


class _Decoder(nn.Module):
    """As `glean.Decoder`, with features coarse to fine; each level's convolution is split by its inputs."""

    def __init__(self, decoder: Decoder, generator_channels: Callable[[int], int], dtype: torch.dtype):
        super().__init__()
        self.narrow = nn.ModuleList([_folded(narrow, 1.0, dtype) for narrow in decoder.narrow])
        self.of_generator, self.of_rest = nn.ModuleList(), nn.ModuleList()
        for resolution, conv in zip(decoder.resolutions, decoder.convs, strict=True):
            assert isinstance(conv, nn.Conv2d)
            split = generator_channels(resolution)
            self.of_generator.append(_part(conv, 0, split, _GAIN, dtype, bias=False))
            self.of_rest.append(_part(conv, split, conv.in_channels, _GAIN, dtype))
        self.last = _folded(decoder.last, _GAIN, dtype)
        self.out = _folded(decoder.out, 1.0, dtype)

    def forward(self, fused: list[torch.Tensor], features: list[torch.Tensor], image: torch.Tensor) -> torch.Tensor:
        x: torch.Tensor | None = None
        for index, (generated, rest) in enumerate(zip(fused, features, strict=True)):
            if x is not None:
                x = F.interpolate(self.narrow[index - 1](x), scale_factor=2, mode="bilinear")
                rest = torch.cat([rest, x], dim=1)
            x = F.leaky_relu_(self.of_generator[index](generated) + self.of_rest[index](rest), 0.2)
        assert x is not None
        x = F.leaky_relu_(self.last(torch.cat([x, image.to(x.dtype)], dim=1)), 0.2)
        out: torch.Tensor = self.out(x)
        return out


def _style_matrix(model: Glean, affines: list[tuple[int, FullyConnected, float]]) -> tuple[torch.Tensor, torch.Tensor]:
    """All layers' styles as one affine map of the latent head's hidden vector: matrix [S,width], offset [S]."""
    offsets, width = model.to_latents.offsets, model.generator.config.w_dim
    matrices, constants = [], []
    for row, affine, gain in affines:
        rows = slice(row * width, (row + 1) * width)
        linear = affine.weight.double() * affine.weight_gain * gain
        start = model.generator.mapping.w_avg.double() + offsets.bias[rows].double()
        matrices.append(linear @ offsets.weight[rows].double())
        constants.append(linear @ start + affine.bias.double() * affine.bias_gain * gain)
    return torch.cat(matrices).float(), torch.cat(constants).float()


def _fusion(fusion: nn.Module, dtype: torch.dtype) -> nn.Conv2d:
    """x * (1 + scale) + shift with the one inside the scale's bias."""
    assert isinstance(fusion, ScaleAndShift)
    conv = _folded(fusion.conv, 1.0, torch.float32)
    assert conv.bias is not None
    conv.bias[: conv.out_channels // 2] += 1
    return conv.to(dtype)  # keeps the layout


def _folded(conv: nn.Module, gain: float, dtype: torch.dtype) -> nn.Conv2d:
    """A copy of a convolution with its output multiplied by gain."""
    assert isinstance(conv, nn.Conv2d)
    return _part(conv, 0, conv.in_channels, gain, dtype)


def _part(conv: nn.Module, first: int, end: int, gain: float, dtype: torch.dtype, bias: bool = True) -> nn.Conv2d:
    """A copy that sees input channels first..end-1 alone, with its output multiplied by gain; bias False drops it."""
    assert isinstance(conv, nn.Conv2d)
    part = copy.deepcopy(conv)
    part.in_channels = end - first
    part.weight = nn.Parameter(_laid_out(conv.weight[:, first:end] * gain, dtype), requires_grad=False)
    if not bias or conv.bias is None:
        part.bias = None
    else:
        part.bias = nn.Parameter((conv.bias * gain).to(dtype), requires_grad=False)
    return part


def _laid_out(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A copy in the layout of the convolutions."""
    return tensor.detach().to(dtype, memory_format=torch.channels_last, copy=True)
