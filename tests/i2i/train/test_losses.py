"""Each loss term against its formula on numbers small enough to check by hand."""

from __future__ import annotations

import math

import pytest
import torch

from stylepairs.datagen.images.colors import srgb_to_lab
from stylepairs.i2i.train import losses


def flat(*values: float) -> torch.Tensor:
    """Grey images [N,3,2,2], one of each value."""
    return torch.tensor(values)[:, None, None, None].expand(-1, 3, 2, 2).clone()


def lab_of(value: float) -> torch.Tensor:
    return srgb_to_lab(flat(value))[0, :, 0, 0]


def test_pixel_l1_counts_the_region_more() -> None:
    image, target = torch.full((1, 3, 1, 2), -0.25), torch.full((1, 3, 1, 2), 0.25)
    image[..., 0] = 1.25
    region = torch.tensor([[[[1.0, 0.0]]]])
    assert losses.pixel_l1(image, target, region, 3.0).item() == pytest.approx((4 * 1.0 + 0.5) / 5)
    assert losses.pixel_l1(image, target, region, 0.0).item() == pytest.approx(0.75)


def test_perceptual_l2_sums_channels_and_levels_and_means_over_pixels_and_samples() -> None:
    features = [torch.full((2, 3, 2, 2), 0.5), torch.full((2, 5, 1, 1), 1.0)]
    target = [torch.full((2, 3, 2, 2), 0.25), torch.full((2, 5, 1, 1), 3.0)]
    assert losses.perceptual_l2(features, target).item() == pytest.approx(3 * 0.25**2 + 5 * 2.0**2)
    assert losses.perceptual_l2(features, features).item() == 0
    with pytest.raises(ValueError, match="argument"):
        losses.perceptual_l2(features, target[:1])


def test_mask_cross_entropy_pulls_where_the_stretched_mask_is_clamped_too() -> None:
    logits = torch.tensor([[[[6.0, -6.0]]]], requires_grad=True)
    loss = losses.mask_cross_entropy(logits, torch.tensor([[[[0.0, 0.0]]]]), torch.ones(1))
    assert loss.item() == pytest.approx((math.log1p(math.exp(6)) + math.log1p(math.exp(-6))) / 2)
    loss.backward()
    assert logits.grad is not None
    assert logits.grad[..., 0].item() == pytest.approx(0.5, abs=0.01)


def test_where_to_edit_is_not_learnt_of_refusals() -> None:
    """They pulled the mask down wherever one was likely: fringes of short hair had holes."""
    logits = torch.zeros(2, 1, 1, 2, requires_grad=True)
    wanted, applies = torch.tensor([1.0, 0.0])[:, None, None, None].expand(2, 1, 1, 2), torch.tensor([1.0, 0.0])
    mask = losses.mask_cross_entropy(logits, wanted, applies)
    assert mask.item() == pytest.approx(losses.mask_cross_entropy(logits[:1], wanted[:1], applies[:1]).item())
    photo = torch.zeros(2, 3, 1, 2)
    changed = photo + applies.flip(0)[:, None, None, None]
    assert losses.spill_l1(changed, photo, wanted, applies).item() == 0
    mask.backward()
    assert logits.grad is not None
    assert logits.grad[0].abs().min() > 0 == logits.grad[1].abs().max()
    assert losses.mask_cross_entropy(logits, wanted, torch.zeros(2)).item() == 0


def test_mean_color_is_weighted_by_the_region() -> None:
    image = torch.cat([flat(0.5)[..., :1], flat(-0.5)[..., :1]], dim=3)
    region = torch.tensor([0.75, 0.25]).expand(1, 1, 2, 2)
    torch.testing.assert_close(losses.mean_color(image, region)[0], 0.75 * lab_of(0.5) + 0.25 * lab_of(-0.5))
    faint = torch.full((1, 1, 2, 2), 1e-4)  # far below one pixel, the mean is still right
    torch.testing.assert_close(losses.mean_color(flat(0.5), faint)[0], lab_of(0.5))
    assert losses.mean_color(image, torch.zeros(1, 1, 2, 2)).tolist() == [[0, 0, 0]]


def test_halo_is_what_lies_beyond_the_pair_s_range_nearby() -> None:
    target = torch.full((1, 3, 16, 16), 0.5)
    target[..., 8:] = -0.5
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 4:12] = 1
    assert losses.halo_l1(target.flip(-1), target, mask, reach_px=8).item() == 0  # another strand, as bright
    rim = target.clone()
    rim[..., 7] = 0.75
    rim[..., 8] = -0.625
    wanted = (0.25 + 0.125) / 8
    assert losses.halo_l1(rim, target, mask, reach_px=2).item() == pytest.approx(wanted)
    assert losses.halo_l1(rim, target, torch.zeros_like(mask), 2).item() == 0


