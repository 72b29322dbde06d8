"""The embedded face finder as two ONNX files, so that a program without this package goes from photo to edited photo.

What lies between the networks (pyramid, peaks, crops) is told by `described` and done by examples/onnx_edit.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stylepairs.datagen.portraits.analysis import detection, networks
from stylepairs.datagen.portraits.analysis.analyser import embedded_network
from stylepairs.datagen.portraits.landmarks import MIRROR_68
from stylepairs.i2i.models.export import save_onnx, without_warnings

FACES_FORMAT = "stylepairs-faces-1"
FINDER_FILE, LANDMARKS_FILE = "face_finder.onnx", "face_landmarks.onnx"


class Finder(nn.Module):
    """image [1,3,H,W] in [-1,1], sides multiples of 16 -> heat [1,1,H/8,W/8] in [0,1], points [1,6,H/8,W/8]."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits, points = self.net(image)
        return logits.sigmoid(), points


class Landmarks(nn.Module):
    """crop [N,3,96,96] in [-1,1] -> points68 [N,68,2] in its pixels, face logit [N]."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, crop: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        points, logit, _ = self.net(crop)
        return points, logit


def export_faces(folder: Path) -> tuple[Path, Path]:
    """Write face_finder.onnx and face_landmarks.onnx into a folder; needs the `export` extra."""
    height, width = (torch.export.Dim(name, min=2, max=4096) for name in ("height16", "width16"))
    faces = torch.export.Dim("faces", min=1)
    image, crop = torch.zeros(1, 3, 64, 96), torch.zeros(2, 3, *[networks.LANDMARK_INPUT_PX] * 2)
    graphs: list[tuple[str, nn.Module, torch.Tensor, dict[int, Any], list[str]]] = [
        (FINDER_FILE, Finder(embedded_network("detector")), image, {2: 16 * height, 3: 16 * width}, ["heat", "points"]),
        (LANDMARKS_FILE, Landmarks(embedded_network("landmarks")), crop, {0: faces}, ["points68", "logit"]),
    ]
    for name, net, example, shape, outputs in graphs:
        with without_warnings():
            program = torch.export.export(net.eval(), (example,), dynamic_shapes=(shape,))
        inputs = ["image" if name == FINDER_FILE else "crop"]
        save_onnx(program, inputs, outputs, json.dumps(described(), indent=1, sort_keys=True), folder / name)
    return folder / FINDER_FILE, folder / LANDMARKS_FILE


def described() -> dict[str, Any]:
    """The numbers with which the embedded finder uses its networks, by their names in `detection` and `networks`."""
    return {
        "format": FACES_FORMAT,
        "stride_px": networks.DETECTOR_STRIDE_PX,
        "unit_px": networks.DETECTOR_UNIT_PX,
        "crop_px": networks.LANDMARK_INPUT_PX,
        "crop_share": detection.LANDMARK_CROP_SHARE,
        "crop_shift": detection.LANDMARK_CROP_SHIFT,
        "largest_level_px": detection.LARGEST_LEVEL_PX,
        "largest_level_share": detection.LARGEST_LEVEL_SHARE,
        "smallest_level_px": detection.SMALLEST_LEVEL_PX,
        "border_px": detection.LEVEL_BORDER_PX,
        "heat_floor": detection.HEAT_FLOOR,
        "max_candidates": detection.MAX_CANDIDATES,
        "first_look_share": detection.FIRST_LOOK_SHARE,
        "min_face_px": detection.MIN_FACE_PX,
        "mirror": MIRROR_68.tolist(),
    }
