"""Hair colour: what the sketch promises reconstruction, what measure reports, what is refused."""

import math
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError

from stylepairs.datagen.features import feature_names, hair_color, load_feature
from stylepairs.datagen.images.colors import PALETTE, color_to_lab, delta_e_2000, lab_to_srgb, srgb_to_lab
from stylepairs.datagen.portraits.portrait import CLASS, Portrait, resized_image
from stylepairs.datagen.portraits.sketch import AnalysedPair, SketchRefused
from stylepairs.datagen.shell.errors import InputError
from stylepairs.datagen.sketching.hair import hair_matte

SIZE = 64


def soft_disc(centre, radius, softness=1.5):
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    distance = ((y - centre[0]) ** 2 + (x - centre[1]) ** 2).float().sqrt()
    return ((radius - distance) / softness + 0.5).clamp(0, 1)[None]


def seen(before, after):
    return AnalysedPair(before, replace(before, image=after))


def strands(color, seed=0):
    """[3,H,W] strands of lightness around a mean colour."""
    noise = torch.randn(1, 1, SIZE, generator=torch.Generator().manual_seed(seed)).expand(1, SIZE, SIZE)
    return lab_to_srgb(color_to_lab(color) + torch.cat([6 * noise, torch.zeros(2, SIZE, SIZE)]))


def portrait(hair="brown", radius=18.0, matte=None):
    """A cap of hair over a disc of skin before a blue wall."""
    head, face = soft_disc((30, 32), 20), soft_disc((38, 32), 15)
    true_matte = (soft_disc((26, 32), radius) - face).clamp(0, 1)
    wall = torch.tensor([-0.5, -0.4, 0.3])[:, None, None].expand(3, SIZE, SIZE)
    skin = torch.tensor([0.6, 0.2, 0.0])[:, None, None]
    image = wall * (1 - head) + skin * head
    image = image * (1 - true_matte) + strands(PALETTE[hair]) * true_matte
    label = torch.where(true_matte[0] > 0.5, CLASS["hair"], torch.where(head[0] > 0.5, CLASS["skin"], 0)).to(
        torch.uint8
    )
    return Portrait("synthetic", image, label, true_matte if matte is None else matte, torch.zeros(68, 2), "0" * 64)


def recoloured(before, color):
    """The portrait with its hair's mean moved exactly to the colour, in Lab."""
    matte = hair_color.hair_matte(before)
    inside = (matte > 0.8).float()
    lab = srgb_to_lab(before.image)
    own = (lab * inside).sum((-2, -1), keepdim=True) / inside.sum()
    return lab_to_srgb(lab + (color_to_lab(PALETTE[color]) - own) * (matte > 0.5)).clamp(-1, 1)


def test_features_are_found_by_name_and_unknown_ones_answered_with_the_nearest():
    assert load_feature("hair_color").sketch is hair_color.sketch
    assert "hair_color" in feature_names()
    with pytest.raises(InputError, match=r"'hair_colour': unknown; did you mean 'hair_color'\?"):
        load_feature("hair_colour")


@pytest.mark.parametrize("color", ["black", "light blond", "#3060a0", "180,120,90"])
def test_sketch_is_the_colour_in_the_hair_s_own_light_and_the_photo_outside(color):
    before = portrait()
    light = torch.linspace(-8, 8, SIZE).expand(1, SIZE, SIZE)
    image = lab_to_srgb(srgb_to_lab(before.image) + torch.cat([light, torch.zeros(2, SIZE, SIZE)])).clamp(-1, 1)
    before = replace(before, image=image)
    sketch = hair_color.sketch(before, hair_color.Params(color=color))
    core, outside = sketch.edit_mask[0] == 1, (sketch.edit_mask == 0).expand(3, -1, -1)
    assert torch.equal(sketch.image[outside], before.image[outside])
    painted, own = srgb_to_lab(sketch.image)[:, core], srgb_to_lab(before.image)[:, core]
    wanted = color_to_lab(hair_color.parse_color(color))
    assert float(delta_e_2000(painted.mean(1)[:, None, None], wanted)) < 1.0
    assert torch.corrcoef(torch.stack([painted[0], light[0][core]]))[0, 1] > 0.8
    # Locks and light, no strands.
    assert painted[0].std() < 0.6 * own[0].std()
    assert sketch.space == "lab"
    assert sketch.photo_detail == 1


def test_masks_leave_a_neutral_band_around_the_hair():
    sketch = hair_color.sketch(portrait(), hair_color.Params())
    assert (sketch.edit_mask + sketch.keep_mask).max() <= 1 + 1e-6
    neutral = (sketch.edit_mask < 0.1) & (sketch.keep_mask < 0.1)
    assert neutral.float().mean() > 0.01
    for mask in (sketch.edit_mask, sketch.keep_mask):
        assert mask.shape == (1, SIZE, SIZE)
        assert mask.min() >= 0
        assert mask.max() == 1


def test_intensity_goes_from_the_own_colour_to_the_wanted_one():
    before = portrait("black")
    means = []
    for intensity in (0.0, 0.5, 1.0):
        sketch = hair_color.sketch(before, hair_color.Params(color="blond", intensity=intensity))
        means.append(srgb_to_lab(sketch.image)[:, sketch.edit_mask[0] == 1].mean(1)[:, None, None])
    own, blond = color_to_lab(PALETTE["black"]), color_to_lab(PALETTE["blond"])
    assert float(delta_e_2000(means[0], own)) < 3
    assert float(delta_e_2000(means[2], blond)) < 0.5
    torch.testing.assert_close(means[1], (means[0] + means[2]) / 2, rtol=0, atol=0.5)


