"""Geometry of the alignment: FFHQ's formula, round trips, invariance under similarities, and the padded crop."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stylepairs.datagen.portraits.alignment import (
    apply_transform,
    compose_transforms,
    crop_aligned,
    ffhq_transform,
    invert_transform,
    transform_scale,
    warp,
)
from stylepairs.datagen.portraits.landmarks import MESH_TO_68, MIRROR_68

angles = st.floats(-np.pi, np.pi)
scales = st.floats(0.05, 20)
shifts = st.floats(-2000, 2000)


def face_points(seed: int = 0) -> np.ndarray:
    """68 points of a plausible face about 100 px wide."""
    rng = np.random.default_rng(seed)
    points = rng.normal(0, 3, (68, 2)) + [200, 200]
    points[36:42] += [-30, -20]
    points[42:48] += [30, -20]
    points[48:] += [0, 40]
    points[48] += [-20, 0]
    points[54] += [20, 0]
    return points


def similarity(angle: float, scale: float, x: float, y: float) -> np.ndarray:
    c, s = scale * np.cos(angle), scale * np.sin(angle)
    return np.array([[c, -s, x], [s, c, y]])


def test_index_maps_are_permutations() -> None:
    assert len(set(MESH_TO_68.tolist())) == 68
    assert sorted(MIRROR_68.tolist()) == list(range(68))
    np.testing.assert_array_equal(MIRROR_68[MIRROR_68], np.arange(68))


@settings(max_examples=60, deadline=None)
@given(angle=angles, scale=scales, x=shifts, y=shifts, seed=st.integers(0, 50))
def test_transforms_round_trip(angle: float, scale: float, x: float, y: float, seed: int) -> None:
    move = similarity(angle, scale, x, y)
    points = np.random.default_rng(seed).normal(0, 300, (20, 2))
    np.testing.assert_allclose(
        apply_transform(invert_transform(move), apply_transform(move, points)), points, atol=1e-6
    )
    identity = compose_transforms(move, invert_transform(move))
    np.testing.assert_allclose(identity, [[1, 0, 0], [0, 1, 0]], atol=1e-6)
    assert transform_scale(move) == pytest.approx(scale, rel=1e-6)


@settings(max_examples=60, deadline=None)
@given(angle=angles, scale=scales, x=shifts, y=shifts, seed=st.integers(0, 50))
def test_the_aligned_face_does_not_depend_on_where_it_was_in_the_photo(
    angle: float, scale: float, x: float, y: float, seed: int
) -> None:
    points = face_points(seed)
    moved = apply_transform(similarity(angle, scale, x, y), points)
    here = apply_transform(ffhq_transform(points, 256), points)
    there = apply_transform(ffhq_transform(moved, 256), moved)
    np.testing.assert_allclose(there, here, atol=1e-4)


def test_alignment_is_ffhqs_formula() -> None:
    points = face_points()
    right, left = points[36:42].mean(0), points[42:48].mean(0)
    mouth = (points[48] + points[54]) / 2
    eyes, across, down = (right + left) / 2, left - right, mouth - (right + left) / 2
    half = max(2.0 * np.hypot(*across), 1.8 * np.hypot(*down))
    move = ffhq_transform(points, 256)
    assert 256 / transform_scale(move) == pytest.approx(2 * half)
    np.testing.assert_allclose(apply_transform(move, eyes + 0.1 * down), [127.5, 127.5], atol=1e-9)
    # Rotation along the mean of the eyes' line and the face's upright, as FFHQ takes it.
    direction = across - np.array([-down[1], down[0]])
    turned = move[:, :2] @ direction
    assert turned[1] == pytest.approx(0, abs=1e-9)
    assert turned[0] > 0


def test_the_same_face_at_two_sizes_lies_at_the_same_place() -> None:
    points = face_points()
    small, large = (apply_transform(ffhq_transform(points, size), points) for size in (64, 512))
    np.testing.assert_allclose((small + 0.5) * 8 - 0.5, large, atol=1e-9)


def test_a_degenerate_face_raises() -> None:
    with pytest.raises(ValueError, match="one point"):
        ffhq_transform(np.ones((68, 2)), 256)
    with pytest.raises(ValueError, match="one point"):
        ffhq_transform(np.full((68, 2), np.nan), 256)


@pytest.mark.parametrize("scale", [0.2, 0.5, 0.9, 1.0, 3.0])
def test_warped_pictures_lie_where_the_transform_says(scale: float) -> None:
    photo = np.zeros((400, 500, 3), np.uint8)
    cv2.circle(photo, (260, 180), 30, (255, 255, 255), -1, cv2.LINE_AA)
    move = similarity(0.3, scale, 0, 0)
    move[:, 2] = np.array([60, 70]) - move[:, :2] @ [260, 180]
    weight = warp(photo, move, 128, cv2.BORDER_CONSTANT)[..., 0].astype(float)
    if scale < 2:
        ys, xs = np.mgrid[:128, :128]
        centre = [(xs * weight).sum() / weight.sum(), (ys * weight).sum() / weight.sum()]
        np.testing.assert_allclose(centre, [60, 70], atol=0.1)
    assert warp(photo, move, 128).shape == (128, 128, 3)


def test_shrinking_does_not_alias() -> None:
    photo = np.zeros((512, 512, 3), np.uint8)
    photo[:, ::2] = 255
    crop = warp(photo, np.array([[0.1, 0, 0], [0, 0.1, 0]]), 48)
    assert np.abs(crop[4:-4, 4:-4].astype(int) - 127).max() < 12


def test_a_crop_inside_the_photo_is_the_photo() -> None:
    photo = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)
    move = np.array([[1.0, 0, -50], [0, 1, -70]])
    np.testing.assert_array_equal(crop_aligned(photo, move, 128), photo[70:198, 50:178])


def test_padding_is_blurred_reflection_and_leaves_the_photo_untouched() -> None:
    photo = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    move = np.array([[1.0, 0, 60], [0, 1, 0]])  # 60 columns to the left of the photo
    crop = crop_aligned(photo, move, 200)
    np.testing.assert_array_equal(crop[:, 60:], photo[:, :140])
    assert crop[:, :40].std() < 0.5 * photo.std()
    assert (crop[:, :40].std(axis=(0, 1)) > 0).all()


def test_a_crop_far_outside_the_photo_is_still_a_picture() -> None:
    photo = np.full((50, 60, 3), 90, np.uint8)
    crop = crop_aligned(photo, np.array([[1.0, 0, 500], [0, 1, 500]]), 64)
    assert crop.shape == (64, 64, 3)
    assert crop.max() <= 91


@pytest.mark.parametrize("shift", [0.0, 700.0], ids=["inside", "beyond the border"])
def test_a_crop_of_a_large_photo_is_what_an_average_over_areas_gives(shift: float) -> None:
    small = cv2.GaussianBlur(np.random.default_rng(1).integers(0, 256, (120, 160, 3), np.uint8), (0, 0), 2)
    photo = cv2.resize(small, (1999, 1501), interpolation=cv2.INTER_CUBIC)
    transform = similarity(0.2, 0.09, 5 - 0.09 * shift, -30)
    plain = warp(photo, transform, 96)
    inside = warp(np.full(photo.shape[:2], 255, np.uint8), transform, 96, cv2.BORDER_CONSTANT) == 255
    found = crop_aligned(photo, transform, 96)
    difference = np.abs(found.astype(int) - plain)[inside]
    assert inside.mean() > 0.3
    assert difference.max() <= 3
    assert difference.mean() < 0.5