def test_spill_is_what_the_photo_changed_outside_the_mask_for_its_size() -> None:
    photo, mask = torch.zeros(1, 3, 4, 4), torch.zeros(1, 1, 4, 4)
    mask[..., :2] = 1
    changed = photo.clone()
    changed[..., :2] = 0.7  # inside: as it should
    assert losses.spill_l1(changed, photo, mask, torch.ones(1)).item() == 0
    changed[..., 3] = -0.5
    assert losses.spill_l1(changed, photo, mask, torch.ones(1)).item() == pytest.approx(0.25)
    assert losses.spill_l1(changed, photo, torch.zeros_like(mask), torch.ones(1)).isfinite()


def test_color_distance_is_the_mean_distance_in_lab_of_the_regions_that_are_there() -> None:
    image = flat(0.2, 0.2, 0.2)
    wanted = torch.stack(
        [lab_of(0.2) + torch.tensor(v) for v in ([0.0, 30.0, 40.0], [10.0, 0.0, 0.0], [99.0, 0.0, 0.0])]
    )
    region = torch.ones(3, 1, 2, 2)
    region[2] = 0.25  # one pixel in all: too little to say its colour
    assert losses.color_distance(image, wanted, region).item() == pytest.approx((0.5 + 0.1) / 2, abs=1e-3)
    region[2, ..., 0, 0] = 0.5  # 1.25 pixels
    assert losses.color_distance(image, wanted, region).item() == pytest.approx((0.5 + 0.1 + 0.99) / 3, abs=1e-3)


def test_color_distance_takes_colours_that_can_be_shown() -> None:
    distance = losses.color_distance(flat(2.0), lab_of(1.0)[None], torch.ones(1, 1, 2, 2))
    assert distance.item() == pytest.approx(0, abs=1e-3)
    dark = losses.color_distance(flat(-2.0), lab_of(-1.0)[None], torch.ones(1, 1, 2, 2))
    assert dark.item() == pytest.approx(0, abs=1e-3)


def test_color_distance_is_zero_at_the_wanted_mean_and_differentiable_there() -> None:
    image = torch.full((1, 3, 4, 4), 0.2, requires_grad=True)
    wanted = srgb_to_lab(image.detach())[:, :, 0, 0]
    distance = losses.color_distance(image, wanted, torch.ones(1, 1, 4, 4))
    distance.backward()
    assert distance.item() < 1e-3
    assert image.grad is not None
    assert torch.isfinite(image.grad).all()


def test_color_distance_ignores_empty_regions() -> None:
    distance = losses.color_distance(torch.zeros(1, 3, 4, 4), torch.ones(1, 3) * 50, torch.zeros(1, 1, 4, 4))
    assert distance.item() == 0


def test_latent_l2_counts_valid_samples_only() -> None:
    ws, target = torch.full((3, 3, 4), 0.5), torch.full((3, 3, 4), 1.5)
    target[1] = 3.5
    target[2] = 99.0
    assert losses.latent_l2(ws, target, torch.tensor([1.0, 1.0, 0.0])).item() == pytest.approx((1 + 9) / 2)
    assert losses.latent_l2(ws, target, torch.tensor([1.0, 0.0, 0.0])).item() == 1
    assert losses.latent_l2(ws, target, torch.zeros(3)).item() == 0


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def test_adversarial_terms_pull_the_logits_apart() -> None:
    real, fake = torch.tensor([[2.0], [0.0]]), torch.tensor([[-1.0], [3.0]])
    assert losses.generator_adversarial(fake).item() == pytest.approx((softplus(1) + softplus(-3)) / 2)
    expected = (softplus(-2) + softplus(0)) / 2 + (softplus(-1) + softplus(3)) / 2
    assert losses.discriminator_adversarial(real, fake).item() == pytest.approx(expected)


def test_r1_is_half_the_squared_gradient_and_can_be_trained_on() -> None:
    real = torch.zeros(2, 3, 4, 4, requires_grad=True)
    weight = torch.tensor(0.5, requires_grad=True)
    penalty = losses.r1_penalty(real, (real * weight).sum((1, 2, 3))[:, None])
    assert penalty.item() == pytest.approx(0.5 * 48 * 0.25)
    penalty.backward()
    assert weight.grad is not None
    assert weight.grad.item() == pytest.approx(48 * 0.5)


def strands(phase: float, period: float = 4.0) -> torch.Tensor:
    """An image [1,3,32,32] of vertical stripes."""
    return torch.cos(2 * math.pi * (torch.arange(32) / period + phase)).expand(1, 3, 32, 32) / 2


def test_smoothed_l1_ignores_strands_and_sees_colour() -> None:
    mask = torch.ones(1, 1, 32, 32)
    other = losses.smoothed_l1(strands(0.0), strands(0.5), mask, 8)
    assert other.item() == pytest.approx(0, abs=1e-6)
    assert losses.pixel_l1(strands(0.0), strands(0.5), mask, 0.0).item() > 0.4
    assert losses.smoothed_l1(strands(0.0) + 0.2, strands(0.5), mask, 8).item() == pytest.approx(0.2, abs=1e-6)


