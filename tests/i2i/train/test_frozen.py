"""The square around an edit that frozen features look at."""

from __future__ import annotations

import pytest
import torch

from stylepairs.i2i.train.frozen import SQUARE_MARGIN, edited_squares


def mask_of(side: int, low: float, high: float) -> torch.Tensor:
    mask = torch.zeros(1, 1, side, side)
    mask[..., round(low * side) : round(high * side), round(low * side) : round(high * side)] = 1
    return mask


def test_the_square_holds_the_mask_and_a_margin() -> None:
    mask = mask_of(128, 0.25, 0.75)
    share = float(edited_squares(mask, mask).mean())
    assert share == pytest.approx(1 / (1 + 2 * SQUARE_MARGIN) ** 2, abs=0.02)


def test_without_a_mask_it_is_the_whole_picture() -> None:
    image = torch.rand(1, 3, 128, 128)
    torch.testing.assert_close(edited_squares(image, mask_of(128, 0, 0)), image, rtol=0, atol=1e-5)


@pytest.mark.parametrize("side", [256, 512])
def test_of_a_large_picture_every_pixel_of_the_square_counts_alike(side: int) -> None:
    """Points of a large picture, not means, would leave most of its pixels unseen, whatever is drawn in them."""
    image = torch.zeros(1, 3, side, side, requires_grad=True)
    edited_squares(image, mask_of(side, 0.2, 0.8)).sum().backward()
    assert image.grad is not None
    inside = image.grad[..., side // 4 : -side // 4, side // 4 : -side // 4]
    assert float(inside.min()) > 0.5 * float(inside.mean()) > 0
