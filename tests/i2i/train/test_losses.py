"""Each loss term against its formula on numbers small enough to check by hand."""

from __future__ import annotations

import math

import pytest
import torch

from stylepairs.datagen.images.colors import srgb_to_lab
from stylepairs.i2i.train import losses


def test_pixel_l1_counts_the_region_more() -> None:
    image, target = torch.zeros(1, 3, 1, 2), torch.zeros(1, 3, 1, 2)
    image[..., 0] = 1.0
    region = torch.tensor([[[[1.0, 0.0]]]])
    assert losses.pixel_l1(image, target, region, 3.0).item() == pytest.approx(4 / 5)


def test_color_distance_is_zero_at_the_wanted_mean_and_differentiable_there() -> None:
    image = torch.full((1, 3, 4, 4), 0.2, requires_grad=True)
    wanted = srgb_to_lab(image.detach())[:, :, 0, 0]
    distance = losses.color_distance(image, wanted, torch.ones(1, 1, 4, 4))
    distance.backward()
    assert distance.item() < 1e-3
    assert image.grad is not None
    assert torch.isfinite(image.grad).all()


def test_color_distance_ignores_empty_regions() -> None:
    distance = losses.color_distance(torch.zeros(1, 3, 4, 4), torch.ones(1, 3) * 50, torch.zeros(1, 1, 4, 4))
    assert distance.item() == 0


def test_latent_l2_counts_valid_samples_only() -> None:
    ws, target = torch.zeros(2, 3, 4), torch.ones(2, 3, 4)
    assert losses.latent_l2(ws, target * torch.tensor([1.0, 9.0])[:, None, None], torch.tensor([1.0, 0.0])).item() == 1
    assert losses.latent_l2(ws, target, torch.zeros(2)).item() == 0


def test_adversarial_terms_at_an_undecided_discriminator() -> None:
    zero = torch.zeros(4, 1)
    assert losses.generator_adversarial(zero).item() == pytest.approx(math.log(2))
    assert losses.discriminator_adversarial(zero, zero).item() == pytest.approx(2 * math.log(2))


def test_r1_is_half_the_squared_gradient() -> None:
    real = torch.zeros(2, 3, 4, 4, requires_grad=True)
    penalty = losses.r1_penalty(real, (real * 0.5).sum((1, 2, 3))[:, None])
    assert penalty.item() == pytest.approx(0.5 * 48 * 0.25)
