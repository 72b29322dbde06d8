"""A whole StyleGAN2 synthesis layer in one operation (Karras et al. 2020, section 2.2): modulated convolution, noise,
bias, leaky ReLU, clamp."""

from __future__ import annotations

import math
import weakref
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch.utils.weak import WeakTensorKeyDictionary

from stylepairs.kernels.bias_act import bias_act
from stylepairs.kernels.dispatch import (
    Fits,
    apply,
    autocast_dtype,
    choose,
    is_traced,
    triton_fits,
    with_triton,
    without_autocast,
)
from stylepairs.kernels.modulated_conv2d import (
    DEMODULATION_EPS,
    convolve,
    demodulation,
    filter_padding,
    modulated_conv2d,
    stretch,
)

# The fused path knows one size of weights and of filter: StyleGAN2's own.
_WEIGHT_SIZE, _TAPS = 3, 4
_FUSED_DTYPES = (torch.float32, torch.bfloat16, torch.float64)


def modulated_layer(
    x: torch.Tensor,
    weight: torch.Tensor,
    styles: torch.Tensor,
    bias: torch.Tensor,
    noise: torch.Tensor | None = None,
    up: int = 1,
    resample_kernel: torch.Tensor | None = None,
    slope: float = 0.2,
    gain: float = math.sqrt(2.0),
    clamp: float | None = None,
    impl: str = "auto",
) -> torch.Tensor:
    """clamp(leaky_relu(modulated_conv2d(x) + noise + bias, slope) * gain).

    x [N,Cin,H,W], weight [Cout,Cin,k,k], styles [N,Cin], bias [Cout]; noise, already scaled, broadcasts to
    [N,1,H*up,W*up], None leaves it out; up and resample_kernel (1-D taps) as in modulated_conv2d. Returns
    [N,Cout,H*up,W*up] in x's dtype, or in autocast's. Differentiable twice.
    impl "reference" composes modulated_conv2d and bias_act; "fused" is one autograd function for frozen 3x3 weights on
    a CPU, with gradients to x, styles and noise alone; "triton" is torch's convolution and one kernel for all that
    follows it, on a GPU, with gradients to all but the taps. Second derivatives of both are the reference's.
    """
    if (weight.requires_grad or bias.requires_grad) and not is_traced():
        _cache.pop(weight, None)  # torch's fused optimisers change it uncounted
    fuses = gain > 0 and slope >= 0 and _can_fuse(x, weight, bias, up, resample_kernel)
    fits = _triton_fits(x, weight, up, resample_kernel)
    usable = with_triton({"fused": fuses, "reference": True}, fits, x.device)
    chosen = choose("modulated_layer", impl, usable)
    if chosen == "reference":
        return _reference(x, weight, styles, bias, noise, up, resample_kernel, slope, gain, clamp)
    if chosen == "triton":
        return _by_triton(x, weight, styles, bias, noise, up, resample_kernel, slope, gain, clamp)
    layer = _Layer(weight, bias, resample_kernel, autocast_dtype(x), up, slope, gain, clamp)
    with without_autocast("cpu"):
        if torch.is_grad_enabled():
            return apply(_FusedLayer, x, styles, noise, layer)
        return _forward(x, styles, noise, layer, keep=False)[0]


def _can_fuse(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, up: int, resample_kernel: torch.Tensor | None
) -> bool:
    if is_traced():
        return False
    trains = torch.is_grad_enabled() and (weight.requires_grad or bias.requires_grad)
    filtered = up == 1 or (up == 2 and resample_kernel is not None and resample_kernel.shape == (_TAPS,))
    trains |= resample_kernel is not None and resample_kernel.requires_grad
    return (
        x.device.type == weight.device.type == "cpu"
        and not trains
        and filtered
        and tuple(weight.shape[2:]) == (_WEIGHT_SIZE, _WEIGHT_SIZE)
        and autocast_dtype(x) in _FUSED_DTYPES
    )


def _reference(
    x: torch.Tensor, weight: torch.Tensor, styles: torch.Tensor, bias: torch.Tensor, noise: torch.Tensor | None,
    up: int, resample_kernel: torch.Tensor | None, slope: float, gain: float, clamp: float | None,
) -> torch.Tensor:  # fmt: skip
    x = modulated_conv2d(x, weight, styles, up, resample_kernel)
    if noise is not None:
        x = x + noise.to(x.dtype)
    return bias_act(x, bias, act="lrelu", slope=slope, gain=gain, clamp=clamp)


def _triton_fits(x: torch.Tensor, weight: torch.Tensor, up: int, resample_kernel: torch.Tensor | None) -> Fits:
    if up not in (1, 2) or (up == 2 and resample_kernel is None):
        return "up must be 1, or 2 with resample_kernel"
    stretched = weight.shape[0] * math.prod(up * side + weight.shape[-1] for side in x.shape[2:])
    return triton_fits(x, autocast_dtype(x), stretched, resample_kernel)


