"""Bangs: what the sketch promises, which regions are taken, what is refused, and that figures cannot be fooled."""

import dataclasses
import functools

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from stylepairs.datagen.features import bangs, load_feature
from stylepairs.datagen.images.colors import color_to_lab, lab_to_srgb
from stylepairs.datagen.portraits.portrait import CLASS, Portrait
from stylepairs.datagen.portraits.regions import feather
from stylepairs.datagen.portraits.sketch import AnalysedPair, SketchRefused
from stylepairs.datagen.recipe import load_recipe
from stylepairs.datagen.sketching.hair.foreheads import forehead
from stylepairs.datagen.sketching.hair.fringes import worn_fringe

SIZE = 80
STYLES = ("full", "side_left", "side_right", "curtain", "wispy", "micro")
SKIN, HAIR = (214, 164, 140), (62, 44, 36)


def disc(x, y, across, down):
    at = (torch.arange(SIZE) + 0.5) / SIZE
    return feather((((at[:, None] - y) / down) ** 2 + ((at - x) / across) ** 2 <= 1).float()[None], 0.006)


def landmarks():
    """[68,2] in shares of the crop: a frontal face whose brows are at 0.42 and whose nose ends at 0.62."""
    points = np.full((68, 2), 0.5)
    turn = np.linspace(0, np.pi, 17)
    points[:17] = np.stack([0.5 - 0.27 * np.cos(turn), 0.5 + 0.4 * np.sin(turn)], -1)
    points[17:22] = np.stack([np.linspace(0.3, 0.45, 5), np.full(5, 0.42)], -1)
    points[22:27] = np.stack([np.linspace(0.55, 0.7, 5), np.full(5, 0.42)], -1)
    points[27:31] = np.stack([np.full(4, 0.5), np.linspace(0.47, 0.59, 4)], -1)
    points[31:36] = np.stack([np.linspace(0.46, 0.54, 5), np.full(5, 0.62)], -1)
    points[36:42], points[42:48] = (0.38, 0.48), (0.62, 0.48)
    points[48:] = (0.5, 0.74)
    return torch.from_numpy(points).float() * SIZE - 0.5


@functools.cache
def portrait(hair=HAIR, fringe=False, bald=False, hat=False, name="drawn"):
    """A face under a cap of upright strands whose hairline is at 0.24 of the crop; fringe: it reaches to 0.37."""
    generator = torch.Generator().manual_seed(0)
    wall = torch.tensor([-0.5, -0.4, 0.4])[:, None, None].expand(3, SIZE, SIZE)
    head, face = disc(0.5, 0.44, 0.36, 0.4), disc(0.5, 0.56, 0.28, 0.36 if not fringe else 0.2)
    matte = torch.zeros_like(head) if bald else head * (1 - face)
    matte[:, int(0.62 * SIZE) :] = 0
    noise = torch.randn(1, 1, SIZE, generator=generator).expand(1, SIZE, SIZE)
    strands = lab_to_srgb(color_to_lab(hair) + torch.cat([5 * noise, torch.zeros(2, SIZE, SIZE)]))
    grain = 0.01 * torch.randn(1, SIZE, SIZE, generator=generator)
    skin = torch.tensor(SKIN)[:, None, None] / 127.5 - 1 + grain
    person = torch.maximum(head, disc(0.5, 0.56, 0.28, 0.36))
    image = wall * (1 - person) + skin * person
    image = image * (1 - matte) + strands * matte
    label = torch.where(person[0] > 0.5, CLASS["skin"], 0)
    for side, x in (("r", 0.38), ("l", 0.62)):
        for part, y, down, color in (("brow", 0.43, 0.012, -0.7), ("eye", 0.48, 0.02, 0.7)):
            shape = disc(x, y, 0.07, down)
            image = image * (1 - shape) + color * shape
            label[shape[0] > 0.5] = CLASS[f"{side}_{part}"]
    label[matte[0] > 0.5] = CLASS["hat" if hat else "hair"]
    matte = torch.zeros_like(matte) if hat else matte
    return Portrait(name, image.clamp(-1, 1), label.to(torch.uint8), matte, landmarks(), "0" * 64)


