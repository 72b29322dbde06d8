"""Triton operations of a StyleGAN2 layer (Karras et al. 2020), with their gradients: FIR resampling, and all that
follows the convolution in one pass over memory: FIR filter, demodulation, noise, bias, leaky ReLU, gain, clamp.

The derivatives of derivatives of the latter go through the plain references.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton

from stylepairs.kernels import plain
from stylepairs.kernels.dispatch import apply
from stylepairs.kernels.gpu.triton_kernels import tail_backward_kernel, tail_kernel, upfirdn_kernel
from stylepairs.kernels.plain import Padding

FIR_TAPS = 4  # of the filter that the tail holds: StyleGAN2's
# Elements of a tile. In channels_last each of 128 threads gets what one load of 16 bytes brings in bfloat16.
_TILE, _TILE_OF_PIXELS = 1024, 512
_MOST_TILE_CHANNELS = 64  # of a channels-last tile: 128 bytes in bfloat16, a line of the L2 cache
_MOST_TILE_PIXELS = 256
# Rows of a strip: the filter reads three more. Short strips for small images, which would not fill a GPU otherwise.
_ROWS, _FEW_ROWS, _LARGE_PX = 16, 4, 64


def upfirdn2d(x: torch.Tensor, kernel: torch.Tensor, up: int, down: int, padding: Padding, gain: float) -> torch.Tensor:
    """kernels.plain.upfirdn2d for float16, bfloat16 or float32 x and a filter without gradient."""
    taps = (torch.outer(kernel, kernel) if kernel.ndim == 1 else kernel).float() * gain
    return apply(_Upfirdn, x, taps.to(x.device).contiguous(), up, down, padding)


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
    [C]; taps [4], without gradient, correlated with the padded x along both axes (None: no filter, no padding).
    Differentiable twice.
    """
    if taps is not None and taps.shape != (FIR_TAPS,):
        raise ValueError(f"layer_tail: taps must be [{FIR_TAPS}], got {list(taps.shape)}")
    if taps is None and padding != (0, 0, 0, 0):
        raise ValueError("layer_tail: padding without taps")
    return apply(_Tail, x, demod, noise, bias, taps, (slope, gain, clamp, padding))


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
        c, (block_c, block_p) = x.shape[1], _blocks(out, height * width)
        _run(
            upfirdn_kernel,
            (triton.cdiv(height * width, block_p), triton.cdiv(c, block_c), x.shape[0]),
            *(x, taps, out, c, x.shape[2], x.shape[3], height, width, left, top, *x.stride(), *out.stride()),
            UP=up,
            DOWN=down,
            KH=taps.shape[0],
            KW=taps.shape[1],
            BLOCK_C=block_c,
            BLOCK_P=block_p,
        )
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[Any, ...]:
        """The adjoint is the same operation with up and down exchanged, so any order of derivative exists."""
        (taps,) = ctx.saved_tensors
        up, down, (left, _, top, _), (_, _, h, w), (height, width) = ctx.settings
        before_x, before_y = taps.shape[1] - 1 - left, taps.shape[0] - 1 - top
        after_x = w * up - width * down + left - up + 1
        after_y = h * up - height * down + top - up + 1
        adjoint = apply(
            _Upfirdn, grads[0], taps.flip((0, 1)).contiguous(), down, up, (before_x, after_x, before_y, after_y)
        )
        return adjoint, None, None, None, None


