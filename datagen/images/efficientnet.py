"""The first stages of EfficientNet-Lite0 (Tan & Le 2019), frozen: batch norms folded into the convolutions, and each
stage's output normalised."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from stylepairs.kernels.inverted_bottleneck import Layer, inverted_bottleneck

State = Mapping[str, torch.Tensor]  # the package's: `_conv_stem.weight`, `_blocks.I._expand_conv.weight`, ...
IMAGENET_ZERO = -1 / 255  # in [-1,1]: the 127 of 255 that it was trained with as zero
STAGES = ((0, 1, 1), (1, 2, 2), (3, 2, 2))  # first block, blocks, stride


def first_stages(state: State) -> tuple[nn.Conv2d, nn.ModuleList]:
    """The stem, a convolution at stride 1 of images in [-1,1], and the stages that follow it.

    What a stage gives is less the mean over ImageNet, divided by the deviation, which its layers and the next stage's
    have in their weights.
    """
    stem = folded(state, "_conv_stem", "_bn0", stride=1)
    _take_normalised(stem, torch.full((3,), 0.5 / 128), torch.full((3,), 127.5 / 128))  # from [-1,1]
    blocks = [
        InvertedBottleneck(state, f"_blocks.{first + index}", stride if index == 0 else 1)
        for first, count, stride in STAGES
        for index in range(count)
    ]
    for first, count, _ in STAGES:
        _normalise(state, blocks, first, count)
    return stem, nn.ModuleList(nn.Sequential(*blocks[first : first + count]) for first, count, _ in STAGES)


def layer(conv: nn.Conv2d) -> Layer:
    """Weight and bias."""
    assert conv.bias is not None
    return conv.weight, conv.bias


@torch.no_grad()
def _normalise(state: State, blocks: list[InvertedBottleneck], first: int, count: int) -> None:
    """Let a stage's blocks give what they give normalised, and all that read it take it so."""
    names = [f"_blocks.{index}._bn2" for index in range(first, first + count)]
    # A stage's output is a sum of batch-normed terms: mean and variance over ImageNet follow from their scales and
    # shifts (on portraits the deviation comes out as 0.87 to 1.09).
    mean = torch.stack([state[f"{name}.bias"].float() for name in names]).sum(0)
    deviation = torch.stack([state[f"{name}.weight"].float().square() for name in names]).sum(0).sqrt()
    deviation = deviation.clamp_min(1e-3)
    for index in range(first, first + count):
        _give_normalised(blocks[index].project, mean if index == first else torch.zeros_like(mean), deviation)
    for block in blocks[first + 1 : first + count + 1]:
        assert block.expand is not None
        _take_normalised(block.expand, mean, deviation)


class InvertedBottleneck(nn.Module):
    """Expand 1x1, depthwise, project 1x1; ReLU6 after the first two; residual where shapes allow (MobileNetV2)."""

    def __init__(self, state: State, name: str, stride: int):
        super().__init__()
        expands = f"{name}._expand_conv.weight" in state
        self.expand = folded(state, f"{name}._expand_conv", f"{name}._bn0") if expands else None
        self.depthwise = folded(state, f"{name}._depthwise_conv", f"{name}._bn1", stride=stride, depthwise=True)
        self.project = folded(state, f"{name}._project_conv", f"{name}._bn2")
        self.stride = stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        expand = None if self.expand is None else layer(self.expand)
        return inverted_bottleneck(x, expand, layer(self.depthwise), layer(self.project), self.stride)


def folded(state: State, conv: str, norm: str, stride: int = 1, depthwise: bool = False) -> nn.Conv2d:
    """A convolution and its batch norm as one."""
    weight = state[f"{conv}.weight"].float()
    gain = state[f"{norm}.weight"].float() / (state[f"{norm}.running_var"].float() + 1e-3).sqrt()
    channels_out, channels_in, kernel, _ = weight.shape
    groups = channels_out if depthwise else 1
    # On the meta device: no random numbers are drawn for what is replaced at once.
    layer = nn.Conv2d(channels_in * groups, channels_out, kernel, stride=stride, groups=groups, device="meta")
    bias = state[f"{norm}.bias"].float() - state[f"{norm}.running_mean"].float() * gain
    layer.load_state_dict({"weight": weight * gain[:, None, None, None], "bias": bias}, assign=True)
    return layer


@torch.no_grad()
def _take_normalised(conv: nn.Conv2d, mean: torch.Tensor, deviation: torch.Tensor) -> None:
    """Let it read (x - mean) / deviation, [C] each, in place of x; what it gives stays the same."""
    weight, bias = layer(conv)
    bias += weight.sum((2, 3)) @ mean
    weight *= deviation[:, None, None]


@torch.no_grad()
def _give_normalised(conv: nn.Conv2d, mean: torch.Tensor, deviation: torch.Tensor) -> None:
    """Let it give (y - mean) / deviation, [C] each, in place of y."""
    weight, bias = layer(conv)
    bias.sub_(mean).div_(deviation)
    weight /= deviation[:, None, None, None]
