"""A hole is filled with what surrounds it: light, slope and grain; what is known stays."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stylepairs.datagen.sketching.hair.background import continue_background

SIZE = 64


def disc(radius, size=SIZE):
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return ((((y - size / 2) ** 2 + (x - size / 2) ** 2).float().sqrt()) < radius).float()[None]


def slope(across, down, size=SIZE):
    line = torch.linspace(-1, 1, size)
    return (across * line[None, :] + down * line[:, None]).expand(3, size, size).clone()


def noise(seed, size=SIZE):
    return torch.randn(3, size, size, generator=torch.Generator().manual_seed(seed))


def with_a_head(image, hole):
    """The image with something that must not be seen in the hole."""
    return torch.where(hole > 0, torch.tensor([0.9, -0.9, 0.5])[:, None, None], image)


@given(st.floats(-0.4, 0.4), st.floats(-0.4, 0.4), st.integers(3, 20))
@settings(max_examples=12, deadline=None)
def test_a_slope_of_light_goes_on_behind_the_hole(across, down, radius):
    wall, hole = slope(across, down), disc(radius)
    filled = continue_background(with_a_head(wall, hole), hole)
    assert (filled - wall).abs().max() < 0.05


def test_a_slope_is_extrapolated_past_what_is_known():
    wall = slope(0.5, 0.0)
    hole = torch.zeros(1, SIZE, SIZE)
    hole[:, :, -8:] = 1
    filled = continue_background(with_a_head(wall, hole), hole)
    error = (filled - wall)[:, :, -6:].abs().mean()
    repeated = (wall[:, :, -9:-8] - wall)[:, :, -6:].abs().mean()
    assert error < 0.7 * repeated


@given(st.integers(0, 2**31), st.floats(0.0, 0.6))
@settings(max_examples=15, deadline=None)
def test_what_is_known_stays_to_the_bit_and_nothing_leaves_the_range(seed, share):
    image = noise(seed).mul(0.4).clamp(-1, 1)
    hole = (torch.rand(1, SIZE, SIZE, generator=torch.Generator().manual_seed(seed)) < share).float()
    hole[:, 0, 0] = 0
    filled = continue_background(image, hole)
    assert torch.equal(filled[:, hole[0] == 0], image[:, hole[0] == 0])
    assert torch.isfinite(filled).all()
    assert filled.abs().max() <= 1
    assert torch.equal(filled, continue_background(image, hole))


def test_grain_in_the_hole_is_as_strong_as_outside():
    image, hole = (slope(0.2, 0.1) + 0.05 * noise(1)).clamp(-1, 1), disc(20)
    filled = continue_background(with_a_head(image, hole), hole)
    middle = disc(15)[0] > 0
    grain = (filled - slope(0.2, 0.1))[:, middle].std()
    assert 0.6 * 0.05 < grain < 1.4 * 0.05


def test_nothing_is_smeared_along_lines():
    """Grain in the hole is no more alike between neighbours than the grain outside."""
    image, hole = (0.1 * noise(2)).clamp(-1, 1), disc(20)
    filled = continue_background(with_a_head(image, hole), hole)[:, 20:44, 20:44]
    for shifted in (filled[:, 1:, :] * filled[:, :-1, :], filled[:, :, 1:] * filled[:, :, :-1]):
        assert abs(float(shifted.mean() / filled.square().mean())) < 0.3


def test_nothing_of_the_hole_s_own_content_is_left():
    image, hole = 0.05 * noise(3), disc(20)
    one = continue_background(torch.where(hole > 0, 1.0, image), hole)
    other = continue_background(torch.where(hole > 0, -1.0, image), hole)
    assert torch.equal(one, other)


def test_a_soft_hole_mixes():
    image, hole = slope(0.3, 0.0), disc(12) * 0.5
    assert (continue_background(with_a_head(image, disc(12)), hole) - image).abs().max() > 0.2
    assert torch.equal(continue_background(image, torch.zeros(1, SIZE, SIZE)), image)


def test_a_hole_over_everything_is_refused():
    with pytest.raises(ValueError, match="no background to continue"):
        continue_background(slope(0, 0), torch.ones(1, SIZE, SIZE))


def test_large_pictures_are_continued_as_small_ones_are():
    image, hole = slope(0.2, 0.2, 1024), disc(300, 1024)
    filled = continue_background(with_a_head(image, hole), hole)
    assert (filled - image).abs().max() < 0.05
