"""bias_act against its definition, and its derivatives."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

from stylepairs.kernels.bias_act import bias_act


def by_definition(x: float, bias: float, act: str, slope: float, gain: float | None, clamp: float | None) -> float:
    y = x + bias
    if act != "linear" and y < 0:
        y *= slope if act == "lrelu" else 0.0
    y *= (1.0 if act == "linear" else math.sqrt(2.0)) if gain is None else gain
    return y if clamp is None else max(-clamp, min(clamp, y))


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    values=st.lists(st.floats(-5, 5), min_size=3, max_size=3),
    act=st.sampled_from(["linear", "relu", "lrelu"]),
    slope=st.sampled_from([0.2, 0.01]),
    gain=st.sampled_from([None, 1.0, 0.5, 3.0]),
    clamp=st.sampled_from([None, 1.0, 256.0]),
)
def test_equals_its_definition(values, act, slope, gain, clamp):
    bias = [0.5, -0.25, 0.0]
    x = torch.tensor([values], dtype=torch.float64)
    actual = bias_act(x, torch.tensor(bias, dtype=torch.float64), act=act, slope=slope, gain=gain, clamp=clamp)
    expected = [by_definition(v, b, act, slope, gain, clamp) for v, b in zip(values, bias, strict=True)]
    torch.testing.assert_close(actual, torch.tensor([expected], dtype=torch.float64))


@pytest.mark.parametrize("dim", [0, 1, 2, 3])
def test_bias_goes_along_the_given_axis(dim):
    x = torch.zeros(2, 3, 4, 5)
    bias = torch.arange(x.shape[dim]).float()
    y = bias_act(x, bias, dim=dim)
    assert torch.equal(y.movedim(dim, -1), bias.expand(*y.movedim(dim, -1).shape))


@pytest.mark.parametrize("act", ["linear", "relu", "lrelu"])
@pytest.mark.parametrize("clamp", [None, 0.7])
@pytest.mark.parametrize("gain", [None, 2.0])
def test_first_and_second_derivatives(act, clamp, gain):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 2, 2, dtype=torch.float64, generator=generator, requires_grad=True)
    bias = torch.randn(3, dtype=torch.float64, generator=generator, requires_grad=True)

    def run(image: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
        # The square makes second derivatives appear where the activation is linear.
        return bias_act(image, offset, act=act, gain=gain, clamp=clamp).square()

    assert gradcheck(run, (x, bias))
    assert gradgradcheck(run, (x, bias), fast_mode=True)


def test_variance_of_unit_noise_is_kept_by_relu_gain():
    x = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    assert abs(bias_act(x[None], act="relu").square().mean().item() - 1) < 0.02


def test_unknown_activation_is_named():
    with pytest.raises(ValueError, match="swish"):
        bias_act(torch.zeros(1, 1), act="swish")


def test_half_precision_stays_half():
    assert bias_act(torch.zeros(1, 2).half(), torch.zeros(2), act="lrelu").dtype == torch.float16
