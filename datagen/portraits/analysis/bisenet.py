"""Face parsing by BiSeNet (Yu et al., 2018) with a ResNet-18 as its spatial path: reads the field's 79999_iter.pth.

Written anew; the names of modules are those of the weights' state dict. The file's class order is the label map's own.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from stylepairs.datagen.portraits.analysis.parsing import resize_logits, resize_matte
from stylepairs.datagen.portraits.portrait import CLASS
from stylepairs.datagen.shell.decode import Damaged, read_torch
from stylepairs.datagen.shell.errors import InputError, one_line

INPUT_PX = 512
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_PAIRS = (("l_brow", "r_brow"), ("l_eye", "r_eye"), ("l_ear", "r_ear"))


class BiSeNet(nn.Module):
    """image [N,3,H,W], ImageNet-normalised -> class logits [N,19,H,W]. The two auxiliary heads hold weights only."""

    def __init__(self, classes: int = 19) -> None:
        super().__init__()
        self.cp = _ContextPath()
        self.ffm = _FeatureFusion(256, 256)
        self.conv_out = _Output(256, 256, classes)
        self.conv_out16 = _Output(128, 64, classes)
        self.conv_out32 = _Output(128, 64, classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        spatial, context = self.cp(image)
        logits = self.conv_out(self.ffm(spatial, context))
        return F.interpolate(logits, size=image.shape[-2:], mode="bilinear", align_corners=True)


class BiSeNetParser:
    """Label map from BiSeNet; the hair matte is the probability of hair."""

    def __init__(self, net: BiSeNet) -> None:
        self.net = net

    @torch.inference_mode()
    def parse(self, aligned: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """aligned [N,3,H,W] in [-1,1] -> label [N,H,W] uint8, hair matte [N,1,H,W] in [0,1]."""
        parts = [self._parse(image) for image in aligned.float().split(1)]
        return torch.cat([label for label, _ in parts]), torch.cat([hair for _, hair in parts])

    def _parse(self, aligned: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        small = F.interpolate(aligned, size=(INPUT_PX, INPUT_PX), mode="bilinear", antialias=True, align_corners=False)
        mean, deviation = (torch.tensor(v).view(1, 3, 1, 1) for v in (_MEAN, _DEVIATION))
        logits = self.net((small / 2 + 0.5 - mean) / deviation)
        matte = logits.softmax(1)[:, CLASS["hair"]][:, None]
        return subject_sides(resize_logits(logits, aligned)), resize_matte(matte, aligned)


def load_bisenet_parser(path: str | Path) -> BiSeNetParser:
    """The parser with the weights of `path` (a state dict); InputError for a file that is missing or something else."""
    path = Path(path)
    try:
        state = read_torch(path)
    except Damaged as error:
        raise InputError(f"{path}: no PyTorch state dict ({error}); check --parser") from None
    if not isinstance(state, dict) or "cp.conv_avg.conv.weight" not in state:
        raise InputError(f"{path}: not BiSeNet's face-parsing weights (no cp.conv_avg.conv.weight)")
    net = BiSeNet()
    try:
        net.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(f"{path}: BiSeNet weights that do not fit ({one_line(error)})") from None
    return BiSeNetParser(net.eval().requires_grad_(False))


def subject_sides(label: torch.Tensor) -> torch.Tensor:
    """label [N,H,W] -> the same with brows, eyes and ears named by the subject's left and right.

    Data sets disagree on whose left is meant. In an aligned crop the face's middle is the crop's middle, so the side
    is known.
    """
    label = label.clone()
    middle = label.shape[-1] // 2
    for left, right in _PAIRS:
        pair = (label == CLASS[left]) | (label == CLASS[right])
        label[..., :middle][pair[..., :middle]] = CLASS[right]
        label[..., middle:][pair[..., middle:]] = CLASS[left]
    return label


class _ConvNorm(nn.Module):
    def __init__(self, channels_in: int, channels_out: int, kernel: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, kernel, padding=kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(channels_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.bn(self.conv(x)))


class _Output(nn.Module):
    def __init__(self, channels_in: int, middle: int, classes: int) -> None:
        super().__init__()
        self.conv = _ConvNorm(channels_in, middle)
        self.conv_out = nn.Conv2d(middle, classes, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.conv_out(self.conv(x))
        return logits


class _AttentionRefinement(nn.Module):
    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv = _ConvNorm(channels_in, channels_out)
        self.conv_atten = nn.Conv2d(channels_out, channels_out, 1, bias=False)
        self.bn_atten = nn.BatchNorm2d(channels_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        return x * torch.sigmoid(self.bn_atten(self.conv_atten(x.mean((2, 3), keepdim=True))))


class _FeatureFusion(nn.Module):
    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.convblk = _ConvNorm(channels_in, channels_out, kernel=1)
        self.conv1 = nn.Conv2d(channels_out, channels_out // 4, 1, bias=False)
        self.conv2 = nn.Conv2d(channels_out // 4, channels_out, 1, bias=False)

    def forward(self, spatial: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        x: torch.Tensor = self.convblk(torch.cat([spatial, context], 1))
        return x + x * torch.sigmoid(self.conv2(F.relu(self.conv1(x.mean((2, 3), keepdim=True)))))


class _ContextPath(nn.Module):
    """image -> features at 1/8 from the trunk, and at 1/8 with the context of 1/16, 1/32 and the whole picture."""

    def __init__(self) -> None:
        super().__init__()
        self.resnet = _ResNet18()
        self.arm16 = _AttentionRefinement(256, 128)
        self.arm32 = _AttentionRefinement(512, 128)
        self.conv_head32 = _ConvNorm(128, 128)
        self.conv_head16 = _ConvNorm(128, 128)
        self.conv_avg = _ConvNorm(512, 128, kernel=1)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x8, x16, x32 = self.resnet(image)
        whole = self.conv_avg(x32.mean((2, 3), keepdim=True))
        y16 = self.conv_head32(F.interpolate(self.arm32(x32) + whole, size=x16.shape[-2:], mode="nearest"))
        y8 = self.conv_head16(F.interpolate(self.arm16(x16) + y16, size=x8.shape[-2:], mode="nearest"))
        return x8, y8


class _ResNet18(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = nn.Sequential(_Block(64, 64, 1), _Block(64, 64, 1))
        self.layer2 = nn.Sequential(_Block(64, 128, 2), _Block(128, 128, 1))
        self.layer3 = nn.Sequential(_Block(128, 256, 2), _Block(256, 256, 1))
        self.layer4 = nn.Sequential(_Block(256, 512, 2), _Block(512, 512, 1))

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(image))), 3, 2, 1)
        x8 = self.layer2(self.layer1(x))
        x16 = self.layer3(x8)
        return x8, x16, self.layer4(x16)


class _Block(nn.Module):
    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or channels_in != channels_out:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride=stride, bias=False), nn.BatchNorm2d(channels_out)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))
