"""modulated_layer: the fused layer against plain operations, per dtype, in value, first and second derivatives."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from stylepairs.kernels.modulated_layer import modulated_layer

TAPS = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
ASYMMETRIC = torch.tensor([0.1, 0.4, 0.2, 0.3])
# Against plain operations in float64: largest difference over largest value; in bfloat16 root mean squares.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 5e-2}


def inputs(dtype, up=1, size=8, batch=3, channels_in=12, channels_out=10, noise_shape=None):
    """Smooth enough that rounding moves few values over the activation's kink."""
    generator = torch.Generator().manual_seed(up)
    wide = torch.float64 if dtype == torch.float64 else torch.float32

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=wide)

    x, styles = draw(batch, channels_in, size, size).to(dtype), draw(batch, channels_in) + 1
    noise = 0.3 * draw(*(noise_shape or (batch, 1, size * up, size * up)))
    return x, draw(channels_out, channels_in, 3, 3), styles, draw(channels_out), noise


def value_and_gradients(impl, x, weight, styles, bias, noise, **settings):
    leaves = [value.detach().clone().requires_grad_() for value in (x, styles, noise)]
    y = modulated_layer(leaves[0], weight, leaves[1], bias, leaves[2], impl=impl, **settings)
    direction = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).reshape(y.shape).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, leaves, direction)]


def relative_errors(actual, expected):
    return [((a.double() - e).abs().max() / e.abs().max()).item() for a, e in zip(actual, expected, strict=True)]


@pytest.mark.parametrize("up", [1, 2])
@pytest.mark.parametrize("clamp", [None, 4.0])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_fused_equals_plain_operations(dtype, up, clamp):
    arguments = inputs(dtype, up)
    settings = {"up": up, "resample_kernel": ASYMMETRIC.to(arguments[1].dtype), "clamp": clamp, "slope": 0.3}
    actual = value_and_gradients("fused", *arguments, **settings)
    settings["resample_kernel"] = ASYMMETRIC.to(arguments[1].dtype).double()
    exact = value_and_gradients("reference", *(value.double() for value in arguments), **settings)
    assert [value.dtype for value in actual] == [arguments[i].dtype for i in (0, 0, 2, 4)]
    if dtype == torch.bfloat16:  # values at the kink or the clamp may take the other side there: compared in the mean
        for a, e in zip(actual, exact, strict=True):
            assert (a.double() - e).square().mean().sqrt() <= TOLERANCE[dtype] * e.square().mean().sqrt()
    else:
        assert max(relative_errors(actual, exact)) <= TOLERANCE[dtype]


@pytest.mark.parametrize("shape", [(1, 1, 8, 8), (8, 8)])
def test_noise_shared_by_the_batch_gets_the_sum_of_its_gradients(shape):
    arguments = inputs(torch.float64, noise_shape=shape)
    fused, plain = (value_and_gradients(impl, *arguments) for impl in ("fused", "reference"))
    assert fused[3].shape == shape
    assert max(relative_errors(fused, plain)) <= 1e-12


@pytest.mark.parametrize("up", [1, 2])
def test_without_noise_and_without_gradients(up):
    x, weight, styles, bias, _ = inputs(torch.float64, up)
    with torch.no_grad():
        fused, plain = (
            modulated_layer(x, weight, styles, bias, None, up, TAPS.double(), impl=impl)
            for impl in ("fused", "reference")
        )
    torch.testing.assert_close(fused, plain)


@pytest.mark.parametrize("up", [1, 2])
@pytest.mark.parametrize("impl", ["fused", "reference"])
def test_first_and_second_derivatives(impl, up):
    x, weight, styles, bias, noise = inputs(torch.float64, up, size=2, batch=2, channels_in=2, channels_out=2)
    leaves = [value.requires_grad_() for value in (x, styles, noise)]

    def run(x, styles, noise):
        return modulated_layer(x, weight, styles, bias, noise, up, ASYMMETRIC.double(), clamp=50.0, impl=impl)

    assert gradcheck(run, leaves)
    assert gradgradcheck(run, leaves, fast_mode=True)


def test_second_derivative_counts_a_shared_input_once():
    """Styles that the layer before used too: only this layer's own share may come out of its backward."""
    x, weight, styles, bias, _ = inputs(torch.float64, channels_in=10)
    seconds = []
    for impl in ("fused", "reference"):
        leaf = styles.clone().requires_grad_()
        y = modulated_layer(modulated_layer(x, weight, leaf, bias, impl=impl), weight, leaf, bias, impl=impl)
        (first,) = torch.autograd.grad(y.square().sum(), leaf, create_graph=True)
        seconds.append(torch.autograd.grad(first.square().sum(), leaf)[0])
    torch.testing.assert_close(*seconds)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("up", [1, 2])
