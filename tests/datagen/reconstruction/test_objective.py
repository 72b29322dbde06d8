"""Objective terms and the latent prior: what each term sees and what it ignores."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stylepairs.datagen.images.colors import srgb_to_lab
from stylepairs.datagen.reconstruction.objective import (
    LAB_SCALE,
    anchor_distance,
    clamped,
    downsample,
    in_space,
    masked_downsample,
    noise_autocorrelation,
    prior_norm,
    pyramid_l1,
    reference_colors,
    reference_errors,
    row_spread,
)
from stylepairs.datagen.reconstruction.prior import WPrior
from stylepairs.datagen.stylegan.generator import Generator, GeneratorConfig

SIDE = 32


@pytest.fixture(scope="module")
def generator() -> Generator:
    torch.manual_seed(0)
    return Generator(GeneratorConfig(16, 24, 32, 3, 512, 32, 2)).eval().requires_grad_(False)


def random_images(seed: int, count: int = 2) -> torch.Tensor:
    return torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.sampled_from([4, 8, 16]))
def test_masked_downsample_never_sees_outside_the_mask(seed, size):
    image = random_images(seed)
    mask = (torch.rand(2, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(seed + 1)) > 0.6).float()
    changed = image * mask + random_images(seed + 2) * (1 - mask)
    torch.testing.assert_close(masked_downsample(image, mask, size), masked_downsample(changed, mask, size))


@pytest.mark.parametrize("in_lab", [True, False])
def test_reference_error_is_small_only_for_the_sketch_and_ignores_detail(in_lab):
    mask = torch.zeros(2, 1, SIDE, SIDE)
    mask[..., :16, :] = 1
    flat = torch.full((2, 3, SIDE, SIDE), 0.2)
    stripes = flat + 0.1 * torch.tensor([1.0, -1.0]).repeat(SIDE // 2)
    lab = torch.tensor([in_lab, in_lab])
    references = [reference_colors(flat, mask, size, lab) for size in (8, 4)]
    assert reference_errors(stripes, references, mask, lab).max() < 1e-3
    assert reference_errors(flat + 0.3, references, mask, lab).min() > 0.1


def test_reference_errors_are_those_of_each_size_and_portrait_alone():
    image, sketch, mask = random_images(1), random_images(2), random_images(3)[:, :1] / 2 + 0.5
    lab = torch.tensor([True, False])
    errors = reference_errors(image, [reference_colors(sketch, mask, size, lab) for size in (16, 8, 4)], mask, lab)
    for row, size in enumerate((16, 8, 4)):
        weight = torch.nn.functional.avg_pool2d(mask, SIDE // size)
        small, wanted = masked_downsample(image, mask, size), masked_downsample(sketch, mask, size)
        difference = torch.stack([(srgb_to_lab(small[0]) - srgb_to_lab(wanted[0])) / LAB_SCALE, small[1] - wanted[1]])
        expected = ((difference.square().mean(1, keepdim=True) * weight).sum((1, 2, 3)) / weight.sum((1, 2, 3))).sqrt()
        torch.testing.assert_close(errors[row], expected)


def test_reference_error_pulls_back_a_render_beyond_the_range():
    mask = torch.ones(1, 1, SIDE, SIDE)
    reference = torch.ones(1, 3, 4, 4)
    image = torch.full((1, 3, SIDE, SIDE), 1.5, requires_grad=True)
    lab = torch.tensor([True])
    reference_errors(image, [in_space(reference, lab)], mask, lab).sum().backward()
    assert (image.grad > 0).all()


def test_a_met_sketch_stops_pulling():
    error = torch.tensor([0.02, 0.05], requires_grad=True)
    clamped(error, 0.03).sum().backward()
    assert error.grad.tolist() == [0, 1]


def test_noise_autocorrelation_tells_noise_from_structure():
    white = torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    rows = torch.randn(1, 1, 64, 1, generator=torch.Generator().manual_seed(0)).expand(-1, -1, -1, 64)
    assert noise_autocorrelation([white])[0] < 0.2 < noise_autocorrelation([rows])[0]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_whitening_is_inverted_exactly(generator, seed):
    prior = WPrior.fit(generator, samples=2000)
    w = torch.randn(3, generator.num_ws, 24, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(prior.unwhiten(prior.whiten(w)), w, atol=1e-3, rtol=1e-3)


def test_prior_distance_is_one_for_samples_and_large_far_away(generator):
    prior = WPrior.fit(generator, samples=4000)
    z = torch.randn(64, 16, generator=torch.Generator().manual_seed(5))
    ws = generator.mapping(z)
    assert prior.distance(ws).mean().item() == pytest.approx(1, abs=0.15)
    assert prior.distance(ws * 3).mean() > 2
    assert prior_norm(prior.whiten(ws)).mean().item() == pytest.approx(1, abs=0.3)
    assert row_spread(prior.whiten(ws)).max() < 1e-6


def test_noise_autocorrelation_is_the_sum_over_maps_and_levels():
    maps = [torch.randn(2, 1, size, size, generator=torch.Generator().manual_seed(size)) for size in (4, 8, 16, 16, 32)]
    expected = torch.zeros(2)
    for noise in maps:
        while noise.shape[-1] >= 8:
            for axis in (2, 3):
                expected += (noise * noise.roll(1, axis)).mean((1, 2, 3)).square()
            noise = torch.nn.functional.avg_pool2d(noise, 2) * 2
    torch.testing.assert_close(noise_autocorrelation(maps), expected)


def test_pyramid_l1_by_hand():
    image, mask = torch.zeros(1, 3, 8, 8), torch.zeros(1, 1, 8, 8)
    image[:, :, ::2], mask[:, :, :, :4] = 0.6, 1.0  # rows of 0.6 and 0, the left half counts
    image[:, 0] += 0.3
    image[:, :, :, 4:] = 9.0
    fine = pyramid_l1(image, torch.zeros(1, 3, 8, 8), mask, levels=1)
    assert fine.tolist() == pytest.approx([0.4])
    signed = image.clone()
    signed[:, :, 1::2] = -image[:, :, ::2]  # rows of a and -a: nothing is left of them at the coarser levels
    assert pyramid_l1(signed, torch.zeros(1, 3, 8, 8), mask).item() == pytest.approx(0.7 / 3)
    assert pyramid_l1(signed, torch.zeros(1, 3, 8, 8), mask, levels=1).item() == pytest.approx(0.7)
    assert pyramid_l1(image, torch.zeros(1, 3, 8, 8), mask * 0).item() == 0


def test_pyramid_l1_without_a_mask_counts_every_pixel():
    image, target, ones = random_images(1, 3), random_images(2, 3), torch.ones(3, 1, SIDE, SIDE)
    torch.testing.assert_close(pyramid_l1(image, target), pyramid_l1(image, target, ones))


def test_pixels_are_compared_with_the_target():
    """The other tests' targets are black, where a sum is as good as a difference."""
    image, target, mask = random_images(1), random_images(2), random_images(3)[:, :1] / 2 + 0.5
    difference, nothing = image - target, torch.zeros_like(image)
    assert pyramid_l1(target, target, mask).tolist() == [0, 0]
    torch.testing.assert_close(pyramid_l1(image, target, mask), pyramid_l1(difference, nothing, mask))
    torch.testing.assert_close(pyramid_l1(image, target), pyramid_l1(difference, nothing))


