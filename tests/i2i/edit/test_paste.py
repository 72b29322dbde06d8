"""Pasting works on the part of the photo that the edit touches, with the same result as on the whole square."""

from __future__ import annotations

import numpy as np
import pytest

from stylepairs.i2i.edit import paste as module
from stylepairs.i2i.edit.beyond_crop import EditMaps
from stylepairs.i2i.edit.paste import covered, paste

SIDE = 32
TRANSFORM = np.array([[0.19, 0.05, -9.0], [-0.05, 0.19, 2.0]])  # 5 photo pixels a side of the crop's


def pasted(photo: np.ndarray, mask: np.ndarray, transform: np.ndarray = TRANSFORM) -> tuple[np.ndarray, np.ndarray]:
    maps = EditMaps(np.full((SIDE, SIDE, 3), -0.5, np.float32), np.full((SIDE, SIDE, 3), 60, np.float32), mask)
    result, edited = photo.copy(), np.zeros(photo.shape[:2], np.float16)
    paste(result, photo, edited, maps, transform)
    return result, edited


@pytest.fixture
def photo() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (240, 260, 3), np.uint8)


@pytest.mark.parametrize("scale", [1, 12], ids=["large face", "small face"])
@pytest.mark.parametrize("place", [np.s_[12:15, 20:21], np.s_[1:4, 1:7], np.s_[28:31, 25:31], np.s_[:, :]])
def test_the_touched_rectangle_gives_what_the_square_gives(
    photo: np.ndarray, place: tuple[slice, slice], scale: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    mask = np.zeros((SIDE, SIDE), np.float32)
    mask[place] = 0.8
    transform = scale * TRANSFORM
    found, edited = pasted(photo, mask, transform)
    square = covered(transform, np.ones_like(mask), photo.shape)
    monkeypatch.setattr(module, "covered", lambda *_: square)
    wanted, wanted_edited = pasted(photo, mask, transform)
    assert ((wanted_edited > 0) != (edited > 0)).mean() < 1e-3  # where the edit ends, by roundings of the place
    assert np.abs(edited.astype(np.float32) - wanted_edited).max() < 0.05
    assert np.abs(found.astype(int) - wanted).max() <= 5
    assert (found[edited == 0] == photo[edited == 0]).all()
    assert (found != photo).any()


def test_the_rectangle_of_a_small_edit_is_small_and_that_of_none_empty() -> None:
    mask = np.zeros((SIDE, SIDE), np.float32)
    assert covered(TRANSFORM, mask, (240, 260)) == (0, 0, 0, 0)
    mask[16, 16] = 1
    x0, y0, x1, y1 = covered(TRANSFORM, mask, (240, 260))
    assert 10 < x1 - x0 < 16
    assert 10 < y1 - y0 < 16


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_pieces_make_what_the_whole_does_in_any_number_of_threads(
    photo: np.ndarray, dtype: type[np.generic], monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = photo.astype(dtype) * (np.iinfo(dtype).max // 255)
    mask = np.zeros((SIDE, SIDE), np.float32)
    mask[4:20, 3:9] = mask[4:8, 3:28] = 0.7
    results = []
    for rows, columns, threads in ((1000, 1000, 1), (16, 32, 1), (16, 32, 3)):
        monkeypatch.setattr(module, "PIECE_ROWS", rows)
        monkeypatch.setattr(module, "PIECE_COLUMNS", columns)
        monkeypatch.setattr(module.cv2, "getNumThreads", lambda threads=threads: threads)
        results.append(pasted(photo, mask))
    whole, pieces, threaded = (result.astype(int) for result, _ in results)
    assert (pieces == threaded).all()
    assert (results[1][1] == results[2][1]).all()
    step = np.iinfo(dtype).max // 255
    assert np.abs(pieces - whole).max() <= step  # OpenCV places a piece's pixels to 1/32 of the map's
    assert (pieces != photo).mean() > 0.05


def test_values_beyond_the_range_stop_at_its_ends(photo: np.ndarray) -> None:
    maps = EditMaps(
        np.zeros((SIDE, SIDE, 3), np.float32),
        np.broadcast_to(np.float32([300, -300, 0.5]), (SIDE, SIDE, 3)).copy(),
        np.ones((SIDE, SIDE), np.float32),
    )
    result, edited = photo.copy(), np.zeros(photo.shape[:2], np.float16)
    paste(result, photo, edited, maps, TRANSFORM)
    whole = edited == 1
    assert whole.mean() > 0.2
    assert (result[whole][:, 0] == 255).all()
    assert (result[whole][:, 1] == 0).all()
    assert (np.abs(result[whole][:, 2].astype(int) - photo[whole][:, 2]) <= 1).all()


SMOOTH = np.stack(np.meshgrid(*[np.linspace(20, 230, n) for n in (260, 240)]), -1)
GRADIENT = np.dstack([SMOOTH, SMOOTH[..., :1]]).round().astype(np.uint8)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("scale", [1, 12], ids=["large face", "small face"])
def test_pixels_are_taken_from_where_the_flow_points_in_the_photos_own_axes(scale: int, dtype: type) -> None:
    photo = GRADIENT.astype(dtype) * (np.iinfo(dtype).max // 255)
    transform, flow = scale * TRANSFORM, np.zeros((SIDE, SIDE, 2), np.float32)
    # By 6 photo pixels to the right and 3 up, in the axes of the turned square.
    flow[:] = transform[:, :2] @ [6, -3]
    nothing = np.zeros((SIDE, SIDE, 3), np.float32)
    mask = np.ones((SIDE, SIDE), np.float32)
    result, edited = photo.copy(), np.zeros(photo.shape[:2], np.float16)
    paste(result, photo, edited, EditMaps(nothing, nothing, mask, flow), transform)
    whole = edited == 1
    whole[:4], whole[:, -7:] = False, False  # what lies behind the photo's border
    assert whole.sum() > 100
    wanted = np.roll(photo, (3, -6), (0, 1)).astype(float)
    assert np.abs(result[whole] - wanted[whole]).max() <= 1.5 * (np.iinfo(dtype).max // 255)
    assert (result[edited == 0] == photo[edited == 0]).all()


def test_what_is_half_edited_moves_half_as_far() -> None:
    maps = EditMaps(
        *[np.zeros((SIDE, SIDE, 3), np.float32)] * 2,
        np.full((SIDE, SIDE), 0.5, np.float32),
        np.full((SIDE, SIDE, 2), 2, np.float32),
    )
    result, edited = GRADIENT.copy(), np.zeros(GRADIENT.shape[:2], np.float16)
    paste(result, GRADIENT, edited, maps, np.array([[0.2, 0, -8], [0, 0.2, -4]]))
    wanted = np.roll(GRADIENT, (-5, -5), (0, 1)).astype(int)
    inner = np.s_[60:150, 60:180]
    assert (edited[inner] == 0.5).all()
    assert np.abs(result[inner] - wanted[inner]).max() <= 1


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_what_two_faces_move_stays_within_the_photos_range(share: float) -> None:
    photo = np.full((240, 260, 3), 100, np.uint8)
    photo[:, 130:] = 180
    nothing, mask = np.zeros((SIDE, SIDE, 3), np.float32), np.full((SIDE, SIDE), share, np.float32)
    transform = np.array([[0.2, 0, -8], [0, 0.2, -4]])
    result, edited = photo.copy(), np.zeros(photo.shape[:2], np.float16)
    for across in (2, -2):
        flow = np.zeros((SIDE, SIDE, 2), np.float32)
        flow[..., 0] = across
        paste(result, photo, edited, EditMaps(nothing, nothing, mask, flow), transform)
        assert result.min() >= 90  # cubic interpolation overshoots a little
        assert result.max() <= 190
    assert (result != photo).any()
