"""The 68 landmarks of a face (iBUG's) by name, and the few numbers that most callers want of them.

"Right" is the subject's right, on the left of the picture.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch

Side = Literal["left", "right"]  # the subject's
SIDES: tuple[Side, Side] = ("right", "left")

JAW = slice(0, 17)
RIGHT_BROW, LEFT_BROW, BROWS = slice(17, 22), slice(22, 27), slice(17, 27)
NOSE_BRIDGE, NOSE_BASE, NOSE = slice(27, 31), slice(31, 36), slice(27, 36)
RIGHT_EYE, LEFT_EYE, EYES = slice(36, 42), slice(42, 48), slice(36, 48)  # each from its right corner over the upper lid
OUTER_LIPS, INNER_LIPS, MOUTH = slice(48, 60), slice(60, 68), slice(48, 68)
BROW: dict[Side, slice] = {"right": RIGHT_BROW, "left": LEFT_BROW}
EYE: dict[Side, slice] = {"right": RIGHT_EYE, "left": LEFT_EYE}

CHIN, NASION, NOSE_TIP, NOSE_FOOT = 8, 27, 30, 33
RIGHT_CORNER, UPPER_LIP, LEFT_CORNER, LOWER_LIP = 48, 51, 54, 57  # of the outer line of the mouth
FACE_OUTLINE = [*range(17), 26, 25, 24, 19, 18, 17]  # along the jaw and back over the brows

# Positions in the 468-point face mesh that stand for the 68 points.
MESH_TO_68 = np.array(
    [127, 234, 93, 132, 58, 136, 150, 176, 152, 400, 379, 365, 288, 361, 323, 454, 356]
    + [70, 63, 105, 66, 107, 336, 296, 334, 293, 300]
    + [168, 197, 5, 4, 75, 97, 2, 326, 305]
    + [33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380]
    + [61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181, 78, 82, 13, 312, 308, 317, 14, 87]
)

# Where each of the 68 points goes when the picture is mirrored.
MIRROR_68 = np.array(
    [*range(16, -1, -1), *range(26, 16, -1), *range(27, 31), *range(35, 30, -1)]
    + [45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40]
    + [54, 53, 52, 51, 50, 49, 48, 59, 58, 57, 56, 55, 64, 63, 62, 61, 60, 67, 66, 65]
)


def eyes_and_mouth(points68: np.ndarray) -> np.ndarray:
    """points68 [...,68,2] -> [...,3,2]: centres of the subject's right eye, left eye, and of the mouth's corners."""
    right, left = points68[..., RIGHT_EYE, :].mean(-2), points68[..., LEFT_EYE, :].mean(-2)
    return np.stack([right, left, (points68[..., RIGHT_CORNER, :] + points68[..., LEFT_CORNER, :]) / 2], -2)


def eye_centres(points68: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Centres [2] of the subject's right and left eye, of points68 [68,2]."""
    return points68[RIGHT_EYE].mean(0), points68[LEFT_EYE].mean(0)


def eye_distance(points68: torch.Tensor) -> float:
    """The distance between the centres of the eyes, in the unit of points68 [68,2]; at least 1e-6."""
    right, left = eye_centres(points68)
    return float((left - right).norm().clamp_min(1e-6))


def mouth_width(points68: torch.Tensor) -> float:
    """The distance between the corners of the mouth, in the unit of points68 [68,2]."""
    return float((points68[LEFT_CORNER] - points68[RIGHT_CORNER]).norm())
