"""Brows: what the sketch moves and paints, what measure reports, what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers.warped_faces import face, seen
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from stylepairs.datagen.features import brows
from stylepairs.datagen.images.colors import srgb_to_lab
from stylepairs.datagen.portraits.landmarks import SIDES
from stylepairs.datagen.portraits.portrait import CLASS
from stylepairs.datagen.portraits.sketch import AnalysedPair, SketchRefused
from stylepairs.datagen.shell.randomness import random_generator
from stylepairs.datagen.sketching.face.brow_matte import brow_line, brow_matte, hidden_share
from stylepairs.datagen.sketching.face.fine_hairs import strew_hairs

CASES = [{"arch": 0.15}, {"arch": 0, "density": 1.0}, {"arch": 0.1, "thickness": 0.3, "density": 0.8, "shade": 10}]
each_case = pytest.mark.parametrize("asked", CASES, ids=lambda asked: "-".join(name for name in asked if asked[name]))
slow_cases = [CASES[0], *(pytest.param(case, marks=pytest.mark.slow) for case in CASES[1:])]
one_case = pytest.mark.parametrize(
    "asked", slow_cases, ids=lambda asked: "-".join(name for name in asked if asked[name])
)


@pytest.fixture(scope="module")
def portrait():
    return face(112)


@each_case
def test_only_the_edit_mask_changes(portrait, asked):
    made = brows.sketch(portrait, brows.Params(**asked))
    outside = (made.edit_mask == 0)[0]
    assert torch.equal(made.image[:, outside], portrait.image[:, outside])
    assert outside.float().mean() > 0.5
    assert (made.image != portrait.image).any()
    eyes = torch.isin(portrait.label, torch.tensor([CLASS["l_eye"], CLASS["r_eye"]], dtype=torch.uint8))
    assert torch.equal(made.image[:, eyes], portrait.image[:, eyes])
    assert made.sketch_detail == 1


@one_case
def test_degree_follows_the_edit_and_not_what_was_asked_for(portrait, asked):
    full = brows.Params(**asked)
    found = {
        share: brows.measure(
            portrait, seen(portrait, brows.sketch(portrait, brows.Params(**asked, intensity=share))), full
        )
        for share in (0.0, 0.5, 1.0)
    }
    assert [found[share]["degree"] for share in found] == pytest.approx([0.0, 0.5, 1.0], abs=0.08)
    assert found[0.0]["explained"] < 0.05
    assert found[1.0]["explained"] > 0.6
    assert found[1.0]["skin_delta_e"] < 0.5
    assert found[1.0]["hair_reached"] == pytest.approx(1, abs=0.1)
    assert found[1.0]["hair_error"] < 0.1
    if asked.get("density") or asked.get("shade"):
        assert found[0.0]["hair_reached"] == pytest.approx(0, abs=0.1)
        assert found[0.5]["hair_error"] > found[1.0]["hair_error"]
    assert found[1.0]["asymmetry"] < 0.1


def test_the_upper_line_goes_where_it_was_asked_to(portrait):
    for lift in (0.1,):
        params = brows.Params(arch=0, lift=lift)
        figures = brows.measure(portrait, seen(portrait, brows.sketch(portrait, params)), params)
        assert figures["line_shift"] == pytest.approx(lift, abs=0.04)


def test_settled_parameters_are_what_there_is_room_for(portrait):
    points = portrait.points68.clone()
    points[36:48, 1] -= 0.014 * portrait.size_px  # lids near the brows: little skin to stretch
    tight, asked = replace(portrait, points68=points), brows.Params(lift=0.2, arch=0.2, thickness=0.6)
    found = brows.settled(tight, asked)
    shares = [getattr(found, name) / getattr(asked, name) for name in ("lift", "arch", "thickness")]
    assert shares == pytest.approx([shares[0]] * 3, abs=0.01)
    assert asked.min_reach <= shares[0] < 0.96
    assert brows.settled(tight, found) == found
    assert torch.equal(brows.sketch(tight, asked).image, brows.sketch(tight, found).image)
    figures = brows.measure(tight, seen(tight, brows.sketch(tight, found)), found)
    assert figures["degree"] == pytest.approx(1, abs=0.05)
    assert figures["line_error"] < 0.1
    with pytest.raises(SketchRefused, match=r"could follow only \d+ % of lift, arch and thickness .*min_reach 99 %"):
        brows.settled(tight, asked.model_copy(update={"min_reach": 0.99}))
    with_room = brows.Params(arch=0.05)
    assert brows.settled(portrait, with_room) == with_room


def test_one_side_leaves_the_other_to_the_bit(portrait):
    middle = portrait.size_px // 2
    right = brows.sketch(portrait, brows.Params(side="right", density=0.8))
    assert torch.equal(right.image[..., middle + 2 :], portrait.image[..., middle + 2 :])
    assert (right.image[..., :middle] != portrait.image[..., :middle]).any()


def test_hairs_darken_gaps_in_the_brows_own_colour(portrait):
    gap = portrait.image.clone()
    size = portrait.size_px
    column = slice(round(0.36 * size), round(0.385 * size))
    skin = portrait.image[:, round(0.3 * size), column].mean(1)[:, None, None]
    gap[:, round(0.35 * size) : round(0.4 * size), column] = skin
    thin = replace(portrait, image=gap)
    made = brows.sketch(thin, brows.Params(arch=0, density=1.0, side="right"))
    row = round(0.375 * size) - 1
    before, after, brow = (srgb_to_lab(x)[0, row, column].mean() for x in (gap, made.image, portrait.image))
    assert after < before - 0.4 * (before - brow)


def test_the_matte_and_the_line_lie_on_the_drawn_brow(portrait):
    label = torch.isin(portrait.label, torch.tensor([CLASS["l_brow"], CLASS["r_brow"]], dtype=torch.uint8))
    both = sum(brow_matte(portrait, side) for side in SIDES)
    assert both[0][label].mean() > 0.75
    assert float(both[0][~label].sum() / both.sum()) < 0.3
    line = brow_line(portrait, "right", brow_matte(portrait, "right"))
    assert float(line.upper[4, 1]) == pytest.approx((0.375 - 0.014) * portrait.size_px - 0.5, abs=1.0)
    assert float(line.lower[4, 1]) == pytest.approx((0.375 + 0.014) * portrait.size_px - 0.5, abs=1.0)


def test_refusals_say_why(portrait):
    with pytest.raises(SketchRefused, match="are 0; nothing to change"):
        brows.sketch(portrait, brows.Params(arch=0))
    label = portrait.label.clone()
    label[40:60, 20:90] = CLASS["eye_g"]
    with pytest.raises(SketchRefused, match="glasses"):
        brows.sketch(replace(portrait, label=label), brows.Params())
    frames = portrait.image.clone()
    size = portrait.size_px
    frames[:, round(0.455 * size) : round(0.47 * size), round(0.3 * size) : round(0.7 * size)] = -1
    with pytest.raises(SketchRefused, match="glasses"):
        brows.sketch(replace(portrait, image=frames), brows.Params())
    fringe = torch.zeros_like(portrait.hair)
    fringe[:, : round(0.42 * size)] = 1
    with pytest.raises(SketchRefused, match="hair hides 100 % of the right brow"):
        brows.sketch(replace(portrait, hair=fringe), brows.Params())
    bare = replace(portrait, image=portrait.image * 0 + 0.3)
    with pytest.raises(SketchRefused, match="not to be told from the skin"):
        brows.sketch(bare, brows.Params())


def test_what_hair_hides_is_a_share_of_length_not_of_landmarks(portrait):
    """Landmarks crowd at the outer end: of a brow whose tail alone hair hid, "40 %" were hidden."""
    points = portrait.points68.clone()
    inner, outer = points[21].clone(), points[17].clone()
    for place, mark in zip((0.3, 0.6, 0.9), (20, 19, 18), strict=True):
        points[mark] = inner.lerp(outer, place)
    hair = torch.zeros_like(portrait.hair)
    hair[..., : round(float(inner.lerp(outer, 0.82)[0]))] = 1
    crowded = replace(portrait, points68=points, hair=hair)
    assert hidden_share(crowded, "right") == pytest.approx(0.18, abs=0.06)
    assert hidden_share(crowded, "left") == 0


def test_parameters_have_bounds():
    for wrong in ({"lift": 0.5}, {"density": -0.1}, {"side": "upper"}, {"shade": 60}, {"shape": 1}):
        with pytest.raises(ValidationError):
            brows.Params(**wrong)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    lift=st.floats(-0.15, 0.2),
    arch=st.floats(-0.15, 0.2),
    thickness=st.floats(-0.4, 0.6),
    share=st.floats(0.05, 1.0),
)
def test_flows_never_fold_and_stay_around_the_brow(portrait, lift, arch, thickness, share):
    from stylepairs.datagen.sketching.tools.warp import jacobian_determinant

    params = brows.Params(lift=lift, arch=arch, thickness=thickness)
    line = brow_line(portrait, "left", brow_matte(portrait, "left"))
    flow = share * brows.shape_flow(portrait, "left", line, params)
    assert jacobian_determinant(flow).min() > 0.1
    size = portrait.size_px
    assert flow[:, round(0.45 * size) :].abs().max() == 0
    assert flow[..., : round(0.42 * size)].abs().max() == 0


@settings(max_examples=8, deadline=None, derandomize=True)
@given(cover=st.floats(0, 1), length=st.floats(1.0, 8.0))
def test_hairs_cover_what_they_are_asked_to(portrait, cover, length):
    region = torch.zeros(1, 64, 64)
    region[:, 20:36, 12:52] = 1
    flow = torch.stack([torch.ones(64, 64), torch.zeros(64, 64)])
    alpha, shade = strew_hairs(region, flow, length, cover, random_generator("strands", 1, portrait.digest))
    assert 0 <= alpha.min() <= alpha.max() <= 1
    assert float(alpha[:, 22:34, 20:44].mean()) == pytest.approx(cover, abs=0.2)
    assert alpha[:, :10].max() == 0
    assert shade.abs().max() < 6


def test_the_same_seed_draws_the_same_hairs(portrait):
    one, same, other = (brows.sketch(portrait, brows.Params(density=0.7, seed=seed)).image for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_an_edit_of_another_kind_is_not_taken_for_this_one(portrait):
    params = brows.Params(arch=0, lift=0.12)
    darker = replace(portrait, image=brows.sketch(portrait, brows.Params(arch=0, shade=-20)).image)
    figures = brows.measure(portrait, AnalysedPair(portrait, darker), params)
    assert figures["degree"] < 0.4
    assert figures["explained"] < 0.35


def test_hairs_have_one_colour_at_every_size():
    lightness = []
    for size in (128, 512):
        away = (torch.arange(size) / size - 0.5).abs().expand(1, size, size)
        matte = (away < 0.0625).float()
        image = torch.where(away < 0.0703, -0.5, 0.4).expand(3, -1, -1)  # the skin right beside it lies in its shade
        hairs = brows._hair_color(image, matte, torch.zeros_like(matte))
        lightness.append(float(srgb_to_lab(hairs)[0].mean()))
    assert lightness[1] == pytest.approx(lightness[0], abs=1.0)