class _Tail(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, demod: Any, noise: Any, bias: Any, taps: Any, settings: Any) -> torch.Tensor:
        left, right, top, bottom = settings[3]
        taps = None if taps is None else taps.float().contiguous()
        ctx.save_for_backward(x, demod, noise, bias, taps)
        ctx.settings = settings
        halo = 0 if taps is None else FIR_TAPS - 1
        out = _empty(x, x.shape[2] + top + bottom - halo, x.shape[3] + left + right - halo)
        if min(out.shape[2:]) < 1:
            raise ValueError(f"layer_tail: {tuple(x.shape)} with padding {settings[3]} is smaller than the filter")
        _launch(x, out, taps, demod, noise, bias, settings)
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
        block_c, block_x = _blocks(g, width)
        rows = _rows(height)
        grid = (triton.cdiv(width, block_x) * triton.cdiv(height, rows), triton.cdiv(c, block_c), n)
        # Partial sums per strip, added up by torch: atomics would make the bits depend on the order of arrival.
        sum_channels = (demod is not None and needs[1]) or (bias is not None and needs[3])
        sum_pixels = noise is not None and needs[2]
        by_channel = g.new_empty((2, n, c, grid[0]) if sum_channels else (0,), dtype=torch.float32)
        by_pixel = g.new_empty((n, grid[1], height * width) if sum_pixels else (0,), dtype=torch.float32)
        _run(
            tail_backward_kernel,
            grid,
            *(g, x, *_or_x(x, taps, demod, noise, bias), inner, by_channel, by_pixel),
            *(c, x.shape[2], x.shape[3], height, width, triton.cdiv(width, block_x), left, top, slope, gain),
            *(clamp or 0.0, n * c * grid[0], *g.stride(), *x.stride(), *inner.stride(), *_noise_strides(noise)),
            **_flags(taps, demod, noise, bias, clamp),
            SUM_CHANNELS=sum_channels,
            SUM_PIXELS=sum_pixels,
            ROWS=rows,
            BLOCK_C=block_c,
            BLOCK_X=block_x,
        )
        d_x = d_demod = d_noise = d_bias = None
        if needs[0]:
            d_x = inner
            if taps is not None:
                d_x, last = _empty(x, *x.shape[2:]), FIR_TAPS - 1
                adjoint = (last - left, last - right, last - top, last - bottom)
                _launch(inner, d_x, taps.flip(0).contiguous(), None, None, None, (1.0, 1.0, None, adjoint))
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
    out = plain.layer_tail(views[0], views[1], views[2], views[3], taps, settings)
    found = torch.autograd.grad(out, [views[i] for i in wanted], grad, create_graph=True)
    result: list[Any] = [None] * 4
    for i, value in zip(wanted, found, strict=True):
        result[i] = value
    return result


def _channels_last(x: torch.Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def _empty(x: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Like x, of another height and width."""
    order = torch.channels_last if _channels_last(x) else torch.contiguous_format
    return torch.empty((*x.shape[:2], height, width), dtype=x.dtype, device=x.device, memory_format=order)


def _blocks(x: torch.Tensor, pixels: int) -> tuple[int, int]:
    """Channels and pixels of a tile, of at most `pixels` in a row, wide along the dimension that is contiguous. They
    depend on the sample's shape alone, so that its sums have the same bits in any batch."""
    channels, pixels = triton.next_power_of_2(x.shape[1]), triton.next_power_of_2(pixels)
    if _channels_last(x):
        channels = min(channels, _MOST_TILE_CHANNELS)
        return channels, min(pixels, _TILE // channels)
    pixels = min(pixels, _MOST_TILE_PIXELS)
    return min(channels, _TILE_OF_PIXELS // pixels), pixels


def _rows(height: int) -> int:
    return _ROWS if height >= _LARGE_PX else _FEW_ROWS


def _noise_strides(noise: torch.Tensor | None) -> tuple[int, int, int]:
    if noise is None:
        return 0, 0, 0
    return (noise.stride(0) if noise.shape[0] > 1 else 0), noise.stride(2), noise.stride(3)


def _or_x(x: torch.Tensor, taps: Any, demod: Any, noise: Any, bias: Any) -> tuple[torch.Tensor, ...]:
    """Pointers for the kernel; x for what is left out, which is never read."""
    small = [taps, None if demod is None else demod.contiguous(), noise, None if bias is None else bias.contiguous()]
    return tuple(x if one is None else one for one in small)


def _flags(taps: Any, demod: Any, noise: Any, bias: Any, clamp: float | None) -> dict[str, bool]:
    present = {"FIR": taps, "DEMOD": demod, "NOISE": noise, "BIAS": bias, "CLAMP": clamp}
    return {name: value is not None for name, value in present.items()}


def _launch(
    x: torch.Tensor, out: torch.Tensor, taps: Any, demod: Any, noise: Any, bias: Any,
    settings: tuple[float, float, float | None, Padding],
) -> None:  # fmt: skip
    slope, gain, clamp, (left, _, top, _) = settings
    n, c, height, width = out.shape
    block_c, block_x = _blocks(out, width)
    x_blocks, rows = triton.cdiv(width, block_x), _rows(height)
    _run(
        tail_kernel,
        (x_blocks * triton.cdiv(height, rows), triton.cdiv(c, block_c), n),
        *(x, *_or_x(x, taps, demod, noise, bias), out),
        *(c, x.shape[2], x.shape[3], height, width, x_blocks, left, top, slope, gain, clamp or 0.0),
        *(*x.stride(), *out.stride(), *_noise_strides(noise)),
        **_flags(taps, demod, noise, bias, clamp),
        ROWS=rows,
        BLOCK_C=block_c,
        BLOCK_X=block_x,
    )


def _run(kernel: Any, grid: tuple[int, int, int], *arguments: Any, **constants: Any) -> None:
    with torch.cuda.device_of(arguments[0]):  # Triton launches on the current device; nothing for a tensor on a CPU
        # Multiplications and sums fused, whatever the default of Triton's version is: fewer instructions.
        kernel[grid](*arguments, enable_fp_fusion=True, **constants)
