"""Matching along an edit: its degree is found, other changes are not taken for it."""

from __future__ import annotations

import pytest
import torch

from stylepairs.datagen.sketching.tools.matching import detail_ratio, match_degree
from stylepairs.datagen.sketching.tools.texture import blurred_by_share
from stylepairs.datagen.sketching.tools.warp import changed_region, point_flow, warp_image

SIZE = 64


@pytest.fixture(scope="module")
def scene():
    """A textured picture, a family of warps of it, and where they act."""
    noise = torch.randn(3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    image = (2.5 * blurred_by_share(noise, 0.03)).clamp(-1, 1)
    source = torch.tensor([[28.0, 32.0], [36.0, 32.0]])
    flow = point_flow(SIZE, source, source + torch.tensor([0.0, 3.0]))
    return image, (lambda degree: warp_image(image, degree * flow)), changed_region(flow)


@pytest.mark.parametrize("degree", [-0.3, 0.0, 0.05, 0.5, 0.93, 1.2])
def test_degree_is_found_to_a_hundredth(scene, degree):
    image, edited, region = scene
    match = match_degree(image, edited(degree), edited, region)
    assert match.degree == pytest.approx(degree, abs=0.015)
    assert match.explained > (0.6 if abs(degree) > 0.2 else -1e-9)


def test_light_and_grain_do_not_move_it(scene):
    image, edited, region = scene
    light = 0.2 * torch.linspace(-1, 1, SIZE)
    grain = 0.03 * torch.randn(image.shape, generator=torch.Generator().manual_seed(1))
    match = match_degree(image, edited(0.6) + light + grain, edited, region)
    assert match.degree == pytest.approx(0.6, abs=0.04)
    assert match.explained > 0.6


def test_an_unchanged_picture_and_another_one_explain_nothing(scene):
    image, edited, region = scene
    assert match_degree(image, image, edited, region).explained == 0
    assert match_degree(image, image, edited, region).degree == pytest.approx(0, abs=1e-3)
    assert match_degree(image, image.flip(-1), edited, region).explained < 0.25


def test_detail_ratio_tells_smeared_from_sharpened(scene):
    image, _, region = scene
    fine = torch.randn(3, SIZE, SIZE, generator=torch.Generator().manual_seed(3)) * 0.1
    assert detail_ratio(image, image, region) == pytest.approx(1)
    assert detail_ratio(image + fine, image, region) < 0.5
    assert detail_ratio(image, image + fine, region) > 2
