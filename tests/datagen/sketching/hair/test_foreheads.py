"""Skin that is carried on under a fringe."""

import numpy as np
import pytest
import torch

from stylepairs.datagen.portraits.portrait import CLASS, Portrait
from stylepairs.datagen.sketching.hair.foreheads import continue_skin, forehead


def portrait(size):
    points = torch.full((68, 2), 0.5)
    points[:17, 0], points[:17, 1] = torch.linspace(0.25, 0.75, 17), 0.9
    points[17:22], points[22:27] = torch.tensor([0.38, 0.44]), torch.tensor([0.62, 0.44])
    points[36:42], points[42:48] = torch.tensor([0.38, 0.5]), torch.tensor([0.62, 0.5])
    points[27:31], points[31:36] = torch.tensor([0.5, 0.48]), torch.tensor([0.5, 0.65])
    label = torch.full((size, size), CLASS["skin"], dtype=torch.uint8)
    label[: size // 4] = CLASS["hair"]
    image = 0.2 + 0.05 * torch.randn(3, size, size, generator=torch.Generator().manual_seed(0))
    return Portrait("drawn", image, label, (label == CLASS["hair"]).float()[None], points * size - 0.5, "")


@pytest.mark.parametrize("size", [16, 32, 64])
def test_skin_is_carried_on_where_grain_is_finer_than_pixels(size):
    person = portrait(size)
    hole = torch.zeros(1, size, size)
    hole[:, size // 4 : size // 3] = 1
    skin = continue_skin(person, forehead(person), hole, np.random.default_rng(0))
    assert skin.isfinite().all()
    assert torch.equal(skin * (1 - hole), person.image * (1 - hole))
    assert (skin - person.image)[:, hole[0] > 0].abs().mean() < 0.2