def _by_triton(
    x: torch.Tensor, weight: torch.Tensor, styles: torch.Tensor, bias: torch.Tensor, noise: torch.Tensor | None,
    up: int, resample_kernel: torch.Tensor | None, slope: float, gain: float, clamp: float | None,
) -> torch.Tensor:  # fmt: skip
    from stylepairs.kernels.gpu.triton_layer import FIR_TAPS, layer_tail

    height, width = x.shape[2] * up, x.shape[3] * up
    x = x * styles.to(x.dtype)[:, :, None, None]
    taps, padding = None, (0, 0, 0, 0)
    if up == 1:
        u = F.conv2d(x, weight.to(x.dtype), padding=weight.shape[-1] // 2)
    elif resample_kernel is None or resample_kernel.shape != (FIR_TAPS,):
        u = convolve(x, weight.to(x.dtype), up, resample_kernel)
    else:
        u, padding = stretch(x, weight.to(x.dtype)), filter_padding(weight, resample_kernel)
        taps = resample_kernel.flip(0) * 2  # 2 along each axis: what upsampling by two keeps the mean with
    if noise is not None:  # a view [N or 1,1,height,width]
        noise = noise.expand(*noise.shape[:-2], height, width).reshape(-1, 1, height, width)
    return layer_tail(u, demodulation(weight, styles), noise, bias, slope, gain, clamp, taps, padding)


class _Layer(NamedTuple):
    """What is fixed of a layer; dtype: of its convolution."""

    weight: torch.Tensor
    bias: torch.Tensor
    resample_kernel: torch.Tensor | None
    dtype: torch.dtype
    up: int
    slope: float
    gain: float
    clamp: float | None


class _FusedLayer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, styles: torch.Tensor, noise: torch.Tensor | None, layer: _Layer
    ) -> torch.Tensor:
        y, u, scale = _forward(x, styles, noise, layer, keep=True)
        ctx.save_for_backward(x, styles, noise, y, u, scale)
        ctx.layer = layer
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, styles, noise, y, u, scale = ctx.saved_tensors
        needed = ctx.needs_input_grad[:3]
        with without_autocast("cpu"):
            if torch.is_grad_enabled():  # create_graph=True: a graph of the gradient is wanted
                return (*_backward_by_reference(gradients[0], (x, styles, noise), needed, ctx.layer), None)
            return (*_backward(gradients[0], x, styles, noise, y, u, scale, ctx.layer, needed), None)


