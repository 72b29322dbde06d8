"""face-alignment behind the finder's interface: nothing is downloaded, missing parts give one line."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from stylepairs.datagen.portraits.analysis import face_alignment as adapter
from stylepairs.datagen.portraits.analysis.detection import Faces, make_face
from stylepairs.datagen.shell.errors import InputError


class OneFace:
    def find(self, photo: np.ndarray, min_score: float = 0.5) -> Faces:
        found = Faces([make_face(np.random.default_rng(0).uniform(20, 60, (68, 2)), 0.8)])
        found.passed_over = 3
        return found


class NoFace:
    def find(self, photo: np.ndarray, min_score: float = 0.5) -> Faces:
        return Faces()


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> types.ModuleType:
    module = types.ModuleType("face_alignment")
    module.calls = []  # type: ignore[attr-defined]

    class FaceAlignment:
        def __init__(self, kind: str, **options: object) -> None:
            module.calls.append((kind, options))  # type: ignore[attr-defined]

        def get_landmarks_from_image(self, image: np.ndarray, detected_faces: list[np.ndarray]) -> list[np.ndarray]:
            module.boxes = detected_faces  # type: ignore[attr-defined]
            return [np.full((68, 2), 7.0) + np.arange(68)[:, None] for _ in detected_faces]

    module.FaceAlignment = FaceAlignment  # type: ignore[attr-defined]
    module.LandmarksType = types.SimpleNamespace(TWO_D="2d")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "face_alignment", module)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    return module


def test_points_come_from_the_library_and_boxes_from_the_finder(library: types.ModuleType, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / adapter.WEIGHTS_NAME).write_bytes(b"weights")
    (face,) = adapter.FaceAlignmentFinder(OneFace()).find(np.zeros((90, 90, 3), np.uint8))
    assert face.score == pytest.approx(0.8)
    np.testing.assert_allclose(face.points68[:, 0], 7 + np.arange(68))
    assert face.box == (7, 7, 74, 74)
    assert len(library.boxes) == 1
    assert library.calls[0][1]["face_detector"] == "folder"
    assert adapter.FaceAlignmentFinder(NoFace()).find(np.zeros((90, 90, 3), np.uint8)) == []


def test_places_that_were_too_many_to_look_at_are_told(library: types.ModuleType, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / adapter.WEIGHTS_NAME).write_bytes(b"weights")
    assert adapter.FaceAlignmentFinder(OneFace()).find(np.zeros((90, 90, 3), np.uint8)).passed_over == 3


def test_missing_weights_are_named_and_not_downloaded(library: types.ModuleType) -> None:
    with pytest.raises(InputError, match=adapter.WEIGHTS_NAME):
        adapter.FaceAlignmentFinder(OneFace())
    assert not library.calls


def test_a_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "face_alignment", None)
    with pytest.raises(InputError, match=r"stylepairs\[landmarks\]"):
        adapter.FaceAlignmentFinder(OneFace())
