"""The embedded face analyser on real photos: faces found where they are, however framed; labels and matte that
make sense.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from stylepairs.datagen.images.files import read_image
from stylepairs.datagen.portraits.alignment import apply_transform, crop_aligned, ffhq_transform
from stylepairs.datagen.portraits.analysis import detection
from stylepairs.datagen.portraits.analysis.analyser import (
    WEIGHTS,
    FaceAnalyser,
    load_analyser,
    load_network,
)
from stylepairs.datagen.portraits.analysis.prepare import prepare_photos
from stylepairs.datagen.portraits.landmarks import eyes_and_mouth
from stylepairs.datagen.portraits.portrait import CLASS
from stylepairs.datagen.shell.decode import read_safetensors
from stylepairs.datagen.shell.errors import InputError

PHOTOS = sorted((Path(__file__).parents[4] / "recipes" / "photos" / "heldout").glob("*.jpg"))[:4]


@pytest.fixture(scope="module")
def analyser() -> FaceAnalyser:
    return load_analyser()


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return read_image(PHOTOS[0])


def eye_error(found: np.ndarray, truth: np.ndarray) -> float:
    """Largest distance of the eye centres, as a share of the eye distance."""
    a, b = eyes_and_mouth(found)[:2], eyes_and_mouth(truth)[:2]
    return float(np.linalg.norm(a - b, axis=-1).max() / np.linalg.norm(b[0] - b[1]))


@pytest.mark.parametrize("path", PHOTOS, ids=lambda path: path.stem)
def test_one_face_is_found_in_a_portrait_photo(analyser: FaceAnalyser, path: Path) -> None:
    image = read_image(path)
    (face,) = analyser.find(image)
    right, left, mouth = eyes_and_mouth(face.points68)
    assert right[0] < left[0]
    assert mouth[1] > max(right[1], left[1])
    assert 0 <= face.box[0] < face.box[2] < image.shape[1]
    assert 0.5 <= face.score <= 1


def test_the_same_photo_gives_the_same_result(analyser: FaceAnalyser, photo: np.ndarray) -> None:
    first, second = analyser.find(photo)[0], analyser.find(photo)[0]
    np.testing.assert_array_equal(first.points68, second.points68)
    assert first.score == second.score


@pytest.mark.parametrize("angle", [-28, -12, 15, 28])
@pytest.mark.parametrize("scale", [0.4, 1.0, 2.2])
def test_landmarks_follow_the_photo_when_it_is_turned_and_scaled(
    analyser: FaceAnalyser, photo: np.ndarray, angle: float, scale: float
) -> None:
    truth = analyser.find(photo)[0].points68.astype(float)
    h, w = photo.shape[:2]
    move = cv2.getRotationMatrix2D((w / 2, h / 2), angle, scale)
    move[:, 2] += np.array([w, h]) * (scale - 1) / 2
    turned = cv2.warpAffine(photo, move, (round(w * scale), round(h * scale)), flags=cv2.INTER_AREA)
    found = analyser.find(turned)
    assert found
    assert eye_error(found[0].points68, apply_transform(move, truth)) < 0.06


def test_several_faces_in_one_picture_are_all_found(analyser: FaceAnalyser) -> None:
    tiles = [cv2.resize(read_image(path), (320, 320), interpolation=cv2.INTER_AREA) for path in PHOTOS]
    group = np.vstack([np.hstack(tiles[:2]), np.hstack(tiles[2:])])
    assert len(analyser.find(group)) == 4


def test_pictures_without_faces_stay_empty(analyser: FaceAnalyser) -> None:
    rng = np.random.default_rng(0)
    ys, xs = np.mgrid[:256, :256]
    pictures = [
        np.zeros((64, 64, 3), np.uint8),
        np.full((200, 300, 3), 127, np.uint8),
        rng.integers(0, 256, (256, 256, 3), np.uint8),
        np.repeat(((xs // 16 + ys // 16) % 2 * 255).astype(np.uint8)[..., None], 3, -1),
        np.repeat((np.sin(xs / 5) * 127 + 128).astype(np.uint8)[..., None], 3, -1),
        cv2.resize(rng.integers(0, 256, (12, 12, 3), np.uint8), (400, 300), interpolation=cv2.INTER_CUBIC),
    ]
    assert [len(analyser.find(picture)) for picture in pictures] == [0] * len(pictures)


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (17, 3), (8, 8)])
def test_tiny_pictures_hold_no_face_and_no_crash(analyser: FaceAnalyser, shape: tuple[int, int]) -> None:
    assert analyser.find(np.zeros((*shape, 3), np.uint8)) == []


def test_inputs_of_other_types_are_refused(analyser: FaceAnalyser) -> None:
    with pytest.raises(ValueError, match="uint8"):
        analyser.find(np.zeros((64, 64, 3), np.float32))
    with pytest.raises(ValueError, match="uint8"):
        analyser.parse(np.zeros((64, 64, 3), np.uint8))
    with pytest.raises(ValueError, match=r"\[N,3,H,W\]"):
        analyser.parse(torch.zeros(3, 64, 64))


@pytest.mark.parametrize("size", [64, 256, 400])
def test_the_label_map_names_the_parts(analyser: FaceAnalyser, photo: np.ndarray, size: int) -> None:
    face = analyser.find(photo)[0]
    move = ffhq_transform(face.points68, size)
    label, hair = analyser.parse(crop_aligned(photo, move, size)[None])
    assert label.shape == (1, size, size)
    assert label.dtype == torch.uint8
    assert hair.shape == (1, 1, size, size)
    assert 0 <= float(hair.min()) <= float(hair.max()) <= 1
    points = np.rint(apply_transform(move, face.points68.astype(float))).astype(int)
    nose_x, nose_y = points[30]
    cheek_x, cheek_y = (points[30] + points[3]) // 2
    assert label[0, nose_y, nose_x] == CLASS["nose"]
    assert label[0, cheek_y, cheek_x] == CLASS["skin"]
    assert label[0, 2, 2] in (CLASS["background"], CLASS["hair"])
    for name, side in (("r_eye", slice(36, 42)), ("l_eye", slice(42, 48))):
        ys, xs = torch.nonzero(label[0] == CLASS[name], as_tuple=True)
        centre = torch.stack([xs.float().mean(), ys.float().mean()]).numpy()
        assert np.linalg.norm(centre - points[side].mean(0)) < 0.05 * size


def test_float_and_byte_inputs_agree(analyser: FaceAnalyser) -> None:
    aligned = np.random.default_rng(0).integers(0, 256, (2, 256, 256, 3), np.uint8)
    floats = torch.from_numpy(aligned).permute(0, 3, 1, 2).float() / 127.5 - 1
    for a, b in zip(analyser.parse(aligned), analyser.parse(floats), strict=True):
        assert torch.equal(a, b)


def test_photos_are_prepared_end_to_end(tmp_path: Path) -> None:
    done = prepare_photos(list(PHOTOS[:2]), tmp_path / "out", size_px=128)
    assert done.portraits == [path.stem for path in PHOTOS[:2]]
    assert done.skipped == []


@pytest.mark.parametrize("name", ["detector", "landmarks", "parser"])
def test_shipped_weights_say_what_they_are(name: str) -> None:
    metadata = read_safetensors(WEIGHTS / f"analyser_{name}.safetensors")[1]
    assert metadata["network"] == name
    assert "train.py" in metadata["trained"]
    assert metadata["figures"]


def test_files_that_are_no_analyser_give_one_line(tmp_path: Path) -> None:
    (tmp_path / "text.safetensors").write_text("hello")
    good = (WEIGHTS / "analyser_detector.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(good[: len(good) // 2])
    save_file({"x": torch.zeros(2)}, tmp_path / "other.safetensors")
    save_file({"x": torch.zeros(2)}, tmp_path / "named.safetensors", metadata={"network": "parser"})
    for path in [*tmp_path.iterdir(), tmp_path / "missing.safetensors"]:
        with pytest.raises(InputError) as error:
            load_network(path)
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="unknown"):
        load_analyser(landmarks="dlib")


@pytest.mark.slow
def test_the_faces_of_a_large_group_are_all_found_or_told(monkeypatch, analyser, photo):
    move = ffhq_transform(analyser.find(photo)[0].points68, 64)
    group = np.tile(crop_aligned(photo, move, 64), (7, 7, 1))
    found = analyser.find(group)
    assert len(found) == 49
    assert found.passed_over == 0
    monkeypatch.setattr(detection, "MAX_CANDIDATES", 10)
    found = analyser.find(group)
    assert len(found) == 10
    assert found.passed_over >= 39
