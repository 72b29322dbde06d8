"""The face's own axes: sketches say "outwards by a tenth of the eye distance", on turned and tilted heads too."""

from __future__ import annotations

from dataclasses import dataclass

import torch

JAW, NOSE_BRIDGE, NOSE, RIGHT_EYE, LEFT_EYE, LIPS, INNER_LIPS = (
    slice(0, 17),
    slice(27, 31),
    slice(27, 36),
    slice(36, 42),
    slice(42, 48),
    slice(48, 60),
    slice(60, 68),
)
BROWS, EYES, MOUTH = slice(17, 27), slice(36, 48), slice(48, 68)
NASION, CHIN = 27, 8


@dataclass(frozen=True)
class FaceFrame:
    """origin [2]: between the eyes; across, down [2]: unit vectors, from the subject's right to left eye and at right
    angles to that, towards the chin; eyes_px: the eye distance, the unit of face measures.
    """

    origin: torch.Tensor
    across: torch.Tensor
    down: torch.Tensor
    eyes_px: float

    @staticmethod
    def of(points68: torch.Tensor) -> FaceFrame:
        """The frame of landmarks [68,2] in pixels."""
        right, left = points68[RIGHT_EYE].mean(0), points68[LEFT_EYE].mean(0)
        eyes_px = float((left - right).norm().clamp_min(1e-6))
        across = (left - right) / eyes_px
        return FaceFrame((left + right) / 2, across, torch.stack([-across[1], across[0]]), eyes_px)

    def coordinates(self, points: torch.Tensor) -> torch.Tensor:
        """points [...,2] in pixels -> (across, down) in eye distances."""
        moved = points - self.origin
        return torch.stack([moved @ self.across, moved @ self.down], -1) / self.eyes_px

    def pixels(self, coordinates: torch.Tensor) -> torch.Tensor:
        """(across, down) [...,2] in eye distances -> pixels: the inverse of `coordinates`."""
        return self.origin + self.move(coordinates)

    def move(self, coordinates: torch.Tensor) -> torch.Tensor:
        """A displacement [...,2] in eye distances -> pixels."""
        return self.eyes_px * (coordinates[..., :1] * self.across + coordinates[..., 1:] * self.down)
