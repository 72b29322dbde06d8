"""The frozen inverted bottleneck: its one operation equals the plain layers, values and gradient to the input."""

import pytest
import torch
import torch.nn.functional as F

from stylepairs.kernels.inverted_bottleneck import inverted_bottleneck, strided_stem

# (expands, kernel, stride, channels out), of 8 channels in
BLOCKS = {
    "narrow": (False, 3, 1, 6),
    "residual": (True, 3, 1, 8),
    "wide residual": (True, 5, 1, 8),
    "halves": (True, 3, 2, 6),
    "wide halves": (True, 5, 2, 6),
}
SIZES = [(16, 16), (11, 14), (9, 7)]
# Relative to the norm. In bfloat16 both round, differently only on the way back.
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layer(channels_out, channels_in, kernel, seed):
    scale = 2 / (channels_in * kernel**2) ** 0.5
    return random(channels_out, channels_in, kernel, kernel, seed=seed) * scale, random(channels_out, seed=seed + 1)


def block(name):
    """x -> out of the named block."""
    expands, kernel, stride, channels = BLOCKS[name]
    width = 24 if expands else 8
    expand = layer(width, 8, 1, seed=1) if expands else None
    layers = expand, layer(width, 1, kernel, seed=3), layer(channels, width, 1, seed=5)
    return lambda x, impl: inverted_bottleneck(x, *layers, stride, impl)


def value_and_gradient(function, x, impl):
    x = x.clone().requires_grad_()
    out = function(x, impl)
    return out.detach(), torch.autograd.grad(out, x, random(*out.shape, seed=9).to(out.dtype))[0]


def assert_near(found, wanted, tolerance):
    for a, b in zip(found, wanted, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        assert (a.float() - b.float()).norm() <= tolerance * b.float().norm()


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", BLOCKS)
def test_fused_equals_the_plain_layers(name, size, dtype):
    x, function = random(2, 8, *size).to(dtype), block(name)
    wanted = value_and_gradient(function, x, "reference")
    assert_near(value_and_gradient(function, x, "fused"), wanted, TOLERANCES[dtype])
    with torch.no_grad():
        assert_near([function(x, "fused")], wanted[:1], TOLERANCES[dtype])
    assert wanted[0].std() > 0.1  # neither silent nor saturated
    assert wanted[1].float().std() > 0.01


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("size", SIZES)
def test_the_fused_stem_equals_the_plain_one(size, dtype):
    weights, x = layer(8, 3, 3, seed=1), random(2, 3, *size).to(dtype)
    found, wanted = (
        value_and_gradient(lambda x, impl: strided_stem(x, weights, impl), x, impl) for impl in ("fused", "reference")
    )
    assert_near(found, wanted, TOLERANCES[dtype])
    torch.testing.assert_close(
        wanted[0].float(), F.relu6(F.conv2d(x.float(), *weights, stride=2)), rtol=0.02, atol=0.05
    )


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("name", BLOCKS)
def test_a_sample_has_the_same_bits_in_every_place_and_company(name, dtype):
    function, x = block(name), random(8, 16, 16).to(dtype)
    found = []
    for place in range(4):
        batch = random(4, 8, 16, 16, seed=place).to(dtype) * 10
        batch[place] = x
        batch.requires_grad_()
        out = function(batch, "fused")
        found.append((out[place], torch.autograd.grad(out.square().sum(), batch)[0][place]))
    assert all(torch.equal(*pair) for other in found for pair in zip(found[0], other, strict=True))


def test_weights_that_train_take_the_plain_layers_and_an_explicit_choice_raises():
    weight, bias = layer(8, 3, 3, seed=1)
    weight.requires_grad_()
    x = random(1, 3, 8, 8)
    strided_stem(x, (weight, bias)).sum().backward()
    assert weight.grad is not None
    with pytest.raises(ValueError, match="cannot run"):
        strided_stem(x, (weight, bias), "fused")


def test_a_second_derivative_raises():
    x = random(1, 8, 8, 8).requires_grad_()
    first = torch.autograd.grad(block("residual")(x, "fused").square().sum(), x, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="differentiate twice"):
        first.sum().backward()
