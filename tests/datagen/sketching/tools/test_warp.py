"""Warps: points go where they are told, the rest stays, nothing folds."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stylepairs.datagen.sketching.tools.warp import (
    MIN_JACOBIAN,
    changed_region,
    fold_limit,
    jacobian_determinant,
    point_flow,
    unfolded,
    warp_image,
    warp_label,
    warp_points,
)

SIZE = 96
METHODS = ["mls", "tps"]


def _cases(max_move: float):
    """Up to four well-parted points of a 3x3 lattice with their moves, in pixels of a SIZE image."""
    spots = [(x, y) for x in (28.0, 48.0, 67.0) for y in (29.0, 47.0, 66.0)]
    move = st.floats(-max_move, max_move)
    return st.dictionaries(st.sampled_from(spots), st.tuples(move, move), min_size=1, max_size=4).map(
        lambda moves: (torch.tensor(list(moves)), torch.tensor(list(moves)) + torch.tensor(list(moves.values())))
    )


def _picture(size_px: int = SIZE) -> torch.Tensor:
    at = torch.linspace(0, 6, size_px)
    return torch.stack(
        [
            torch.sin(at[:, None] * 2) * torch.cos(at),
            torch.cos(at[:, None] + at),
            torch.sin(3 * at) * at / 6 + 0 * at[:, None],
        ]
    )


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=25, deadline=None)
@given(case=_cases(4.0))
def test_points_land_where_they_are_sent(method, case):
    source, target = case
    flow = point_flow(SIZE, source, target, method=method)
    torch.testing.assert_close(warp_points(source, flow), target, atol=0.35, rtol=0)


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=15, deadline=None)
@given(case=_cases(4.0))
def test_pinned_points_stay(method, case):
    source, target = case
    pinned = torch.tensor([[38.0, 38.0], [57.0, 57.0], [38.0, 57.0], [15.0, 70.0]])
    flow = point_flow(SIZE, source, target, pinned, method=method)
    torch.testing.assert_close(warp_points(pinned, flow), pinned, atol=0.3, rtol=0)
    assert flow[:, 0].abs().max() == flow[:, -1].abs().max() == flow[:, :, 0].abs().max() == 0


@pytest.mark.parametrize("method", METHODS)
def test_equal_points_are_the_identity_to_the_bit(method):
    points = torch.tensor([[30.0, 40.0], [61.5, 20.25], [33.0, 77.0]])
    flow = point_flow(SIZE, points, points, method=method)
    assert flow.abs().max() == 0
    assert torch.equal(warp_image(_picture(), flow), _picture())
    assert changed_region(flow).max() == 0


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=10, deadline=None)
@given(case=_cases(5.0))
def test_mirrored_points_give_the_mirrored_warp(method, case):
    mirror = lambda points: torch.stack([SIZE - 1 - points[:, 0], points[:, 1]], -1)  # noqa: E731
    source, target = case
    image = _picture()
    warped = warp_image(image, point_flow(SIZE, source, target, method=method))
    mirrored = warp_image(image.flip(-1), point_flow(SIZE, mirror(source), mirror(target), method=method))
    torch.testing.assert_close(mirrored, warped.flip(-1), atol=2e-3, rtol=0)


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=25, deadline=None)
@given(case=_cases(60.0))
def test_no_move_however_large_folds(method, case):
    source, target = case
    flow = point_flow(SIZE, source, target, method=method)
    assert jacobian_determinant(flow).min() >= MIN_JACOBIAN - 1e-3


def test_unfolding_scales_by_the_largest_factor_that_does_not_fold():
    at = torch.linspace(0, 2 * math.pi, SIZE)
    flow = torch.stack([20 * torch.sin(at).expand(SIZE, SIZE), torch.zeros(SIZE, SIZE)])
    assert jacobian_determinant(flow).min() < 0
    assert 0 < fold_limit(flow) < 1
    assert jacobian_determinant(unfolded(flow)).min() == pytest.approx(MIN_JACOBIAN, abs=1e-3)
    assert fold_limit(0.1 * flow) == 1


def test_picture_label_and_points_move_together():
    blob = torch.zeros(1, SIZE, SIZE)
    blob[:, 44:53, 40:49] = 1
    corners = torch.tensor([[x, y] for x in (38.0, 44.0, 50.0) for y in (42.0, 48.0, 54.0)])
    target = torch.tensor([[50.0, 44.0]])
    flow = point_flow(SIZE, corners, corners + target - torch.tensor([[44.0, 48.0]]))
    image, label = warp_image(blob, flow)[0], warp_label(blob[0].to(torch.uint8), flow)
    at = torch.arange(SIZE).float()
    for weight in (image.clamp_min(0), label.float()):
        centre = torch.stack([(weight.sum(0) * at).sum(), (weight.sum(1) * at).sum()]) / weight.sum()
        torch.testing.assert_close(centre, target[0], atol=0.7, rtol=0)
    assert label.dtype == torch.uint8
    assert set(label.unique().tolist()) == {0, 1}


def test_same_warp_at_twice_the_size():
    source, target = torch.tensor([[40.0, 40.0], [60.0, 50.0]]), torch.tensor([[44.0, 41.0], [57.0, 54.0]])
    small = point_flow(SIZE, source, target)
    large = point_flow(2 * SIZE, 2 * source + 0.5, 2 * target + 0.5)
    shrunk = torch.nn.functional.interpolate(large[None], scale_factor=0.5, mode="area")[0] / 2
    assert (shrunk - small).abs().max() < 0.3


def test_changed_region_holds_every_moved_pixel_and_no_other():
    flow = point_flow(SIZE, torch.tensor([[40.0, 48.0]]), torch.tensor([[46.0, 48.0]]), window=_spot())
    region, moved = changed_region(flow), (flow != 0).any(0, keepdim=True)
    assert torch.equal(region > 0, moved)
    assert 0.02 < float(moved.float().mean()) < 0.5
    assert region.max() == 1
    warped = warp_image(_picture(), flow)
    assert torch.equal(warped[:, ~moved[0]], _picture()[:, ~moved[0]])


def test_mismatched_points_are_an_error():
    with pytest.raises(ValueError, match=r"\[K,2\]"):
        point_flow(SIZE, torch.zeros(3, 2), torch.zeros(2, 2))


def _spot() -> torch.Tensor:
    """A window [1,H,W]: 1 at the centre, smoothly 0 from 30 px on."""
    at = torch.arange(SIZE) - (SIZE - 1) / 2
    return (1.4 - (at[:, None].square() + at.square()).sqrt() / 22).clamp(0, 1)[None]
