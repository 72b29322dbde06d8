"""Networks of other packages, imported alone from the folder that peers.txt is installed into.

What their packages pull in at import (torchvision, CUDA extensions, experiment trackers) is replaced by empty
stand-ins; the two compiled operations are replaced by what the packages themselves run on a CPU, or by the same formula
in plain torch where a package has no CPU path. Nothing else of the networks is changed.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import nn

FOLDER = Path("build/peers")
PEERS = ("stylegan2-torch", "stylegan2-pytorch", "basicsr", "gfpgan")
W_DIM = 512
# Imported by the packages but used by nothing that is run here.
UNUSED = ("torchvision", "torchvision.transforms", "fire", "aim", "vector_quantize_pytorch", "basicsr.ops.dcn")


@dataclass(frozen=True)
class PeerGenerator:
    """latents(batch) -> the tensor that the gradient is taken to; render(latents) -> images; note: how it was
    matched."""

    module: nn.Module
    latents: Callable[[int], torch.Tensor]
    render: Callable[[torch.Tensor], torch.Tensor]
    note: str


class Unused(types.ModuleType):
    """A module whose every attribute is an empty class."""

    __path__: list[str] = []  # noqa: RUF012  # what makes it a package
    __version__ = "0.0"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def installed(folder: Path = FOLDER) -> dict[str, str]:
    """Version of each peer found in the folder."""
    names = ((d.metadata["Name"], d.version) for d in importlib.metadata.distributions(path=[str(folder)]))
    found = {name.lower().replace("_", "-"): version for name, version in names}
    return {name: found[name] for name in PEERS if name in found}


def load_generator(name: str, resolution: int, channel_base: int, folder: Path = FOLDER) -> PeerGenerator:
    """A peer's generator with channels min(channel_base / r, 512) at resolution r, random weights, all frozen."""
    with importing(folder):
        peer = LOADERS[name](resolution, channel_base)
    peer.module.eval().requires_grad_(False)
    return peer


def load_gfpgan(size_px: int, channel_multiplier: int, folder: Path = FOLDER) -> nn.Module:
    """GFPGANv1Clean as published for v1.3 (different_w, half of the channels modulated), random weights; channels at
    resolution r are min(channel_multiplier * 16384 / r, 512)."""
    with importing(folder):
        module = importlib.import_module("gfpgan.archs.gfpganv1_clean_arch")
        network = module.GFPGANv1Clean(
            size_px, channel_multiplier=channel_multiplier, different_w=True, input_is_latent=True, sft_half=True
        )
    frozen: nn.Module = network.eval().requires_grad_(False)
    return frozen


