"""Large photos are searched in tiles, with the same result as whole; lying photos are looked at turned."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from stylepairs.datagen.images.files import read_image
from stylepairs.datagen.portraits.alignment import square_transform, warp
from stylepairs.datagen.portraits.analysis import detection
from stylepairs.datagen.portraits.analysis.analyser import FaceAnalyser, embedded_network, load_analyser
from stylepairs.datagen.portraits.analysis.detection import (
    EmbeddedFinder,
    Face,
    _landmark_crop,
    _pyramid,
    _tiles,
    make_face,
)
from stylepairs.datagen.portraits.analysis.prepare import prepare_photos

PHOTOS = sorted((Path(__file__).parents[4] / "recipes" / "photos" / "train").glob("*.jpg"))


@pytest.fixture(scope="module")
def analyser() -> FaceAnalyser:
    return load_analyser()


def crowd(analyser: FaceAnalyser, shape: tuple[int, int], head_px: int, count: int) -> np.ndarray:
    """Faces of this height from chin to hair on a soft ground."""
    height, width = shape
    ground = np.random.default_rng(0).integers(90, 150, (4, 6, 3), np.uint8)
    scene = cv2.resize(ground, (width, height), interpolation=cv2.INTER_CUBIC)
    for index in range(count):
        photo = read_image(PHOTOS[index])
        box = analyser.find(photo)[0].box
        scale = head_px / (1.5 * (box[3] - box[1]))
        small = cv2.resize(photo, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        x, y = round((index + 0.5) * width / count - small.shape[1] / 2), round(height * (0.1 + 0.7 * index / count))
        scene[y : y + small.shape[0], x : x + small.shape[1]] = small
    return scene


@pytest.mark.parametrize("shape", [(1, 1), (1280, 1280), (1281, 40), (3000, 4100)])
def test_tiles_share_out_every_place_once(shape: tuple[int, int]) -> None:
    tiles = list(_tiles(*shape))
    for x, y in ((-20, -20), (0, 0), (1279.5, 30), (1280, 1280), (shape[1], shape[0]), (shape[1] + 30, 5)):
        assert sum(tile.owns(x, y) for tile in tiles) == 1
    assert all(tile.bottom - tile.top <= 1280 + 256 and tile.right - tile.left <= 1280 + 256 for tile in tiles)


@pytest.mark.slow
def test_tiles_find_what_the_whole_level_shows(analyser: FaceAnalyser, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = crowd(analyser, (480, 720), 90, 4)
    whole = analyser.find(scene)
    monkeypatch.setattr(detection, "TILE_PX", 320)
    tiled = analyser.find(scene)
    assert len(whole) == len(tiled) >= 3
    for one, other in zip(whole, tiled, strict=True):
        assert np.abs(one.points68 - other.points68).max() < 1


def test_the_finest_level_of_a_large_photo_shows_small_heads() -> None:
    level, _ = next(_pyramid(np.zeros((9000, 12000, 3), np.uint8)))
    assert max(level.shape) == 3000
    level, _ = next(_pyramid(np.zeros((900, 1200, 3), np.uint8)))
    assert level.shape[:2] == (900, 1200)


def test_a_face_of_a_large_photo_is_placed_as_in_a_small_one(analyser: FaceAnalyser) -> None:
    small = read_image(PHOTOS[1])
    large = cv2.resize(small, None, fx=11.7, fy=11.7, interpolation=cv2.INTER_CUBIC)
    (wanted,), (found,) = analyser.find(small), analyser.find(large)
    assert np.abs((found.points68 + 0.5) / 11.7 - 0.5 - wanted.points68).max() < 0.01 * small.shape[0]


def test_landmark_crops_are_the_photos_whichever_level_they_are_read_from() -> None:
    ys, xs = np.mgrid[:1500, :2000]
    photo = np.stack([xs / 8, ys / 8, (xs + ys) / 16], -1).astype(np.uint8)
    levels = list(_pyramid(photo))
    for side in (60, 300, 1100):
        face = np.array([1000, 800]) + side / 4 * np.array([[-1, -1], [1, -0.9], [0, 1]])
        move = square_transform(face, 96)
        wanted = warp(photo, move, 96, cv2.BORDER_REPLICATE)
        np.testing.assert_allclose(_landmark_crop(levels, move).astype(int), wanted, atol=2)


def test_places_that_score_next_to_nothing_are_looked_at_once() -> None:
    photo, looks = read_image(PHOTOS[0]), list[int]()

    class Blind(torch.nn.Module):
        def forward(self, crops: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
            looks.append(len(crops))
            return torch.rand(len(crops), 68, 2) * 96, torch.full((len(crops),), -8.0), None

    finder = EmbeddedFinder(embedded_network("detector"), Blind())
    assert finder.find(photo) == []
    assert len(looks) == 1
    finder.find(photo, 0.0)  # who wants all of them gets all
    assert looks[1:] == [looks[0]] * 3


@pytest.mark.slow
@pytest.mark.parametrize("head_px", [160, 200])
def test_small_heads_are_found_in_very_large_photos(analyser: FaceAnalyser, head_px: int) -> None:
    """Of six of 160 px none was found, of six of 200 px four."""
    assert len(analyser.find(crowd(analyser, (8000, 12000), head_px, 6))) == 6


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_a_face_in_a_lying_photo_is_found_in_the_photos_own_coordinates(analyser: FaceAnalyser, quarters: int) -> None:
    photo = read_image(PHOTOS[0])
    upright = analyser.find(photo)[0]
    lying = np.ascontiguousarray(np.rot90(photo, quarters))
    (found,) = analyser.find(lying)
    h, w = lying.shape[:2]
    x, y = found.points68[:, 0], found.points68[:, 1]
    back = {1: (h - 1 - y, x), 2: (w - 1 - x, h - 1 - y), 3: (y, w - 1 - x)}[quarters]
    assert np.abs(np.stack(back, -1) - upright.points68).max() < 2


class Scores:
    """A finder of one face, whose score depends on which way the photo's bright half lies."""

    def __init__(self, upright: float, on_its_head: float) -> None:
        self.scores = {True: upright, False: on_its_head}

    def find(self, photo: np.ndarray, min_score: float = 0.5) -> list[Face]:
        top, bottom = photo[:32].mean(), photo[32:].mean()
        score = 0.0 if top == bottom else self.scores[bool(top > bottom)]
        points = np.random.default_rng(0).uniform(20, 40, (68, 2))
        return [make_face(points, score)] if score >= min_score else []


