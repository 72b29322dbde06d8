"""Tinting: the asked mean is met by computing, in the light and shade that hair of that colour has."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from stylepairs.datagen.images.colors import lab_to_srgb, srgb_to_lab
from stylepairs.datagen.images.tones import logit, toned
from stylepairs.i2i.models.conditions import decode_color, encode_color, style_of
from stylepairs.i2i.models.glean import Asked, tint
from stylepairs.i2i.train.losses import mean_color

OWN = style_of("color", {"color": "own"}, feature="lips")
RED = style_of("color", {"color": "red"}, feature="lips")
CODES = torch.stack([RED, OWN])


def photos() -> torch.Tensor:
    """Two smooth ones in the middle of the gamut."""
    torch.manual_seed(7)
    return F.interpolate(torch.rand(2, 3, 6, 6) * 0.3 - 0.15, size=(32, 32), mode="bilinear")


def part() -> torch.Tensor:
    where = torch.zeros(2, 1, 32, 32)
    where[..., 10:20, 5:25] = 1
    return where


def change(
    photo: torch.Tensor, where: torch.Tensor, mask: torch.Tensor, degree: float, style: torch.Tensor = CODES
) -> torch.Tensor:
    gain, bias = tint(photo, where, mask, Asked(photo, mask, torch.full((len(photo),), degree), style))
    return gain * (photo + 1) + bias


@pytest.mark.parametrize("degree", [0.0, 0.4, 1.0])
def test_what_is_tinted_has_the_wanted_mean_as_far_as_the_degree_goes(degree: float) -> None:
    photo, where = photos(), part()
    shift = change(photo, where, torch.full_like(where, 0.5), degree)
    assert torch.allclose(shift * (1 - where), torch.zeros(()), atol=1e-6)
    own, found = (mean_color(image, where) for image in (photo, photo + shift))
    wanted = torch.stack([own[0].lerp(decode_color(RED), degree), own[1]])
    torch.testing.assert_close(found, wanted, rtol=0, atol=0.2)


def test_nothing_changes_where_the_own_colour_is_asked() -> None:
    photo = (torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1).mul(1.2).clamp(-1, 1)
    shift = change(photo, part(), part(), 1.0, torch.stack([OWN, OWN]))
    torch.testing.assert_close(shift, torch.zeros_like(shift), rtol=0, atol=1e-3)


def test_tints_are_as_exact_in_a_training_of_half_precision() -> None:
    photo, where = photos(), part()
    exact = change(photo, where, where, 1.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(change(photo, where, where, 1.0), exact)


def test_where_the_mask_is_empty_nothing_is_tinted() -> None:
    where, mask = torch.full((2, 1, 32, 32), 0.5, requires_grad=True), torch.zeros(2, 1, 32, 32, requires_grad=True)
    shift = change(photos(), where, mask, 1.0)
    torch.testing.assert_close(shift, torch.zeros_like(shift), rtol=0, atol=1e-3)
    shift.sum().backward()
    assert mask.grad is not None
    assert mask.grad.abs().max() < 1


def test_black_hair_gets_the_light_and_shade_of_light_hair() -> None:
    """Its strands' contrast, too, where the photo is finer than the network: the gain is the tone curve's slope."""
    strands = 0.3 * torch.sin(torch.arange(32) / 2).expand(1, 1, 32, 32)
    light = toned(torch.full((1, 1, 32, 32), 15.0), strands)
    photo, all_of_it = lab_to_srgb(torch.cat([light, torch.zeros(1, 2, 32, 32)], 1)), torch.ones(1, 1, 32, 32)
    blond = encode_color(torch.tensor([[60.0, 6.0, 24.0]]))
    gain, bias = tint(photo, all_of_it, all_of_it, Asked(photo, all_of_it, torch.ones(1), blond))
    before, after = (logit(srgb_to_lab(image)[:, 0]).std() for image in (photo, photo + gain * (photo + 1) + bias))
    assert float(after / before) == pytest.approx(1, abs=0.02)
    finer = photo + 0.01
    shown = (finer + gain * (finer + 1) + bias) - (photo + gain * (photo + 1) + bias)
    assert 0.012 < float(shown.mean()) < 0.021


def test_a_head_of_two_hues_becomes_one() -> None:
    lab = torch.tensor([45.0, 0.0, 10.0])[None, :, None, None].expand(1, 3, 32, 32).clone()
    lab[:, 1, :, ::2], lab[:, 1, :, 1::2] = 8.0, -8.0
    photo, all_of_it = lab_to_srgb(lab), torch.ones(1, 1, 32, 32)
    pink = encode_color(torch.tensor([[60.0, 32.0, -2.0]]))
    after = srgb_to_lab(photo + change(photo, all_of_it, all_of_it, 1.0, pink))
    assert float(after[:, 1].std()) == pytest.approx(0.3 * 8, abs=0.4)