def _stylegan2_torch(resolution: int, channel_base: int) -> PeerGenerator:
    package = importlib.import_module("stylegan2_torch")
    channels = {2**k: min(channel_base // 2**k, 512) for k in range(2, 11)}
    network = package.Generator(resolution, channels=channels)
    note = "same architecture; its RGB layers give one channel; upfirdn2d has no CPU path: BasicSR's taken"
    noise = [torch.randn(1, 1, 2 ** ((i + 5) // 2), 2 ** ((i + 5) // 2)) for i in range(network.n_w_plus - 1)]

    def render(ws: torch.Tensor) -> torch.Tensor:
        image: torch.Tensor = network([ws], input_type="w_plus", noises=noise)
        return image

    return PeerGenerator(network, lambda n: torch.randn(n, network.n_w_plus, W_DIM), render, note)


def _stylegan2_pytorch(resolution: int, channel_base: int) -> PeerGenerator:
    with mock.patch("torch.cuda.is_available", return_value=True):  # asserted at import
        package = importlib.import_module("stylegan2_pytorch.stylegan2_pytorch")
    network = package.Generator(resolution, W_DIM, network_capacity=channel_base // resolution // 2)
    noise = torch.rand(1, resolution, resolution, 1)

    def render(ws: torch.Tensor) -> torch.Tensor:
        image: torch.Tensor = network(ws, noise.expand(len(ws), -1, -1, -1))
        return image

    note = "own architecture (bilinear upsampling before each convolution, one latent per resolution); same channels"
    return PeerGenerator(network, lambda n: torch.randn(n, network.num_layers, W_DIM), render, note)


def _basicsr(resolution: int, channel_base: int) -> PeerGenerator:
    module = importlib.import_module("basicsr.archs.stylegan2_arch")
    network = module.StyleGAN2Generator(resolution, channel_multiplier=_multiplier(channel_base))
    note = "same architecture; its fused activation has no CPU path: plain torch taken"
    return PeerGenerator(network, *_basicsr_calls(network), note)


def _gfpgan(resolution: int, channel_base: int) -> PeerGenerator:
    module = importlib.import_module("gfpgan.archs.stylegan2_clean_arch")
    network = module.StyleGAN2GeneratorClean(resolution, channel_multiplier=_multiplier(channel_base))
    note = "StyleGAN2GeneratorClean: bilinear upsampling before each convolution instead of FIR; same channels"
    return PeerGenerator(network, *_basicsr_calls(network), note)


def _basicsr_calls(network: Any) -> tuple[Callable[[int], torch.Tensor], Callable[[torch.Tensor], torch.Tensor]]:
    def render(ws: torch.Tensor) -> torch.Tensor:
        image: torch.Tensor = network([ws], input_is_latent=True, randomize_noise=False)[0]
        return image

    return lambda n: torch.randn(n, network.num_latent, W_DIM), render


def _multiplier(channel_base: int) -> int:
    """BasicSR counts channels at 64 px and above as multiples of 16384 / r."""
    if channel_base % 16384:
        raise ValueError(f"channel_base must be a multiple of 16384 for this peer, got {channel_base}")
    return channel_base // 16384


LOADERS: dict[str, Callable[[int, int], PeerGenerator]] = {
    "stylegan2-torch": _stylegan2_torch,
    "stylegan2-pytorch": _stylegan2_pytorch,
    "basicsr": _basicsr,
    "gfpgan": _gfpgan,
}


@contextlib.contextmanager
def importing(folder: Path) -> Iterator[None]:
    """The folder on the import path, what is unused replaced, the packages' own __init__ left out."""
    modules = {name: Unused(name) for name in UNUSED if name not in sys.modules}
    for name in ("basicsr", "basicsr.archs", "basicsr.ops", "basicsr.utils", "gfpgan", "gfpgan.archs"):
        if name not in sys.modules:
            package = modules[name] = types.ModuleType(name)  # type: ignore[assignment]
            package.__path__ = [str(folder / name.replace(".", "/"))]
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(sys, "path", [str(folder), *sys.path]))
        sys.modules.update(modules)
        # stylegan2-torch compiles its CUDA sources at import.
        stack.enter_context(mock.patch("torch.utils.cpp_extension.load", return_value=None))
        try:
            _replace_compiled(folder)
            yield
        finally:
            for name, module in modules.items():
                if isinstance(module, Unused):
                    sys.modules.pop(name, None)


def _replace_compiled(folder: Path) -> None:
    """The two operations of rosinality's StyleGAN2 that both packages took over."""
    if "basicsr.ops.fused_act" in sys.modules:
        return
    sys.modules["basicsr.utils"].get_root_logger = lambda: None  # type: ignore[attr-defined]
    upfirdn2d = importlib.import_module("basicsr.ops.upfirdn2d.upfirdn2d")
    fused = types.ModuleType("basicsr.ops.fused_act")
    fused.FusedLeakyReLU, fused.fused_leaky_relu = FusedLeakyReLU, fused_leaky_relu  # type: ignore[attr-defined]
    sys.modules["basicsr.ops.fused_act"] = fused
    if importlib.util.find_spec("stylegan2_torch") is not None:
        for name in ("stylegan2_torch.op.upfirdn2d", "stylegan2_torch.op"):
            sys.modules[name] = types.ModuleType(name)
        sys.modules["stylegan2_torch.op"].__path__ = [str(folder / "stylegan2_torch/op")]
        sys.modules["stylegan2_torch.op.upfirdn2d"].upfirdn2d = upfirdn2d.upfirdn2d  # type: ignore[attr-defined]


def fused_leaky_relu(
    x: torch.Tensor, bias: torch.Tensor, negative_slope: float = 0.2, scale: float = 2**0.5
) -> torch.Tensor:
    """BasicSR's fused operation, whose sources are CUDA, in plain torch."""
    return F.leaky_relu(x + bias.view(1, -1, *[1] * (x.ndim - 2)), negative_slope) * scale


class FusedLeakyReLU(nn.Module):
    """Its module form."""

    def __init__(self, channels: int, negative_slope: float = 0.2, scale: float = 2**0.5):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))
        self.negative_slope, self.scale = negative_slope, scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return fused_leaky_relu(x, self.bias, self.negative_slope, self.scale)
