"""Triton kernels for a StyleGAN2 layer's tail: FIR resampling, demodulation, noise, bias, leaky ReLU, gain and clamp.

One forward kernel serves upfirdn2d, the convolution's epilogue and both fused (StyleGAN2, Karras et al. 2020). Sums run
in float32. The derivatives of derivatives go through the plain references.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl

# Elements of a tile. In channels_last each of a program's 128 threads gets what one load of 16 bytes brings in bfloat16
# (48 registers a thread with the filter, as compiled for sm_90). Else half as many: pixels cannot be loaded together
# under the filter, and 1024 would take 163 registers in place of 86.
_TILE, _TILE_OF_PIXELS = 1024, 512
_MOST_TILE_CHANNELS = 64  # of a channels-last tile: 128 bytes in bfloat16, a line of the L2 cache
_MOST_TILE_PIXELS = 256
Padding = tuple[int, int, int, int]


def upfirdn2d(
    x: torch.Tensor, kernel: torch.Tensor, up: int, down: int, padding: Padding, flip_filter: bool, gain: float
) -> torch.Tensor:
    """kernels.upfirdn2d.upfirdn2d for float16, bfloat16 or float32 x and a filter without gradient."""
    taps = torch.outer(kernel, kernel) if kernel.ndim == 1 else kernel
    taps = (taps if flip_filter else taps.flip((0, 1))).float() * gain
    return _Upfirdn.apply(x, taps.to(x.device).contiguous(), up, down, padding)


def layer_tail(
    x: torch.Tensor,
    demod: torch.Tensor | None = None,
    noise: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    slope: float = 0.2,
    gain: float = math.sqrt(2.0),
    clamp: float | None = None,
    taps: torch.Tensor | None = None,
    padding: Padding = (0, 0, 0, 0),
) -> torch.Tensor:
    """clamp(gain * leaky_relu(fir(x) * demod + noise + bias, slope)) in one pass over memory.

    x [N,C,H,W] float16, bfloat16 or float32; demod [N,C]; noise [N or 1,1,H',W'] already scaled by its strength; bias
    [C]; taps [kh,kw] correlated with the padded x (None: no filter), gain already in them. Differentiable twice.
    """
    return _Tail.apply(x, demod, noise, bias, taps, (slope, gain, clamp, padding))


def reference_tail(
    x: torch.Tensor,
    demod: torch.Tensor | None,
    noise: torch.Tensor | None,
    bias: torch.Tensor | None,
    taps: torch.Tensor | None,
    settings: tuple[float, float, float | None, Padding],
) -> torch.Tensor:
    """What layer_tail computes, in plain PyTorch operations."""
    from stylepairs.kernels.bias_act import bias_act
    from stylepairs.kernels.upfirdn2d import upfirdn2d as plain

    slope, gain, clamp, padding = settings
    if taps is not None:
        x = plain(x, taps, padding=padding, flip_filter=True, impl="reference")
    if demod is not None:
        x = x * demod.to(x.dtype)[:, :, None, None]
    if noise is not None:
        x = x + noise.to(x.dtype)
    return bias_act(x, bias, act="lrelu", slope=slope, gain=gain, clamp=clamp, impl="reference")


class _Upfirdn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, taps: torch.Tensor, up: int, down: int, padding: Padding) -> torch.Tensor:
        left, right, top, bottom = padding
        height = (x.shape[2] * up + top + bottom - taps.shape[0]) // down + 1
        width = (x.shape[3] * up + left + right - taps.shape[1]) // down + 1
        if min(height, width) < 1:
            raise ValueError(f"upfirdn2d: {tuple(x.shape)} with padding {padding} is smaller than the filter")
        ctx.save_for_backward(taps)
        ctx.settings = (up, down, padding, tuple(x.shape), (height, width))
        out = _empty(x, height, width)
        _launch(x, out, taps, up, down, left, top)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[Any, ...]:
        """The adjoint is the same operation with up and down exchanged, so any order of derivative exists."""
        (taps,) = ctx.saved_tensors
        up, down, (left, _, top, _), (_, _, h, w), (height, width) = ctx.settings
        before_x, before_y = taps.shape[1] - 1 - left, taps.shape[0] - 1 - top
        after_x = w * up - width * down + left - up + 1
        after_y = h * up - height * down + top - up + 1
        adjoint = _Upfirdn.apply(
            grads[0], taps.flip((0, 1)).contiguous(), down, up, (before_x, after_x, before_y, after_y)
        )
        return adjoint, None, None, None, None


class _Tail(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, demod: Any, noise: Any, bias: Any, taps: Any, settings: Any) -> torch.Tensor:
        slope, gain, clamp, (left, right, top, bottom) = settings
        taps = None if taps is None else taps.float().contiguous()
        ctx.save_for_backward(x, demod, noise, bias, taps)
        ctx.settings = settings
        kh, kw = (1, 1) if taps is None else taps.shape
        out = _empty(x, x.shape[2] + top + bottom - kh + 1, x.shape[3] + left + right - kw + 1)
        _launch(x, out, taps, 1, 1, left, top, demod, noise, bias, slope, gain, clamp)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[Any, ...]:
        x, demod, noise, bias, taps = ctx.saved_tensors
        needs = ctx.needs_input_grad[:4]
        if torch.is_grad_enabled():  # create_graph
            return (*_plain_gradients((x, demod, noise, bias), taps, ctx.settings, grads[0], needs), None, None)
        slope, gain, clamp, (left, right, top, bottom) = ctx.settings
        g = grads[0]
        n, c, height, width = g.shape
        inner = _empty(x, height, width)  # gradient to fir(x)
        block_c, block_p = _blocks(g)
        c_blocks, p_blocks = triton.cdiv(c, block_c), triton.cdiv(height * width, block_p)
        # Partial sums per tile, added up by torch: atomics would make the bits depend on the order of arrival.
        sum_channels = (demod is not None and needs[1]) or (bias is not None and needs[3])
        sum_pixels = noise is not None and needs[2]
        by_channel = g.new_empty((2, n, c, p_blocks) if sum_channels else (0,), dtype=torch.float32)
        by_pixel = g.new_empty((n, c_blocks, height * width) if sum_pixels else (0,), dtype=torch.float32)
        noise_stride = _noise_strides(noise)
        _run(
            _backward_kernel,
            (p_blocks, c_blocks, n),
            *(g, x, x if taps is None else taps, x if demod is None else demod.contiguous()),
            *(x if noise is None else noise, x if bias is None else bias.contiguous(), inner, by_channel, by_pixel),
            *(c, x.shape[2], x.shape[3], height, width, left, top, slope, gain, clamp or 0.0, n * c * p_blocks),
            *(*g.stride(), *x.stride(), *inner.stride(), *noise_stride),
            KH=1 if taps is None else taps.shape[0],
            KW=1 if taps is None else taps.shape[1],
            FIR=taps is not None,
            DEMOD=demod is not None,
            NOISE=noise is not None,
            BIAS=bias is not None,
            CLAMP=clamp is not None,
            SUM_CHANNELS=sum_channels,
            SUM_PIXELS=sum_pixels,
            BLOCK_C=block_c,
            BLOCK_P=block_p,
        )
        d_x = d_demod = d_noise = d_bias = None
        if needs[0]:
            d_x = inner
            if taps is not None:
                d_x = _empty(x, *x.shape[2:])
                kh, kw = taps.shape
                _launch(inner, d_x, taps.flip((0, 1)).contiguous(), 1, 1, kw - 1 - left, kh - 1 - top)
        if demod is not None and needs[1]:
            d_demod = by_channel[0].sum(2).to(demod.dtype)
        if noise is not None and needs[2]:
            d_noise = by_pixel.sum(1).view(n, 1, height, width).sum_to_size(noise.shape).to(noise.dtype)
        if bias is not None and needs[3]:
            d_bias = by_channel[1].sum((0, 2)).to(bias.dtype)
        return d_x, d_demod, d_noise, d_bias, None, None


def _plain_gradients(inputs: Any, taps: Any, settings: Any, grad: torch.Tensor, needs: Any) -> list[Any]:
    # Views, so that a gradient does not also run through an input that was computed from another one.
    views: list[Any] = [None if value is None else value.view_as(value) for value in inputs]
    wanted = [i for i, view in enumerate(views) if view is not None and needs[i]]
    out = reference_tail(views[0], views[1], views[2], views[3], taps, settings)
    found = torch.autograd.grad(out, [views[i] for i in wanted], grad, create_graph=True)
    result: list[Any] = [None] * 4
    for i, value in zip(wanted, found, strict=True):
        result[i] = value
    return result


def _channels_last(x: torch.Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def _format(x: torch.Tensor) -> torch.memory_format:
    return torch.channels_last if _channels_last(x) else torch.contiguous_format


def _empty(x: torch.Tensor, height: int, width: int) -> torch.Tensor:
    shape = (*x.shape[:2], height, width)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=_format(x))


def _blocks(x: torch.Tensor) -> tuple[int, int]:
    """Channels and pixels of a tile, wide along the dimension that is contiguous. They depend on the sample's shape
    alone, so that its sums have the same bits in any batch."""
    if _channels_last(x):
        channels = min(triton.next_power_of_2(x.shape[1]), _MOST_TILE_CHANNELS)
        return channels, _TILE // channels
    pixels = min(triton.next_power_of_2(x.shape[2] * x.shape[3]), _MOST_TILE_PIXELS)
    return min(triton.next_power_of_2(x.shape[1]), _TILE_OF_PIXELS // pixels), pixels


def _run(kernel: Any, grid: tuple[int, int, int], x: torch.Tensor, *arguments: Any, **constants: Any) -> None:
    with torch.cuda.device_of(x):  # Triton launches on the current device; nothing for a tensor on a CPU
        kernel[grid](x, *arguments, **constants)


def _noise_strides(noise: torch.Tensor | None) -> tuple[int, int, int]:
    if noise is None:
        return 0, 0, 0
    return (noise.stride(0) if noise.shape[0] > 1 else 0), noise.stride(2), noise.stride(3)


def _launch(
    x: torch.Tensor,
    out: torch.Tensor,
    taps: torch.Tensor | None,
    up: int,
    down: int,
    left: int,
    top: int,
    demod: torch.Tensor | None = None,
    noise: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    slope: float = 1.0,
    gain: float = 1.0,
    clamp: float | None = None,
) -> None:
    n, c, height, width = out.shape
    block_c, block_p = _blocks(out)
    _run(
        _forward_kernel,
        (triton.cdiv(height * width, block_p), triton.cdiv(c, block_c), n),
        *(x, x if taps is None else taps, x if demod is None else demod.contiguous()),
        *(x if noise is None else noise, x if bias is None else bias.contiguous(), out),
        *(c, x.shape[2], x.shape[3], height, width, left, top, slope, gain, clamp or 0.0),
        *(*x.stride(), *out.stride(), *_noise_strides(noise)),
        UP=up,
        DOWN=down,
        KH=1 if taps is None else taps.shape[0],
        KW=1 if taps is None else taps.shape[1],
        FIR=taps is not None,
        DEMOD=demod is not None,
        NOISE=noise is not None,
        BIAS=bias is not None,
        CLAMP=clamp is not None,
        BLOCK_C=block_c,
        BLOCK_P=block_p,
    )


@triton.jit
def _filtered(
    x, taps, n, ch, oy, ox, ok, H, W, left, top, sn, sc, sh, sw,
    UP: tl.constexpr, DOWN: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, FIR: tl.constexpr,
):  # fmt: skip
    """Filtered input [BLOCK_C,BLOCK_P] in float32."""
    base = x + n * sn + ch * sc
    if FIR:
        total = tl.zeros(ok.shape, dtype=tl.float32)
        for ky in tl.static_range(KH):
            for kx in tl.static_range(KW):
                y = oy * DOWN + ky - top
                z = ox * DOWN + kx - left
                inside = ok & (y >= 0) & (z >= 0) & (y % UP == 0) & (z % UP == 0) & (y // UP < H) & (z // UP < W)
                value = tl.load(base + (y // UP) * sh + (z // UP) * sw, mask=inside, other=0.0)
                total += value.to(tl.float32) * tl.load(taps + ky * KW + kx)
    else:
        total = tl.load(base + oy * sh + ox * sw, mask=ok, other=0.0).to(tl.float32)
    return total


@triton.jit
def _forward_kernel(
    x, taps, demod, noise, bias, out, C, H, W, OH, OW, left, top, slope, gain, clamp,
    xn, xc, xh, xw, on, oc, oh, ow, nn, nh, nw,
    UP: tl.constexpr, DOWN: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, FIR: tl.constexpr,
    DEMOD: tl.constexpr, NOISE: tl.constexpr, BIAS: tl.constexpr, CLAMP: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(2).to(tl.int64)
    ch = (tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C))[:, None]
    p = (tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P))[None, :]
    oy = p // OW
    ox = p % OW
    ok = (ch < C) & (p < OH * OW)
    v = _filtered(x, taps, n, ch, oy, ox, ok, H, W, left, top, xn, xc, xh, xw, UP, DOWN, KH, KW, FIR)
    if DEMOD:
        v = v * tl.load(demod + n * C + ch, mask=ch < C, other=0.0).to(tl.float32)
    if NOISE:
        v += tl.load(noise + n * nn + oy * nh + ox * nw, mask=p < OH * OW, other=0.0).to(tl.float32)
    if BIAS:
        v += tl.load(bias + ch, mask=ch < C, other=0.0).to(tl.float32)
    v = tl.where(v > 0, v, v * slope) * gain
    if CLAMP:  # tl.minimum would take the clamp for a NaN
        v = tl.where(v > clamp, clamp, tl.where(v < -clamp, -clamp, v))
    tl.store(out + n * on + ch * oc + oy * oh + ox * ow, v.to(out.dtype.element_ty), mask=ok)


@triton.jit
def _backward_kernel(
    g, x, taps, demod, noise, bias, inner, by_channel, by_pixel, C, H, W, OH, OW, left, top, slope, gain, clamp, half,
    gn, gc, gh, gw, xn, xc, xh, xw, on, oc, oh, ow, nn, nh, nw,
    KH: tl.constexpr, KW: tl.constexpr, FIR: tl.constexpr,
    DEMOD: tl.constexpr, NOISE: tl.constexpr, BIAS: tl.constexpr, CLAMP: tl.constexpr,
    SUM_CHANNELS: tl.constexpr, SUM_PIXELS: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(2).to(tl.int64)
    channels = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    pixels = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    ch = channels[:, None]
    p = pixels[None, :]
    oy = p // OW
    ox = p % OW
    ok = (ch < C) & (p < OH * OW)
    filtered = _filtered(x, taps, n, ch, oy, ox, ok, H, W, left, top, xn, xc, xh, xw, 1, 1, KH, KW, FIR)
    v = filtered
    if DEMOD:
        d = tl.load(demod + n * C + ch, mask=ch < C, other=0.0).to(tl.float32)
        v = v * d
    if NOISE:
        v += tl.load(noise + n * nn + oy * nh + ox * nw, mask=p < OH * OW, other=0.0).to(tl.float32)
    if BIAS:
        v += tl.load(bias + ch, mask=ch < C, other=0.0).to(tl.float32)
    grad = tl.load(g + n * gn + ch * gc + oy * gh + ox * gw, mask=ok, other=0.0).to(tl.float32) * gain
    grad = tl.where(v > 0, grad, grad * slope)
    if CLAMP:
        y = tl.where(v > 0, v, v * slope) * gain
        grad = tl.where((y >= -clamp) & (y <= clamp), grad, 0.0)
    if SUM_CHANNELS:
        row = (n * C + channels) * tl.num_programs(0) + tl.program_id(0)
        tl.store(by_channel + row, tl.sum(grad * filtered, 1), mask=channels < C)
        tl.store(by_channel + half + row, tl.sum(grad, 1), mask=channels < C)
    if SUM_PIXELS:
        at = (n * tl.num_programs(1) + tl.program_id(1)) * OH * OW + pixels
        tl.store(by_pixel + at, tl.sum(grad, 0), mask=pixels < OH * OW)
    if DEMOD:
        grad = grad * d
    tl.store(inner + n * on + ch * oc + oy * oh + ox * ow, grad.to(inner.dtype.element_ty), mask=ok)
