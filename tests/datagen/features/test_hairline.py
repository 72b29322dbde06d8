"""Hairline: the line is found, moves as far as asked with its shape, and bad edits do not pass for good ones."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.hairline_faces import LINE, OUTLINE, head, mirrored
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from stylepairs.datagen.build.quality import judge
from stylepairs.datagen.build.settings import BuildRecipe
from stylepairs.datagen.features import hairline
from stylepairs.datagen.portraits.sketch import AnalysedPair, SketchRefused
from stylepairs.datagen.recipe import load_recipe
from stylepairs.datagen.sketching.hair.hairline_curve import ANGLES, CENTRAL, FRONT, find_hairline, line_flow
from stylepairs.datagen.sketching.hair.rays import pixels_polar
from stylepairs.datagen.sketching.tools.warp import jacobian_determinant, warp_image, warp_label

FRONTAL = np.abs(ANGLES) <= FRONT
OWN_FIGURES = ("displacement", "line_match", "shape_deviation", "double_edge", "strip_detail", "degree")


def figures(before, image, params):
    return hairline.measure(before, AnalysedPair(before, replace(before, image=image)), params)


def passes(found):
    gate = load_recipe("hairline", "datagen", BuildRecipe, []).gate
    return judge(found, {name: gate[name] for name in OWN_FIGURES})[0]


@pytest.mark.parametrize("size", [96, 192])
def test_the_line_is_found_where_it_was_drawn(size):
    line = find_hairline(head(size))
    assert np.abs(line.line[FRONTAL] / size - LINE).max() < 0.01
    assert np.abs(line.outline[FRONTAL] / size - OUTLINE).max() < 0.015
    assert line.raggedness() < 0.3


@settings(max_examples=6, deadline=None)
@given(corners=st.floats(0, 0.06), line=st.floats(0.24, 0.32))
def test_the_line_of_a_mirrored_portrait_is_the_mirrored_line(corners, line):
    portrait = head(96, line=line, corners=corners)
    ours, theirs = find_hairline(portrait), find_hairline(mirrored(portrait))
    assert np.allclose(ours.line, theirs.line[::-1], atol=0.3, equal_nan=True)
    params = hairline.Params(shift=-0.3, corners=0.5)
    ours_moved, theirs_moved = (hairline.wanted_displacement(x, params) for x in (ours, theirs))
    assert np.allclose(ours_moved, theirs_moved[::-1], atol=0.5)


def test_no_displacement_moves_nothing_to_the_bit():
    portrait = head()
    assert torch.equal(line_flow(find_hairline(portrait), np.zeros(len(ANGLES)), 128), torch.zeros(2, 128, 128))
    sketch = hairline.sketch(portrait, hairline.Params(shift=-0.4, intensity=0))
    assert torch.equal(sketch.image, portrait.image)
    assert sketch.edit_mask.max() == 1


@settings(max_examples=6, deadline=None)
@given(shift=st.floats(-0.6, 0.4), corners=st.floats(0, 1))
def test_the_warp_never_folds_and_stays_off_the_face_and_the_background(shift, corners):
    portrait = head(96, corners=0.04)
    line = find_hairline(portrait)
    params = hairline.Params.model_construct(shift=shift, corners=corners, reach=1.0)
    flow = line_flow(line, hairline.wanted_displacement(line, params), 96)
    assert jacobian_determinant(flow).min() > 0
    angle, radius = (values.numpy() for values in pixels_polar(line.frame, portrait))
    still = (radius < np.interp(angle, ANGLES, line.brow) - 2) | (radius > 96 * (OUTLINE + 0.02))
    assert flow[:, torch.from_numpy(still)].abs().max() == 0


@settings(max_examples=5, deadline=None)
@given(low=st.floats(-0.5, 0.3), more=st.floats(0.1, 0.2))
def test_more_shift_leaves_more_forehead(low, more):
    portrait = head(96)
    line = find_hairline(portrait)

    def moved(shift):
        flow = line_flow(line, np.full(len(ANGLES), shift * line.height()), 96)
        after = replace(portrait, hair=warp_image(portrait.hair, flow), label=warp_label(portrait.label, flow))
        return find_hairline(after, line.frame).line[FRONTAL]

    assert np.mean(moved(low + more) - moved(low)) > 0.5 * more * line.height()


@pytest.mark.parametrize(
    "params",
    [{"shift": -0.4}, {"shift": -0.2}, {"shift": 0.25}, {"shift": 0, "corners": 1}, {"shift": -0.2, "corners": 0.7}],
)
def test_the_sketch_passes_its_own_gate_and_leaves_the_rest(params):
    portrait, params = head(corners=0.05), hairline.Params(**params)
    sketch = hairline.sketch(portrait, params)
    outside = (sketch.edit_mask == 0).expand(3, -1, -1)
    assert torch.equal(sketch.image[outside], portrait.image[outside])
    assert ((sketch.edit_mask > 0.1) * sketch.keep_mask).max() < 0.9
    assert outside.float().mean() > 0.6
    found = hairline.measure(portrait, AnalysedPair(portrait, sketch.applied_to(portrait)), params)
    assert passes(found), found
    assert 0.85 < found["seen_displacement"] < 1.15
    assert found["double_edge"] < 0.05
    assert found["degree"] == pytest.approx(1, abs=0.05)


def test_a_lower_line_has_the_label_and_the_matte_that_belong_to_it():
    portrait = head()
    sketch = hairline.sketch(portrait, hairline.Params(shift=-0.3))
    assert sketch.hair.sum() > portrait.hair.sum()
    agree = (sketch.hair[0] > 0.5) == (sketch.label == 17)
    assert agree.float().mean() > 0.99


def test_the_degree_rises_with_the_intensity():
    portrait = head()
    full = hairline.Params(shift=-0.3)
    degrees = [
        figures(portrait, hairline.sketch(portrait, full.model_copy(update={"intensity": t})).image, full)["degree"]
        for t in (0, 0.2, 0.4, 1)
    ]
    assert degrees[0] == pytest.approx(0, abs=1e-3)
    assert np.all(np.diff(degrees) > 0.08)


def test_what_is_no_moved_hairline_does_not_pass():
    portrait, params = head(), hairline.Params(shift=-0.35)
    sketch = hairline.sketch(portrait, params)
    strip = ((sketch.hair - portrait.hair).clamp_min(0) > 0.5).expand(3, -1, -1)
    paint = torch.where(strip, torch.tensor([-0.6, -0.7, -0.75])[:, None, None], portrait.image)
    other_way = hairline.sketch(portrait, hairline.Params(shift=0.25)).image
    half = portrait.image.lerp(sketch.image, 0.5)
    unchanged = figures(portrait, portrait.image, params)
    assert unchanged["degree"] == pytest.approx(0, abs=1e-6)
    assert unchanged["displacement"] == pytest.approx(0, abs=0.05)
    assert unchanged["double_edge"] > 0.5
    assert figures(portrait, half, params)["double_edge"] > 0.3
    for image in (portrait.image, paint, other_way, half):
        assert not passes(figures(portrait, image, params))


@pytest.mark.parametrize(
    "portrait, shift, reason",
    [
        (head(hat=True), -0.2, "a hat covers"),
        (head(line=OUTLINE + 0.02), -0.2, "found on 0 % of the front"),
        (head(outline=0.31), -0.2, "bald or shaven"),
        (head(line=0.16), -0.2, "hair hides the line"),
        (head(line=0.19), -0.6, "would be left"),
        (head(hair=np.array([0.45, 0.1, -0.1])), -0.2, "differ by"),
        (head(outline=0.36), 0.6, "cannot be raised so far"),
        (head(outline=0.325), -0.6, "cannot be lowered so far"),
    ],
)
def test_portraits_without_a_hairline_to_move_are_refused(portrait, shift, reason):
    with pytest.raises(SketchRefused, match=reason):
        hairline.sketch(portrait, hairline.Params(shift=shift))


def test_a_shift_without_room_is_taken_back_to_what_there_is_room_for_but_no_further_than_min_shift():
    portrait, asked = head(line=0.19), hairline.Params(shift=-0.6, corners=0.2)
    found = hairline.settled(portrait, asked)
    assert -0.6 < found.shift <= -asked.min_shift
    assert found == asked.model_copy(update={"shift": found.shift})
    hairline.sketch(portrait, found)
    assert hairline.settled(portrait, found) == found
    too_far = asked.model_copy(update={"min_shift": 0.59})
    assert hairline.settled(portrait, too_far) == too_far
    small = hairline.Params(shift=-0.03)
    assert hairline.settled(head(), small) == small


def test_a_small_shift_is_no_missing_corner():
    portrait = head()
    line, sketch = find_hairline(portrait), hairline.sketch(portrait, hairline.Params(shift=-0.03))
    moved = (find_hairline(sketch.applied_to(portrait), line.frame).line - line.line)[np.abs(ANGLES) <= CENTRAL]
    assert np.median(moved) == pytest.approx(-0.03 * line.height(), rel=0.25)


def test_a_ragged_line_and_missing_corners_are_refused():
    portrait = head()
    teeth = portrait.hair.clone()
    teeth[:, 30:60, ::12] = 0
    teeth[:, 30:60, 1::12] = 0
    with pytest.raises(SketchRefused, match="ragged"):
        hairline.sketch(replace(portrait, hair=teeth), hairline.Params(max_ragged=0.005))
    with pytest.raises(SketchRefused, match="no corners to fill"):
        hairline.sketch(head(corners=-0.05), hairline.Params(shift=0, corners=1))


def test_params_say_what_is_wrong():
    with pytest.raises(ValidationError, match="both 0"):
        hairline.Params(shift=0)
    with pytest.raises(ValidationError, match="less than or equal to"):
        hairline.Params(shift=0.7)
    with pytest.raises(ValidationError, match="Extra inputs"):
        hairline.Params(height=1)
