"""The hair matte follows the photo's edge where the given one is off, and keeps what the photo does not tell."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from stylepairs.datagen.images.filters import blurred
from stylepairs.datagen.portraits.portrait import bare_portrait
from stylepairs.datagen.sketching.hair import hair_matte as hair_mattes
from stylepairs.datagen.sketching.hair.hair_matte import hair_matte

SIZE = 128


def disc(x, radius=36.0, soft=2.0):
    rows, columns = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    away = ((rows - 64.0).square() + (columns - x).square()).sqrt()
    return ((radius - away) / soft + 0.5).clamp(0, 1)[None]


def portrait(hair, given, contrast):
    noise = 0.02 * torch.randn(3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    wall = torch.full((3, SIZE, SIZE), 0.3)
    image = (wall - contrast * hair + noise).clamp(-1, 1)
    return replace(bare_portrait("synthetic", image), hair=given)


@pytest.mark.parametrize("off", [-2.0, 2.0])
def test_an_edge_beside_the_photos_is_drawn_to_it(off):
    hair, given = disc(64.0), disc(64.0 + off)
    found = hair_matte(portrait(hair, given, contrast=0.9))
    assert (found - hair).abs().mean() < 0.3 * (given - hair).abs().mean()
    assert (found - hair).abs().max() < 0.25


def test_hair_of_the_walls_colour_keeps_the_given_edge():
    given = disc(64.0, soft=6.0)
    found = hair_matte(portrait(given, given, contrast=0.0))
    assert (found - given).abs().mean() < 0.02


def test_haze_is_none():
    hair = disc(64.0)
    hazy = torch.maximum(hair, torch.full_like(hair, 0.07))
    found = hair_matte(portrait(hair, hazy, contrast=0.9))
    assert found[blurred(hair, 3.0) < 1e-3].max() == 0


def test_a_large_portraits_matte_is_found_at_a_smaller_size(monkeypatch):
    hair = disc(64.0, soft=6.0)
    before = portrait(hair, hair, contrast=0.9)
    small = hair_matte(before.resized(SIZE // 2))
    monkeypatch.setattr(hair_mattes, "_FINEST_PX", SIZE // 2)
    found = hair_matte(before)
    torch.testing.assert_close(found, F.interpolate(small[None], size=(SIZE, SIZE), mode="bilinear")[0])
    assert (found - hair).abs().mean() < 0.01
