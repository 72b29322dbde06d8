"""EfficientNet-Lite0 (Tan & Le 2019) to its end, frozen, as five levels of features: what projected heads,
moments and statistics of texture see of an image."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from stylepairs.datagen.images.efficientnet import IMAGENET_ZERO, InvertedBottleneck, State, folded, layer
from stylepairs.datagen.images.perceptual import efficientnet_state, made_of
from stylepairs.kernels.inverted_bottleneck import strided_stem

STAGES = ((1, 1), (2, 2), (2, 2), (3, 2), (3, 1), (4, 2), (1, 1))  # (blocks, stride of the first) of each
LEVELS = (0, 2, 3, 5, 7)  # after the stem (0) or the stage of that number: the last map of each size
LEVEL_CHANNELS = (32, 24, 40, 112, 320)
LEVEL_STRIDES = (2, 4, 8, 16, 32)
LEAST_PX = 128  # smaller images are enlarged to it: heads expect 4 x 4 places at the coarsest level


class Trunk(nn.Module):
    """image [N,3,R,R] in [-1,1] -> five maps [N,C,r/stride,r/stride], r = max(R, 128), finest first; gradients to the
    image alone.

    state: the package's state dict; batch norms are folded in. dtype: of all convolutions. In bfloat16 on one core of
    an EPYC 9004 8 images of 128 px take 21 ms and their gradient 25; in float32 47 and 118.
    """

    def __init__(self, state: State, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.dtype = dtype
        self.stem = folded(state, "_conv_stem", "_bn0", stride=2)
        strides = [stride if index == 0 else 1 for blocks, stride in STAGES for index in range(blocks)]
        blocks = [InvertedBottleneck(state, f"_blocks.{index}", stride) for index, stride in enumerate(strides)]
        ends = [sum(count for count, _ in STAGES[: stage + 1]) for stage in range(len(STAGES))]
        self.stages = nn.ModuleList(
            nn.Sequential(*blocks[end - count : end]) for end, (count, _) in zip(ends, STAGES, strict=True)
        )
        self.requires_grad_(False).to(dtype)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        if image.shape[-1] < LEAST_PX:
            image = F.interpolate(image, size=LEAST_PX, mode="nearest")
        with torch.autocast(image.device.type, enabled=False):  # under it the fused operations stand back
            x = F.pad(image.to(self.dtype), (0, 1, 0, 1), value=IMAGENET_ZERO)
            maps = [strided_stem(x * (127.5 / 128) + 0.5 / 128, layer(self.stem))]
            for stage in self.stages:
                maps.append(stage(maps[-1]))
        return [maps[index] for index in LEVELS]


def load_trunk(weights: Path | None = None, dtype: torch.dtype = torch.float32) -> Trunk:
    """The trunk with ImageNet weights from the file `weights`, or, where that is None, from the installed package.

    Raises InputError where there are none, or others, or broken ones.
    """
    return made_of(efficientnet_state(weights), partial(Trunk, dtype=dtype), weights)
