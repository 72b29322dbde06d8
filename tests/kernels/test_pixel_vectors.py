"""Vectors of channels: values and gradients are those of the plain formulas; second derivatives are refused."""

import pytest
import torch

from stylepairs.kernels.pixel_vectors import squared_distance, unit


@pytest.fixture
def x():
    return torch.randn(2, 5, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def plain_unit(x, floor, length):
    return length * x / (x.square().sum(1, keepdim=True) + floor).sqrt()


def gradient(function, x):
    x = x.clone().requires_grad_()
    weights = torch.linspace(-1, 2, function(x).numel(), dtype=x.dtype).view_as(function(x))
    return torch.autograd.grad((function(x) * weights).sum(), x)[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_unit_is_its_formula_with_its_gradient(x, dtype):
    x = x.to(dtype)
    torch.testing.assert_close(unit(x, 0.1, 0.5), plain_unit(x, 0.1, 0.5))
    torch.testing.assert_close(gradient(lambda x: unit(x, 0.1, 0.5), x), gradient(lambda x: plain_unit(x, 0.1, 0.5), x))


@pytest.mark.parametrize("others", [2, 1])
def test_squared_distance_is_its_formula_with_its_gradients(x, others):
    b = x.flip(1)[:others]
    torch.testing.assert_close(squared_distance(x, b), (x - b).square().sum(1, keepdim=True))
    assert torch.equal(squared_distance(x, x), torch.zeros(2, 1, 4, 3, dtype=x.dtype))
    for function in (lambda x: squared_distance(x, b), lambda x: squared_distance(b, x)):
        torch.testing.assert_close(gradient(function, x), gradient(lambda x: (x - b).square().sum(1, keepdim=True), x))


def test_a_silent_pixel_has_finite_gradients(x):
    assert torch.isfinite(gradient(lambda x: unit(x * 0, 1e-10), x)).all()
    assert torch.equal(gradient(lambda y: squared_distance(y, x), x), torch.zeros_like(x))


@pytest.mark.parametrize("function", [lambda x: unit(x, 0.1), lambda x: squared_distance(x, x.detach() + 1)])
def test_a_second_derivative_raises(x, function):
    x.requires_grad_()
    first = torch.autograd.grad(function(x).square().sum(), x, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="differentiate twice"):
        first.sum().backward()
