"""Colours: CIEDE2000 against the published pairs, Lab against known values, names as people write them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kornia.color import rgb_to_lab

from stylepairs.datagen.images.colors import (
    PALETTE,
    color_to_lab,
    delta_e_2000,
    lab_to_paled_srgb,
    lab_to_srgb,
    parse_color,
    srgb_to_lab,
)
from stylepairs.datagen.shell.errors import InputError

# Table 1 of Sharma, Wu, Dalal (2005): L, a, b of both colours and their difference.
SHARMA = """
50 2.6772 -79.7751 50 0 -82.7485 2.0425
50 3.1571 -77.2803 50 0 -82.7485 2.8615
50 2.8361 -74.0200 50 0 -82.7485 3.4412
50 -1.3802 -84.2814 50 0 -82.7485 1.0000
50 -1.1848 -84.8006 50 0 -82.7485 1.0000
50 -0.9009 -85.5211 50 0 -82.7485 1.0000
50 0 0 50 -1 2 2.3669
50 -1 2 50 0 0 2.3669
50 2.4900 -0.0010 50 -2.4900 0.0009 7.1792
50 2.4900 -0.0010 50 -2.4900 0.0010 7.1792
50 2.4900 -0.0010 50 -2.4900 0.0011 7.2195
50 2.4900 -0.0010 50 -2.4900 0.0012 7.2195
50 -0.0010 2.4900 50 0.0009 -2.4900 4.8045
50 -0.0010 2.4900 50 0.0010 -2.4900 4.8045
50 -0.0010 2.4900 50 0.0011 -2.4900 4.7461
50 2.5 0 50 0 -2.5 4.3065
50 2.5 0 73 25 -18 27.1492
50 2.5 0 61 -5 29 22.8977
50 2.5 0 56 -27 -3 31.9030
50 2.5 0 58 24 15 19.4535
50 2.5 0 50 3.1736 0.5854 1.0000
50 2.5 0 50 3.2972 0 1.0000
50 2.5 0 50 1.8634 0.5757 1.0000
50 2.5 0 50 3.2592 0.3350 1.0000
60.2574 -34.0099 36.2677 60.4626 -34.1751 39.4387 1.2644
63.0109 -31.0961 -5.8663 62.8187 -29.7946 -4.0864 1.2630
61.2901 3.7196 -5.3901 61.4292 2.2480 -4.9620 1.8731
35.0831 -44.1164 3.7933 35.0232 -40.0716 1.5901 1.8645
22.7233 20.0904 -46.6940 23.0331 14.9730 -42.5619 2.0373
36.4612 47.8580 18.3852 36.2715 50.5065 21.2231 1.4146
90.8027 -2.0831 1.4410 91.1528 -1.6435 0.0447 1.4441
90.9257 -0.5406 -0.9208 88.6381 -0.8985 -0.7239 1.5381
6.7747 -0.2908 -2.4247 5.8714 -0.0985 -2.2286 0.6377
2.0776 0.0795 -1.1350 0.9033 -0.0636 -0.5514 0.9082
"""


@pytest.fixture(scope="module")
def sharma():
    """Both colours [34,3] and the published difference [34], float64."""
    table = torch.tensor(
        [[float(x) for x in line.split()] for line in SHARMA.strip().splitlines()], dtype=torch.float64
    )
    assert table.shape == (34, 7)
    return table[:, :3], table[:, 3:6], table[:, 6]


def test_ciede2000_equals_the_published_pairs_both_ways_round(sharma):
    first, second, published = sharma
    torch.testing.assert_close(delta_e_2000(first, second, dim=-1), published, rtol=0, atol=5.1e-5)
    torch.testing.assert_close(delta_e_2000(second, first, dim=-1), published, rtol=0, atol=5.1e-5)


def test_ciede2000_in_float32_stays_within_a_thousandth(sharma):
    first, second, published = sharma
    far = published > 0.95  # all pairs; those near the grey axis at hue 180 apart flip branches in float32
    stable = far & ~torch.isin(torch.arange(34), torch.arange(8, 15))
    got = delta_e_2000(first.float(), second.float(), dim=-1)
    torch.testing.assert_close(got[stable].double(), published[stable], rtol=0, atol=1e-3)


def test_ciede2000_gradient_is_finite_at_equal_and_at_grey_colours():
    first = torch.tensor([[50.0, 0, 0], [50, 10, -5], [0, 0, 0], [50, 0, 0]], requires_grad=True)
    second = torch.tensor([[50.0, 0, 0], [50, 10, -5], [100, 0, 0], [40, 12, 3]], requires_grad=True)
    delta_e_2000(first, second, dim=-1).sum().backward()
    assert torch.isfinite(first.grad).all()
    assert torch.isfinite(second.grad).all()
    assert first.grad[3].abs().sum() > 0


def test_ciede2000_gradient_matches_finite_differences():
    generator = torch.Generator().manual_seed(0)
    spread = torch.tensor([30.0, 40.0, 40.0], dtype=torch.float64)
    first, second = (torch.randn(2, 8, 3, generator=generator, dtype=torch.float64) * spread + 40).unbind(0)
    first.requires_grad_()
    assert torch.autograd.gradcheck(lambda lab: delta_e_2000(lab, second, dim=-1), (first,))


def test_lab_has_the_known_values_of_the_srgb_primaries_and_white_point_d65():
    colors = torch.tensor([[1.0, 1, 1], [-1, -1, -1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]).T[:, :, None]
    expected = [[100, 0, 0], [0, 0, 0], [53.24, 80.09, 67.20], [87.73, -86.18, 83.18], [32.30, 79.19, -107.86]]
    torch.testing.assert_close(srgb_to_lab(colors)[..., 0].T, torch.tensor(expected), rtol=0, atol=0.03)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_lab_is_kornias_to_the_bit_and_so_is_its_gradient(dtype):
    image = torch.rand(2, 3, 5, 7, dtype=dtype, generator=torch.Generator().manual_seed(0)) * 2.4 - 1.2
    image.requires_grad_()
    ours, theirs = srgb_to_lab(image), rgb_to_lab((image + 1) / 2)
    assert torch.equal(ours, theirs)
    assert torch.equal(*(torch.autograd.grad(lab.square().sum(), image)[0] for lab in (ours, theirs)))


def test_lab_round_trip_returns_the_image():
    image = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    torch.testing.assert_close(lab_to_srgb(srgb_to_lab(image)), image, rtol=0, atol=2e-4)


@pytest.mark.parametrize("convert", [srgb_to_lab, lab_to_srgb, lab_to_paled_srgb])
def test_colours_keep_full_precision_under_autocast(convert):
    values = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    values = values if convert is srgb_to_lab else 40 * values + 40
    with torch.autocast("cpu", torch.bfloat16):
        converted = convert(values)
    assert torch.equal(converted, convert(values))


@given(st.sampled_from(sorted(PALETTE)), st.sampled_from([" ", "-", "_", "  "]), st.booleans())
def test_palette_names_are_read_as_people_write_them(name, separator, upper):
    written = name.replace("_", separator)
    assert parse_color(written.upper() if upper else f" {written} ") == PALETTE[name]


@given(st.tuples(*[st.integers(0, 255)] * 3))
def test_numbers_and_hex_name_the_same_colour(color):
    assert parse_color("#{:02x}{:02X}{:02x}".format(*color)) == color
    assert parse_color("{}, {},{}".format(*color)) == color
    assert parse_color(list(color)) == color


@pytest.mark.parametrize(
    ("text", "message"), [("blnd", "'blond'"), ("light blnd", "'light_blond'"), ("grean", "'green'")]
)
def test_unknown_names_are_answered_with_the_nearest(text, message):
    with pytest.raises(InputError, match=f"{text!r}: unknown; did you mean {message}"):
        parse_color(text)


@pytest.mark.parametrize("text", ["", "#12", "#gggggg", "zzzzzz"])
def test_what_is_no_colour_lists_what_is(text):
    with pytest.raises(InputError, match="#rrggbb and r,g,b work too"):
        parse_color(text)


@pytest.mark.parametrize("text", ["1,2", "1,2,3,4", "1,2,256", "-1,2,3", "a,b,c", "1,,3", "1.5,2,3", [1, 2, 300]])
def test_malformed_numbers_are_refused(text):
    with pytest.raises(InputError, match="three integers from 0 to 255"):
        parse_color(text)


def test_palette_colours_can_be_told_apart():
    labs = torch.stack([color_to_lab(color) for color in PALETTE.values()])  # [K,3,1,1]
    apart = delta_e_2000(labs[:, None], labs[None])[..., 0, 0] + 100 * torch.eye(len(labs))
    assert apart.min() > 4.5


def test_colours_beyond_the_gamut_become_paler_at_their_lightness_and_others_stay():
    lab = torch.tensor([[50.0, 80, 90, 50], [5.0, 40, 30, -90], [5.0, -5, 30, 40]])[:, None]
    shown = lab_to_paled_srgb(lab)
    assert shown.abs().max() <= 0.98 + 1e-6  # 0.99 of full light
    torch.testing.assert_close(shown[..., :1], lab_to_srgb(lab)[..., :1])
    found = srgb_to_lab(shown)
    torch.testing.assert_close(found[0, 0, :3], lab[0, 0, :3], rtol=0, atol=0.5)
    hue, wanted = (torch.atan2(x[2], x[1])[0, 1:3] for x in (found, lab))
    torch.testing.assert_close(hue, wanted, rtol=0, atol=0.3)
    assert (found[1:, 0, 1:].norm(dim=0) < lab[1:, 0, 1:].norm(dim=0)).all()
