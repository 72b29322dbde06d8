"""The figures of a fringe."""

from types import SimpleNamespace

import pytest
import torch

from stylepairs.datagen.sketching.hair.fringes import Fringe, fringe_gaps


@pytest.mark.parametrize("size", [128, 512])
def test_parts_of_a_fringe_too_low_to_tell_gaps_are_left_out_at_every_size(size):
    hair = torch.zeros(1, size, size)
    hair[:, : size // 2, size // 4 : size // 2] = 1  # closed hair, and beside it a bare strip of 3 % of the side
    region = hair.clone()
    region[:, : round(0.03 * size), size // 2 : 3 * size // 4] = 1
    fringe = Fringe(region, torch.zeros(2, size, size), hair, hair)
    assert fringe_gaps(fringe, SimpleNamespace(hairy=torch.zeros_like(hair)), hair) == (0, 0)
