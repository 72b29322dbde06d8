"""The one blur, the one reading at points, the one PSNR."""

import math

import pytest
import torch

from stylepairs.datagen.images.filters import PSNR_IDENTICAL_DB, blurred, guided, psnr, psnr_db, read_at


def test_a_blurred_point_is_a_gaussian_that_is_cut_off():
    point = torch.zeros(1, 33, 33)
    point[0, 16, 16] = 1
    soft = blurred(point, 2.0)
    assert soft.sum().item() == pytest.approx(1, abs=1e-5)
    along = soft[0, 16]
    assert (along[18] / along[16]).item() == pytest.approx(math.exp(-0.5), abs=1e-4)
    assert (along > 0).sum() == 13, "three deviations"
    assert (blurred(point, 2.0, radius_px=4)[0, 16] > 0).sum() == 9


def test_blur_takes_batches_and_images_narrower_than_its_reach():
    image = torch.rand(3, 4, 20, generator=torch.Generator().manual_seed(0))
    assert torch.equal(blurred(image[None], 8.0)[0], blurred(image, 8.0))
    assert torch.allclose(blurred(torch.ones(1, 2, 5), 9.0), torch.ones(1, 2, 5))


@pytest.mark.parametrize("side", [40, 260], ids=["small", "large"])
def test_it_is_kornias_blur_with_a_gradient_also_after_inference(side):
    from kornia.filters import gaussian_blur2d

    image = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        blurred(image, 1.7)
    image.requires_grad_()
    found, wanted = blurred(image, 1.7), gaussian_blur2d(image, 11, (1.7, 1.7))
    assert torch.equal(found, wanted)
    assert torch.equal(*(torch.autograd.grad(each.square().sum(), image)[0] for each in (found, wanted)))


@pytest.fixture
def kernels(monkeypatch):
    """The sizes of all kernels that images are convolved with from now on."""
    seen, convolve = [], torch.conv2d

    def noted(image, weight, *rest, **options):
        seen.append(weight.shape[-2] * weight.shape[-1])
        return convolve(image, weight, *rest, **options)

    for module in (torch, torch.nn.functional):
        monkeypatch.setattr(module, "conv2d", noted)
    return seen


@pytest.mark.parametrize(("shape", "sigma"), [((512, 512), 128.0), ((300, 410), 61.0), ((5, 400), 45.0)])
def test_a_wide_blur_is_kornias_by_short_kernels(shape, sigma, kernels):
    from kornia.filters import gaussian_blur2d

    image = torch.rand(1, 2, *shape, generator=torch.Generator().manual_seed(0)).cumsum(-1) / shape[-1]
    found = blurred(image, sigma)
    assert max(kernels) <= 241
    wanted = gaussian_blur2d(image, 2 * min(round(3 * sigma), min(shape) - 1) + 1, (sigma, sigma))
    assert (found - wanted).abs().max() < 0.005


@pytest.mark.parametrize("radius", [2, 9])
def test_the_guided_filter_is_kornias_by_short_kernels(radius, kernels):
    from kornia.filters import guided_blur

    draw = torch.Generator().manual_seed(0)
    image, matte = torch.rand(3, 60, 50, generator=draw) * 2 - 1, torch.rand(1, 60, 50, generator=draw)
    found = guided(matte, image, radius, 1e-3)
    assert max(kernels) <= 25
    wanted = guided_blur((image[None] + 1) / 2, matte[None], 2 * radius + 1, 1e-3)[0]
    assert torch.allclose(found, wanted, atol=1e-4)


def test_read_at_takes_x_before_y_and_pixel_centres_at_integers():
    plane = torch.arange(15.0).view(1, 3, 5)  # 5 y + x
    places = torch.tensor([[[2.0, 1.0], [0.5, 1.25]], [[4.0, 2.0], [9.0, -3.0]]])
    assert torch.allclose(read_at(plane, places), torch.tensor([[[7.0, 6.75], [14.0, 4.0]]]), atol=1e-5)
    outside = torch.tensor([[5.0, 0.0]])
    assert read_at(plane, outside, padding="zeros").item() == pytest.approx(0, abs=1e-4)
    assert read_at(plane, outside, padding="reflection").item() == pytest.approx(3, abs=1e-4)
    assert read_at(plane, torch.tensor([[1.4, 0.6]]), mode="nearest").item() == 6


def test_psnr_is_that_of_eight_bit_images():
    image = torch.zeros(1, 3, 8, 8)
    assert psnr(image + 2 * 10 / 255, image, torch.ones(1, 1, 8, 8)).item() == pytest.approx(28.13, abs=0.01)


def test_psnr_counts_what_the_mask_shows():
    image = torch.full((3, 4, 4), 0.1)
    mask = torch.zeros(1, 4, 4)
    mask[:, :2] = 1
    image[:, 2:] = 0.9
    assert psnr_db(image, torch.zeros(3, 4, 4), mask) == pytest.approx(10 * math.log10(4 / 0.01), abs=1e-3)
    assert psnr_db(image, image, mask) == pytest.approx(PSNR_IDENTICAL_DB)
    assert math.isnan(psnr_db(image, image, torch.zeros(1, 4, 4)))
    assert math.isnan(psnr_db(image * math.nan, image, mask))
