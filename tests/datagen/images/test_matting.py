"""Closed-form matting: mixtures of two colours get their share, what is known stays, what colours do not tell too."""

import pytest
import torch

from stylepairs.datagen.images.matting import matted

SIZE = 48


def ramp(width):
    """The share of hair [1,S,S]: 1 left, 0 right, between them a ramp."""
    at = torch.arange(SIZE, dtype=torch.float32) - (SIZE - width) / 2
    return (1 - (at + 0.5) / width).clamp(0, 1).expand(1, SIZE, SIZE)


def mixture(share):
    generator = torch.Generator().manual_seed(0)
    hair = torch.tensor([-0.8, -0.85, -0.9])[:, None, None] + 0.02 * torch.randn(3, SIZE, SIZE, generator=generator)
    skin = torch.tensor([0.4, 0.1, -0.1])[:, None, None] + 0.02 * torch.randn(3, SIZE, SIZE, generator=generator)
    return share * hair + (1 - share) * skin


def unsure(share, margin_px=3):
    columns = torch.nonzero((share[0, 0] > 0) & (share[0, 0] < 1)).flatten()
    known = torch.ones_like(share, dtype=torch.bool)
    known[..., int(columns.min()) - margin_px : int(columns.max()) + 1 + margin_px] = False
    return known


@pytest.mark.parametrize("width", [2, 6])
@pytest.mark.parametrize("guess", [0.2, 0.5, 0.8])
def test_an_edge_gets_the_share_that_colours_tell_whatever_was_guessed(width, guess):
    share = ramp(width)
    known = unsure(share)
    found = matted(mixture(share), torch.where(known, share, guess), known)
    missed, missed_by_guess = ((x - share)[~known].abs().mean() for x in (found, guess))
    assert missed < 0.35 * missed_by_guess
    assert torch.equal(found[known], share[known])


def test_where_colours_tell_nothing_the_guess_stays():
    guess = torch.full((1, SIZE, SIZE), 0.6)
    found = matted(torch.zeros(3, SIZE, SIZE), guess, torch.zeros(1, SIZE, SIZE, dtype=torch.bool))
    torch.testing.assert_close(found, guess, rtol=0, atol=1e-3)


def test_a_matte_that_is_known_everywhere_stays():
    share = ramp(6)
    assert torch.equal(matted(mixture(share), share, torch.ones_like(share, dtype=torch.bool)), share)