@functools.cache
def sketched(style="full", intensity=1.0, hair=HAIR):
    return bangs.sketch(portrait(hair, fringe=style == "none"), bangs.Params(style=style, intensity=intensity))


def figures(before, after, params):
    """As with an analyser that sees the hair that the sketch would make, by how much of it is in the image."""
    seen = AnalysedPair(before, dataclasses.replace(before, image=after))
    return bangs.measure(before, seen, params)


def test_the_feature_and_its_recipe_are_found_by_name():
    from stylepairs.datagen.build.settings import BuildRecipe

    assert load_feature("bangs").sketch is bangs.sketch
    recipe = load_recipe("bangs", "datagen", BuildRecipe)
    assert set(recipe.params["style"]) == set(STYLES)
    before = portrait()
    measured = figures(before, before.image, bangs.Params())
    own = {name for name in recipe.gate if name in measured}
    assert {"coverage_gain", "texture", "degree"} <= own


@pytest.mark.parametrize("style", [*STYLES, "none"])
def test_sketch_is_the_photo_outside_its_mask_and_its_masks_are_sound(style):
    before, sketch = portrait(fringe=style == "none"), sketched(style)
    outside = (sketch.edit_mask == 0).expand(3, -1, -1)
    assert torch.equal(sketch.image[outside], before.image[outside])
    assert sketch.edit_mask.mean() > 0.01
    assert not torch.equal(sketch.image, before.image)
    assert (sketch.edit_mask + sketch.keep_mask).max() <= 1 + 1e-6
    for part in (sketch.edit_mask, sketch.keep_mask, sketch.hair):
        assert part.shape == (1, SIZE, SIZE)
        assert float(part.min()) >= 0
        assert float(part.max()) <= 1
    assert sketch.sketch_detail == 1
    assert sketch.label.dtype == torch.uint8
    assert float(sketch.image.abs().max()) <= 1


@pytest.mark.parametrize("style", STYLES)
def test_bangs_lie_on_the_forehead_and_leave_the_eyes_free(style):
    before, sketch = portrait(), sketched(style)
    face = forehead(before)
    new = (sketch.hair - before.hair).clamp(0, 1)
    on_forehead = (face.up > -0.15) & (face.across.abs() < 1.1)
    assert float((new * ~on_forehead).sum()) < 0.02 * float(new.sum())
    assert float(new.sum()) > 0.01 * SIZE**2
    eyes = (before.label == CLASS["l_eye"]) | (before.label == CLASS["r_eye"])
    assert float((new[0] * eyes).max()) < 0.05


def test_styles_differ_where_they_should():
    new = {style: (sketched(style).hair - portrait().hair).clamp(0, 1) for style in STYLES}
    middle = slice(int(0.45 * SIZE), int(0.55 * SIZE))
    low = slice(int(0.28 * SIZE), int(0.34 * SIZE))
    assert new["full"][:, low, middle].mean() > 0.6
    assert new["curtain"][:, low, middle].mean() < 0.2
    assert new["micro"].sum() < 0.8 * new["full"].sum()
    assert new["wispy"].sum() < 0.85 * new["full"].sum()
    half = SIZE // 2
    assert new["side_left"][..., half:].sum() > 1.3 * new["side_left"][..., :half].sum()
    assert new["side_right"][..., :half].sum() > 1.3 * new["side_right"][..., half:].sum()


def test_length_and_intensity_make_it_grow_from_the_hairline():
    def hair(**params):
        return float((bangs.sketch(portrait(), bangs.Params(**params)).hair - portrait().hair).clamp(0, 1).sum())

    by_length = [hair(length=length) for length in (0.3, 0.6, 0.9)]
    assert by_length == sorted(by_length)
    by_degree = [hair(intensity=intensity) for intensity in (0.0, 0.4, 0.7, 1.0)]
    assert by_degree == sorted(by_degree)
    assert by_degree[0] == 0


