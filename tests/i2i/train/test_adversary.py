"""The discriminator's step."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from stylepairs.i2i.train.adversary import discriminator_step
from stylepairs.i2i.train.settings import TrainingSettings
from stylepairs.i2i.train.training import build


class SumOfChannels(torch.nn.Module):
    """A discriminator of which image, mask and style each count for themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([1.0, 50.0]))

    def forward(self, judged: torch.Tensor) -> torch.Tensor:
        image, rest = judged[:, :3].sum((1, 2, 3)), judged[:, 3:].sum((1, 2, 3))
        return self.weight[0] * image + self.weight[1] * rest


def test_r1_is_taken_over_the_image_alone(settings: Callable[..., TrainingSettings]) -> None:
    run = build(settings(), "hair_color", {})
    run.discriminator = run.critic = SumOfChannels()
    image, mask = torch.rand(2, 3, 8, 8), torch.rand(2, 1, 8, 8)
    batch = {"target": image, "mask": mask, "style": torch.rand(2, 3)}
    figures = discriminator_step(run, image, batch, None)
    assert float(figures["r1"]) == pytest.approx(0.5 * 3 * 8 * 8)
