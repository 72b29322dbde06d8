"""Landmarks by the face-alignment library (Bulat and Tzimiropoulos, 2017) on faces that the embedded detector found.

The library downloads its weights unless they lie in torch's hub folder; here they must lie there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from stylepairs.datagen.portraits.analysis.detection import EmbeddedFinder, Faces, make_face
from stylepairs.datagen.shell.errors import InputError, one_line

WEIGHTS_NAME = "2DFAN4-11f355bf06.pth.tar"


class FaceAlignmentFinder:
    """Boxes and scores of `finder`, points of the library's 2D network."""

    def __init__(self, finder: EmbeddedFinder) -> None:
        self.finder = finder
        self.network = _load_library()

    def find(self, photo: np.ndarray, min_score: float = 0.5) -> Faces:
        """photo uint8 [H,W,3] -> faces with score >= min_score, largest first."""
        faces = self.finder.find(photo, min_score)
        if not faces:
            return faces
        boxes = [np.array(_library_box(face.points68)) for face in faces]
        found = self.network.get_landmarks_from_image(photo, detected_faces=boxes) or []
        if len(found) != len(faces):
            return faces
        pairs = zip(faces, found, strict=True)
        moved = Faces(make_face(np.asarray(points, np.float64)[:, :2], face.score) for face, points in pairs)
        moved.passed_over = faces.passed_over
        return moved


def _library_box(points68: np.ndarray) -> tuple[float, float, float, float]:
    """The box that the library's own detector would give: from the middle of the forehead to the chin."""
    low, high = points68.min(0), points68.max(0)
    return float(low[0]), float(low[1] - 0.15 * (high[1] - low[1])), float(high[0]), float(high[1])


def _load_library() -> Any:
    weights = Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS_NAME
    try:
        import face_alignment
    except ImportError:
        raise InputError(
            "landmarks face-alignment: the library is not installed; pip install 'stylepairs[landmarks]'"
        ) from None
    if not weights.is_file():
        raise InputError(
            f"{weights}: not found; put face-alignment's weights there (none are downloaded) or use embedded"
        )
    try:
        return face_alignment.FaceAlignment(
            face_alignment.LandmarksType.TWO_D, face_detector="folder", device="cpu", compile=False
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(f"{weights}: damaged weights ({one_line(error)})") from None