def test_no_degree_is_the_photo_itself_and_is_refused_only_where_the_whole_edit_is():
    assert torch.equal(sketched("full", 0.0).image, portrait().image)
    assert torch.equal(sketched("none", 0.0).image, portrait(fringe=True).image)
    for style in STYLES:
        sketched(style, 0.1)
    with pytest.raises(SketchRefused):
        bangs.sketch(portrait(fringe=True), bangs.Params(intensity=0.1))


def test_the_same_seed_gives_the_same_bangs_and_another_seed_others():
    again = bangs.sketch(portrait(), bangs.Params(style="full"))
    assert torch.equal(again.image, sketched("full").image)
    assert not torch.equal(bangs.sketch(portrait(), bangs.Params(style="full", seed=1)).image, again.image)


@pytest.mark.parametrize("style", ["full", pytest.param("curtain", marks=pytest.mark.slow), "none"])
def test_degree_is_measured_rises_and_is_none_for_the_photo_itself(style):
    before, sketch, params = portrait(fringe=style == "none"), sketched(style), bangs.Params(style=style)
    degrees = [
        figures(before, before.image + share * (sketch.image - before.image), params)["degree"]
        for share in (0.0, 0.3, 0.6, 1.0)
    ]
    assert abs(degrees[0]) < 0.01
    assert degrees == sorted(degrees)
    assert degrees[-1] == pytest.approx(1, abs=0.02)
    # What was asked for does not count, only what is seen.
    asked = bangs.Params(style=style, intensity=0.5)
    assert figures(before, sketch.image, asked)["degree"] == pytest.approx(1, abs=0.02)
    grown = figures(before, sketched(style, 0.6).image, asked)["degree"]
    assert 0.15 < grown < 0.9


def test_good_bangs_are_hair_where_wanted_only():
    found = figures(portrait(), sketched("full").image, bangs.Params())
    assert found["coverage"] > 0.85
    assert found["coverage_gain"] > 0.6
    assert found["forehead_free"] > 0.85
    assert found["overspill"] < 0.15
    assert found["texture"] > 0.4
    assert found["color_delta_e"] < 1


def test_a_full_fringe_is_closed_and_a_comb_is_not():
    before, sketch, params = portrait(), sketched("full"), bangs.Params()
    closed = figures(before, sketch.image, params)
    assert closed["gaps"] < 0.05
    assert closed["length_spread"] < 0.15
    assert closed["strand_width"] < 1.5
    rows, columns = torch.arange(SIZE)[:, None], torch.arange(SIZE)
    teeth = (columns % 12 < 5) & (rows > int(0.28 * SIZE))
    comb = figures(before, torch.where(teeth, before.image, sketch.image), params)
    assert comb["gaps"] > 0.2
    assert comb["length_spread"] > closed["length_spread"] + 0.1
    from stylepairs.datagen.build.quality import judge
    from stylepairs.datagen.build.settings import BuildRecipe

    gate = load_recipe("bangs", "datagen", BuildRecipe, []).gate
    own = {name: gate[name] for name in ("gaps", "length_spread", "strand_width")}
    assert judge(closed, own)[0]
    assert not judge(comb, own)[0]