def test_a_head_without_hair_is_refused_with_its_share():
    with pytest.raises(SketchRefused, match=r"synthetic: hair covers only 0\.\d % of the crop") as refusal:
        hair_color.sketch(portrait(matte=soft_disc((5, 32), 2)), hair_color.Params())
    assert isinstance(refusal.value, InputError)
    assert "\n" not in str(refusal.value)
    with pytest.raises(SketchRefused):
        hair_color.sketch(portrait(matte=torch.zeros(1, SIZE, SIZE)), hair_color.Params())


def test_a_matte_over_the_face_is_refused():
    before = portrait(matte=soft_disc((30, 32), 20))
    angle = torch.linspace(0, math.pi, 17)
    jaw = torch.stack([32 - 14 * angle.cos(), 32 + 16 * angle.sin()], 1)
    brows = torch.stack([torch.linspace(20, 44, 10), torch.full((10,), 30.0)], 1)
    before.points68[:27] = torch.cat([jaw, brows])
    with pytest.raises(SketchRefused, match=r"covers \d+ % of the face"):
        hair_color.sketch(before, hair_color.Params())
    hair_color.sketch(before, hair_color.Params(max_on_face=1))


def test_a_matte_of_haze_is_refused():
    clean = portrait().hair
    with pytest.raises(SketchRefused, match="unsure pixels of the hair matte"):
        hair_color.sketch(portrait(matte=clean * 0.65), hair_color.Params())


@pytest.mark.parametrize("tint", [(1, 1, 1), (1.07, 0.74, 0.43)], ids=["grey", "sepia"])
def test_a_picture_without_colours_is_refused(tint):
    before = portrait()
    light = (before.image.mean(0, keepdim=True) + 1) / 2
    toned = (light * torch.tensor(tint)[:, None, None]).clamp(0, 1) * 2 - 1
    with pytest.raises(SketchRefused, match="black-and-white, or in one tint"):
        hair_color.sketch(replace(before, image=toned), hair_color.Params())
    pale = before.image.mean(0, keepdim=True).lerp(before.image, 0.4)
    hair_color.sketch(replace(before, image=pale), hair_color.Params())


def test_reaching_the_colour_exactly_measures_as_such():
    before = portrait("black")
    figures = hair_color.measure(before, seen(before, recoloured(before, "auburn")), hair_color.Params(color="auburn"))
    assert figures["color_delta_e"] < 0.5
    assert figures["color_change"] > 10
    assert figures["degree"] == pytest.approx(1, abs=0.05)
    assert figures["spill_delta_e"] < 1e-3
    assert figures["detail_kept"] == pytest.approx(1, abs=0.15)
    assert figures["flat_share"] < 0.02


def test_doing_nothing_measures_as_such():
    before = portrait("black")
    figures = hair_color.measure(before, seen(before, before.image), hair_color.Params(color="blond"))
    assert figures["color_delta_e"] > 30
    assert figures["color_change"] == 0
    assert abs(figures["degree"]) < 0.02
    assert figures["spill_delta_e"] == 0
    assert figures["detail_kept"] == pytest.approx(1)
    assert figures["clipped_share"] == 0


def test_flat_paint_and_spill_are_seen():
    before = portrait()
    sketch = hair_color.sketch(before, hair_color.Params(color="blond"))
    figures = hair_color.measure(before, seen(before, sketch.image), hair_color.Params(color="blond"))
    assert figures["detail_kept"] < 0.3
    assert figures["flat_share"] > 0.5
    spilt = (before.image + 0.2).clamp(-1, 1)
    assert hair_color.measure(before, seen(before, spilt), hair_color.Params())["spill_delta_e"] > 3


def test_a_matte_a_pixel_too_small_is_drawn_to_the_edge_of_the_hair():
    full = portrait("black", radius=18.0)
    tight = portrait("black", radius=18.0, matte=portrait(radius=17.0).hair)
    truth = (full.hair > 0.5).float()
    missed = [((truth - m).clamp(0, 1)).sum() for m in (tight.hair, hair_color.hair_matte(tight))]
    assert missed[1] < 0.5 * missed[0]


def test_crumbs_leave_the_matte_of_a_large_portrait_with_their_soft_edges():
    small = torch.maximum(portrait().hair, soft_disc((58, 58), 2))
    matte = hair_matte._without_crumbs(resized_image(small, 512).clamp(0, 1))
    assert matte[0, 424:, 424:].max() < 0.08, "all above counts as hair"


def test_crumbs_and_what_cannot_be_hair_leave_the_matte():
    clean = portrait()
    crumb = soft_disc((58, 58), 2)
    matte = hair_color.hair_matte(portrait(matte=torch.maximum(clean.hair, crumb)))
    assert matte[0, 54:, 54:].max() == 0
    labelled = portrait()
    labelled.label[20:24, 20:44] = CLASS["hat"]
    assert hair_color.hair_matte(labelled)[0, 21:23, 22:42].max() < 0.05


@pytest.mark.parametrize("bad", [{"color": "blnd"}, {"intensity": 1.5}, {"colour": "red"}, {"min_hair_share": -1}])
def test_bad_parameters_are_refused(bad):
    with pytest.raises(ValidationError):
        hair_color.Params(**bad)