@pytest.mark.parametrize("upright, on_its_head, turns", [(0.85, 0.95, True), (0.93, 0.99, False), (0.7, 0.73, False)])
def test_a_photo_is_turned_where_its_face_is_surer_so(upright: float, on_its_head: float, turns: bool) -> None:
    photo = np.zeros((64, 64, 3), np.uint8)
    photo[:32] = 200
    (found,) = FaceAnalyser(Scores(upright, on_its_head), parser=None).find(photo)  # type: ignore[arg-type]
    assert found.score == (on_its_head if turns else upright)


@pytest.mark.parametrize("index", [10, 12])
def test_a_head_that_passes_for_an_upright_face_is_turned(analyser: FaceAnalyser, index: int) -> None:
    photo = read_image(PHOTOS[index])
    on_its_head = np.ascontiguousarray(np.rot90(photo, 2))
    assert analyser.finder.find(on_its_head)  # for an upright one
    (wanted,), (found,) = analyser.find(photo), analyser.find(on_its_head)
    far_end = np.array([photo.shape[1], photo.shape[0]]) - 1
    assert np.abs(far_end - found.points68 - wanted.points68).max() < 1


def test_a_portrait_of_a_lying_photo_stands_upright(tmp_path: Path) -> None:
    with Image.open(PHOTOS[0]) as photo:
        photo.save(tmp_path / "upright.png")
        photo.rotate(90, expand=True).save(tmp_path / "lying.png")
    prepare_photos([tmp_path / "upright.png", tmp_path / "lying.png"], tmp_path / "out", 64)
    lying, upright = (read_image(tmp_path / "out" / "aligned" / f"{name}.png") for name in ("lying", "upright"))
    assert np.abs(lying.astype(int) - upright).mean() < 6


def test_what_lies_beyond_a_files_first_picture_is_said(tmp_path: Path) -> None:
    with Image.open(PHOTOS[0]) as photo:
        photo.save(tmp_path / "pages.tif", save_all=True, append_images=[photo.copy()])
    (note,) = prepare_photos([tmp_path / "pages.tif"], tmp_path / "out", 64).notes
    assert "holds several pictures, the first was taken" in note