def test_hair_too_short_to_fall_is_refused():
    before = portrait()
    rows = torch.arange(SIZE)[:, None]
    shorn = dataclasses.replace(before, hair=before.hair * (rows > int(0.155 * SIZE)), digest="1" * 64)
    with pytest.raises(SketchRefused, match="too short to fall"):
        bangs.sketch(shorn, bangs.Params())
    noise = torch.randn(1, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    short = before.hair * (rows < int(0.5 * SIZE))
    curly = before.image + short * (0.1 * noise - before.image - 0.5)
    with pytest.raises(SketchRefused, match="too short and curly"):
        bangs.sketch(dataclasses.replace(before, image=curly.clamp(-1, 1), hair=short), bangs.Params())


@pytest.mark.parametrize("intensity", [0.1, 0.2, 0.3, 0.5])
def test_texture_of_a_narrow_fringe_is_not_counted_against_it(intensity):
    before, params = portrait(), bangs.Params(intensity=intensity)
    assert figures(before, bangs.sketch(before, params).image, params)["texture"] > 0.15


def test_texture_is_not_judged_where_the_strands_as_painted_do_not_show(monkeypatch):
    before, params = portrait(), bangs.Params()
    image = bangs.sketch(before, params).image
    assert figures(before, image, params)["texture"] < 1
    monkeypatch.setattr(bangs, "_STRANDS_SHOW", 1.0)
    assert figures(before, image, params)["texture"] == 1


def test_flat_paint_noise_and_nothing_are_told_from_hair():
    before, sketch, params = portrait(), sketched("full"), bangs.Params()
    painted = (sketch.hair - before.hair).clamp(0, 1)
    mean = (sketch.image * painted).sum((1, 2), keepdim=True) / painted.sum()
    flat = before.image * (1 - sketch.edit_mask) + mean * sketch.edit_mask
    noise = flat + 0.08 * torch.randn(1, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * sketch.edit_mask
    good = figures(before, sketch.image, params)["texture"]
    assert figures(before, flat, params)["texture"] < 0.3 * good
    assert figures(before, noise.clamp(-1, 1), params)["texture"] < 0.5 * good
    nothing = figures(before, before.image, params)
    assert nothing["coverage_gain"] == pytest.approx(0, abs=1e-3)
    assert nothing["coverage"] < 0.3


def test_hair_over_the_whole_forehead_is_not_a_wisp():
    full = sketched("full").image
    found = figures(portrait(), full, bangs.Params(style="micro", length=0.7))
    assert found["forehead_free"] < 0.8


def test_overspill_of_a_small_degree_is_told_in_terms_of_the_full_fringe():
    # The wanted region of a fringe that just appears is next to nothing: a share of it would say nothing.
    asked = bangs.Params(style="micro", length=0.7, intensity=0.2)
    params = asked.model_copy(update={"intensity": 1.0})
    own = bangs.sketch(portrait(), asked).image
    whole = bangs.sketch(portrait(), params).image
    assert figures(portrait(), own, asked)["overspill"] < 0.15
    assert figures(portrait(), whole, asked)["overspill"] > 0.5
    assert figures(portrait(), sketched("full").image, asked)["overspill"] > 1


def test_bangs_are_taken_away_down_to_the_skin():
    before, sketch = portrait(fringe=True), sketched("none")
    gone = (before.hair - sketch.hair).clamp(0, 1)
    assert gone.sum() > 0.02 * SIZE**2
    core = (gone > 0.9)[0]
    skin = torch.tensor(SKIN)[:, None] / 127.5 - 1
    assert (sketch.image[:, core] - skin).abs().mean() < 0.12
    found = figures(before, sketch.image, bangs.Params(style="none"))
    assert found["coverage_gain"] > 0.3


EITHER = bangs.Params(made_from="either", length=0.4)


@pytest.mark.parametrize("style", ["full", "side_left", "side_right", "curtain", "micro"])
def test_a_painted_fringe_is_read_as_the_style_that_it_is_of(style):
    before, sketch = portrait(), bangs.sketch(portrait(), bangs.Params(style=style, length=0.8))
    worn = worn_fringe(forehead(dataclasses.replace(before, hair=sketch.hair, label=sketch.label)))
    assert worn.style == style
    assert worn.length == pytest.approx(0.8, abs=0.21)
    assert worn.likeness > 0.8
    assert worn_fringe(forehead(before)).likeness < 0.4


def test_a_fringe_that_is_worn_is_taken_away_for_a_pair_that_runs_backwards():
    before = portrait(fringe=True)
    asked = bangs.settled(before, EITHER)
    assert (asked.style, asked.made_from) == ("full", "either")
    assert asked.length > 0.55
    assert bangs.settled(before, asked) == asked
    made = bangs.sketch(before, asked)
    assert made.backwards
    assert torch.equal(made.image, sketched("none").image)
    found = figures(before, made.image, asked)
    assert found == figures(before, made.image, bangs.Params(style="none", min_fringe=EITHER.min_worn))
    assert found["degree"] == pytest.approx(1, abs=0.02)


def test_who_wears_no_fringe_is_given_the_one_asked_for():
    assert bangs.settled(portrait(), EITHER) == EITHER
    assert torch.equal(bangs.sketch(portrait(), EITHER).image, bangs.sketch(portrait(), bangs.Params(length=0.4)).image)
    with pytest.raises(SketchRefused, match=r"min_fringe 30 %\); no bangs to take away"):
        bangs.sketch(portrait(), bangs.Params(made_from="fringe"))


def test_only_fringes_that_are_put_on_are_made_of_worn_ones():
    assert not bangs.sketch(portrait(fringe=True), bangs.Params(made_from="either", style="none")).backwards
    box = [[0.3, 0.2], [0.7, 0.2], [0.7, 0.4], [0.3, 0.4]]
    assert not bangs.sketch(portrait(fringe=True), bangs.Params(made_from="fringe", region=box)).backwards


def test_a_region_is_all_there_is_to_say_of_a_shape():
    box = [[0.3, 0.2], [0.7, 0.2], [0.7, 0.4], [0.3, 0.4]]
    asked = [
        bangs.Params(region=box, style=style, length=length) for style, length in (("curtain", 0.9), ("micro", 0.4))
    ]
    assert bangs.settled(portrait(), asked[0]) == bangs.settled(portrait(), asked[1]) == bangs.Params(region=box)


def test_a_fringe_like_none_of_the_styles_is_refused():
    strict = EITHER.model_copy(update={"min_likeness": 1.0})
    with pytest.raises(SketchRefused, match=r"overlaps \d+ % .*, full \(min_likeness 100 %\); it cannot be named"):
        bangs.settled(portrait(fringe=True), strict)


@pytest.mark.parametrize(
    "who, params, reason",
    [
        ({"bald": True}, {}, "no hair colour to be had"),
        ({"hat": True}, {}, "a hat covers the forehead"),
        ({"fringe": True}, {}, "there are bangs already"),
        ({}, {"style": "none"}, "no bangs to take away"),
        ({}, {"region": "0,0 0.12,0 0.12,0.2 0,0.2"}, "lies off the person"),
        ({}, {"region": "0.4,0.34 0.6,0.34 0.6,0.44 0.4,0.44"}, "0 % of the region's upper edge lies at the hair"),
    ],
)
def test_refusals_give_the_reason_in_one_line(who, params, reason):
    with pytest.raises(SketchRefused, match=rf"^drawn: .*{reason}") as refused:
        bangs.sketch(portrait(**who), bangs.Params(**params))
    assert "\n" not in str(refused.value)


@settings(max_examples=6, deadline=None)
@given(left=st.floats(0.3, 0.45), top=st.floats(0.2, 0.22), width=st.floats(0.15, 0.25), height=st.floats(0.12, 0.3))
def test_a_polygon_is_filled_and_nothing_else(left, top, width, height):
    corners = ((left, top), (left + width, top), (left + width, top + height), (left, top + height))
    before = portrait()
    sketch = bangs.sketch(before, bangs.Params(region=corners))
    new = (sketch.hair - before.hair).clamp(0, 1)
    at = (torch.arange(SIZE) + 0.5) / SIZE
    slack = 0.05
    inside = ((at > left - slack) & (at < left + width + slack)) & (
        (at[:, None] > top - slack) & (at[:, None] < top + height + slack)
    )
    assert float((new[0] * ~inside).max()) < 0.05
    wanted = bangs.region_mask(corners, before) * (1 - before.hair)
    assert float((new * wanted).sum() / wanted.sum()) > 0.6


def test_a_fringe_that_runs_into_the_hair_beside_the_face_is_not_taken_away():
    before = portrait(fringe=True)
    side = torch.zeros_like(before.hair)
    side[:, int(0.2 * SIZE) : int(0.6 * SIZE), int(0.2 * SIZE) : int(0.42 * SIZE)] = 1
    label = torch.where(side[0] > 0.5, CLASS["hair"], before.label.int()).to(torch.uint8)
    hanging = dataclasses.replace(before, hair=torch.maximum(before.hair, side), label=label)
    with pytest.raises(SketchRefused, match="runs into the hair beside the face"):
        bangs.sketch(hanging, bangs.Params(style="none"))


def test_a_mask_image_and_the_same_polygon_agree(tmp_path):
    pixels = np.zeros((256, 256), np.uint8)
    pixels[51:103, 77:180] = 255
    path = tmp_path / "mask.png"
    cv2.imwrite(str(path), pixels)
    by_image = bangs.region_mask(bangs.Params(region=str(path)).region, portrait())
    box = "0.3008,0.1992 0.7031,0.1992 0.7031,0.4023 0.3008,0.4023"
    by_points = bangs.region_mask(bangs.Params(region=box).region, portrait())
    assert (by_image - by_points).abs().mean() < 0.005
    assert figures(portrait(), portrait().image, bangs.Params(region=box))["coverage_gain"] == pytest.approx(
        0, abs=1e-3
    )


@pytest.mark.parametrize(
    "region, reason",
    [
        ("nowhere.png", "nowhere.png: no such mask image"),
        ([0.1, 0.1], "a list means choices"),
        ([[0.1, 0.1], [0.5, 0.5]], "a polygon needs 3 points or more, here 2"),
        ([[10, 10], [80, 10], [80, 60]], "give shares of its side, 0 to 1, not pixels"),
        ([[-0.4, -0.4], [-0.1, -0.4], [-0.1, -0.1]], "nothing to grow in"),
        ([[0, 0], [1, 0], [1, 1], [0, 1]], "mark the bangs only"),
    ],
)
def test_regions_that_cannot_be_are_refused_in_one_line(region, reason):
    with pytest.raises(ValidationError, match=reason):
        bangs.Params(region=region)


def test_a_region_that_begins_at_the_rim_of_a_bald_head_is_refused():
    before = portrait()
    rows = torch.arange(SIZE)[:, None].expand(SIZE, SIZE)
    shine = dataclasses.replace(before, hair=before.hair * (rows >= int(0.2 * SIZE)), digest="1" * 64)
    region = [[0.38, 0.21], [0.62, 0.21], [0.62, 0.34], [0.38, 0.34]]
    bangs.sketch(before, bangs.Params(region=region))
    with pytest.raises(SketchRefused, match="of the place that a fringe falls from"):
        bangs.sketch(shine, bangs.Params(region=region))


@pytest.mark.parametrize(
    "pixels, reason",
    [
        (np.zeros((64, 64), np.uint8), "covers 0 % of the crop"),
        (np.full((64, 64), 255, np.uint8), "covers 100 % of the crop"),
        (np.full((64, 32), 255, np.uint8), "32 x 64 pixels; a mask is square"),
        (None, "not an image this program reads"),
    ],
)
def test_mask_images_that_cannot_be_are_refused(tmp_path, pixels, reason):
    path = tmp_path / "mask.png"
    path.write_bytes(b"no image") if pixels is None else cv2.imwrite(str(path), pixels)
    with pytest.raises(ValidationError, match=reason):
        bangs.Params(region=str(path))


@pytest.mark.parametrize(
    "wrong",
    [
        {"style": "bob"},
        {"length": 1.3},
        {"density": -0.1},
        {"colour": "red"},
        {"style": "none", "region": "0.3,0.2 0.7,0.2 0.5,0.4"},
    ],
)
def test_unknown_styles_and_values_out_of_range_are_errors(wrong):
    with pytest.raises(ValidationError):
        bangs.Params(**wrong)
