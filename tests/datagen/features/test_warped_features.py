"""Face shape, smile and eyes: what all three promise, and each its own."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers.warped_faces import ellipse, face, mirrored, seen
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from stylepairs.datagen.features import eyes, face_shape, smile
from stylepairs.datagen.portraits.landmarks import FACE_OUTLINE
from stylepairs.datagen.portraits.portrait import CLASS
from stylepairs.datagen.portraits.regions import dilate, polygon
from stylepairs.datagen.portraits.sketch import AnalysedPair, SketchRefused

CASES = [
    (face_shape, {"jaw": 0.12}),
    (face_shape, {"jaw": 0.0, "chin": 1.0}),
    (smile, {"smile": 0.6, "max_curve": 1.0}),
    (eyes, {"size": 0.2}),
    (eyes, {"size": 0.0, "crease": 1.0}),
]
IDS = [f"{feature.__name__.rpartition('.')[2]}-{'-'.join(params)}" for feature, params in CASES]
each_feature = pytest.mark.parametrize(("feature", "params"), CASES, ids=IDS)
# Of the tests that measure often: what goes through the same figures as the case before it.
SLOWER = [pytest.param(*case, marks=pytest.mark.slow) if index in (1, 4) else case for index, case in enumerate(CASES)]
each_figure = pytest.mark.parametrize(("feature", "params"), SLOWER, ids=IDS)


@pytest.fixture(scope="module")
def portrait():
    return face()


@each_feature
def test_nothing_changes_outside_the_edit_mask(portrait, feature, params):
    made = feature.sketch(portrait, feature.Params(**params))
    outside = (made.edit_mask == 0)[0]
    assert torch.equal(made.image[:, outside], portrait.image[:, outside])
    assert outside.float().mean() > 0.3
    assert (made.image != portrait.image).any()
    assert made.edit_mask.min() >= 0
    assert made.edit_mask.max() <= 1
    assert made.image.abs().max() <= 1
    assert (made.edit_mask + made.keep_mask).max() <= 1 + 1e-6
    assert made.sketch_detail == 1


@pytest.mark.parametrize(("feature", "params"), CASES[2:], ids=IDS[2:])
def test_hair_and_background_are_left_alone(portrait, feature, params):
    """Thin-plate splines bend everything a little, as far as the border."""
    made = feature.sketch(portrait, feature.Params(**params))
    outline = portrait.points68[FACE_OUTLINE].numpy()
    beyond = dilate(polygon(portrait, outline), 0.08) == 0
    assert beyond.float().mean() > 0.5
    assert made.edit_mask[beyond].max() == 0


@each_feature
def test_intensity_zero_is_the_portrait_within_the_same_mask(portrait, feature, params):
    made = feature.sketch(portrait, feature.Params(**params, intensity=0))
    assert torch.equal(made.image, portrait.image)
    full = feature.sketch(portrait, feature.Params(**params)).edit_mask
    assert ((made.edit_mask > 0.5) & (full > 0.5)).sum() > 0.7 * (full > 0.5).sum()
    torch.testing.assert_close(made.points68, portrait.points68)


@each_figure
def test_degree_follows_the_edit_and_not_what_was_asked_for(portrait, feature, params):
    full = feature.Params(**params)
    steps = (0.0, 0.1, 0.5, 1.0)
    found = [
        feature.measure(portrait, seen(portrait, feature.sketch(portrait, feature.Params(**params, intensity=t))), full)
        for t in steps
    ]
    assert [figures["degree"] for figures in found] == pytest.approx(steps, abs=0.03)
    assert found[0]["explained"] < 0.02
    assert found[-1]["explained"] > 0.7
    assert found[0]["degree_error"] > 0.9
    assert found[-1]["degree_error"] < 0.05


@each_figure
def test_degree_rises_along_a_cross_fade_too(portrait, feature, params):
    full = feature.Params(**params)
    end = feature.sketch(portrait, full).image
    degrees = [
        feature.measure(portrait, AnalysedPair(portrait, replace(portrait, image=portrait.image.lerp(end, t))), full)[
            "degree"
        ]
        for t in (0.2, 0.4, 0.6, 0.8)
    ]
    assert degrees == sorted(degrees)
    assert degrees[0] < 0.4
    assert degrees[-1] > 0.6


@each_figure
def test_another_edit_is_not_taken_for_this_one(portrait, feature, params):
    noise = 0.1 * torch.randn(portrait.image.shape, generator=torch.Generator().manual_seed(1))
    for wrong in (portrait.image + noise, portrait.image.roll(2, -2), face(seed=3).image):
        figures = feature.measure(
            portrait, AnalysedPair(portrait, replace(portrait, image=wrong.clamp(-1, 1))), feature.Params(**params)
        )
        assert figures["degree_error"] > 0.3 or figures["explained"] < 0.4


@each_feature
def test_mirrored_portrait_gives_the_mirrored_sketch(portrait, feature, params):
    straight = feature.sketch(portrait, feature.Params(**params))
    turned = feature.sketch(mirrored(portrait), feature.Params(**params))
    assert (turned.image - straight.image.flip(-1)).abs().mean() < 2e-3
    assert (turned.edit_mask - straight.edit_mask.flip(-1)).abs().mean() < 4e-3


@each_feature
def test_measure_works_at_another_size_than_the_portrait(portrait, feature, params):
    small = face(64)
    after = replace(small, image=feature.sketch(small, feature.Params(**params)).image)
    assert feature.measure(portrait, AnalysedPair(small, after), feature.Params(**params))["degree"] == pytest.approx(
        1, abs=0.25
    )


@settings(max_examples=5, deadline=None)
@given(jaw=st.floats(-0.2, 0.25), cheeks=st.floats(-0.1, 0.15))
def test_jaw_points_go_to_their_share_of_the_distance_to_the_midline(jaw, cheeks):
    portrait = face()
    if abs(jaw) < 0.01:
        return
    moved = face_shape.sketch(portrait, face_shape.Params(jaw=jaw, cheeks=0)).points68
    sides = (moved[[5, 11], 0] - 47.5) / (portrait.points68[[5, 11], 0] - 47.5)
    assert sides.tolist() == pytest.approx([1 - jaw, 1 - jaw], abs=0.02 + 0.1 * abs(jaw))
    held = slice(17, 68)
    both = face_shape.sketch(portrait, face_shape.Params(jaw=jaw, cheeks=cheeks)).points68
    assert (both - portrait.points68)[held].norm(dim=-1).max() < 0.6


def test_clothes_away_from_the_jaw_stay(portrait):
    made = face_shape.sketch(portrait, face_shape.Params(jaw=0.15))
    cloth = (portrait.label == CLASS["cloth"]) & (torch.arange(96)[:, None] > 88)
    assert (made.image - portrait.image)[:, cloth].abs().mean() < 0.02


def test_a_reduced_double_chin_lies_in_deeper_shadow(portrait):
    made = face_shape.sketch(portrait, face_shape.Params(jaw=0, chin=1))
    under = made.image[:, 88:92, 46:50].mean()
    assert under < portrait.image[:, 88:92, 46:50].mean() - 0.05


def test_a_neck_that_lies_in_shadow_gets_no_darker(portrait):
    neck = (portrait.label == CLASS["neck"]).float()
    dark = replace(portrait, image=portrait.image * (1 - neck) - 0.85 * neck)
    with pytest.raises(SketchRefused, match=r"skin in the light under the chin fills 0 % .*min_under_chin_share 8 %"):
        face_shape.sketch(dark, face_shape.Params(jaw=0, chin=1))


def test_a_face_turned_away_and_a_chin_out_of_sight_are_refused(portrait):
    points = portrait.points68.clone()
    points[4] = points[8] + torch.tensor([-4.0, -10.0])
    with pytest.raises(SketchRefused, match="drawn: the head is turned away"):
        face_shape.sketch(replace(portrait, points68=points), face_shape.Params())
    bare = replace(portrait, label=torch.zeros_like(portrait.label))
    with pytest.raises(SketchRefused, match="no double chin to be seen"):
        face_shape.sketch(bare, face_shape.Params(chin=0.5))
    face_shape.sketch(bare, face_shape.Params(chin=0))


@pytest.mark.parametrize("degree", [-0.4, 0.5, 1.0])
def test_smile_raises_the_corners_and_leaves_middle_eyes_and_nose(portrait, degree):
    params = smile.Params(smile=degree, max_curve=1, min_curve=-1)
    made = smile.sketch(portrait, params)
    shift = made.points68 - portrait.points68
    assert shift[[48, 54], 1].tolist() == pytest.approx([-0.13 * degree * 24] * 2, abs=0.3)
    assert shift[54, 0] * degree > 0
    assert shift[[51, 57]].norm(dim=-1).max() < 0.3
    assert shift[27:36].norm(dim=-1).max() < 0.3
    figures = smile.measure(portrait, seen(portrait, made), params)
    assert figures["corners_raised"] == pytest.approx(0.13 * degree, abs=0.02)
    assert figures["mouth_widened"] == pytest.approx(0.15 * degree, abs=0.02)


def test_extreme_smiles_are_refused_both_ways(portrait):
    with pytest.raises(SketchRefused, match=r"drawn: smiling already; .*max_curve 0\.05"):
        smile.sketch(portrait, smile.Params(smile=1, max_curve=0.05))
    with pytest.raises(SketchRefused, match="drawn: hardly smiling"):
        smile.sketch(portrait, smile.Params(smile=-0.5))


@pytest.mark.parametrize("side", ["left", "right"])
def test_one_eye_grows_and_the_other_stays(portrait, side):
    made = eyes.sketch(portrait, eyes.Params(size=0.2, side=side))
    half = made.edit_mask[0, :, :48] if side == "left" else made.edit_mask[0, :, 48:]
    assert half.max() == 0
    eye = slice(42, 48) if side == "left" else slice(36, 42)
    size = [float((p[eye][3] - p[eye][0]).norm()) for p in (made.points68, portrait.points68)]
    assert size[0] / size[1] == pytest.approx(1.2, abs=0.03)


def test_crease_darkens_the_lid_or_fills_what_is_there(portrait):
    drawn = eyes.Params(size=0, crease=1)
    made = eyes.sketch(portrait, drawn)
    assert eyes.measure(portrait, seen(portrait, made), drawn)["crease_darkened"] > 0.02
    creased = replace(portrait, image=made.image)
    softened = eyes.sketch(creased, eyes.Params(size=0, crease=-1))
    assert (softened.image - made.image).max() > 0.03
    assert (softened.image - made.image).min() > -1e-4


def test_closed_and_hidden_eyes_and_glasses_are_refused(portrait):
    down, size = portrait.image.clone(), portrait.size_px
    for x in (0.375, 0.625):  # skin where the white was, lashes below it; the landmarks are those of open eyes
        lid, lashes = ellipse(size, x, 0.46, 0.06, 0.03), ellipse(size, x, 0.472, 0.055, 0.01)
        down = down * (1 - lid) + torch.tensor([0.6, 0.25, 0.05])[:, None, None] * lid
        down = down * (1 - lashes) - 0.8 * lashes
    with pytest.raises(SketchRefused, match=r"lids of the right eye are down; .* \(max_lid_light 0\.65\)"):
        eyes.sketch(replace(portrait, image=down), eyes.Params())
    eyeless = torch.where(portrait.label == CLASS["l_eye"], CLASS["skin"], portrait.label)
    with pytest.raises(SketchRefused, match="left eye is hidden"):
        eyes.sketch(replace(portrait, label=eyeless.to(torch.uint8)), eyes.Params())
    strand = torch.zeros_like(portrait.hair)
    strand[..., 62:] = 1  # from the outer third of the left eye on
    with pytest.raises(SketchRefused, match=r"drawn: hair hangs over \d+ % of the left eye"):
        eyes.sketch(replace(portrait, hair=strand), eyes.Params())
    eyes.sketch(replace(portrait, hair=strand), eyes.Params(side="right"))
    image = portrait.image.clone()
    image[:, 42:44, 30:66] = -0.9
    with pytest.raises(SketchRefused, match="glasses"):
        eyes.sketch(replace(portrait, image=image), eyes.Params())


@pytest.mark.parametrize(
    ("feature", "params"),
    [
        (face_shape, {"jaw": 0.3}),
        (face_shape, {"jaw": 0}),
        (smile, {"smile": 0}),
        (smile, {"smile": 1.2}),
        (eyes, {"size": 0.0}),
        (eyes, {"side": "middle"}),
        (eyes, {"intensity": 1.5}),
        (eyes, {"unknown": 1}),
    ],
)
def test_parameters_out_of_range_are_errors(feature, params):
    with pytest.raises(ValidationError):
        feature.Params(**params)
