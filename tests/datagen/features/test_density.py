"""Density: scalp is found where it shows and nowhere else, goes when filled, and paint is not hair."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.hairline_faces import OUTLINE, head
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from stylepairs.datagen.build.quality import judge
from stylepairs.datagen.build.settings import BuildRecipe
from stylepairs.datagen.features import density
from stylepairs.datagen.images.colors import srgb_to_lab
from stylepairs.datagen.portraits.portrait import CLASS
from stylepairs.datagen.portraits.sketch import AnalysedPair, SketchRefused
from stylepairs.datagen.recipe import load_recipe
from stylepairs.datagen.sketching.hair.hair_and_skin import find_scalp
from stylepairs.datagen.sketching.hair.hairline_curve import find_hairline

DENSE = density.Params(made_from="dense")
OWN_FIGURES = ("scalp_removed", "texture_kept", "fill_delta_e", "degree")


def figures(before, image, params=None):
    return density.measure(before, AnalysedPair(before, replace(before, image=image)), params or density.Params())


def passes(found):
    gate = load_recipe("density", "datagen", BuildRecipe, []).gate
    return judge(found, {name: gate[name] for name in OWN_FIGURES})[0]


@settings(max_examples=4, deadline=None)
@given(scalp=st.floats(0.45, 0.9))
def test_more_scalp_is_seen_where_more_shows(scalp):
    thin, thinner = head(96, scalp=scalp - 0.2), head(96, scalp=scalp)
    shown = []
    for portrait in (thin, thinner):
        found = find_scalp(portrait, find_hairline(portrait))
        shown.append(float(found.shows(srgb_to_lab(portrait.image)).sum()))
    assert shown[1] > shown[0]


@pytest.mark.parametrize("areas", ["all", "crown"])
def test_the_sketch_takes_scalp_away_and_leaves_the_rest(areas):
    portrait, params = head(scalp=0.7), density.Params(areas=areas)
    sketch = density.sketch(portrait, params)
    outside = (sketch.edit_mask == 0).expand(3, -1, -1)
    assert torch.equal(sketch.image[outside], portrait.image[outside])
    found = density.measure(portrait, AnalysedPair(portrait, sketch.applied_to(portrait)), params)
    assert found["scalp_after"] < 0.5 * found["scalp_before"]
    assert passes(found), found
    assert found["degree"] == pytest.approx(1, abs=0.02)
    filled = (sketch.edit_mask > 0.9)[0]
    assert sketch.image[:, filled].mean() < portrait.image[:, filled].mean() - 0.2
    assert (sketch.hair >= portrait.hair).all()


def test_the_degree_rises_with_the_intensity():
    portrait, full = head(scalp=0.7), density.Params()
    degrees = [
        figures(portrait, density.sketch(portrait, full.model_copy(update={"intensity": t})).image)["degree"]
        for t in (0, 0.3, 0.6, 1)
    ]
    assert degrees[0] == pytest.approx(0, abs=1e-4)
    assert np.all(np.diff(degrees) > 0.1)


def test_the_same_seed_gives_the_same_strands_and_another_one_others():
    portrait = head(scalp=0.7)
    first, again, other = (density.sketch(portrait, density.Params(seed=seed)).image for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_unchanged_and_flat_paint_do_not_pass():
    portrait = head(scalp=0.7)
    place = density.sketch(portrait, density.Params()).edit_mask
    paint = portrait.image.lerp(torch.tensor([-0.6, -0.7, -0.75])[:, None, None].expand_as(portrait.image), place)
    assert figures(portrait, portrait.image)["degree"] == pytest.approx(0, abs=1e-6)
    assert figures(portrait, portrait.image)["scalp_removed"] == pytest.approx(0, abs=1e-6)
    for image in (portrait.image, paint):
        assert not passes(figures(portrait, image))


def test_the_temples_are_left_alone_where_only_the_crown_is_thin():
    with pytest.raises(SketchRefused, match="nothing is thin"):
        density.sketch(head(scalp=0.7), density.Params(areas="temples", min_scalp=0.1))


def test_a_parting_is_a_narrow_gap_away_from_the_line():
    portrait = head(192)
    x = torch.arange(192)
    gap = ((x - 96).abs() <= 2).float() * (torch.arange(192)[:, None] < 50).float()
    image = portrait.image.lerp(torch.tensor([0.5, 0.1, -0.15])[:, None, None].expand_as(portrait.image), gap)
    parted = replace(portrait, image=torch.where(portrait.hair > 0.9, image, portrait.image))
    sketch = density.sketch(parted, density.Params(areas="parting", min_scalp=0.005))
    middle, side = sketch.edit_mask[0, 22:42, 96].mean(), sketch.edit_mask[0, 22:42, 60].mean()
    assert middle > 0.5 > 0.1 > side


@pytest.mark.parametrize(
    "portrait, reason",
    [
        (head(), "nothing is thin"),
        (head(hat=True, scalp=0.7), "a hat covers"),
        (head(line=OUTLINE + 0.02), "no hairline is found"),
        (head(scalp=0.7, hair=np.array([0.45, 0.1, -0.1])), "apart"),
    ],
)
def test_portraits_with_nothing_to_fill_are_refused(portrait, reason):
    with pytest.raises(SketchRefused, match=reason):
        density.sketch(portrait, density.Params())


@pytest.mark.parametrize("made_from", ["thin", "dense", "either"])
def test_a_fringe_is_not_taken_for_a_hairline(made_from):
    with pytest.raises(SketchRefused, match=r"of forehead below the line \(min_forehead 0\.33\); hair hides the line"):
        density.sketch(head(line=0.14), density.Params(made_from=made_from))


def test_beside_a_fringe_that_hides_a_part_of_the_line_hair_is_thinned_where_it_is_in_the_open():
    bare, fringed = head(), head(line=0.12)
    x = torch.arange(128)

    def swept(edge):
        image, hair, label = (
            torch.where(x < edge, fringe, own)
            for fringe, own in ((getattr(fringed, n), getattr(bare, n)) for n in ("image", "hair", "label"))
        )
        return replace(bare, image=image, hair=hair, label=label)

    mask = density.sketch(swept(52), DENSE).edit_mask[0]
    assert mask[:, 72:].max() > 0.9
    assert mask[:, :36].max() < 0.05
    with pytest.raises(SketchRefused, match="hair hides the line"):
        density.sketch(swept(76), DENSE)


def test_what_is_hardly_filled_is_not_labelled_hair():
    portrait = head(scalp=0.7)
    holes = (density.sketch(portrait, density.Params()).edit_mask[0] > 0.99) & (torch.arange(128) % 4 == 0)
    bare = replace(portrait, label=portrait.label.masked_fill(holes, CLASS["skin"]))
    for wanted, is_hair in (({}, True), ({"strength": 0.3}, False), ({"intensity": 0.3}, False)):
        label = density.sketch(bare, density.Params(**wanted)).label
        assert bool((label[holes] == CLASS["hair"]).any()) == is_hair


def test_scalp_between_dark_strands_lies_in_their_shadow():
    portrait = head()
    sketch = density.sketch(portrait, DENSE)
    forehead = srgb_to_lab(portrait.image)[0][portrait.label == CLASS["skin"]].median()
    thinned = srgb_to_lab(sketch.image)[0][(sketch.edit_mask[0] > 0.5) & (portrait.hair[0] > 0.9)]
    assert forehead - 40 < thinned.quantile(0.98) < forehead - 8


def test_of_dense_hair_no_degree_is_told_whatever_becomes_of_it():
    """It was thousands: the matrix of what else an edit changes showed a recoloured head as filled up."""
    portrait = head()
    assert np.isnan(figures(portrait, (portrait.image * 0.8).clamp(-1, 1))["degree"])


@pytest.mark.parametrize("areas", ["all", "crown", "temples", "parting"])
def test_dense_hair_is_thinned_out_for_a_pair_that_runs_backwards(areas):
    portrait, params = head(), DENSE.model_copy(update={"areas": areas})
    sketch = density.sketch(portrait, params)
    assert sketch.backwards
    outside = (sketch.edit_mask == 0).expand(3, -1, -1)
    assert torch.equal(sketch.image[outside], portrait.image[outside])
    scalp = find_scalp(portrait, find_hairline(portrait))
    shown, before = (scalp.shows(srgb_to_lab(image)).sum() for image in (sketch.image, portrait.image))
    assert shown > before + 5
    found = density.measure(portrait, AnalysedPair(portrait, sketch.applied_to(portrait)), params)
    assert found["scalp_before"] > 3 * found["scalp_after"]
    assert passes(found), found
    assert found["degree"] == pytest.approx(1, abs=0.05)
    assert (sketch.hair <= portrait.hair).all()
    assert sketch.hair[0, (portrait.image != sketch.image).any(0)].mean() < portrait.hair.max() - 0.1
    # It is no lighter than skin, and strands are left in it.
    changed = (portrait.image != sketch.image).any(0) & (portrait.hair[0] > 0.9)
    assert sketch.image[0, changed].max() <= head(line=OUTLINE + 0.02).image[0].max()
    assert sketch.image[0, changed].std() > 0.5 * portrait.image[0, changed].std()


def test_a_photo_left_as_it_is_does_not_pass_as_thinned_out():
    portrait = head()
    found = figures(portrait, portrait.image, DENSE)
    assert found["degree"] == pytest.approx(0, abs=1e-6)
    assert not passes(found)


def test_the_degree_rises_with_how_far_hair_is_thinned_out():
    portrait = head()
    degrees = [
        figures(portrait, density.sketch(portrait, DENSE.model_copy(update={"intensity": t})).image, DENSE)["degree"]
        for t in (0.3, 0.6, 1)
    ]
    assert degrees == pytest.approx([0.3, 0.6, 1], abs=0.1)


def test_either_is_settled_by_the_portrait_s_hair():
    either = density.Params(made_from="either")
    thin, dense = head(scalp=0.7), head()
    assert density.settled(thin, either).made_from == "thin"
    assert density.settled(dense, either).made_from == "dense"
    assert not density.sketch(thin, either).backwards
    assert density.sketch(dense, either).backwards
    for decided in (density.Params(), DENSE):
        assert density.settled(thin, decided) == decided


def test_hair_in_the_colour_of_skin_is_not_thinned_out():
    alike = head(hair=np.array([0.45, 0.1, -0.1]))
    with pytest.raises(SketchRefused, match=r"apart \(min_dense_separation 4\.2\)"):
        density.sketch(alike, DENSE)
    with pytest.raises(SketchRefused, match="scalp would not show"):
        density.sketch(alike, DENSE.model_copy(update={"min_dense_separation": 0.0}))


@pytest.mark.parametrize("portrait, params", [(head(scalp=0.7), density.Params()), (head(), DENSE)])
def test_of_intensity_0_nothing_is_edited(portrait, params):
    sketch = density.sketch(portrait, params.model_copy(update={"intensity": 0.0}))
    assert not sketch.edit_mask.any()
    assert torch.equal(sketch.image, portrait.image)
    assert (sketch.keep_mask == 1).all()


def test_params_say_what_is_wrong():
    with pytest.raises(ValidationError, match="'parting', 'crown', 'temples' or 'all'"):
        density.Params(areas="beard")
    with pytest.raises(ValidationError, match="greater than 0"):
        density.Params(strength=0)
