"""The rims' benchmark: nothing is off where mask and edit are the matte's own; a mask drawn in is seen at the rim."""

from __future__ import annotations

import pytest
import torch


def test_what_is_off_is_seen_where_it_is(import_script):
    script = import_script("hair_rims")
    matte = torch.zeros(1, 64, 64)
    matte[:, 16:48, 16:48] = 1
    photo = torch.full((3, 64, 64), -0.5)
    computed = photo + matte
    right = script.compared(matte, computed, matte, computed)
    assert right == {"mask": 0, "rim": 0, "inside": 0, "covered": 1}
    drawn_in = torch.zeros_like(matte)
    drawn_in[:, 17:47, 17:47] = 1
    found = script.compared(drawn_in, photo + drawn_in, matte, computed)
    assert found["mask"] == pytest.approx(1 - 30**2 / 32**2)
    assert found["covered"] == pytest.approx(30**2 / 32**2)
    assert found["rim"] > 1.5 * found["inside"] > 0
