"""StyleGAN2 generator (Karras et al. 2020): mapping and skip synthesis networks with NVIDIA's parameter names."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from stylepairs.datagen.stylegan.layers import FullyConnected, at_least_float32, normal, refuse_impossible
from stylepairs.kernels.bias_act import bias_act
from stylepairs.kernels.dispatch import without_autocast
from stylepairs.kernels.modulated_conv2d import modulated_conv2d
from stylepairs.kernels.modulated_layer import modulated_layer
from stylepairs.kernels.upfirdn2d import setup_filter, upsample2d

NOISE_MODES = ("const", "random", "none")
Fuse = Callable[[int, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class GeneratorConfig:
    """What fixes every shape; conv_clamp None leaves activations open (official fp16 training uses 256).
    mean_is_estimated: the mean latent is none of the checkpoint's, but made of its weights."""

    z_dim: int = 512
    w_dim: int = 512
    img_resolution: int = 1024
    img_channels: int = 3
    channel_base: int = 32768
    channel_max: int = 512
    mapping_layers: int = 8
    conv_clamp: float | None = None
    mean_is_estimated: bool = False

    def __post_init__(self) -> None:
        if self.img_resolution < 8 or self.img_resolution & (self.img_resolution - 1):
            raise ValueError(f"img_resolution must be a power of two of at least 8, got {self.img_resolution}")
        refuse_impossible(self, z_dim=1, w_dim=1, img_channels=1, channel_max=1, mapping_layers=0)

    def channels(self, resolution: int) -> int:
        return min(self.channel_base // resolution, self.channel_max)

    @property
    def resolutions(self) -> list[int]:
        return [2**k for k in range(2, int(math.log2(self.img_resolution)) + 1)]

    @property
    def num_ws(self) -> int:
        return 2 * int(math.log2(self.img_resolution)) - 2


class Generator(nn.Module):
    """z [N,z_dim] -> image [N,3,H,W], nominally in [-1,1] (not clamped)."""

    def __init__(self, config: GeneratorConfig):
        super().__init__()
        self.config = config
        self.num_ws = config.num_ws
        self.mapping = MappingNetwork(config)
        self.synthesis = SynthesisNetwork(config)

    def forward(
        self,
        z: torch.Tensor,
        truncation_psi: float = 1.0,
        truncation_cutoff: int | None = None,
        noise_mode: str = "const",
    ) -> torch.Tensor:
        ws = self.mapping(z, truncation_psi, truncation_cutoff)
        image: torch.Tensor = self.synthesis(ws, noise_mode=noise_mode)
        return image

    def noise_maps(self) -> list[torch.Tensor]:
        """The constant noise buffers, [1,1,r,r] each, in the order that `synthesis(noise=...)` takes."""
        return [layer.noise_const[None, None] for layer in self.synthesis.noisy_layers()]


def lower_part(generator: Generator, size_px: int) -> Generator:
    """The generator without its blocks above size_px, of the same tensors: what renders that size."""
    with torch.device("meta"):
        part = Generator(replace(generator.config, img_resolution=size_px))
    state = generator.state_dict()
    part.load_state_dict({key: state[key] for key in part.state_dict()}, assign=True)
    return part.eval().requires_grad_(False)


class MappingNetwork(nn.Module):
    """z [N,z_dim] -> ws [N,L,w_dim]; w_avg is the running mean latent that truncation pulls towards."""

    w_avg: torch.Tensor

    def __init__(self, config: GeneratorConfig, lr_multiplier: float = 0.01):
        super().__init__()
        self.num_ws, self.num_layers = config.num_ws, config.mapping_layers
        for index in range(config.mapping_layers):
            width_in = config.z_dim if index == 0 else config.w_dim
            setattr(self, f"fc{index}", FullyConnected(width_in, config.w_dim, "lrelu", lr_multiplier))
        self.register_buffer("w_avg", torch.zeros(config.w_dim))

    def forward(
        self, z: torch.Tensor, truncation_psi: float = 1.0, truncation_cutoff: int | None = None
    ) -> torch.Tensor:
        ws = self.to_w(z)[:, None].repeat(1, self.num_ws, 1)
        if truncation_psi != 1:
            cutoff = self.num_ws if truncation_cutoff is None else truncation_cutoff
            ws = torch.cat([self.w_avg.lerp(ws[:, :cutoff], truncation_psi), ws[:, cutoff:]], dim=1)
        return ws

    def to_w(self, z: torch.Tensor) -> torch.Tensor:
        """z [N,z_dim] -> w [N,w_dim], not broadcast and not truncated; in full precision under autocast too."""
        z = at_least_float32(z)
        x = z * (z.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt()
        with without_autocast(z.device.type):
            for index in range(self.num_layers):
                x = getattr(self, f"fc{index}")(x)
        return x


class SynthesisNetwork(nn.Module):
    """ws [N,L,w_dim] -> image [N,3,H,W]: blocks b4, b8, ... each adding to an upsampled RGB skip image."""

    def __init__(self, config: GeneratorConfig):
        super().__init__()
        self.config = config
        for resolution in config.resolutions:
            setattr(self, f"b{resolution}", SynthesisBlock(config, resolution))

    def channels(self, resolution: int) -> int:
        """Feature channels at a resolution."""
        return self.config.channels(resolution)

    def blocks(self) -> list[SynthesisBlock]:
        return [getattr(self, f"b{resolution}") for resolution in self.config.resolutions]

    def noisy_layers(self) -> list[SynthesisLayer]:
        return [layer for block in self.blocks() for layer in block.convs()]

    def forward(
        self,
        ws: torch.Tensor,
        noise: Sequence[torch.Tensor] | None = None,
        noise_mode: str = "const",
        max_resolution: int | None = None,
        fuse: Fuse | None = None,
        recompute_from: int | None = None,
    ) -> torch.Tensor:
        """Render.

        ws [N,L,w_dim]; noise, one map [N,1,r,r] or [1,1,r,r] per convolution (order of `Generator.noise_maps`),
        overrides noise_mode; noise_mode "const" uses the buffers, "random" draws, "none" leaves noise out;
        max_resolution stops the pyramid early and returns that block's RGB image; fuse(resolution, x [N,C,r,r]) -> x
        edits each block's features before they are shown (ToRGB) and passed on; recompute_from: blocks of this
        resolution and above keep their inputs alone for the backward pass and are computed again in it, to the same
        bits (gradient checkpointing, Chen et al. 2016); None keeps everything.
        """
        if noise_mode not in NOISE_MODES:
            raise ValueError(f"noise_mode must be one of {', '.join(NOISE_MODES)}, got {noise_mode!r}")
        x: torch.Tensor | None = None
        image: torch.Tensor | None = None
        rows = ws.unbind(1)  # sliced layer by layer, the backward pass would add up as many zero-padded gradients
        w_index = noise_index = 0
        for block in self.blocks():
            if max_resolution is not None and block.resolution > max_resolution:
                break
            count = len(block.convs())
            maps = None if noise is None else noise[noise_index : noise_index + count]
            inputs = (x, image, rows[w_index : w_index + count + 1], maps, noise_mode, fuse)
            if recompute_from is None or block.resolution < recompute_from:
                x, image = block(*inputs)
            else:
                # Fixed noise draws nothing, and a graph of CUDA kernels cannot be captured while states are read.
                draws = noise_mode == "random" or fuse is not None
                x, image = checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=draws)
            w_index, noise_index = w_index + count, noise_index + count
        assert image is not None
        return image


class SynthesisBlock(nn.Module):
    """One resolution: (up-convolution,) convolution, and a ToRGB that adds to the skip image."""

    resample_filter: torch.Tensor

    def __init__(self, config: GeneratorConfig, resolution: int):
        super().__init__()
        self.resolution = resolution
        channels = config.channels(resolution)
        self.register_buffer("resample_filter", setup_filter())
        if resolution == 4:
            self.const = nn.Parameter(normal(channels, 4, 4))
        else:
            self.conv0 = SynthesisLayer(config, config.channels(resolution // 2), channels, resolution, up=2)
        self.conv1 = SynthesisLayer(config, channels, channels, resolution)
        self.torgb = ToRGB(config, channels)

    def convs(self) -> list[SynthesisLayer]:
        return [self.conv1] if self.resolution == 4 else [self.conv0, self.conv1]

    def forward(
        self,
        x: torch.Tensor | None,
        image: torch.Tensor | None,
        ws: Sequence[torch.Tensor],
        noise: Sequence[torch.Tensor] | None,
        noise_mode: str,
        fuse: Fuse | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if x is None:
            x = self.const.expand(ws[0].shape[0], -1, -1, -1)
        for index, conv in enumerate(self.convs()):
            x = conv(x, ws[index], None if noise is None else noise[index], noise_mode)
        if fuse is not None:
            x = fuse(self.resolution, x)
        rgb = at_least_float32(self.torgb(x, ws[-1]))
        if image is not None:
            with without_autocast(image.device.type):
                rgb = rgb + upsample2d(image, self.resample_filter.sum(0))
        return x, rgb


class SynthesisLayer(nn.Module):
    """Modulated 3x3 convolution, noise, bias, leaky ReLU."""

    noise_const: torch.Tensor
    resample_filter: torch.Tensor

    def __init__(self, config: GeneratorConfig, channels_in: int, channels_out: int, resolution: int, up: int = 1):
        super().__init__()
        self.resolution, self.up, self.clamp = resolution, up, config.conv_clamp
        self.affine = FullyConnected(config.w_dim, channels_in, bias_init=1)
        self.weight = nn.Parameter(normal(channels_out, channels_in, 3, 3))
        self.bias = nn.Parameter(torch.zeros(channels_out))
        self.noise_strength = nn.Parameter(torch.zeros([]))
        self.register_buffer("noise_const", normal(resolution, resolution))
        self.register_buffer("resample_filter", setup_filter())

    def forward(
        self, x: torch.Tensor, w: torch.Tensor, noise: torch.Tensor | None = None, noise_mode: str = "const"
    ) -> torch.Tensor:
        if noise is None and noise_mode == "const":
            noise = self.noise_const
        elif noise is None and noise_mode == "random":
            noise = torch.randn(x.shape[0], 1, self.resolution, self.resolution, device=x.device)
        if noise is not None:
            noise = noise * self.noise_strength
        styles, taps = styles_of(self.affine, w), self.resample_filter.sum(0) if self.up > 1 else None
        return modulated_layer(x, self.weight, styles, self.bias, noise, self.up, taps, clamp=self.clamp)


class ToRGB(nn.Module):
    """Modulated 1x1 convolution to RGB, without demodulation."""

    def __init__(self, config: GeneratorConfig, channels_in: int):
        super().__init__()
        self.clamp = config.conv_clamp
        self.affine = FullyConnected(config.w_dim, channels_in, bias_init=1)
        self.weight = nn.Parameter(normal(config.img_channels, channels_in, 1, 1))
        self.bias = nn.Parameter(torch.zeros(config.img_channels))
        self.weight_gain = 1 / math.sqrt(channels_in)

    def forward(self, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        x = modulated_conv2d(x, self.weight, styles_of(self.affine, w) * self.weight_gain, demodulate=False)
        return bias_act(x, self.bias, clamp=self.clamp)


def styles_of(affine: FullyConnected, w: torch.Tensor) -> torch.Tensor:
    """A layer's styles [N,Cin] from its latent [N,w_dim], in full precision under autocast too: they cost nothing."""
    with without_autocast(w.device.type):
        styles: torch.Tensor = affine(w.to(affine.weight.dtype))
    return styles