def test_anchor_distance_by_hand():
    u, start = torch.zeros(2, 3, 4), torch.zeros(2, 3, 4)
    u[0, 1], u[1, 2] = 2.0, 1.0
    assert anchor_distance(u, start, torch.tensor([1.0, 0.5, 3.0])).tolist() == pytest.approx([2 / 3, 1.0])


def test_row_spread_prior_norm_and_clamped_by_hand():
    u = torch.tensor([[[1.0, 1.0], [3.0, 1.0]]])
    assert row_spread(u).item() == pytest.approx(0.5)
    assert prior_norm(u).item() == pytest.approx(3.0)
    assert clamped(torch.tensor([0.05, 0.02]), 0.03).tolist() == pytest.approx([0.02, 0.0])


def test_noise_autocorrelation_by_hand():
    """Stripes: neighbours along them are equal, across them opposite; nothing is left of them at half the size."""
    stripes = torch.ones(2, 1, 8, 8)
    stripes[:, :, 1::2] = -1
    assert noise_autocorrelation([stripes]).tolist() == pytest.approx([2.0, 2.0])
    assert noise_autocorrelation([stripes, stripes * 0]).tolist() == pytest.approx([2.0, 2.0])
    flat = torch.ones(1, 1, 16, 16)  # 16 px: 1 + 1; 8 px, twice as large: 16 + 16; nothing coarser
    assert noise_autocorrelation([flat]).item() == pytest.approx(34.0)
    assert noise_autocorrelation([torch.ones(1, 1, 4, 4)]).item() == 0


def test_downsample_is_an_area_average_and_never_enlarges():
    image = torch.arange(16.0).view(1, 1, 4, 4)
    assert downsample(image, 2).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert downsample(image, 4) is image
    assert downsample(image, 8) is image
    with pytest.raises(ValueError, match="3 is no divisor of the image's side, 4"):
        downsample(image, 3)


def test_a_masked_difference_is_the_mean_however_little_is_masked():
    image, mask = torch.zeros(2, 3, 4, 4), torch.zeros(2, 1, 4, 4)
    image[0, 0, 1, 1], mask[0, 0, 1, 1] = 0.6, 0.25
    image[1], mask[1] = -0.3, 0.01
    assert pyramid_l1(image, torch.zeros_like(image), mask, levels=1).tolist() == pytest.approx([0.2, 0.3])