def test_spill_leaves_the_soft_edge_of_a_mask_alone() -> None:
    """It drew masks in: hair of another colour had a rim of the old one."""
    photo, mask = torch.zeros(1, 3, 4, 4), torch.zeros(1, 1, 4, 4)
    mask[..., :2], mask[..., 2] = 1, 0.3
    assert losses.spill_l1(photo + mask, photo, mask, torch.ones(1)) == 0
    assert losses.spill_l1(photo + (mask == 0), photo, mask, torch.ones(1)) > 0


def test_smoothed_l1_is_a_mean_over_the_mask_alone() -> None:
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., :4] = 1
    image = torch.zeros(1, 3, 32, 32)
    image[..., 8:] = 1
    assert losses.smoothed_l1(image + 0.5 * mask, torch.zeros_like(image), mask, 8).item() == pytest.approx(0.5)
    assert losses.smoothed_l1(image, torch.zeros_like(image), 0 * mask, 8).item() == 0
    assert losses.smoothed_l1(image + 0.5, image + 0.25, mask, 8).item() == pytest.approx(0.25)
    assert losses.smoothed_l1(image + 0.5, image, mask, 64).item() == pytest.approx(0.5)  # no finer than pixels


def test_texture_distance_sees_contrast_and_width_of_strands_and_not_where_they_lie() -> None:
    mask = torch.ones(1, 1, 32, 32)

    def features(image: torch.Tensor) -> list[torch.Tensor]:
        return [torch.cat([image, image.diff(dim=3, append=image[..., :1])], 1)]

    pair, shifted = features(strands(0.0)), features(strands(0.25))
    smear, wider = features(torch.zeros(1, 3, 32, 32)), features(strands(0.0, 16.0))
    alike = losses.texture_distance(pair, shifted, mask, 8).item()
    assert alike < 0.01
    assert losses.texture_distance(smear, pair, mask, 8).item() > 0.3
    assert losses.texture_distance(wider, pair, mask, 8).item() > 0.1
    assert losses.texture_distance(smear, pair, 0 * mask, 8).item() == 0


def test_texture_distance_is_a_mean_over_channels_and_masked_places_and_a_sum_over_levels() -> None:
    mask = torch.zeros(2, 1, 8, 8)
    mask[0, :, :4] = 1
    flat_features = [torch.full((2, 3, 8, 8), 0.5), torch.full((2, 5, 4, 4), -0.25)]
    zero = [torch.zeros_like(x) for x in flat_features]
    assert losses.texture_distance(flat_features, zero, mask, 4).item() == pytest.approx(0.5 + 0.25, rel=1e-4)
    stripes = torch.ones(2, 3, 8, 8)
    stripes[..., 1::2] = -1  # no mean, deviation 1 against the least, 0.01
    assert losses.texture_distance([stripes], zero[:1], mask, 4).item() == pytest.approx(0.99, rel=1e-4)
    faint = 0.01 * mask  # a place counts by its share, and its means are right however small that is
    assert losses.texture_distance(flat_features[:1], zero[:1], faint, 4).item() == pytest.approx(0.5, rel=1e-4)


def test_texture_distance_draws_a_flat_image_towards_strands() -> None:
    torch.manual_seed(0)
    image = (0.05 * torch.randn(1, 3, 32, 32)).requires_grad_()
    target, mask = [strands(0.3)], torch.ones(1, 1, 32, 32)
    optimizer = torch.optim.Adam([image], 0.02)
    for _ in range(60):
        optimizer.zero_grad()
        losses.texture_distance([image], target, mask, 8).backward()
        optimizer.step()
    assert image.detach().std() == pytest.approx(float(target[0].std()), rel=0.1)


def test_confidence_is_told_apart_by_its_logit() -> None:
    logits = torch.tensor([2.0, -1.0])
    expected = 2 * (0.2 * softplus(-2) + 0.8 * softplus(-1)) / 2
    assert losses.confidence_cross_entropy(logits, torch.tensor([1.0, 0.0]), 0.2).item() == pytest.approx(expected)
    applies = (torch.arange(100) >= 20).float()  # a fifth are refused: to say nothing is to say one half
    guess = torch.zeros(100, requires_grad=True)
    losses.confidence_cross_entropy(guess, applies, 0.2).backward()
    assert guess.grad is not None
    assert guess.grad.sum().item() == pytest.approx(0, abs=1e-6)


def test_layers_are_summed_and_scales_meaned_and_logits_left_out() -> None:
    def scale(*values: float) -> list[torch.Tensor]:
        return [torch.full((1, 2, 4, 4), value) for value in values]

    found, wanted = [scale(1.0, 2.0, 9.0), scale(0.5, -1.0, 9.0)], [scale(0.5, 1.0, 0.0), scale(0.0, 1.0, 0.0)]
    assert losses.layers_l1(found, wanted).item() == pytest.approx((0.5 + 1.0 + 0.5 + 2.0) / 2)


def test_least_squares_judges_the_logits_of_each_scale() -> None:
    maps = [[torch.full((1, 2, 4, 4), 7.0), torch.full((2, 1, 2, 2), value)] for value in (0.5, -1.0)]
    assert losses.least_squares(maps, 1.0).item() == pytest.approx(0.25 + 4.0)
