"""The three small networks of the embedded face analyser: detector, landmarks, parser.

Detector: a centre heat map as in "Objects as Points" (Zhou et al., 2019). Landmarks: heat maps read by a spatial
expectation, as in "Numerical Coordinate Regression with Convolutional Neural Networks" (Nibali et al., 2018). Parser:
a U-Net (Ronneberger et al., 2015). All take RGB in [-1, 1] and are fully convolutional; they are trained by
recipes/analyser.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

DETECTOR_STRIDE_PX = 8
DETECTOR_UNIT_PX = 32.0
LANDMARK_INPUT_PX = 96
PARSER_INPUT_PX = 256
PARSER_CLASSES = 19
PARSER_BLOCK_PX = 4


class DetectorNet(nn.Module):
    """image [N,3,H,W] (H, W multiples of 16) -> heat logits [N,1,H/8,W/8], points [N,6,H/8,W/8].

    points are (x, y) of the subject's right eye, left eye and mouth centre, as offsets from the cell's centre in
    units of 32 px.
    """

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(_conv(3, width, stride=2), _conv(width, width * 3 // 2, stride=2))
        self.stage8 = nn.Sequential(
            _conv(width * 3 // 2, width * 3, stride=2), Residual(width * 3), Residual(width * 3)
        )
        self.stage16 = nn.Sequential(
            _conv(width * 3, width * 5, stride=2), Residual(width * 5), Residual(width * 5, dilation=2)
        )
        self.fuse = nn.Sequential(_conv(width * 8, width * 4), Residual(width * 4))
        self.head = nn.Conv2d(width * 4, 7, 1)
        nn.init.constant_(self.head.bias[:1], -4.0)  # type: ignore[index]  # faces are rare: start from few

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x8 = self.stage8(self.stem(image))
        x16 = F.interpolate(self.stage16(x8), scale_factor=2.0, mode="nearest")
        out = self.head(self.fuse(torch.cat([x8, x16], 1)).to(self.head.weight.dtype))
        return out[:, :1], out[:, 1:]


class LandmarkNet(nn.Module):
    """crop [N,3,96,96] -> points68 [N,68,2] in crop pixels, face logit [N], heat [N,68,24,24] (sums to one per map)."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        w = width
        self.stem = nn.Sequential(_conv(3, w, stride=2), Residual(w))
        self.down24 = nn.Sequential(_conv(w, w * 2, stride=2), Residual(w * 2), Residual(w * 2))
        self.down12 = nn.Sequential(_conv(w * 2, w * 4, stride=2), Residual(w * 4), Residual(w * 4))
        self.down6 = nn.Sequential(_conv(w * 4, w * 5, stride=2), Residual(w * 5), Residual(w * 5))
        self.up12 = _conv(w * 9, w * 4)
        self.up24 = nn.Sequential(_conv(w * 6, w * 3), Residual(w * 3))
        self.heat = nn.Conv2d(w * 3, 68, 1)
        self.score = nn.Linear(w * 5, 1)

    def forward(self, crop: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        x24 = self.down24(self.stem(crop))
        x12 = self.down12(x24)
        x6 = self.down6(x12)
        y12 = self.up12(torch.cat([x12, F.interpolate(x6, scale_factor=2.0, mode="nearest")], 1))
        y24 = self.up24(torch.cat([x24, F.interpolate(y12, scale_factor=2.0, mode="nearest")], 1))
        logits = self.heat(y24).float()
        heat = logits.flatten(2).softmax(-1).view_as(logits)  # float32: sums of 576 small numbers
        return expected_points(heat), self.score(x6.mean((2, 3))).float()[:, 0], heat


def expected_points(heat: torch.Tensor, stride_px: int = 4) -> torch.Tensor:
    """heat [N,K,h,w] summing to one -> mean position [N,K,2] (x, y) in input pixels."""
    h, w = heat.shape[-2:]
    xs = (torch.arange(w, device=heat.device, dtype=heat.dtype) + 0.5) * stride_px - 0.5
    ys = (torch.arange(h, device=heat.device, dtype=heat.dtype) + 0.5) * stride_px - 0.5
    return torch.stack([(heat.sum(2) * xs).sum(-1), (heat.sum(3) * ys).sum(-1)], -1)


class ParserNet(nn.Module):
    """aligned [N,3,256,256] -> logits [N,20,256,256]: 19 classes, then the hair matte.

    Inside, the finest grid is 64 x 64: each cell reads a block of 4 x 4 pixels as channels and answers for all sixteen.
    """

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        w = width
        self.stem = _conv(3 * PARSER_BLOCK_PX**2 + 2, w * 2)  # the pixels of a block, and two coordinates
        self.down32 = nn.Sequential(_conv(w * 2, w * 2, stride=2), Residual(w * 2))
        self.down16 = nn.Sequential(_conv(w * 2, w * 4, stride=2), Residual(w * 4), Residual(w * 4))
        self.down8 = nn.Sequential(_conv(w * 4, w * 6, stride=2), Residual(w * 6), Residual(w * 6))
        self.down4 = nn.Sequential(_conv(w * 6, w * 8, stride=2), Residual(w * 8), Residual(w * 8))
        self.up8 = nn.Sequential(_conv(w * 14, w * 6), Residual(w * 6))
        self.up16 = nn.Sequential(_conv(w * 10, w * 4), Residual(w * 4))
        self.up32 = nn.Sequential(_conv(w * 6, w * 3), nn.Conv2d(w * 3, w, 1))
        self.up64 = _conv(w * 3, w * 4)
        self.head = nn.Conv2d(w * 4, (PARSER_CLASSES + 1) * PARSER_BLOCK_PX**2, 1)

    def forward(self, aligned: torch.Tensor, chosen: torch.Tensor | None = None) -> torch.Tensor:
        """chosen [K] gives [N,20,K,64,64] instead: those of the sixteen pixels of each block, counted row by row."""
        y64 = self._cells(aligned)
        if chosen is None:
            whole: torch.Tensor = F.pixel_shuffle(self.head(y64).float(), PARSER_BLOCK_PX)
            return whole
        planes = torch.arange(self.head.out_channels, device=chosen.device).view(PARSER_CLASSES + 1, -1)
        rows = planes[:, chosen].flatten()
        out = F.conv2d(y64, self.head.weight[rows], self.head.bias[rows])  # type: ignore[index]
        return torch.unflatten(out.float(), 1, (PARSER_CLASSES + 1, -1))

    def _cells(self, aligned: torch.Tensor) -> torch.Tensor:
        """What the head reads, [N,C,64,64]."""
        x64 = self.stem(torch.cat([F.pixel_unshuffle(aligned, PARSER_BLOCK_PX), _coordinates(aligned)], 1))
        x32 = self.down32(x64)
        x16 = self.down16(x32)
        x8 = self.down8(x16)
        y8 = self.up8(torch.cat([x8, _double(self.down4(x8))], 1))
        y16 = self.up16(torch.cat([x16, _double(y8)], 1))
        y32 = self.up32(torch.cat([x32, _double(y16)], 1))
        y64: torch.Tensor = self.up64(torch.cat([x64, _double(y32)], 1))
        return y64


class Residual(nn.Module):
    """x + conv(relu(conv(x))), each convolution followed by batch normalisation."""

    def __init__(self, channels: int, dilation: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(_conv(channels, channels, dilation=dilation), *list(_conv(channels, channels))[:2])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(x + self.body(x))


def _conv(channels_in: int, channels_out: int, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=dilation, dilation=dilation, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(inplace=True),
    )


def _double(x: torch.Tensor) -> torch.Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


def _coordinates(aligned: torch.Tensor) -> torch.Tensor:
    n, _, h, w = aligned.shape
    ys, xs = torch.meshgrid(
        torch.linspace(-1, 1, h // PARSER_BLOCK_PX, device=aligned.device, dtype=aligned.dtype),
        torch.linspace(-1, 1, w // PARSER_BLOCK_PX, device=aligned.device, dtype=aligned.dtype),
        indexing="ij",
    )
    return torch.stack([xs, ys]).expand(n, 2, -1, -1)
