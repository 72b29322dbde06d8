"""upfirdn2d against its definition, its own two implementations against each other, and its derivatives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

from stylepairs.kernels.upfirdn2d import setup_filter, upfirdn2d, upsample2d

TAPS = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=torch.float64) / 8
ASYMMETRIC = torch.tensor([[0.1, 0.2, 0.4], [0.5, -0.3, 0.2]], dtype=torch.float64)


def by_definition(x, kernel, up, down, padding, flip_filter, gain) -> np.ndarray:
    """Insert zeros, pad or crop, convolve and decimate with plain loops."""
    n, c, h, w = x.shape
    big = np.zeros((n, c, h * up, w * up))
    big[:, :, ::up, ::up] = x
    left, right, top, bottom = padding
    big = np.pad(big, ((0, 0), (0, 0), (max(top, 0), max(bottom, 0)), (max(left, 0), max(right, 0))))
    height, width = big.shape[2:]
    big = big[:, :, max(-top, 0) : height - max(-bottom, 0), max(-left, 0) : width - max(-right, 0)]
    kernel = kernel if flip_filter else kernel[::-1, ::-1]
    kh, kw = kernel.shape
    out = np.zeros((n, c, big.shape[2] - kh + 1, big.shape[3] - kw + 1))
    for i in range(kh):
        for j in range(kw):
            out += kernel[i, j] * big[:, :, i : i + out.shape[2], j : j + out.shape[3]]
    return out[:, :, ::down, ::down] * gain


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    up=st.integers(1, 3),
    down=st.integers(1, 3),
    padding=st.tuples(*[st.integers(-2, 4)] * 4),
    size=st.tuples(st.integers(5, 9), st.integers(5, 9)),
    flip_filter=st.booleans(),
    gain=st.sampled_from([1.0, 4.0, 0.5]),
)
def test_equals_its_definition(up, down, padding, size, flip_filter, gain):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 3, *size))
    actual = upfirdn2d(torch.from_numpy(x), ASYMMETRIC, up, down, padding, flip_filter, gain)
    expected = by_definition(x, ASYMMETRIC.numpy(), up, down, padding, flip_filter, gain)
    np.testing.assert_allclose(actual.numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("up, down", [(1, 1), (2, 1), (1, 2), (2, 2), (3, 2)])
def test_separable_passes_equal_the_square_kernel(up, down):
    x = torch.randn(2, 3, 8, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    taps = torch.tensor([0.1, 0.4, 0.2, 0.7], dtype=torch.float64)
    arguments = {"up": up, "down": down, "padding": (2, 1, 0, 3), "gain": 1.5}
    separable = upfirdn2d(x, taps, impl="separable", **arguments)
    square = upfirdn2d(x, torch.outer(taps, taps), impl="reference", **arguments)
    torch.testing.assert_close(separable, square)
    torch.testing.assert_close(upfirdn2d(x, taps, impl="reference", **arguments), square)


@pytest.mark.parametrize("kernel", [torch.tensor([0.1, 0.4, 0.2, 0.7]), torch.rand(3, 3)], ids=["taps", "square"])
@pytest.mark.parametrize("up, before, after", [(2, 2, 1), (2, 1, 1), (2, 0, 0), (3, 2, 0), (3, 1, 1)])
@pytest.mark.parametrize("flip_filter", [False, True])
def test_transposed_convolution_equals_inserted_zeros(kernel, up, before, after, flip_filter):
    x = torch.randn(2, 3, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    padding = (before, after, before, after)
    results = []
    for impl in ("transposed", "reference"):
        leaf = x.clone().requires_grad_()
        y = upfirdn2d(leaf, kernel.double(), up, 1, padding, flip_filter, gain=2.0, impl=impl)
        results.append((y, torch.autograd.grad(y.square().sum(), leaf)[0]))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_transposed_convolution_in_lower_precision(dtype, tolerance):
    x = torch.randn(2, 3, 6, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    exact = upsample2d(x.double(), TAPS, impl="reference")
    error = (upsample2d(x, TAPS, impl="transposed").double() - exact).abs().max()
    assert error <= tolerance * exact.abs().max()


@pytest.mark.parametrize("flip_filter", [False, True])
@pytest.mark.parametrize("up, padding", [(2, (2, 1, 2, 1)), (2, (3, -1, 0, 2)), (3, (1, 1, 2, 0))])
def test_matrices_equal_inserted_zeros(up, padding, flip_filter):
    x = torch.randn(2, 3, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    taps = torch.tensor([0.1, 0.4, 0.2, 0.7], dtype=torch.float64)
    results = []
    for impl in ("matrices", "reference"):
        leaf = x.clone().requires_grad_()
        y = upfirdn2d(leaf, taps, up, 1, padding, flip_filter, gain=2.0, impl=impl)
        results.append((y, torch.autograd.grad(y.square().sum(), leaf)[0]))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_matrices_in_lower_precision(dtype, tolerance):
    x = torch.randn(2, 3, 6, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    exact = upsample2d(x.double(), TAPS, impl="reference")
    error = (upsample2d(x, TAPS, impl="matrices").double() - exact).abs().max()
    assert error <= tolerance * exact.abs().max()


@pytest.mark.parametrize("side_px", [4, 16, 64])
def test_an_upsampled_image_and_its_gradient_are_the_same_bits_in_every_batch(side_px):
    one = torch.randn(1, 3, side_px, side_px, generator=torch.Generator().manual_seed(0))
    for count in range(1, 8):
        batch = one.repeat(count, 1, 1, 1).requires_grad_()
        image = upsample2d(batch, TAPS, impl="matrices")
        (gradient,) = torch.autograd.grad(image.square().sum(), batch)
        alone = torch.autograd.grad(upsample2d(leaf := one.clone().requires_grad_(), TAPS).square().sum(), leaf)[0]
        assert torch.equal(image, upsample2d(one, TAPS).expand_as(image))
        assert torch.equal(gradient, alone.expand_as(gradient))


def test_matrices_have_second_derivatives_and_serve_calls_after_inference_mode():
    x = torch.randn(1, 2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    with torch.inference_mode():
        upsample2d(x, TAPS, impl="matrices")
    assert gradcheck(lambda image: upsample2d(image, TAPS, impl="matrices"), x)
    assert gradgradcheck(lambda image: upsample2d(image, TAPS, impl="matrices"), x, fast_mode=True)


def test_what_matrices_cannot_do_is_an_error():
    image, large = torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 129)
    for x, taps, up in (
        (image, TAPS, 1),
        (image, ASYMMETRIC, 2),
        (large, TAPS, 2),
        (image, TAPS.clone().requires_grad_(), 2),
    ):
        with pytest.raises(ValueError, match="'matrices' cannot run"):
            upfirdn2d(x, taps, up, impl="matrices")


def test_what_a_transposed_convolution_cannot_do_is_an_error():
    for arguments in ({"up": 1}, {"up": 2, "down": 2}, {"up": 2, "padding": (0, 5, 0, 5)}):
        with pytest.raises(ValueError, match="'transposed' cannot run"):
            upfirdn2d(torch.zeros(1, 1, 4, 4), TAPS, impl="transposed", **arguments)


@pytest.mark.parametrize("kernel", [TAPS, ASYMMETRIC], ids=["taps", "asymmetric"])
@pytest.mark.parametrize(
    "up, down, padding, flip_filter",
    [
        (1, 1, (1, 2, 1, 2), False),
        (2, 1, (2, 1, 2, 1), True),
        (1, 2, (1, 1, 1, 1), False),
        (2, 3, (3, -1, 0, 2), True),
    ],
)
def test_first_and_second_derivatives(kernel, up, down, padding, flip_filter):
    x = torch.randn(1, 2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    weights = kernel.clone().requires_grad_()

    def run(image: torch.Tensor, taps: torch.Tensor) -> torch.Tensor:
        return upfirdn2d(image, taps, up, down, padding, flip_filter, gain=2.0)

    assert gradcheck(run, (x, weights))
    assert gradgradcheck(run, (x, weights), fast_mode=True)


def test_filter_of_the_official_release():
    square = setup_filter()
    assert square.shape == (4, 4)
    assert square.dtype == torch.float32
    torch.testing.assert_close(square, torch.outer(TAPS, TAPS).float())
    torch.testing.assert_close(setup_filter(gain=4.0).sum(), torch.tensor(4.0))


@pytest.mark.parametrize("kernel", [TAPS, torch.outer(TAPS, TAPS)], ids=["taps", "square"])
@pytest.mark.parametrize("up", [2, 4])
def test_upsampling_keeps_a_constant_away_from_the_edges(kernel, up):
    taps = kernel if up == 2 else torch.nn.functional.interpolate(TAPS[None, None], scale_factor=2)[0, 0] / 2
    image = upsample2d(torch.ones(1, 1, 8, 8, dtype=torch.float64), taps, up=up)
    assert image.shape == (1, 1, 8 * up, 8 * up)
    torch.testing.assert_close(
        image[..., up * 2 : -up * 2, up * 2 : -up * 2], torch.ones_like(image)[..., up * 2 : -up * 2, up * 2 : -up * 2]
    )


def test_an_implementation_that_cannot_run_is_an_error_not_a_fallback():
    x = torch.zeros(1, 1, 4, 4)
    with pytest.raises(ValueError, match="separable"):
        upfirdn2d(x, torch.ones(2, 2), impl="separable")
    with pytest.raises(ValueError, match="there are: auto"):
        upfirdn2d(x, torch.ones(2), impl="cuda")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_image_keeps_its_dtype(dtype):
    assert upfirdn2d(torch.ones(1, 1, 4, 4, dtype=dtype), setup_filter(), padding=(1, 2, 1, 2)).dtype == dtype
