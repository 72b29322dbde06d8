"""Lips: colour, fullness and finish; what measure reports, what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers.warped_faces import ellipse, face, seen
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from stylepairs.datagen.features import lips
from stylepairs.datagen.images.colors import color_to_lab, delta_e_2000, srgb_to_lab
from stylepairs.datagen.portraits.light import light_of
from stylepairs.datagen.portraits.portrait import CLASS
from stylepairs.datagen.portraits.sketch import AnalysedPair, SketchRefused
from stylepairs.datagen.shell.errors import InputError
from stylepairs.datagen.sketching.face.lip_matte import lip_matte, lip_outline
from stylepairs.datagen.sketching.tools.warp import jacobian_determinant


def mouth(open_share: float = 0.0):
    """The drawn face, its lips parted over teeth."""
    portrait = face(112)
    image, label = portrait.image.clone(), portrait.label.clone()
    size = portrait.size_px
    whole = ellipse(size, 0.5, 0.74, 0.11, 0.035)
    image = image * (1 - whole) + (torch.tensor([0.4, -0.35, -0.35])[:, None, None] + 0.1 * creases(size)) * whole
    below = (torch.arange(size) > 0.74 * size)[:, None].expand(size, size)
    label[(whole[0] > 0.5) & ~below], label[(whole[0] > 0.5) & below] = CLASS["u_lip"], CLASS["l_lip"]
    points = portrait.points68.clone()
    if open_share:
        teeth = ellipse(size, 0.5, 0.74, 0.085, 0.035 * open_share)
        image = image * (1 - teeth) + torch.tensor([0.8, 0.78, 0.7])[:, None, None] * teeth
        label[teeth[0] > 0.5] = CLASS["mouth"]
        points[[61, 62, 63], 1] -= 0.035 * open_share * size
        points[[65, 66, 67], 1] += 0.035 * open_share * size
    return replace(portrait, image=image, label=label, points68=points)


def creases(size):
    return torch.sin(torch.arange(size) * 2.0).expand(1, size, size)


@pytest.fixture(scope="module")
def closed():
    return mouth()


@pytest.fixture(scope="module")
def parted():
    return mouth(0.4)


CASES = [
    {"color": "red"},
    {"color": "#704060"},
    {"color": "own", "fullness": 0.5},
    {"color": "own", "fullness": -0.3},
    {"color": "berry", "fullness": 0.4, "finish": "gloss"},
    {"color": "own", "finish": "gloss"},
    {"color": "own", "finish": "matte"},
]
each_case = pytest.mark.parametrize("asked", CASES, ids=lambda asked: "-".join(str(value) for value in asked.values()))
slow_cases = [CASES[0], *(pytest.param(case, marks=pytest.mark.slow) for case in CASES[1:])]
one_case = pytest.mark.parametrize(
    "asked", slow_cases, ids=lambda asked: "-".join(str(value) for value in asked.values())
)


@each_case
def test_only_the_edit_mask_changes_and_teeth_stay(parted, asked):
    made = lips.sketch(parted, lips.Params(**asked))
    outside = (made.edit_mask == 0)[0]
    assert torch.equal(made.image[:, outside], parted.image[:, outside])
    assert (made.image != parted.image).any()
    assert (made.edit_mask + made.keep_mask).max() <= 1 + 1e-5
    teeth = ellipse(parted.size_px, 0.5, 0.74, 0.06, 0.014)[0] > 0.6
    change = delta_e_2000(srgb_to_lab(made.image), srgb_to_lab(parted.image))
    assert outside.float().mean() > 0.75
    assert change[teeth].max() < 5


@one_case
def test_degree_follows_the_edit_and_not_what_was_asked_for(closed, asked):
    full = lips.Params(**asked)
    found = [
        lips.measure(closed, seen(closed, lips.sketch(closed, lips.Params(**asked, intensity=share))), full)["degree"]
        for share in (0.0, 0.5, 1.0)
    ]
    assert found[0] == pytest.approx(0, abs=0.1)
    assert found[1] == pytest.approx(0.5, abs=0.15)
    assert found[2] == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("color", ["nude", "red", "plum", "40,90,160"])
def test_the_wanted_colour_is_reached_and_creases_stay(closed, color):
    params = lips.Params(color=color)
    made = lips.sketch(closed, params)
    figures = lips.measure(closed, seen(closed, made), params)
    assert figures["color_delta_e"] < 4
    assert 0.5 < figures["detail_kept"] < 1.8
    assert figures["spill_delta_e"] < 0.5
    core = lip_matte(closed)[0] > 0.95
    mean = srgb_to_lab(made.image)[:, core].mean(1)[:, None, None]
    assert float(delta_e_2000(mean, color_to_lab(lips.color_of(color)))) < 5


def test_fuller_lips_are_higher_by_the_share_asked_for(parted):
    before = lip_outline(parted, lip_matte(parted))
    for gain in (-0.25, 0.4):
        made = lips.sketch(parted, lips.Params(color="own", fullness=gain))
        after = replace(parted, image=made.image, label=made.label, points68=made.points68)
        line = lip_outline(after, lip_matte(after))
        heights = [((x.lower_outer - x.lower_inner)[3:6, 1]).mean() for x in (before, line)]
        assert float(heights[1] / heights[0] - 1) == pytest.approx(gain, abs=0.15)
        assert float((line.lower_inner - before.lower_inner)[3:6, 1].abs().max()) < 0.6


def test_flat_paint_spill_and_nothing_at_all_are_told(closed):
    params = lips.Params(color="plum")
    matte = lip_matte(closed)
    painted = torch.tensor(lips.PALETTE["plum"])[:, None, None] / 127.5 - 1
    figures = lips.measure(
        closed, AnalysedPair(closed, replace(closed, image=closed.image * (1 - matte) + painted * matte)), params
    )
    assert figures["detail_kept"] < 0.4
    assert figures["color_delta_e"] < 3
    assert figures["degree"] > 0.8
    wide = (torch.nn.functional.max_pool2d(matte[None], 9, 1, 4)[0] > 0.5).float()
    spilled = replace(closed, image=closed.image * (1 - wide) + painted * wide)
    assert lips.measure(closed, AnalysedPair(closed, spilled), params)["spill_delta_e"] > 5
    same = lips.measure(closed, AnalysedPair(closed, closed), params)
    assert same["color_delta_e"] > 9
    assert same["degree"] < 0.1
    assert same["spill_delta_e"] == same["teeth_delta_e"] == 0


def test_the_light_in_which_a_colour_was_painted_is_said(closed):
    """An editor is told the colour as it looks in that light, by the pair's figure as by the photo."""
    dark = replace(closed, image=closed.image * 0.4 - 0.6)
    lights = [lips.measure(each, AnalysedPair(each, each), lips.Params())["light"] for each in (closed, dark)]
    assert lights == [light_of(closed), light_of(dark)]
    assert lights[1] < 0.7 < lights[0]


