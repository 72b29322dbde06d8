"""modulated_conv2d: shared weights against per-sample weights, what demodulation promises, and derivatives."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck

from stylepairs.kernels.modulated_conv2d import demodulation, modulated_conv2d
from stylepairs.kernels.upfirdn2d import setup_filter

TAPS = setup_filter().sum(0)


def inputs(kernel: int = 3, size: int = 5, channels_in: int = 3, channels_out: int = 4):
    """x [2,Cin,size,size], weight [Cout,Cin,kernel,kernel], styles [2,Cin], float64."""
    generator = torch.Generator().manual_seed(kernel)
    x = torch.randn(2, channels_in, size, size, dtype=torch.float64, generator=generator)
    weight = torch.randn(channels_out, channels_in, kernel, kernel, dtype=torch.float64, generator=generator)
    styles = torch.randn(2, channels_in, dtype=torch.float64, generator=generator) + 1
    return x, weight, styles


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("up", [1, 2])
@pytest.mark.parametrize("demodulate", [True, False])
def test_shared_weights_equal_per_sample_weights(kernel, up, demodulate):
    x, weight, styles = inputs(kernel)
    arguments = {"up": up, "resample_kernel": TAPS.double(), "demodulate": demodulate}
    shared = modulated_conv2d(x, weight, styles, impl="shared", **arguments)
    grouped = modulated_conv2d(x, weight, styles, impl="grouped", **arguments)
    assert shared.shape == (2, 4, 5 * up, 5 * up)
    torch.testing.assert_close(shared, grouped)


@pytest.mark.parametrize("up", [1, 2])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("demodulate", [True, False])
@pytest.mark.parametrize("impl", ["shared", "grouped"])
def test_first_and_second_derivatives(up, kernel, demodulate, impl):
    x, weight, styles = (value.requires_grad_() for value in inputs(kernel, size=2, channels_in=2, channels_out=1))

    def run(image: torch.Tensor, filters: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        return modulated_conv2d(image, filters, scales, up, TAPS.double(), demodulate, impl)

    assert gradcheck(run, (x, weight, styles))
    assert gradgradcheck(run, (x, weight, styles), fast_mode=True)


@pytest.mark.parametrize("demodulate", [True, False])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_pixelwise_product_equals_per_sample_weights(demodulate, dtype, tolerance, layout):
    x, weight, styles = inputs(kernel=1, channels_in=6, channels_out=4)
    results = []
    for impl, kind in (("grouped", torch.float64), ("pixelwise", dtype)):
        wide = torch.promote_types(kind, torch.float32)  # weights and styles, as under autocast
        leaves = [x.to(kind).contiguous(memory_format=layout), weight.to(wide), styles.to(wide)]
        leaves = [value.requires_grad_() for value in leaves]
        y = modulated_conv2d(*leaves, demodulate=demodulate, impl=impl)
        assert y.dtype == kind
        results.append([y, *torch.autograd.grad(y.square().sum(), leaves)])
    for exact, actual in zip(*results, strict=True):
        assert (actual.double() - exact).abs().max() <= tolerance * exact.abs().max()


@pytest.mark.parametrize("demodulate", [True, False])
def test_derivatives_of_the_pixelwise_product(demodulate):
    leaves = [value.requires_grad_() for value in inputs(1, size=2, channels_in=3, channels_out=2)]

    def run(image: torch.Tensor, filters: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        return modulated_conv2d(image, filters, scales, demodulate=demodulate, impl="pixelwise")

    assert gradcheck(run, leaves)
    assert gradgradcheck(run, leaves, fast_mode=True)


def test_pixelwise_product_needs_weights_of_one_pixel():
    with pytest.raises(ValueError, match="'pixelwise' cannot run"):
        modulated_conv2d(*inputs(kernel=3), impl="pixelwise")


def test_demodulation_is_the_inverse_norm_of_the_scaled_filters():
    _, weight, styles = inputs()
    norms = (weight[None] * styles[:, None, :, None, None]).flatten(2).norm(dim=2)
    torch.testing.assert_close(demodulation(weight, styles), 1 / norms, rtol=1e-6, atol=0)


def test_demodulation_keeps_full_precision_under_autocast():
    _, weight, styles = (value.float() for value in inputs())
    with torch.autocast("cpu", torch.bfloat16):
        mixed = demodulation(weight, styles.bfloat16())
    assert mixed.dtype == torch.float32
    assert torch.equal(mixed, demodulation(weight, styles.bfloat16().float()))


def test_output_does_not_change_with_the_scale_of_the_styles():
    x, weight, styles = inputs()
    torch.testing.assert_close(modulated_conv2d(x, weight, styles), modulated_conv2d(x, weight, 10 * styles))


def test_output_of_unit_noise_has_unit_variance():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 64, 32, 32, generator=generator)
    weight = torch.randn(16, 64, 3, 3, generator=generator)
    y = modulated_conv2d(x, weight, 1 + torch.rand(2, 64, generator=generator))
    # Inner pixels: at the border the padding's zeros take variance away.
    assert abs(y[..., 2:-2, 2:-2].var().item() - 1) < 0.1


def test_without_demodulation_and_with_unit_styles_it_is_a_convolution():
    x, weight, styles = inputs()
    y = modulated_conv2d(x, weight, torch.ones_like(styles), demodulate=False)
    torch.testing.assert_close(y, F.conv2d(x, weight, padding=1))


def test_samples_do_not_influence_each_other():
    x, weight, styles = inputs()
    both = modulated_conv2d(x, weight, styles, up=2, resample_kernel=TAPS.double())
    one = modulated_conv2d(x[1:], weight, styles[1:], up=2, resample_kernel=TAPS.double())
    torch.testing.assert_close(both[1:], one)


def test_wrong_arguments_are_named():
    x, weight, styles = inputs()
    with pytest.raises(ValueError, match="up must be 1 or 2"):
        modulated_conv2d(x, weight, styles, up=3)
    with pytest.raises(ValueError, match="resample_kernel"):
        modulated_conv2d(x, weight, styles, up=2)
    with pytest.raises(ValueError, match="there are"):
        modulated_conv2d(x, weight, styles, impl="fused")