def _forward(
    x: torch.Tensor, styles: torch.Tensor, noise: torch.Tensor | None, layer: _Layer, keep: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The layer's output y, what the convolution gave u, both [N,Cout,H,W] in channels_last, and y's scale over u
    [N,Cout]. keep leaves u as it was; else its memory becomes y's."""
    dtype, gain, clamp = layer.dtype, layer.gain, layer.clamp
    filters, squares, offset, floor = _prepared(layer)
    x = x.to(dtype).contiguous(memory_format=torch.channels_last)
    u = x * styles.to(dtype)[:, :, None, None]
    if layer.up == 1:
        u = F.conv2d(u, filters, padding=1)
    else:
        assert layer.resample_kernel is not None
        u = _fir(F.conv_transpose2d(u, filters, stride=2), layer.resample_kernel.flip(0), padding=1)
    # The leaky ReLU is homogeneous: its gain goes into the demodulation, the noise and the bias.
    scale = torch.addmm(floor, styles.to(squares.dtype).square(), squares.t()).rsqrt_()
    y = _scale_and_shift(u, scale.to(dtype)[:, :, None, None], noise, offset, gain, keep)
    F.leaky_relu_(y, layer.slope)
    return (y if clamp is None else y.clamp_(-clamp, clamp)), u, scale


def _scale_and_shift(
    u: torch.Tensor, scale: torch.Tensor, noise: torch.Tensor | None, offset: torch.Tensor, gain: float, keep: bool
) -> torch.Tensor:
    """u * scale + noise * gain + offset [C]."""
    if u.dtype != torch.bfloat16:
        y = torch.addcmul(offset[:, None, None], u, scale)
        return y if noise is None else y.add_(noise, alpha=gain)
    # In bfloat16 a broadcast sum takes 10 times as long as this product of rank two.
    y = u * scale if keep else u.mul_(scale)
    n, channels, height, width = y.shape
    left = torch.ones(n, height * width, 2, dtype=y.dtype)
    left[..., 0] = 0 if noise is None else (noise * gain).expand(n, 1, height, width).flatten(1)
    right = torch.stack((torch.ones_like(offset), offset)).expand(n, 2, channels)
    _pixels(y).baddbmm_(left, right)
    return y


def _backward(
    gradient: torch.Tensor, x: torch.Tensor, styles: torch.Tensor, noise: torch.Tensor | None, y: torch.Tensor,
    u: torch.Tensor, scale: torch.Tensor, layer: _Layer, needed: tuple[bool, ...],
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:  # fmt: skip
    dtype = layer.dtype
    filters, squares, _, _ = _prepared(layer)
    gradient = gradient.to(dtype).contiguous(memory_format=torch.channels_last)
    if layer.clamp is not None:
        gradient = torch.ops.aten.hardtanh_backward(gradient, y, -layer.clamp, layer.clamp)
    gradient = torch.ops.aten.leaky_relu_backward(gradient, y, layer.slope, True)
    by_noise = by_styles = by_x = None
    if needed[2]:
        assert noise is not None
        by_noise = _pixels(gradient) @ torch.full((y.shape[1], 1), layer.gain, dtype=dtype)
        by_noise = by_noise.reshape(y.shape[0], 1, *y.shape[2:]).to(noise.dtype).sum_to_size(noise.shape)
    if not (needed[0] or needed[1]):
        return None, None, by_noise
    by_scale = _dot(gradient, u)
    gradient *= scale.to(dtype)[:, :, None, None]
    if layer.up == 1:
        gradient = F.conv_transpose2d(gradient, filters, padding=1)
    else:
        assert layer.resample_kernel is not None
        gradient = F.conv2d(_fir(gradient, layer.resample_kernel, padding=2), filters, stride=2)
    if needed[1]:
        wide = styles.to(squares.dtype)
        through_scale = wide * ((by_scale.to(squares.dtype) * scale**3) @ squares)
        by_styles = (_dot(gradient, x.to(dtype)) - through_scale).to(styles.dtype)
    if needed[0]:
        by_x = gradient.mul_(styles.to(dtype)[:, :, None, None]).to(x.dtype)
    return by_x, by_styles, by_noise


def _backward_by_reference(
    gradient: torch.Tensor, inputs: tuple[torch.Tensor | None, ...], needed: tuple[bool, ...], layer: _Layer
) -> list[torch.Tensor | None]:
    """First gradients by plain operations, which autograd can differentiate again."""
    weight, bias, resample_kernel, dtype, up, slope, gain, clamp = layer
    # Aliases: one input may depend on another upstream, and only this layer's own share is wanted.
    x, styles, noise = (None if value is None else value.view_as(value) for value in inputs)
    assert x is not None
    assert styles is not None
    out = _reference(x.to(dtype), weight, styles, bias, noise, up, resample_kernel, slope, gain, clamp)
    wanted = [value for value, need in zip((x, styles, noise), needed, strict=True) if need and value is not None]
    gradients = iter(torch.autograd.grad(out, wanted, gradient.to(out.dtype), create_graph=True))
    return [next(gradients) if need else None for need in needed]


def _fir(x: torch.Tensor, taps: torch.Tensor, padding: int) -> torch.Tensor:
    """Each channel correlated with the outer product of taps, times 4: what upsampling by two keeps the mean with."""
    square = (torch.outer(taps, taps) * 4).to(x.dtype)
    return F.conv2d(x, square.expand(x.shape[1], 1, -1, -1).contiguous(), padding=padding, groups=x.shape[1])


def _pixels(x: torch.Tensor) -> torch.Tensor:
    """[N,C,H,W] in channels_last as [N,H*W,C], the same memory."""
    n, channels, height, width = x.shape
    return x.permute(0, 2, 3, 1).view(n, height * width, channels)


def _dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Sum over pixels of a*b, [N,C]."""
    return (a * b).sum((2, 3))


class _Prepared(NamedTuple):
    """What a frozen layer's constants come to. With sums [Cout,Cin] of squared weights, and gain, the layer's scale is
    1 / sqrt(styles^2 @ squares^T + floor)."""

    # In the convolution's dtype and channels_last; for up 2 as a transposed convolution takes them.
    filters: torch.Tensor
    squares: torch.Tensor  # sums / gain^2
    offset: torch.Tensor  # bias * gain, [Cout]
    floor: torch.Tensor  # DEMODULATION_EPS / gain^2, [1]


class _Kept(NamedTuple):
    stamp: tuple[float, ...]
    bias: weakref.ref[torch.Tensor]  # a new one may lie where a freed one lay, with the same stamp
    prepared: _Prepared


_cache: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def _prepared(layer: _Layer) -> _Prepared:
    """Kept for each frozen weight until it or the bias changes; torch counts no change that is made through `.data`."""
    weight, bias = layer.weight, layer.bias
    learns = weight.requires_grad or bias.requires_grad
    if learns or weight.is_inference() or bias.is_inference():  # inference tensors have no version to tell one by
        return _prepare(layer)
    stamp = (weight.data_ptr(), weight._version, bias.data_ptr(), bias._version, layer.up, layer.gain)
    kept: dict[torch.dtype, _Kept] = _cache.setdefault(weight, {})
    entry = kept.get(layer.dtype)
    if entry is None or entry.stamp != stamp or entry.bias() is not bias:
        entry = kept[layer.dtype] = _Kept(stamp, weakref.ref(bias), _prepare(layer))
    return entry.prepared


@torch.no_grad()
def _prepare(layer: _Layer) -> _Prepared:
    weight, gain = layer.weight, layer.gain
    filters = weight if layer.up == 1 else weight.transpose(0, 1)
    # Detached: a weight that lies so already would be its own value in the cache, and never be freed.
    filters = filters.to(layer.dtype).contiguous(memory_format=torch.channels_last).detach()
    squares = weight.square().sum((2, 3)) / gain**2
    floor = squares.new_full((1,), DEMODULATION_EPS / gain**2)
    return _Prepared(filters, squares, (layer.bias * gain).to(layer.dtype), floor)