def test_in_space_is_lab_by_fifty_where_asked_and_nothing_beyond_white():
    image = torch.tensor([1.5, 1.5, -3.0])[:, None, None, None].expand(3, 3, 2, 2)
    made = in_space(image, torch.tensor([True, False, True]))
    torch.testing.assert_close(made[0, :, 0, 0], torch.tensor([2.0, 0.0, 0.0]), atol=1e-3, rtol=0)  # white: L 100
    assert torch.equal(made[1], image[1])
    torch.testing.assert_close(made[2], torch.zeros(3, 2, 2), atol=1e-3, rtol=0)
    assert in_space(image, None) is image


def test_each_cells_colour_is_its_own_however_little_of_it_is_masked():
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 0, 0], mask[..., 4:, 4:] = 0.5, 1.0
    made = masked_downsample(torch.full((1, 3, 8, 8), 0.6), mask, 2)
    torch.testing.assert_close(made[0], torch.tensor([[0.6, 0.0], [0.0, 0.6]]).expand(3, 2, 2))


def test_beyond_the_range_a_render_in_lab_is_as_far_off_as_it_left_it():
    """Red 0.6 too bright: sqrt(0.36 / 3); all 0.5 too dark: 0.5; in RGB the distance says it already."""
    image = torch.ones(3, 3, 8, 8)
    image[0, 0], image[1], image[2] = 1.6, -1.5, 1.5
    lab, mask = torch.tensor([True, True, False]), torch.full((3, 1, 8, 8), 0.01)
    wanted = image.clone()
    wanted[:2] = in_space(image[:2].clamp(-1, 1), lab[:2])
    errors = reference_errors(image, [wanted[:, :, :4, :4], wanted[:, :, :2, :2]], mask, lab)
    assert errors.shape == (2, 3)
    for row in errors:
        assert row.tolist() == pytest.approx([0.12**0.5, 0.5, 1e-4], rel=1e-3)


def test_distances_are_root_mean_squares_over_cells_and_channels_weighed_by_the_mask():
    image, mask = torch.zeros(1, 3, 4, 4), torch.ones(1, 1, 4, 4)
    image[..., :2], mask[..., 2:] = 0.6, 0.2  # five sixths of the weight are 0.6 off in one channel of three
    image[:, 1:] = 0.0
    errors = reference_errors(image, [torch.zeros(1, 3, 2, 2)], mask, None)
    assert errors.tolist() == [[pytest.approx((0.36 / 3 * 5 / 6) ** 0.5)]]


def test_latents_are_compared_portrait_by_portrait_and_row_by_row():
    u = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[0.0, 0.0], [0.0, 2.0]]])
    assert row_spread(u).tolist() == pytest.approx([1.0, 0.5])
    assert prior_norm(u).tolist() == pytest.approx([7.5, 1.0])
    start = torch.tensor([[[1.0, 1.0], [1.0, 1.0]]]).expand(2, 2, 2)
    assert anchor_distance(u, start, torch.tensor([2.0, 0.5])).tolist() == pytest.approx([2.125, 1.25])


def _terms(count: int) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Each term of a batch of `count` times one portrait, and its gradient to what is optimised."""
    image, photo, u, start, noise, mask = (
        x.repeat(count, *[1] * (x.ndim - 1))
        for x in (
            random_images(1, 1) * 1.1,
            random_images(2, 1),
            torch.randn(1, 6, 24, generator=torch.Generator().manual_seed(3)),
            torch.randn(1, 6, 24, generator=torch.Generator().manual_seed(4)),
            torch.randn(1, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(5)),
            random_images(6, 1)[:, :1] / 2 + 0.5,
        )
    )
    lab = torch.ones(count, dtype=torch.bool)
    references = [reference_colors(photo, mask, size, lab) for size in (16, 8, 4)]
    terms = {
        "pyramid_l1": (lambda x: pyramid_l1(x, photo, mask), image),
        "pyramid_l1 without a mask": (lambda x: pyramid_l1(x, photo), image),
        "reference_errors": (lambda x: reference_errors(x, references, mask, lab).T, image),
        "prior_norm": (prior_norm, u),
        "row_spread": (row_spread, u),
        "anchor_distance": (lambda x: anchor_distance(x, start, torch.linspace(1, 2, 6)), u),
        "noise_autocorrelation": (lambda x: noise_autocorrelation([x]), noise),
    }
    found = {f"reference_colors {ref.shape[-1]}": (ref, ref) for ref in references}
    for name, (term, x) in terms.items():
        value = term(leaf := x.clone().requires_grad_())
        found[name] = (value, torch.autograd.grad(value.sum(), leaf)[0])
    return found


@pytest.mark.parametrize("count", [2, 3, 4, 5, 6, 7])
def test_a_portraits_bits_are_the_same_in_every_place_of_a_batch(count):
    alone = _terms(1)
    for name, together in _terms(count).items():
        for one, many in zip(alone[name], together, strict=True):
            assert torch.equal(many, one.expand_as(many)), name
