"""Tone curves keep order and range; chroma follows light on dark surfaces, and pales in the shine of light ones."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stylepairs.datagen.images.tones import ToneCurve, in_shade

LIGHT = torch.linspace(0, 100, 101, dtype=torch.float64)


@given(rise=st.floats(-80, 80), shift=st.floats(-4, 4))
def test_lightness_keeps_its_order_and_its_range(rise: float, shift: float) -> None:
    curve = ToneCurve(rise)
    moved = curve.moved(LIGHT, torch.tensor(shift, dtype=torch.float64))
    assert bool((moved.diff() > 0).all())
    assert float(moved.min()) >= -curve.toe
    assert float(moved.max()) <= 100 + curve.toe
    assert torch.equal(curve.moved(LIGHT, torch.zeros(())), LIGHT)


def test_a_curve_that_lightens_is_less_steep_in_the_darks() -> None:
    lighter, darker = ToneCurve(20), ToneCurve(-20)
    assert (lighter.toe, darker.toe, ToneCurve(10).toe) == (16, 4, 10)
    dark = torch.tensor([5.0, 6.0], dtype=torch.float64)
    slopes = [float(curve.moved(dark, torch.ones(())).diff()) for curve in (lighter, darker)]
    assert 1 < slopes[0] < slopes[1]


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
