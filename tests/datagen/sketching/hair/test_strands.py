"""Painted hair: where it grows, which way, in whose colours, and that it is the same every time."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stylepairs.datagen.images.colors import color_to_lab, lab_to_srgb, srgb_to_lab
from stylepairs.datagen.portraits.portrait import CLASS, Portrait
from stylepairs.datagen.portraits.sketch import SketchRefused
from stylepairs.datagen.shell.randomness import random_generator
from stylepairs.datagen.sketching.hair.strands import (
    contrast_likeness,
    grow_hair,
    hair_palette,
    own_flow,
    shade_skin,
    strand_likeness,
)
from stylepairs.datagen.sketching.hair.strokes import StrandStyle, paint

SIZE = 64
BROWN = (86, 64, 50)


def portrait(size=SIZE, color=BROWN, contrast=5.0, hair_rows=0.4, digest="0" * 64):
    """Upright strands of one colour over a plain of skin; landmarks where a face has them."""
    rows = int(hair_rows * size)
    hair = torch.zeros(1, size, size)
    hair[:, :rows] = 1
    noise = torch.randn(1, 1, 256, generator=torch.Generator().manual_seed(0))
    noise = torch.nn.functional.interpolate(noise, size=size, mode="linear", antialias=False)
    strands = color_to_lab(color) + torch.cat([contrast * noise.expand(1, size, size), torch.zeros(2, size, size)])
    skin = torch.tensor([0.6, 0.2, 0.0])[:, None, None].expand(3, size, size)
    image = torch.where(hair > 0.5, lab_to_srgb(strands), skin)
    label = torch.where(hair[0] > 0.5, CLASS["hair"], CLASS["skin"]).to(torch.uint8)
    points = torch.full((68, 2), 0.5 * size)
    points[27] = torch.tensor([0.5, 0.45]) * size
    points[8] = torch.tensor([0.5, 0.9]) * size
    return Portrait("strands", image.clamp(-1, 1), label, hair, points, digest)


def box(size, left, top, right, bottom):
    region = torch.zeros(1, size, size)
    region[:, int(top * size) : int(bottom * size), int(left * size) : int(right * size)] = 1
    return region


def level_flow(size, angle):
    return torch.tensor([math.cos(angle), math.sin(angle)])[:, None, None].expand(2, size, size).contiguous()


def grown(before, angle=math.pi / 2, density=1.0, seed=0, **options):
    region = box(before.size_px, 0.2, 0.5, 0.8, 0.9)
    flow = level_flow(before.size_px, angle)
    rng = random_generator("strands", seed, before.digest)
    return region, flow, *grow_hair(before, region, flow, StrandStyle(density, **options), rng)


def test_hair_covers_the_region_and_hardly_anything_else():
    region, _, image, alpha = grown(portrait(), ragged=0.05)
    assert image.shape == (3, SIZE, SIZE)
    assert alpha.shape == (1, SIZE, SIZE)
    inner, outer = box(SIZE, 0.26, 0.56, 0.74, 0.8), box(SIZE, 0.14, 0.44, 0.86, 0.96)
    assert alpha[inner > 0.5].mean() > 0.93
    assert alpha[outer < 0.5].max() == 0
    assert (alpha * (1 - region)).sum() < 0.05 * region.sum()


@settings(max_examples=8, deadline=None)
@given(angle=st.floats(0, 2 * math.pi), size=st.sampled_from([48, 80]), density=st.floats(0.05, 1))
def test_any_direction_size_and_density_gives_finite_pictures(angle, size, density):
    _, _, image, alpha = grown(portrait(size), angle, density)
    assert bool(image.isfinite().all())
    assert float(image.min()) >= -1
    assert float(image.max()) <= 1
    assert float(alpha.min()) >= 0
    assert 0 < float(alpha.max()) <= 1


def test_coverage_rises_with_density_and_is_none_at_zero():
    covered = [float(grown(portrait(), density=density)[3].mean()) for density in (0.0, 0.2, 0.5, 1.0)]
    assert covered[0] == 0
    assert covered == sorted(covered)
    assert covered[3] > 1.5 * covered[1] > 0


def test_the_same_seed_gives_the_same_strands_and_another_seed_others():
    image, again, other = (grown(portrait(), seed=seed)[2] for seed in (0, 0, 1))
    assert torch.equal(image, again)
    assert not torch.equal(image, other)
    stranger = portrait(digest="1" * 64)
    drawn, other = (random_generator("strands", 0, each.digest).random() for each in (portrait(), stranger))
    assert drawn != other


@pytest.mark.parametrize("color", [BROWN, (38, 32, 31), (201, 179, 142), (143, 78, 51)])
def test_colour_and_contrast_are_those_of_the_own_hair(color):
    before = portrait(color=color)
    _, _, image, alpha = grown(before)
    inside = (alpha > 0.95)[0]
    own = srgb_to_lab(before.image)[:, before.hair[0] > 0.5]
    painted = srgb_to_lab(image)[:, inside]
    assert (own.mean(1) - painted.mean(1)).norm() < 5
    assert 0.35 < float(painted[0].std() / own[0].std()) < 1.6


@pytest.mark.parametrize("angle", [math.pi / 2, 0.3, 2.2])
def test_strands_run_along_the_flow_and_not_across_it(angle):
    before = portrait(96)
    region, flow, image, alpha = grown(before, angle)
    palette = hair_palette(before)
    inside = ((alpha > 0.9) & (region > 0.5)).float()
    light = srgb_to_lab(image)[:1]
    across = level_flow(96, angle + math.pi / 2)
    assert strand_likeness(light, inside, flow, palette) > 0.5
    assert strand_likeness(light, inside, across, palette) < 0.1


def test_flat_paint_and_noise_are_not_like_strands():
    before = portrait(96)
    _, flow, image, alpha = grown(before)
    palette, inside = hair_palette(before), (alpha > 0.9).float()
    flat = torch.full((1, 96, 96), float(palette.mean[0]))
    noise = flat + 5 * torch.randn(1, 96, 96, generator=torch.Generator().manual_seed(1))
    assert strand_likeness(flat, inside, flow, palette) < 0.1
    assert strand_likeness(noise, inside, flow, palette) < 0.3
    assert contrast_likeness(noise, inside, inside) > 0.9
    calmer = torch.where(inside > 0.5, flat + 0.2 * (noise - flat), noise)
    assert contrast_likeness(calmer, inside, box(96, 0, 0, 1, 0.3)) < 0.4


def test_strands_of_limited_length_stay_near_their_roots():
    before = portrait()
    region = box(SIZE, 0.2, 0.5, 0.8, 0.55)
    long_region = box(SIZE, 0.2, 0.5, 0.8, 0.95)
    flow = level_flow(SIZE, math.pi / 2)
    rng = np.random.default_rng(0)
    _, alpha = grow_hair(before, torch.maximum(region, 0.06 * long_region), flow, StrandStyle(length=0.1), rng)
    rows = alpha[0].amax(1)
    assert rows[int(0.52 * SIZE)] > 0.8
    through = grow_hair(before, long_region, flow, StrandStyle(), rng)[1]
    assert alpha.sum() < 0.5 * through.sum()


def test_tips_thin_out_instead_of_standing_as_teeth():
    *_, alpha = grown(portrait(128), clumping=0.1, ragged=0.1, lock_cover=3.0, closed=0.88)
    tips = alpha[0, int(0.84 * 128) : int(0.9 * 128), int(0.3 * 128) : int(0.7 * 128)]
    assert 0.2 < tips.mean() < 0.8
    assert tips.diff(dim=1).abs().max() < 0.6  # whole strands beside bare skin: 0.8


def test_an_empty_region_grows_nothing():
    before = portrait()
    _, alpha = grow_hair(
        before, torch.zeros(1, SIZE, SIZE), level_flow(SIZE, 0), StrandStyle(), np.random.default_rng(0)
    )
    assert float(alpha.max()) == 0


def test_no_hair_is_refused_with_its_share():
    with pytest.raises(SketchRefused, match=r"strands: only 0.00 % of the crop is surely hair"):
        hair_palette(portrait(hair_rows=0.0))


def test_own_flow_follows_the_strands_away_from_the_face():
    flow = own_flow(portrait(96))
    assert torch.allclose(flow.norm(dim=0), torch.ones(96, 96), atol=1e-3)
    in_hair = flow[:, 10:25, 30:66]
    assert in_hair[1].mean() < -0.95  # up, as the strands that were drawn


def test_the_shadow_lies_under_and_below_the_hair_only():
    image = torch.full((3, SIZE, SIZE), 0.4)
    alpha = box(SIZE, 0.3, 0.3, 0.7, 0.5)
    shaded = shade_skin(image, alpha, strength=0.4)
    darker = (image - shaded).mean(0)
    assert darker.min() >= 0
    assert darker[int(0.53 * SIZE), SIZE // 2] > 0.02
    assert darker[int(0.2 * SIZE), SIZE // 2] < 1e-3
    assert darker[int(0.9 * SIZE), SIZE // 2] < 1e-3
    assert torch.equal(shade_skin(image, torch.zeros_like(alpha)), image)


@pytest.mark.parametrize("size", [256, 1024])
def test_strands_cover_as_much_at_every_size(size):
    def covered(size):
        x, y = np.meshgrid(np.linspace(0.2, 0.8, 12) * size, np.linspace(0.3, 0.6, 40) * size, indexing="ij")
        lines = np.stack([x, y], -1)
        _, alpha = paint(size, lines, np.full(12, 0.3 * size), StrandStyle(), 0.2, np.random.default_rng(0))
        return float(alpha.mean())

    assert covered(size) == pytest.approx(covered(512), rel=0.06)
