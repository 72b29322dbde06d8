"""An edit goes on beyond the aligned crop, over what hangs together with it, and nowhere else."""

import cv2
import numpy as np
import pytest

from stylepairs.i2i.edit.beyond_crop import (
    EditMaps,
    blurred,
    border_fade,
    cut_off,
    extended,
    margin_px,
    met,
    reaches_border,
)

SIDE = 64
MARGIN = margin_px(SIDE)
WIDE = SIDE + 2 * MARGIN


def long_hair() -> tuple[EditMaps, np.ndarray]:
    """A vertical lock that runs out of the crop at its lower border, in the crop and in the wide square."""
    region = np.zeros((WIDE, WIDE), np.float32)
    region[MARGIN + 20 : WIDE - 5, MARGIN + 10 : MARGIN + 25] = 1
    mask = region[MARGIN:-MARGIN, MARGIN:-MARGIN].copy()
    gain, bias = np.full((SIDE, SIDE, 3), 0.4, np.float32), np.full((SIDE, SIDE, 3), 30.0, np.float32)
    return EditMaps(gain, bias, mask), region


def test_the_edit_goes_on_beyond_the_crop_with_the_same_maps():
    maps, region = long_hair()
    wide = extended(maps, region)
    beyond = np.s_[MARGIN + SIDE + 2 : WIDE - 10, MARGIN + 12 : MARGIN + 23]
    assert wide.mask[beyond].min() > 0.9
    np.testing.assert_allclose(wide.gain[beyond], 0.4, atol=0.02)
    np.testing.assert_allclose(wide.bias[beyond], 30.0, atol=1)
    seam = np.s_[MARGIN + 30 : WIDE - 12, MARGIN + 17]
    assert wide.mask[seam].min() > 0.9


def test_inside_the_crop_the_edit_stays_what_the_network_said():
    maps, region = long_hair()
    wide = extended(maps, region)
    fade = round(0.06 * SIDE) + 1
    inner = np.s_[MARGIN + fade : MARGIN + SIDE - fade, MARGIN + fade : MARGIN + SIDE - fade]
    np.testing.assert_allclose(wide.mask[inner], maps.mask[fade:-fade, fade:-fade], atol=1e-6)
    np.testing.assert_allclose(wide.gain[inner], 0.4, atol=1e-6)


def test_hair_that_does_not_hang_together_with_the_edit_is_left_alone():
    maps, region = long_hair()
    region[3:12, 3:12] = 1
    wide = extended(maps, region)
    assert wide.mask[:15, :15].max() == 0


def test_only_an_edit_at_the_border_reaches_it():
    maps, _ = long_hair()
    assert reaches_border(maps)
    centred = np.zeros_like(maps.mask)
    centred[20:40, 20:40] = 1
    assert not reaches_border(EditMaps(maps.gain, maps.bias, centred))


def test_nothing_is_left_at_any_border():
    maps, region = long_hair()
    region[:] = 1
    for square in (cut_off(EditMaps(maps.gain, maps.bias, np.ones_like(maps.mask))), extended(maps, region)):
        rim = np.concatenate([square.mask[0], square.mask[-1], square.mask[:, 0], square.mask[:, -1]])
        assert rim.max() == 0
    assert border_fade(SIDE)[SIDE // 2, SIDE // 2] == 1


def test_background_taken_for_hair_above_a_head_that_ends_below_the_border_is_left_alone():
    maps, region = long_hair()
    region[: MARGIN + 20, MARGIN : MARGIN + SIDE] = 1  # as the wide parsing mistakes it, down to the head
    wide = extended(maps, region)
    assert wide.mask[: MARGIN + 8].max() < 0.05


def test_edit_that_the_wide_parsing_does_not_continue_fades_out_before_the_border():
    maps, region = long_hair()
    region[MARGIN + SIDE - 4 :] = 0
    column = extended(maps, region).mask[:, MARGIN + 17]
    assert column[MARGIN + 30] > 0.9
    assert column[MARGIN + SIDE :].max() < 0.05
    assert np.abs(np.diff(column[MARGIN + 30 :])).max() < 0.7


def test_hair_beyond_the_border_does_not_change_what_the_network_left_alone():
    maps, region = long_hair()
    region[MARGIN : MARGIN + SIDE, MARGIN + 25 : MARGIN + SIDE] = 1
    assert extended(maps, region).mask[MARGIN : MARGIN + SIDE, MARGIN + 40 :].max() < 0.05


@pytest.mark.parametrize("sigma", [4, 13, 40, 115])
def test_a_gaussian_of_smaller_maps_is_that_of_the_maps(sigma):
    maps = np.random.default_rng(0).normal(size=(410, 410, 2)).astype(np.float32)
    maps[..., 1] = 0
    maps[100:300, 150:, 1] = 1
    wanted = cv2.GaussianBlur(maps, (0, 0), sigma, borderType=cv2.BORDER_CONSTANT)
    np.testing.assert_allclose(blurred(maps, sigma), wanted, atol=0.015)  # at the border


def test_a_soft_edge_beyond_the_crop_stays_soft_at_any_size() -> None:
    side = 512
    margin = margin_px(side)
    wide = side + 2 * margin
    across = np.clip((0.25 * wide - np.abs(np.arange(wide) - wide / 2)) / (0.02 * wide) + 0.5, 0, 1)
    region = np.tile(across.astype(np.float32), (wide, 1))
    kept = met(region, region, margin)
    row = kept[margin // 3]
    assert row.max() == 1
    assert np.abs(np.diff(row)).max() < 0.1