def test_finish_moves_the_highlights(closed):
    change = {}
    for finish in ("matte", "gloss"):
        params = lips.Params(color="own", finish=finish)
        change[finish] = lips.measure(closed, seen(closed, lips.sketch(closed, params)), params)["gloss_change"]
    assert change["matte"] < -0.3 < 0.3 < change["gloss"]


def test_lips_that_are_not_seen_are_refused(closed):
    is_lip = (closed.label == CLASS["u_lip"]) | (closed.label == CLASS["l_lip"])
    hidden = replace(closed, label=closed.label.masked_fill(is_lip, CLASS["skin"]))
    with pytest.raises(SketchRefused, match=r"lips cover only 0\.00 % of the crop"):
        lips.sketch(hidden, lips.Params())
    bare = replace(closed, image=face(112).image.mean((1, 2), keepdim=True).expand(3, 112, 112).clone())
    with pytest.raises(SketchRefused, match="not to be told from skin and beard"):
        lips.sketch(bare, lips.Params())


def test_names_of_colours_are_checked():
    assert lips.color_of("Wine") == lips.PALETTE["wine"]
    assert lips.color_of("#a0f") == (170, 0, 255)
    assert lips.color_of("own") is None
    with pytest.raises(InputError, match="did you mean 'cherry'"):
        lips.color_of("chery")
    for wrong in ({"color": "blond"}, {"fullness": 0.9}, {"finish": "wet"}, {"color": "own"}):
        with pytest.raises(ValidationError):
            lips.Params(**wrong)


@settings(max_examples=6, deadline=None, derandomize=True)
@given(fullness=st.floats(-0.3, 0.5))
def test_flows_never_fold_and_hold_the_corners(parted, fullness):
    params = lips.Params(fullness=fullness)
    flow = lips.fullness_flow(parted, lip_matte(parted), params)
    assert jacobian_determinant(flow).min() > 0.1
    corners = parted.points68[[48, 54]].round().long()
    assert flow[:, corners[:, 1], corners[:, 0]].norm(dim=0).max() < 0.5
    assert flow[:, : round(0.57 * parted.size_px)].abs().max() == 0


def test_teeth_stay_out_of_the_matte_where_the_label_map_closes_the_mouth():
    shown = mouth(0.4)
    closed_label = torch.where(shown.label == CLASS["mouth"], CLASS["l_lip"], shown.label).to(torch.uint8)
    matte = lip_matte(replace(shown, label=closed_label))
    teeth = ellipse(shown.size_px, 0.5, 0.74, 0.06, 0.01)[0] > 0.6
    assert matte[0][teeth].mean() < 0.1
    assert matte[0][shown.label == CLASS["u_lip"]].mean() > 0.4


def test_a_highlight_on_closed_lips_is_no_tooth(closed):
    shine = ellipse(closed.size_px, 0.5, 0.74, 0.05, 0.008)
    pale = torch.tensor([0.8, 0.35, 0.25])[:, None, None]
    lit = replace(closed, image=closed.image * (1 - 0.8 * shine) + 0.8 * shine * pale)
    assert lip_matte(lit)[0][shine[0] > 0.6].mean() > 0.7


def test_prints_in_one_colour_are_refused_for_a_colour_only(closed):
    grey = closed.image.mean(0, keepdim=True) * torch.tensor([0.9, 0.9, 1.0])[:, None, None]
    with pytest.raises(SketchRefused, match="colour of a print"):
        lips.sketch(replace(closed, image=grey), lips.Params(color="rose"))


def test_lips_of_which_one_is_hidden_are_refused(closed, monkeypatch):
    beard = (closed.label == CLASS["u_lip"])[None].float()
    monkeypatch.setattr(lips, "lip_matte", lambda portrait: lip_matte(portrait) * (1 - 0.8 * beard))
    with pytest.raises(SketchRefused, match="only 20 % of the labelled upper lip shows"):
        lips.sketch(closed, lips.Params())


def test_lips_too_narrow_for_the_size_are_refused(closed):
    with pytest.raises(SketchRefused, match=r"lips only 1\.\d px high each \(min_height_px 1\.5\) in a crop of 40 px"):
        lips.sketch(closed.resized(40), lips.Params())
