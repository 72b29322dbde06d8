"""Fluffiness: the outline moves as far as asked, the face not at all, nothing is left of the old outline."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from stylepairs.datagen.build.quality import judge
from stylepairs.datagen.build.settings import BuildRecipe
from stylepairs.datagen.features import fluffiness
from stylepairs.datagen.portraits.portrait import CLASS, Portrait
from stylepairs.datagen.portraits.sketch import AnalysedPair, SketchRefused
from stylepairs.datagen.recipe import load_recipe
from stylepairs.datagen.sketching.hair.hair_outline import hair_outline, head_width_px, outline_flow
from stylepairs.datagen.sketching.hair.rays import ray_places

SIZE = 96


def soft_disc(centre, radius, size=SIZE):
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    distance = ((y - centre[0] * size) ** 2 + (x - centre[1] * size) ** 2).float().sqrt()
    return (radius * size - distance + 0.5).clamp(0, 1)[None]


def portrait(size=SIZE, hair_radius=0.33, top=0.5, hair_color=(-0.6, -0.7, -0.8), digest="0" * 64):
    """A disc of hair around a disc of face before a wall that brightens downwards."""
    noise = torch.nn.functional.interpolate(
        torch.randn(1, 3, 48, 48, generator=torch.Generator().manual_seed(0)), size=(size, size), mode="bilinear"
    )[0]
    hair, face = soft_disc((top, 0.5), hair_radius, size), soft_disc((0.55, 0.5), 0.22, size)
    wall = torch.tensor([-0.3, 0.0, 0.6])[:, None, None] + torch.linspace(-0.2, 0.2, size)[None, :, None]
    image = wall + 0.01 * noise
    image = image + hair * (torch.tensor(hair_color)[:, None, None] + 0.08 * noise - image)
    image = image + face * (torch.tensor([0.5, 0.1, -0.1])[:, None, None] - image)
    label = torch.where(hair[0] > 0.5, CLASS["hair"], 0)
    label = torch.where(face[0] > 0.5, CLASS["skin"], label).to(torch.uint8)
    return Portrait("synthetic", image.clamp(-1, 1), label, hair * (1 - face), points(size), digest)


def points(size):
    """Landmarks of the disc of face: jaw along its lower half, brows on its upper part, bridge between the eyes."""
    at = torch.zeros(68, 2) + torch.tensor([0.5, 0.55])
    turn = torch.linspace(torch.pi, 0, 17)
    at[:17] = torch.stack([0.5 + 0.21 * turn.cos(), 0.55 + 0.21 * turn.sin()], 1)
    at[17:27] = torch.stack([torch.linspace(0.35, 0.65, 10), torch.full((10,), 0.45)], 1)
    at[27] = torch.tensor([0.5, 0.5])
    return at * size - 0.5


def edited(before, params):
    sketch = fluffiness.sketch(before, params)
    return sketch, replace(before, image=sketch.image, hair=sketch.hair)


def figures(before, after, params):
    return fluffiness.measure(before, AnalysedPair(before, after), params)


@pytest.mark.parametrize(
    "volume, where", [(0.06, "both"), (0.12, "both"), (-0.06, "both"), (0.12, "crown"), (0.12, "sides")]
)
def test_the_outline_moves_as_far_as_asked_and_evenly(volume, where):
    before = portrait()
    params = fluffiness.Params(volume=volume, where=where)
    _, after = edited(before, params)
    found = figures(before, after, params)
    assert 0.85 < found["reached"] < 1.15
    assert 0.85 < found["degree"] < 1.15
    assert found["unevenness"] < 0.15
    assert found["halo_delta_e"] < 2
    assert found["rim_gap"] < 0.05
    assert found["face_moved"] == 0
    assert found["outline_gained"] * volume > 0


def test_the_matte_agrees_with_the_volume():
    before = portrait()
    sketch, _ = edited(before, fluffiness.Params(volume=0.1))
    old, new = (hair_outline(before, matte) for matte in (before.hair, sketch.hair))
    up = old.angles.abs() < 90
    gained = (new.outer - old.outer)[up].mean() / head_width_px(before)
    assert gained == pytest.approx(0.1, abs=0.02)


@pytest.mark.parametrize("volume", [0.12, -0.08])
def test_outside_the_edit_mask_and_on_the_face_the_photo_stays_to_the_bit(volume):
    before = portrait()
    sketch, _ = edited(before, fluffiness.Params(volume=volume))
    still = sketch.edit_mask[0] == 0
    face = soft_disc((0.55, 0.5), 0.20)[0] > 0
    assert torch.equal(sketch.image[:, still], before.image[:, still])
    assert torch.equal(sketch.image[:, face], before.image[:, face])
    assert still[face].all()
    assert (sketch.edit_mask[0] > 0.5).any()
    assert (sketch.keep_mask + sketch.edit_mask <= 1 + 1e-6).all()
    assert sketch.image.abs().max() <= 1
    for mask in (sketch.edit_mask, sketch.keep_mask, sketch.hair):
        assert mask.min() >= 0
        assert mask.max() <= 1


@pytest.mark.parametrize("volume, where", [(0.12, "both"), (-0.06, "both"), (0.1, "sides")])
def test_ears_stay_where_they_are_and_the_hair_around_them_moves(volume, where):
    before = portrait()
    ears = torch.maximum(soft_disc((0.6, 0.18), 0.05), soft_disc((0.6, 0.82), 0.05))
    image = before.image + ears * (torch.tensor([0.6, 0.0, -0.2])[:, None, None] - before.image)
    label = torch.where(ears[0] > 0.5, CLASS["l_ear"], before.label)
    before = replace(before, image=image, label=label.to(torch.uint8), hair=before.hair * (1 - ears))
    params = fluffiness.Params(volume=volume, where=where)
    sketch, after = edited(before, params)
    assert (sketch.image - image)[:, ears[0] > 0.9].abs().max() < 0.01
    assert 0.8 < figures(before, after, params)["reached"] < 1.2


def test_intensity_0_changes_nothing_and_an_unchanged_photo_measures_0():
    before = portrait()
    sketch, _ = edited(before, fluffiness.Params(intensity=0.0))
    assert torch.equal(sketch.image, before.image)
    found = figures(before, before, fluffiness.Params())
    assert found["degree"] == 0
    assert found["reached"] == 0
    assert found["face_moved"] == 0


@pytest.mark.parametrize("volume", [0.12, pytest.param(-0.08, marks=pytest.mark.slow)])
def test_the_degree_rises_with_the_intensity(volume):
    before, full = portrait(), fluffiness.Params(volume=volume)
    degrees = []
    for intensity in (0.1, 0.4, 0.7):
        _, after = edited(before, full.model_copy(update={"intensity": intensity}))
        degrees.append(figures(before, after, full)["degree"])
    assert degrees == sorted(degrees)
    assert degrees == pytest.approx([0.1, 0.4, 0.7], abs=0.12)


@pytest.mark.slow
def test_the_recipe_s_gate_passes_a_clean_pair_and_stops_a_halo_a_double_outline_and_an_unchanged_one():
    recipe = load_recipe("fluffiness", "datagen", BuildRecipe)
    before, params = portrait(), fluffiness.Params(volume=0.12)
    sketch, after = edited(before, params)
    gate = {name: bounds for name, bounds in recipe.gate.items() if name in figures(before, after, params)}
    assert {"reached", "unevenness", "halo_delta_e", "rim_gap", "face_moved"} == set(gate)
    wall = torch.tensor([-0.3, 0.0, 0.6])[:, None, None]
    outside = (torch.nn.functional.max_pool2d(sketch.hair[None], 7, 1, 3)[0] - sketch.hair).clamp(0, 1)
    old_edge = soft_disc((0.5, 0.5), 0.345) - soft_disc((0.5, 0.5), 0.315)
    broken = {
        "halo_delta_e": after.image + 0.4 * outside * (1 - after.image),
        "rim_gap": after.image + 0.9 * old_edge * (wall - after.image),
        "reached": before.image,
        "face_moved": after.image - 0.15 * soft_disc((0.55, 0.45), 0.08),
        "unevenness": torch.cat([after.image[:, :, : SIZE // 2], before.image[:, :, SIZE // 2 :]], 2),
    }
    assert judge(figures(before, after, params), gate) == (True, [])
    for figure, image in broken.items():
        _, reasons = judge(figures(before, replace(after, image=image), params), gate)
        assert any(reason.startswith(figure) for reason in reasons), (figure, reasons)


def test_hair_of_the_wall_s_colour_is_measured_by_the_mattes():
    before = portrait(hair_color=(-0.35, -0.05, 0.5))
    params = fluffiness.Params(volume=0.12)
    _, after = edited(before, params)
    assert 0.7 < figures(before, after, params)["reached"] < 1.3


def test_the_same_at_every_size():
    small, large = (edited(portrait(size), fluffiness.Params(volume=0.12))[0] for size in (96, 192))
    shrunk = torch.nn.functional.avg_pool2d(large.hair, 2)
    assert (shrunk - small.hair).abs().mean() < 0.02


def test_strands_are_drawn_from_seed_and_portrait():
    params = fluffiness.Params(volume=0.12)
    image = edited(portrait(), params)[0].image
    assert torch.equal(image, edited(portrait(), params)[0].image)
    assert not torch.equal(image, edited(portrait(), params.model_copy(update={"seed": 1}))[0].image)
    assert not torch.equal(image, edited(portrait(digest="1" * 64), params)[0].image)


def test_the_label_map_follows():
    before = portrait()
    fuller, flatter = (edited(before, fluffiness.Params(volume=v))[0].label for v in (0.12, -0.08))
    assert (fuller == CLASS["hair"]).sum() > (before.label == CLASS["hair"]).sum() > (flatter == CLASS["hair"]).sum()
    assert torch.equal(fuller == CLASS["skin"], before.label == CLASS["skin"])


def test_hair_that_is_hardly_too_short_is_refused_with_figures_that_differ(monkeypatch):
    before = portrait()
    monkeypatch.setattr(fluffiness, "_hair_length", lambda outline: 0.178 * head_width_px(before))
    with pytest.raises(SketchRefused, match=r"0\.178 head widths .*min_hair 0\.18\)"):
        fluffiness.sketch(before, fluffiness.Params())


def test_what_it_cannot_do_is_refused_with_the_reason():
    plain = portrait()
    hat = plain.label.clone()
    hat[:20] = CLASS["hat"]
    bald = replace(plain, hair=plain.hair * 0)
    over_face = replace(plain, hair=torch.maximum(plain.hair, soft_disc((0.55, 0.5), 0.2)))
    hazy = replace(
        plain, hair=torch.maximum(plain.hair, 0.4 * (soft_disc((0.3, 0.5), 0.7) - soft_disc((0.55, 0.5), 0.22)))
    )
    cases = {
        "wears a hat": replace(plain, label=hat),
        "hair covers only": bald,
        "the matte is wrong": over_face,
        "unsure pixels": hazy,
        r"\(min_hair 0\.18\); too short": portrait(hair_radius=0.26, top=0.53),
        "too thin": portrait(hair_radius=0.285, top=0.53),
        "no room": portrait(hair_radius=0.49, top=0.4),
    }
    for reason, given_portrait in cases.items():
        with pytest.raises(SketchRefused, match=f"synthetic: .*{reason}") as refusal:
            fluffiness.sketch(given_portrait, fluffiness.Params(volume=0.2, where="crown"))
        assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "wrong", [{"volume": 0.3}, {"volume": 0}, {"volume": -0.2}, {"where": "top"}, {"intensity": 1.1}, {"seed": -1}]
)
def test_parameters_have_ranges(wrong):
    with pytest.raises(ValidationError):
        fluffiness.Params(**wrong)


@given(st.floats(-0.35, 0.5), st.floats(0.26, 0.4))
@settings(max_examples=10, deadline=None)
def test_the_warp_never_folds_and_leaves_the_hairline(share, radius):
    before = portrait(64, hair_radius=radius)
    outline = hair_outline(before, before.hair)
    flow = outline_flow(outline, share * outline.thickness, 64)
    radii = torch.arange(0, 30, 0.5)
    outwards = ray_places(outline.frame, torch.deg2rad(outline.angles), torch.ones(1)) - outline.frame.origin
    source = radii + (outline.read(flow, radii) * outwards.T[:, :, None]).sum(0)
    assert (source.diff(dim=1) > -0.05).all()
    assert (flow[:, soft_disc((0.5, 0.5), 0.15, 64)[0] > 0] == 0).all()


def test_cropped_hair_lets_fewer_strands_loose():
    params = fluffiness.Params(min_hair=0)
    cropped, long = portrait(hair_radius=0.25, top=0.54), portrait()
    covered = [
        float(fluffiness._loose_strands(before, fluffiness._plan(before, params), params).sum())
        for before in (cropped, long)
    ]
    assert covered[0] < 0.1 * covered[1]
