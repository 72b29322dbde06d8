"""Triton kernels against the plain references: in Triton's interpreter on a CPU, compiled on a GPU."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton", reason="triton is not installed: pip install 'stylepairs[triton]' (Linux only)")

from stylepairs.kernels import plain
from stylepairs.kernels.gpu import triton_layer
from stylepairs.kernels.gpu.triton_layer import layer_tail
from stylepairs.kernels.upfirdn2d import setup_filter, upfirdn2d

TAPS = [0.1, 0.4, 0.2, 0.3]  # not symmetric
pytestmark = pytest.mark.usefixtures("on_triton_device")

# Relative to the largest value: float32 sums in another order; one rounding of the output in the half types, but the
# reference rounds after every operation.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def close(found: torch.Tensor, wanted: torch.Tensor, dtype: torch.dtype = torch.float32) -> None:
    assert found.shape == wanted.shape
    limit = TOLERANCE[dtype] * float(wanted.detach().float().abs().max().clamp_min(1))
    torch.testing.assert_close(found.float(), wanted.float(), rtol=0, atol=limit)


def image(shape, dtype=torch.float32, layout="nchw", seed=0) -> torch.Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), device="cpu")
    x = x.to(torch.get_default_device(), dtype)
    if layout == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    if layout == "strided":
        wide = torch.zeros(*shape[:3], 2 * shape[3], dtype=dtype)
        wide[..., ::2] = x
        x = wide[..., ::2]
    return x.requires_grad_()


@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(3, 9), st.integers(3, 9)),
    st.sampled_from([1, 2]),
    st.sampled_from([1, 2]),
    st.tuples(*[st.integers(-1, 3)] * 4),
    st.booleans(),
    st.sampled_from(["nchw", "channels_last", "strided"]),
    st.sampled_from([(1, 3, 3, 1), (1, 2), (1, 4, 2)]),
    st.booleans(),
)
def test_upfirdn2d_and_its_gradient_equal_the_reference(shape, up, down, padding, flip, layout, taps, square):
    kernel = setup_filter(taps) if square else torch.tensor(taps, dtype=torch.float32) / sum(taps)
    x = image(shape, layout=layout)
    if min(shape[2] * up + sum(padding[2:]), shape[3] * up + sum(padding[:2])) < len(taps):
        return
    wanted = upfirdn2d(x, kernel, up, down, padding, flip, 1.7, impl="reference")
    found = upfirdn2d(x, kernel, up, down, padding, flip, 1.7, impl="triton")
    close(found, wanted)
    g = image(wanted.shape, seed=1).detach()
    close(torch.autograd.grad(found, x, g)[0], torch.autograd.grad(wanted, x, g)[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("up", [1, 2])
def test_upfirdn2d_in_half_precision(dtype, up):
    x, kernel = image((1, 3, 6, 5), dtype, "channels_last"), torch.tensor(TAPS)
    found = upfirdn2d(x, kernel, up, 1, (2, 1, 2, 1), False, float(up * up), impl="triton")
    wide = x.detach().float().requires_grad_()
    wanted = upfirdn2d(wide, kernel, up, 1, (2, 1, 2, 1), False, float(up * up), impl="reference")
    assert found.dtype == dtype
    close(found, wanted, dtype)
    g = image(wanted.shape, dtype, seed=1).detach()
    close(torch.autograd.grad(found, x, g)[0], torch.autograd.grad(wanted, wide, g.float())[0], dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("layout", ["nchw", "channels_last", "strided"])
@pytest.mark.parametrize("fir", [False, True])
@pytest.mark.parametrize("clamp", [None, 0.8])
def test_layer_tail_and_its_gradients_equal_the_reference(dtype, layout, fir, clamp):
    x, demod = image((2, 3, 5, 7), dtype, layout), image((2, 3, 1, 1), dtype).detach().flatten(1).requires_grad_()
    taps, padding = (2 * torch.tensor(TAPS), (1, 2, 2, 1)) if fir else (None, (0, 0, 0, 0))
    noise, bias = image((1, 1, 5, 7), dtype, seed=2), image((3, 1, 1, 1), seed=3).detach().flatten().requires_grad_()
    found = layer_tail(x, demod, noise, bias, clamp=clamp, taps=taps, padding=padding)
    # The reference in float32 on the same rounded inputs: a value near the kink may fall on either side otherwise.
    inputs = (x, demod, noise, bias)
    wide = [value.detach().float().requires_grad_() for value in inputs]
    wanted = plain.layer_tail(*wide, taps, (0.2, 2**0.5, clamp, padding))
    close(found, wanted, dtype)
    g = image(wanted.shape, dtype, seed=4).detach()
    for got, right in zip(
        torch.autograd.grad(found, inputs, g), torch.autograd.grad(wanted, wide, g.float()), strict=True
    ):
        close(got, right, dtype)


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("height", [9, 12])
def test_strips_of_rows_meet(layout, height, monkeypatch):
    """More than one strip down the image, short ones and long ones, and more than one tile across."""
    monkeypatch.setattr(triton_layer, "_LARGE_PX", 10)
    monkeypatch.setattr(triton_layer, "_ROWS", 5)
    x = image((1, 33, height, 20) if layout == "channels_last" else (1, 2, height, 260), layout=layout)
    taps, padding = torch.tensor(TAPS), (1, 2, 2, 1)
    noise, demod = image((1, 1, *x.shape[2:]), seed=1), torch.linspace(0.5, 2, x.shape[1])[None].requires_grad_()
    settings = (0.2, 2**0.5, 0.8, padding)
    found = layer_tail(x, demod, noise, None, clamp=0.8, taps=taps, padding=padding)
    wanted = plain.layer_tail(x, demod, noise, None, taps, settings)
    close(found, wanted)
    g = image(wanted.shape, seed=4).detach()
    for got, right in zip(*(torch.autograd.grad(y, (x, demod, noise), g) for y in (found, wanted)), strict=True):
        close(got, right)


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_each_part_of_the_tail_can_be_left_out(missing):
    x = image((2, 3, 5, 4))
    parts = [torch.rand(2, 3), image((2, 1, 5, 4), seed=5).detach(), torch.rand(3)]
    parts[missing] = None
    close(layer_tail(x, *parts), plain.layer_tail(x, *parts, None, (0.2, 2**0.5, None, (0, 0, 0, 0))))


@pytest.mark.parametrize("fir", [False, True])
def test_second_derivatives_equal_the_reference(fir):
    taps, padding = (torch.tensor(TAPS), (1, 2, 1, 2)) if fir else (None, (0, 0, 0, 0))

    def penalty(fused: bool) -> torch.Tensor:
        x = image((1, 2, 4, 4))
        demod = x.square().mean((2, 3))  # depends on x: its path must be counted once
        arguments = (x, demod, None, torch.ones(2))
        if fused:
            out = layer_tail(*arguments, taps=taps, padding=padding)
        else:
            out = plain.layer_tail(*arguments, taps, (0.2, 2**0.5, None, padding))
        (first,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), x)[0]

    close(penalty(True), penalty(False))


def test_a_sample_has_the_same_bits_whatever_its_neighbours():
    x, noise = image((3, 4, 17, 17)), torch.rand(3, 1, 17, 17)
    alone = layer_tail(x[1:2], torch.ones(1, 4), noise[1:2], torch.ones(4))
    settings = (0.2, 2**0.5, None, (0, 0, 0, 0))
    close(alone, plain.layer_tail(x[1:2], torch.ones(1, 4), noise[1:2], torch.ones(4), None, settings))
    assert torch.equal(layer_tail(x, torch.ones(3, 4), noise, torch.ones(4))[1:2], alone)


@pytest.mark.parametrize("clamp", [None, 0.8])
def test_what_is_not_a_number_stays_so(clamp):
    x = torch.full((1, 2, 3, 3), float("nan"))
    assert layer_tail(x, bias=torch.ones(2), clamp=clamp).isnan().all()
