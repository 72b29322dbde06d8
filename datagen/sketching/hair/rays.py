"""Rays from between the eyes, along which hair is looked for.

An angle of 0 is straight up the face (from the chin to the root of the nose, so that tilted heads are followed),
positive ones lie towards the picture's right. Along a ray come the brow, the forehead, the hairline, the hair, and the
hair's outline: in polar coordinates each is a function of the angle, also at the temples, where the line runs steeply.
"""

from __future__ import annotations

import numpy as np
import torch

from stylepairs.datagen.portraits.face_frame import FaceFrame, pixel_places
from stylepairs.datagen.portraits.portrait import Portrait
from stylepairs.datagen.sketching.tools.curves import half_crossing


def ray_places(frame: FaceFrame, angles: torch.Tensor, radii: torch.Tensor) -> torch.Tensor:
    """The places [...,2] in pixels at angles in radians and radii in pixels, which are broadcast."""
    directions = angles.sin()[..., None] * frame.across - angles.cos()[..., None] * frame.down
    return frame.origin + radii[..., None] * directions


def polar(frame: FaceFrame, places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Angles in radians and radii in pixels [...] of places [...,2] in pixels."""
    across, down = (frame.unit_px * frame.coordinates(places)).unbind(-1)
    return torch.atan2(across, -down), torch.hypot(across, down)


def pixels_polar(frame: FaceFrame, portrait: Portrait) -> tuple[torch.Tensor, torch.Tensor]:
    """Angle and radius [H,W] of a portrait's pixels."""
    return polar(frame, pixel_places(portrait.image))


def hair_runs(hair: np.ndarray, gap: float) -> np.ndarray:
    """Where hair [R] along a ray is over a half: runs [N,2] from a sample to the one after the last, over gaps of up to
    `gap` samples."""
    runs = np.flatnonzero(np.diff(hair > 0.5, prepend=False, append=False)).reshape(-1, 2)
    apart = runs[1:, 0] - runs[:-1, 1] > gap
    return runs if len(runs) < 2 else np.stack([runs[np.r_[True, apart], 0], runs[np.r_[apart, True], 1]], 1)


def crossing(hair: np.ndarray, index: int) -> float:
    """Where between the samples index - 1 and index hair [R] passes one half, counted in samples."""
    if index == 0 or index >= len(hair):
        return float(index)
    return index - 1 + float(half_crossing(*torch.from_numpy(hair[index - 1 : index + 1]).double()))
