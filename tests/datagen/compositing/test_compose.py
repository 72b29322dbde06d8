"""Composition: the edit inside, the photo to the bit outside, and how softly one becomes the other."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from stylepairs.datagen.compositing.compose import (
    compose,
    harmonised,
    laplacian_blend,
    region_mask,
    tightened,
    with_part,
)
from stylepairs.datagen.compositing.detail import transfer_detail
from stylepairs.datagen.portraits.portrait import Portrait
from stylepairs.datagen.portraits.sketch import Sketch
from stylepairs.datagen.reconstruction.reconstruct import Reconstruction

SIDE = 64


def random_image(seed, side=SIDE, channels=3):
    return torch.rand(channels, side, side, generator=torch.Generator().manual_seed(seed)) * 1.6 - 0.8


def box(top, bottom, left, right, height=SIDE, width=SIDE, value=1.0):
    mask = torch.zeros(1, height, width)
    mask[:, top:bottom, left:right] = value
    return mask


def sketch_of(image, mask, reference_px=8, **changes):
    return Sketch(image, mask, 1 - mask, reference_px, **changes)


def portrait_of(image):
    side = image.shape[-1]
    label = torch.zeros(side, side, dtype=torch.uint8)
    return Portrait("a", image, label, torch.zeros(1, side, side), torch.zeros(68, 2), "0" * 64)


def composed_of(image, before, after, sketch):
    latents = torch.zeros(1, 1)
    return compose(portrait_of(image), Reconstruction(latents, latents, [], before, after, {}), sketch)


def gaussian(sigma, radius):
    weights = torch.exp(-(torch.arange(-radius, radius + 1.0) ** 2) / (2 * sigma**2))
    return weights / weights.sum()


def soft_box(length, first, last, kernel):
    """1 from `first` to `last`, blurred, as a row of this length."""
    row = torch.zeros(length)
    row[first : last + 1] = 1
    return F.conv1d(row[None, None], kernel[None, None], padding=len(kernel) // 2)[0, 0]


# Widths in pixels, by hand: 0.024 and 0.012 of the picture's width, or of the side given; 1 and 0.5 at least.
WIDTHS = pytest.mark.parametrize(
    "height, width, size_px, radius, sigma, cut",
    [(48, 64, None, 2, 0.768, 2), (48, 64, 200, 5, 2.4, 7), (16, 16, None, 1, 0.5, 2)],
)


@WIDTHS
def test_region_mask_is_the_edit_mask_grown_and_softened_in_steps_of_a_byte(height, width, size_px, radius, sigma, cut):
    y, x, kernel = height // 2, width // 2, gaussian(sigma, cut)
    rows, columns = (soft_box(n, at - radius, at + radius, kernel) for n, at in ((height, y), (width, x)))
    expected = (rows[:, None] * columns * 255).round() / 255
    made = region_mask(box(y, y + 1, x, x + 1, height, width), size_px)
    torch.testing.assert_close(made[0], expected, atol=0.5 / 255, rtol=0)
    assert torch.equal(made, (made * 255).round() / 255)


def test_masks_are_widened_by_a_square():
    mask = torch.rand(1, 40, 60, generator=torch.Generator().manual_seed(0))
    assert torch.equal(tightened(mask, 200), -F.max_pool2d(-mask, 11, 1, 5))


@WIDTHS
def test_tightened_takes_the_dilation_back(height, width, size_px, radius, sigma, cut):
    y, x = height // 2, width // 2
    grown = box(y - radius, y + radius + 1, x - radius, x + radius + 1, height, width, 0.7)
    assert torch.equal(tightened(grown, size_px), box(y, y + 1, x, x + 1, height, width, 0.7))


def test_harmonised_moves_the_sketch_by_what_the_generator_made_of_its_coarse_colours():
    """A line that the generator added is spread over three quarters of a cell: 3 px, or 0.75 px where a cell is one."""
    image, line = torch.full((3, 32, 32), 0.2), torch.zeros(3, 32, 32)
    line[..., 16] = 0.6
    for reference_px, sigma, cut in ((8, 3.0, 9), (32, 0.75, 2), (64, 0.5, 2)):
        made = harmonised(sketch_of(image, torch.ones(1, 32, 32), reference_px), image + line)
        row = 0.2 + 0.6 * soft_box(32, 16, 16, gaussian(sigma, cut))
        torch.testing.assert_close(made, row.expand(3, 32, 32))


def test_harmonised_keeps_the_sketchs_detail_and_what_lies_outside_and_stays_in_range():
    image, mask = random_image(1, 32), box(8, 24, 8, 24, 32, 32, 0.5)
    made = harmonised(sketch_of(image, mask), image + 0.3)
    torch.testing.assert_close(made, image + 0.3 * mask)
    assert torch.equal(made[:, :8], image[:, :8])
    full = sketch_of(image, torch.ones(1, 32, 32))
    for change in (-0.7, 0.7):
        torch.testing.assert_close(harmonised(full, image + change), (image + change).clamp(-1, 1))


@pytest.mark.parametrize("harmony", [0.0, 0.25])
def test_harmonised_takes_as_much_of_the_generator_s_light_as_the_sketch_says(harmony):
    sketch = sketch_of(random_image(1) / 2, torch.ones(1, SIDE, SIDE))
    whole = harmonised(sketch, sketch.image + 0.2)
    made = harmonised(replace(sketch, harmony=harmony), sketch.image + 0.2)
    torch.testing.assert_close(made, sketch.image.lerp(whole, harmony))
    assert harmony > 0 or torch.equal(made, sketch.image)


def reduced(x):
    kernel = gaussian(1.0, 2)
    for axis, pad in ((-1, (2, 2, 0, 0)), (-2, (0, 0, 2, 2))):
        weights = kernel.view((1, 1, 1, 5) if axis == -1 else (1, 1, 5, 1))
        x = F.conv2d(F.pad(x[:, None], pad, mode="reflect"), weights)[:, 0]
    return F.avg_pool2d(x[None], 2, ceil_mode=True)[0]


def blend_by_the_book(change, mask, levels):
    """The blended change: the coarse part blended at half the size, the rest of it here."""
    if not levels:
        return mask * change
    coarse, size = reduced(change), change.shape[-2:]

    def grown(x):
        return F.interpolate(x[None], size=size, mode="bilinear")[0]

    return grown(blend_by_the_book(coarse, reduced(mask), levels - 1)) + mask * (change - grown(coarse))


@pytest.mark.parametrize("side, levels", [(SIDE, 4), (37, 0), (37, 1), (37, 3)])
def test_each_band_of_detail_crosses_over_at_its_own_size(side, levels):
    photo, edited, mask = random_image(1, side), random_image(2, side), random_image(3, side, 1).clamp(0, 1)
    expected = photo + blend_by_the_book(edited - photo, mask, levels)
    torch.testing.assert_close(laplacian_blend(photo, edited, mask, levels), expected)


def test_four_bands_are_blended_unless_told_otherwise():
    photo, edited, mask = random_image(1), random_image(2), box(10, 40, 10, 40)
    assert torch.equal(laplacian_blend(photo, edited, mask), laplacian_blend(photo, edited, mask, levels=4))


@pytest.mark.parametrize("photo_detail", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("sketch_detail", [0.0, 0.75])
def test_a_part_takes_as_much_detail_of_photo_and_sketch_as_it_says(photo_detail, sketch_detail):
    photo, before, after, mask = random_image(1), random_image(2), random_image(3), box(20, 40, 20, 40)
    part = sketch_of(random_image(4), mask, photo_detail=photo_detail, sketch_detail=sketch_detail)
    edited = laplacian_blend(photo, after, mask)
    edited = (1 - sketch_detail) * edited + sketch_detail * harmonised(part, after)
    edited = (1 - photo_detail) * edited + photo_detail * transfer_detail(photo, before, after, mask)
    soft = region_mask(mask)
    expected = (1 - soft) * photo + soft * edited
    torch.testing.assert_close(with_part(photo, before, after, part), expected)


def test_with_all_the_photos_detail_nothing_else_is_left_to_the_bit():
    photo, before, after, mask = random_image(1), random_image(2), random_image(3), box(20, 40, 20, 40)
    part = sketch_of(random_image(4), mask, photo_detail=1.0, sketch_detail=0.75)
    edited = transfer_detail(photo, before, after, mask)
    assert torch.equal(with_part(photo, before, after, part), photo + region_mask(mask) * (edited - photo))


def test_outside_the_mask_the_photo_stays_to_the_bit_whatever_the_generator_made():
    photo, mask, broken = random_image(1), box(20, 40, 20, 40), torch.full((3, SIDE, SIDE), torch.nan)
    part = sketch_of(random_image(2), mask)
    outside = (region_mask(mask) == 0).expand(3, -1, -1)
    assert outside.float().mean() > 0.5
    assert torch.equal(with_part(photo, broken, broken, part)[outside], photo[outside])
    composed = composed_of(photo, broken, broken, part)
    assert torch.equal(composed.after[outside], photo[outside])
    assert torch.equal(composed.mask, region_mask(mask))


def test_keep_region_is_bit_identical_though_a_part_reaches_beyond_the_whole():
    photo, after = random_image(1), random_image(2)
    part = sketch_of(after, box(10, 50, 10, 50))
    whole = sketch_of(after, box(20, 30, 20, 30), parts=(part,))
    composed = composed_of(photo, photo, after, whole)
    inside = (composed.mask > 0).expand(3, -1, -1)
    assert torch.equal(composed.after[~inside], photo[~inside])
    assert torch.equal(composed.after[inside], with_part(photo, photo, after, part)[inside])


def test_parts_follow_each_other_each_from_what_the_last_made():
    photo, before, after = random_image(1), random_image(2), random_image(3)
    first = sketch_of(random_image(4), box(10, 30, 10, 50))
    second = sketch_of(random_image(5), box(20, 50, 10, 50), photo_detail=1.0)
    whole = sketch_of(second.image, torch.maximum(first.edit_mask, second.edit_mask), parts=(first, second))
    once = with_part(photo, before, after.lerp(first.image, second.edit_mask), first)
    twice = with_part(once, once, after, second)
    torch.testing.assert_close(composed_of(photo, before, after, whole).after, twice.clamp(-1, 1))
    alone = composed_of(photo, before, after, replace(whole, parts=()))
    torch.testing.assert_close(alone.after, with_part(photo, before, after, whole).clamp(-1, 1))


def test_hair_that_one_part_draws_and_the_next_recolours_is_given_the_colour_once():
    """Skin on which a part draws dark hair beside dark hair; the next makes all of it light."""
    drawn, hair = box(12, 20, 8, 24), box(4, 20, 8, 24)
    skin, dark, light = 0.4, -0.8, 0.0
    photo = torch.full((3, SIDE, SIDE), skin) * (1 - hair) + dark * (hair - drawn) + skin * drawn
    first = sketch_of(photo * (1 - drawn) + dark * drawn, drawn, sketch_detail=1.0)
    recoloured = first.image * (1 - hair) + light * hair
    second = sketch_of(recoloured, hair, photo_detail=1.0)
    whole = sketch_of(recoloured, hair, parts=(first, second))
    made = composed_of(photo, photo, recoloured, whole).after
    old, new = made[:, 6:10, 12:20].mean(), made[:, 14:18, 12:20].mean()
    assert float((new - old).abs()) < 0.1


@pytest.mark.parametrize("beyond", [-1.5, 1.5])
def test_what_the_generator_made_beyond_the_range_counts_as_its_end(beyond):
    half = torch.full((1, SIDE, SIDE), 0.5)  # its region mask is 128/255
    zeros = torch.zeros(3, SIDE, SIDE)
    composed = composed_of(zeros, zeros, zeros + beyond, sketch_of(zeros, half))
    torch.testing.assert_close(composed.after, zeros + 0.5 * 128 / 255 * (1 if beyond > 0 else -1))


def test_what_the_blend_makes_beyond_the_range_is_clamped():
    photo, after = random_image(1).sign(), random_image(2).sign()
    part = sketch_of(photo, box(16, 48, 16, 48))
    raw = with_part(photo, photo, after, part)
    assert raw.min() < -1.01
    assert raw.max() > 1.01
    assert torch.equal(composed_of(photo, photo, after, part).after, raw.clamp(-1, 1))