def test_bits_of_a_sample_do_not_depend_on_its_neighbours(dtype, up):
    x, weight, styles, bias, noise = inputs(dtype, up, size=16, batch=4, channels_in=32, channels_out=16)
    other = inputs(dtype, up, size=16, batch=4, channels_in=32, channels_out=16)
    for mine, theirs in zip((x, styles, noise), (other[0], other[2], other[4]), strict=True):
        theirs.copy_(mine)
        theirs[:3] = 2 * theirs[:3] + 1
    settings = {"up": up, "resample_kernel": TAPS, "clamp": 256.0}
    alone = value_and_gradients("fused", x, weight, styles, bias, noise, **settings)
    moved = value_and_gradients("fused", other[0], weight, other[2], bias, other[4], **settings)
    assert all(torch.equal(a[3], b[3]) for a, b in zip(alone, moved, strict=True))
    assert not torch.equal(alone[0][0], moved[0][0])


def test_autocast_sets_the_convolutions_dtype():
    x, weight, styles, bias, noise = inputs(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = modulated_layer(x, weight, styles, bias, noise, impl="fused")
    assert mixed.dtype == torch.bfloat16
    assert torch.equal(mixed, modulated_layer(x.bfloat16(), weight, styles, bias, noise, impl="fused"))


def test_a_changed_weight_is_noticed():
    x, weight, styles, bias, noise = inputs(torch.float32)
    modulated_layer(x, weight, styles, bias, noise, impl="fused")
    weight.mul_(torch.linspace(0.5, 2, 12).reshape(1, 12, 1, 1))
    fused, plain = (modulated_layer(x, weight, styles, bias, noise, impl=impl) for impl in ("fused", "reference"))
    torch.testing.assert_close(fused, plain, rtol=1e-4, atol=1e-4)


def test_a_new_bias_where_a_freed_one_lay_is_noticed():
    x, weight, styles, bias, noise = inputs(torch.float32)
    memory = bias.numpy()
    for shift in (0, 1):
        memory += shift
        moved = torch.from_numpy(memory)  # another tensor of version 0 at the same address
        fused, plain = (modulated_layer(x, weight, styles, moved, noise, impl=impl) for impl in ("fused", "reference"))
        torch.testing.assert_close(fused, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("up", [1, 2])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_frozen_weight_is_freed_with_its_network(up, layout):
    x, weight, styles, bias, noise = inputs(torch.float32, up)
    weight = weight.to(memory_format=layout)
    modulated_layer(x, weight, styles, bias, noise, up, TAPS, impl="fused")
    held = weakref.ref(weight)
    del weight
    gc.collect()
    assert held() is None


def test_weights_that_train_take_the_plain_operations():
    x, weight, styles, bias, noise = inputs(torch.float32)
    weight.requires_grad_()
    modulated_layer(x, weight, styles, bias, noise).sum().backward()
    assert weight.grad is not None
    with pytest.raises(ValueError, match="'fused' cannot run"):
        modulated_layer(x, weight, styles, bias, noise, impl="fused")
    with torch.no_grad():
        modulated_layer(x, weight, styles, bias, noise, impl="fused")


def test_other_sizes_take_the_plain_operations():
    x, _, styles, bias, _ = inputs(torch.float32)
    assert modulated_layer(x, torch.ones(10, 12, 1, 1), styles, bias).shape == (3, 10, 8, 8)
    with pytest.raises(ValueError, match="'fused' cannot run"):
        modulated_layer(x, torch.ones(10, 12, 5, 5), styles, bias, impl="fused")
    for settings in ({"gain": -1.0}, {"up": 2, "resample_kernel": TAPS[:3]}, {"up": 2, "resample_kernel": None}):
        with pytest.raises(ValueError, match="'fused' cannot run"):
            modulated_layer(x, torch.ones(10, 12, 3, 3), styles, bias, impl="fused", **settings)
    with pytest.raises(ValueError, match="there are: auto"):
        modulated_layer(x, torch.ones(10, 12, 3, 3), styles, bias, impl="cuda")


@pytest.mark.parametrize("trained", ["weight", "bias"])
def test_weights_that_an_optimiser_changes_uncounted_are_seen(trained):
    x, weight, styles, bias, noise = inputs(torch.float32)
    learned = torch.nn.Parameter({"weight": weight, "bias": bias}[trained].clone())
    weight, bias = (learned, bias) if trained == "weight" else (weight, learned)
    fused_adam = torch.optim.Adam([learned], 0.1, fused=True)  # it leaves the tensor's version as it is

    def rendered(impl):
        return modulated_layer(x, weight, styles, bias, noise, impl=impl)

    def learn():
        learned.requires_grad_(True)
        rendered("auto").sum().backward()
        fused_adam.step()

    for freezes in (False, True):
        learned.requires_grad_(not freezes)
        with torch.no_grad():
            rendered("fused")
        learn()
        learned.requires_grad_(not freezes)
        with torch.no_grad():
            torch.testing.assert_close(rendered("fused"), rendered("reference"), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("up", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_empty_batch_gives_an_empty_image_and_no_gradient(dtype, up):
    arguments = inputs(dtype, up, batch=0, noise_shape=(1, 1, 8 * up, 8 * up))
    y, by_x, by_styles, by_noise = value_and_gradients("fused", *arguments, up=up, resample_kernel=TAPS)
    assert y.shape == (0, 10, 8 * up, 8 * up)
    assert (by_x.numel(), by_styles.numel(), float(by_noise.abs().sum())) == (0, 0, 0)
