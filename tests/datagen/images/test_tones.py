"""Tone curves keep order and range; chroma follows light on dark surfaces, and pales in the shine of light ones."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stylepairs.datagen.images.tones import in_shade, logit, toned, toned_to

LIGHT = torch.linspace(0, 100, 101, dtype=torch.float64)


@given(shift=st.floats(-4, 4))
def test_lightness_keeps_its_order_and_its_range(shift: float) -> None:
    moved = toned(LIGHT, torch.tensor(shift, dtype=torch.float64))
    assert bool((moved.diff() > 0).all())
    assert -3 <= float(moved.min()) < float(moved.max()) <= 103
    assert torch.equal(toned(LIGHT, torch.zeros(())), LIGHT)


@given(mean=st.floats(8, 70), wanted=st.floats(8, 70), spread=st.floats(0.1, 0.5))
def test_a_mean_is_met_with_light_and_shade_as_hair_of_that_lightness_has(mean, wanted, spread) -> None:
    """The spread of the logits of lightness is the same in black hair and in light hair, and stays."""
    waves = torch.sin(torch.arange(64, dtype=torch.float64) / 5)
    light = toned(torch.full((64,), mean, dtype=torch.float64), spread * waves)
    moved = toned_to(light, torch.tensor(wanted, dtype=torch.float64), torch.mean, 5)
    assert float(moved.mean()) == pytest.approx(wanted, abs=0.1)
    assert float(logit(moved).std() / logit(light).std()) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("of", "light", "share"), [(10, 23, 1.5), (10, 6, 22 / 26), (45, 60, 1.0), (60, 80, (96 / 76) ** -0.5)]
)
def test_chroma_goes_with_light_on_dark_surfaces_and_pales_on_light_ones(of: float, light: float, share: float) -> None:
    chroma = torch.tensor([12.0, 20.0])[:, None, None]
    shown = in_shade(chroma, torch.full((1, 1, 1), float(of)), torch.full((1, 1, 1), float(light)))
    torch.testing.assert_close(shown / chroma, torch.full_like(chroma, share), rtol=0, atol=1e-3)


def test_a_surface_in_its_own_light_keeps_its_chroma() -> None:
    chroma, light = torch.randn(2, 8, 8, generator=torch.Generator().manual_seed(0)), torch.full((1, 8, 8), 33.0)
    assert torch.equal(in_shade(chroma, light, light), chroma)
