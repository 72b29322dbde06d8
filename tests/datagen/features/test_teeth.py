"""Teeth: found between the lips, whitened and evened without a change around them; closed mouths are refused."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from helpers.warped_faces import ellipse, face
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from stylepairs.datagen.build.quality import judge
from stylepairs.datagen.build.settings import BuildRecipe
from stylepairs.datagen.features import teeth
from stylepairs.datagen.images.colors import delta_e_2000, lab_to_srgb, srgb_to_lab
from stylepairs.datagen.portraits.portrait import CLASS
from stylepairs.datagen.portraits.sketch import AnalysedPair, SketchRefused
from stylepairs.datagen.recipe import load_recipe

SIZE = 96
OWN_GATE = ("degree", "color_delta_e", "spill_delta_e", "detail_kept")


def smiling(color=(72.0, 2.0, 18.0), stain=0.0, size_px=SIZE):
    """A face with teeth of a Lab colour, darker gaps between them, and a stained half; the true teeth [1,H,W]."""
    drawn = face(size_px)
    lips = ellipse(size_px, 0.5, 0.74, 0.11, 0.045)
    mouth = ellipse(size_px, 0.5, 0.74, 0.085, 0.022)
    x = (torch.arange(size_px) + 0.5) / size_px
    gaps = -6 * (torch.cos(2 * torch.pi * (x - 0.5) / 0.03) > 0.85).float()
    lab = torch.tensor(color)[:, None, None].expand(3, size_px, size_px).clone()
    lab[0] += gaps
    lab[2] += stain * (x > 0.5)
    image = drawn.image * (1 - lips) + torch.tensor([0.4, -0.4, -0.4])[:, None, None] * lips
    image = image * (1 - mouth) + lab_to_srgb(lab) * mouth
    label = drawn.label.clone()
    label[lips[0] > 0.5] = CLASS["u_lip"]
    label[mouth[0] > 0.5] = CLASS["mouth"]
    points = drawn.points68.clone()
    for row, (across, down) in enumerate(
        [(-1, 0), (-0.5, -0.85), (0, -1), (0.5, -0.85), (1, 0), (0.5, 0.85), (0, 1), (-0.5, 0.85)]
    ):
        points[60 + row] = torch.tensor([(0.5 + 0.085 * across), (0.74 + 0.022 * down)]) * size_px - 0.5
    return replace(drawn, image=image.clamp(-1, 1), label=label, points68=points), mouth


def measured(portrait, image, params):
    return teeth.measure(portrait, AnalysedPair(portrait, replace(portrait, image=image)), params)


@pytest.mark.parametrize("size_px", [96, 192])
def test_matte_is_the_teeth_and_not_the_lips(size_px):
    portrait, mouth = smiling(size_px=size_px)
    matte = teeth.teeth_matte(portrait)
    assert float(matte[mouth > 0.9].mean()) > 0.8
    assert float(matte[mouth < 0.05].max()) < 0.05


def test_teeth_are_found_between_lips_and_skin_that_are_hardly_red():
    portrait, mouth = smiling()
    lips = ellipse(SIZE, 0.5, 0.74, 0.11, 0.045)
    tooth, lip, skin = (
        lab_to_srgb(torch.tensor(lab)[:, None, None]) for lab in ((66.0, 1.0, 10.0), (36.0, 6.0, 5.0), (30.0, 5.0, 7.0))
    )
    wall = (portrait.label == CLASS["background"])[None].float()  # white, so that the photo is known to be well lit
    image = (0.9 * wall + (1 - wall) * skin).lerp(lip, lips).lerp(tooth, mouth)
    matte = teeth.teeth_matte(replace(portrait, image=image))
    assert float(matte[mouth > 0.9].mean()) > 0.8
    assert float(matte[mouth < 0.05].max()) < 0.05


def test_soft_edges_of_a_large_matte_stay_and_crumbs_leave_it():
    x = torch.arange(512.0)
    matte = ((60 - (x - 200).abs()) / 16).clamp(0, 1).expand(1, 512, 512)  # edges of 16 px, as of 4 at 128 px
    assert torch.equal(teeth._without_crumbs(matte), matte)
    crumb = ((4 - (x - 400).abs()) / 4).clamp(0, 1).expand(1, 512, 512)
    assert torch.equal(teeth._without_crumbs(matte + crumb), matte)


@settings(max_examples=8, deadline=None)
@given(whiteness=st.floats(0.2, 1), evenness=st.floats(0, 1), intensity=st.floats(0, 1), yellow=st.floats(10, 28))
def test_only_teeth_change_and_never_to_yellower(whiteness, evenness, intensity, yellow):
    portrait, mouth = smiling((70.0, 2.0, yellow))
    params = teeth.Params(whiteness=whiteness, evenness=evenness, intensity=intensity)
    sketch = teeth.sketch(portrait, params)
    outside = (sketch.edit_mask == 0).expand(3, -1, -1)
    assert torch.equal(sketch.image[outside], portrait.image[outside])
    assert float((sketch.image - portrait.image).abs()[:, mouth[0] < 0.02].max()) < 0.02
    figures = measured(portrait, sketch.image, params)
    assert figures["yellowness_after"] <= figures["yellowness_before"] + 0.1
    assert figures["lightness_after"] >= figures["lightness_before"] - 0.1
    assert figures["spill_delta_e"] < 0.5
    assert (sketch.edit_mask + sketch.keep_mask).max() <= 1 + 1e-6


def test_degree_is_none_without_an_edit_and_rises_with_intensity():
    portrait, _ = smiling()
    steps = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    images = [teeth.sketch(portrait, teeth.Params(intensity=t)).image for t in steps]
    degrees = [measured(portrait, image, teeth.Params())["degree"] for image in images]
    assert degrees[0] == pytest.approx(0, abs=1e-5)
    assert all(later > earlier + 0.1 for earlier, later in itertools.pairwise(degrees))
    assert degrees[-1] == pytest.approx(1, abs=0.12)


def test_stains_are_evened_out_and_gaps_stay():
    portrait, _ = smiling(stain=10.0)
    spread = [
        measured(portrait, teeth.sketch(portrait, params).image, params)
        for params in (teeth.Params(evenness=0.0), teeth.Params(evenness=1.0))
    ]
    assert spread[1]["evenness"] < 0.6 * spread[0]["evenness"]
    assert spread[1]["detail_kept"] > 0.7


def test_white_is_that_of_the_light():
    portrait, _ = smiling((70.0, 4.0, 24.0))
    warm = replace(portrait, image=lab_to_srgb(srgb_to_lab(portrait.image) + torch.tensor([0.0, 4, 14])[:, None, None]))
    made = [teeth.sketch(each, teeth.Params(whiteness=1.0)) for each in (portrait, warm)]
    yellow = [float(srgb_to_lab(each.image)[2][each.edit_mask[0] > 0.9].mean()) for each in made]
    assert yellow[1] > yellow[0] + 3


def test_prints_and_hidden_teeth_are_refused_for_what_they_are():
    portrait, mouth = smiling()
    grey = portrait.image.mean(0, keepdim=True).expand(3, -1, -1)
    with pytest.raises(SketchRefused, match=r"the colour of a print \(redness a\* -?0\.0, min_redness 4\.5\)"):
        teeth.sketch(replace(portrait, image=grey), teeth.Params())
    dark = portrait.image * (1 - mouth) - 0.9 * mouth
    with pytest.raises(SketchRefused, match=r"in colour cover 0\.0 % .*min_teeth_share 2 %\); too little of them"):
        teeth.sketch(replace(portrait, image=dark), teeth.Params())
    with pytest.raises(ValidationError, match="ask for one of them"):
        teeth.Params(whiteness=0, evenness=0)


def test_closed_mouths_and_white_teeth_are_refused():
    with pytest.raises(SketchRefused, match=r"drawn: the lips are 0\.00 .*min_opening 0\.06\); the mouth is closed"):
        teeth.sketch(face(SIZE), teeth.Params())
    with pytest.raises(SketchRefused, match="as white already"):
        teeth.sketch(smiling((94.0, 0.0, 0.0))[0], teeth.Params(min_change=5.0))


def test_gate_passes_the_edit_and_fails_none_the_wrong_and_the_spilt_one():
    gate = load_recipe("teeth", "datagen", BuildRecipe).gate
    gate = {name: gate[name] for name in OWN_GATE}
    portrait, _ = smiling()
    params = teeth.Params()
    sketch = teeth.sketch(portrait, params)
    yellower = srgb_to_lab(portrait.image)
    yellower[2] += 8 * sketch.edit_mask[0]
    flat = portrait.image.lerp(torch.full_like(portrait.image, 0.75), sketch.edit_mask)
    lips = (portrait.label == CLASS["u_lip"]).float()
    spilt = sketch.image + 0.15 * lips
    assert judge(measured(portrait, sketch.image, params), gate)[0]
    for image in (portrait.image, lab_to_srgb(yellower), flat, spilt.clamp(-1, 1)):
        assert not judge(measured(portrait, image, params), gate)[0]


def test_wanted_colour_is_reached():
    portrait, _ = smiling()
    sketch = teeth.sketch(portrait, teeth.Params())
    assert measured(portrait, sketch.image, teeth.Params())["color_delta_e"] < 1
    changed = delta_e_2000(srgb_to_lab(portrait.image), srgb_to_lab(sketch.image))
    assert float(changed[sketch.edit_mask[0] > 0.9].mean()) > 5
