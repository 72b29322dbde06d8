"""The face's own axes: sketches say "outwards by a tenth of the eye distance", on turned and tilted heads too."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from stylepairs.datagen.portraits.landmarks import CHIN, NASION, eye_centres, eye_distance


@dataclass(frozen=True)
class FaceFrame:
    """Axes in the picture. origin [2] in pixels; across, down [2]: unit vectors at right angles, from the subject's
    right to the left (the picture's right) and towards the chin; unit_px: the length that coordinates count in.
    """

    origin: torch.Tensor
    across: torch.Tensor
    down: torch.Tensor
    unit_px: float

    @staticmethod
    def of_eyes(points68: torch.Tensor) -> FaceFrame:
        """From between the eyes, along the line through them, in eye distances; points68 [68,2] in pixels."""
        right, left = eye_centres(points68)
        eyes_px = eye_distance(points68)
        across = (left - right) / eyes_px
        return FaceFrame((left + right) / 2, across, _turned(across), eyes_px)

    @staticmethod
    def of_midline(points68: torch.Tensor) -> FaceFrame:
        """From the nasion down to the chin, in lengths of that line: right for turned heads."""
        step = points68[CHIN] - points68[NASION]
        length = float(step.norm().clamp_min(1e-6))
        down = step / length
        return FaceFrame(points68[NASION], torch.stack([down[1], -down[0]]), down, length)

    @staticmethod
    def of_both(points68: torch.Tensor) -> FaceFrame:
        """From the nasion, half by the line of the eyes and half by the midline, in eye distances."""
        right, left = eye_centres(points68)
        by_eyes = _turned(left - right)
        by_chin = points68[CHIN] - points68[NASION]
        down = by_eyes / by_eyes.norm().clamp_min(1e-6) + by_chin / by_chin.norm().clamp_min(1e-6)
        down = down / down.norm().clamp_min(1e-6)
        return FaceFrame(points68[NASION], torch.stack([down[1], -down[0]]), down, eye_distance(points68))

    @staticmethod
    def between(start: torch.Tensor, end: torch.Tensor) -> FaceFrame:
        """From start [2] across to end [2], in lengths of that line: a brow's, an eye's."""
        length = float((end - start).norm().clamp_min(1e-6))
        across = (end - start) / length
        return FaceFrame(start, across, _turned(across), length)

    def coordinates(self, points: torch.Tensor) -> torch.Tensor:
        """points [...,2] in pixels -> (across, down) in units."""
        moved = points - self.origin
        return torch.stack([moved @ self.across, moved @ self.down], -1) / self.unit_px

    def pixels(self, coordinates: torch.Tensor) -> torch.Tensor:
        """(across, down) [...,2] in units -> pixels: the inverse of `coordinates`."""
        return self.origin + self.move(coordinates)

    def move(self, coordinates: torch.Tensor) -> torch.Tensor:
        """A displacement [...,2] in units -> pixels."""
        return self.unit_px * (coordinates[..., :1] * self.across + coordinates[..., 1:] * self.down)


def pixel_places(plane: torch.Tensor) -> torch.Tensor:
    """The pixels' places (x, y) [H,W,2] of a square plane [...,H,W], in its floating type and on its device."""
    at = torch.arange(plane.shape[-1], device=plane.device, dtype=plane.dtype)
    return torch.stack(torch.meshgrid(at, at, indexing="xy")).permute(1, 2, 0)


def _turned(vector: torch.Tensor) -> torch.Tensor:
    """vector [2] by a quarter turn, from across to down."""
    return torch.stack([-vector[1], vector[0]])
