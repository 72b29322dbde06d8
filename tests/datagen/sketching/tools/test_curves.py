"""Soft lines and the face's own axes."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stylepairs.datagen.portraits.face_frame import FaceFrame
from stylepairs.datagen.sketching.tools.curves import half_crossing, smooth_curve, soft_line


def test_a_half_is_crossed_where_the_line_between_two_neighbours_says():
    before, after = torch.tensor([0.0, 1.0, 0.25, 0.5]), torch.tensor([1.0, 0.0, 0.75, 0.5])
    assert half_crossing(before, after).tolist() == [0.5, 0.5, 0.5, 0.0]
    # Both on one side: there is no crossing, and nothing is found beyond the two.
    assert 0 <= half_crossing(torch.tensor(0.6), torch.tensor(0.61)) <= 1


def test_curve_passes_through_its_points():
    points = torch.tensor([[3.0, 5.0], [10.0, 9.0], [20.0, 4.0]])
    curve = smooth_curve(points, 5)
    torch.testing.assert_close(curve[::2], points)


def test_line_lies_on_its_curve_and_fades_at_both_ends():
    line = soft_line(64, torch.tensor([[12.0, 30.0], [32.0, 30.0], [52.0, 30.0]]), 3.0)[0]
    assert line[30, 32] == pytest.approx(1, abs=0.05)
    assert line[30, 12] < 0.02 > line[30, 52]
    assert line[22, 32] < 0.01
    assert line[30, 16] < line[30, 20] < line[30, 24]


def test_thin_lines_are_fainter_not_lost():
    points = torch.tensor([[12.0, 30.5], [32.0, 30.5], [52.0, 30.5]])
    amounts = [float(soft_line(64, points, width).sum()) / width for width in (0.2, 0.5, 1.0, 3.0)]
    assert max(amounts) / min(amounts) < 1.15


@settings(max_examples=20, deadline=None)
@given(turn=st.floats(-math.pi, math.pi), scale=st.floats(0.2, 5), x=st.floats(-50, 50), y=st.floats(-50, 50))
def test_face_coordinates_do_not_change_when_the_face_is_moved_turned_and_scaled(turn, scale, x, y):
    points = 20 * torch.randn(68, 2, generator=torch.Generator().manual_seed(2))
    points[36:42] += torch.tensor([-30.0, 0])
    points[42:48] += torch.tensor([30.0, 3.0])
    rotation = scale * torch.tensor([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    moved = points @ rotation.T + torch.tensor([x, y])
    coordinates = FaceFrame.of_eyes(points).coordinates(points)
    torch.testing.assert_close(FaceFrame.of_eyes(moved).coordinates(moved), coordinates, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(FaceFrame.of_eyes(points).pixels(coordinates), points, atol=1e-3, rtol=1e-3)
