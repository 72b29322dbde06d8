"""Faces where they are wanted, and a model whose edit is known: what tests of editing look at."""

from __future__ import annotations

import numpy as np
import torch

from stylepairs.datagen.portraits.analysis.detection import Face
from stylepairs.i2i.models.glean import Edit, Glean


class FakeAnalyser:
    """Faces where it is told."""

    def __init__(self, centres: list[tuple[float, float]], eye_distance: float = 20.0):
        self.faces = [Face(face_box(x, y), 0.9, face_points(x, y, eye_distance)) for x, y in centres]

    def find(self, photo: np.ndarray, min_score: float = 0.5) -> list[Face]:
        return [face for face in self.faces if face.score >= min_score]


def face_box(x: float, y: float) -> tuple[float, float, float, float]:
    return (x - 20, y - 20, x + 20, y + 20)


def face_points(x: float, y: float, eye_distance: float) -> np.ndarray:
    points = np.full((68, 2), (x, y), np.float32)
    angle = np.linspace(np.pi, 0, 17)  # a jaw below the hair, closed by brows
    points[:17] = np.stack([x + eye_distance * np.cos(angle), y + eye_distance * (0.4 + np.sin(angle))], 1)
    brows = np.linspace(x - eye_distance, x + eye_distance, 10)
    points[17:27] = np.stack([brows, np.full(10, y + 0.4 * eye_distance)], 1)
    points[36:42] = (x - eye_distance / 2, y)
    points[42:48] = (x + eye_distance / 2, y)
    points[48], points[54] = (x - 8, y + eye_distance), (x + 8, y + eye_distance)
    return points


def photo_of(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(1).integers(30, 220, (height, width, 3), np.uint8)


class Brightening(Glean):
    """Adds 51 (of 255) to the upper half of its square, where it may, whatever was learnt; unsure of dark photos."""

    def amount(self) -> float:
        return 0.4

    def forward(self, photo: torch.Tensor, region: torch.Tensor, *_: torch.Tensor) -> Edit:
        bias = torch.full_like(photo, self.amount())
        mask = region.clone()
        mask[:, :, photo.shape[2] // 2 :] = 0
        zeros, sure = torch.zeros_like(photo), 40 * (photo.mean((1, 2, 3)) + 0.6)
        maps = mask, mask, zeros, bias, zeros[:, :2]
        return Edit(photo + mask * bias, photo + bias, *maps, photo, torch.zeros(len(photo)), sure)
