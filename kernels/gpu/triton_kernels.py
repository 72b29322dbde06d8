"""Triton kernels of a StyleGAN2 layer, for batches of any strides; sums run in float32.

The tail goes down the image in strips: each row is filtered along x once, and what it adds to the rows below is kept.
As compiled for sm_90 (bfloat16, channels_last) that takes 1.0 instructions of a warp for each element of the result.
The 16 taps of the square filter took 2.6, more than an H100 issues in the time that memory takes.
"""

# mypy: disable-error-code="untyped-decorator, no-untyped-def"
# Triton compiles these functions by itself: their arguments are no Python values.

from __future__ import annotations

import triton
import triton.language as tl

# Compiled once for all values of these, of which a generator has many; the strides decide how memory is read.
SIZES = ["H", "W", "OH", "x_blocks", "left", "top", "half"]


@triton.jit(do_not_specialize=SIZES)
def upfirdn_kernel(
    x, taps, out, C, H, W, OH, OW, left, top, xn, xc, xh, xw, on, oc, oh, ow,
    UP: tl.constexpr, DOWN: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(2).to(tl.int64)
    ch = (tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C))[:, None]
    p = (tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P))[None, :]
    oy = p // OW
    ox = p % OW
    ok = (ch < C) & (p < OH * OW)
    base = x + n * xn + ch * xc
    total = tl.zeros(ok.shape, dtype=tl.float32)
    for ky in tl.static_range(KH):
        for kx in tl.static_range(KW):
            y = oy * DOWN + ky - top
            z = ox * DOWN + kx - left
            inside = ok & (y >= 0) & (z >= 0) & (y % UP == 0) & (z % UP == 0) & (y // UP < H) & (z // UP < W)
            value = tl.load(base + (y // UP) * xh + (z // UP) * xw, mask=inside, other=0.0)
            total += value.to(tl.float32) * tl.load(taps + ky * KW + kx)
    tl.store(out + n * on + ch * oc + oy * oh + ox * ow, total.to(out.dtype.element_ty), mask=ok)


@triton.jit
def _row(base, y, ox, ok, H, W, left, xh, xw, t0, t1, t2, t3, FIR: tl.constexpr):
    """Row y of the input [BLOCK_C,BLOCK_X] in float32, filtered along x; zeros beyond the image."""
    if FIR:
        row = base + y * xh
        z = ox - left
        W = tl.where((y >= 0) & (y < H), W, 0)  # a row beyond the image has no columns
        total = tl.load(row + z * xw, mask=ok & (z >= 0) & (z < W), other=0.0).to(tl.float32) * t0
        z += 1
        total += tl.load(row + z * xw, mask=ok & (z >= 0) & (z < W), other=0.0).to(tl.float32) * t1
        z += 1
        total += tl.load(row + z * xw, mask=ok & (z >= 0) & (z < W), other=0.0).to(tl.float32) * t2
        z += 1
        total += tl.load(row + z * xw, mask=ok & (z >= 0) & (z < W), other=0.0).to(tl.float32) * t3
    else:
        total = tl.load(base + y * xh + ox * xw, mask=ok, other=0.0).to(tl.float32)
    return total


@triton.jit
def _place(C, OW, x_blocks, ROWS: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_X: tl.constexpr):
    """What a program makes: n, channels [BLOCK_C,1], columns [1,BLOCK_X], the first row, and which of them exist."""
    n = tl.program_id(2).to(tl.int64)
    ch = (tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C))[:, None]
    ox = ((tl.program_id(0) % x_blocks) * BLOCK_X + tl.arange(0, BLOCK_X))[None, :]
    first = (tl.program_id(0) // x_blocks) * ROWS
    return n, ch, ox, first, (ch < C) & (ox < OW)


@triton.jit
def _factors(taps, demod, bias, n, ch, C, FIR: tl.constexpr, DEMOD: tl.constexpr, BIAS: tl.constexpr):
    """Demodulation and bias of the channels ch [BLOCK_C,1], and the four taps."""
    d = tl.load(demod + n * C + ch, mask=ch < C, other=0.0).to(tl.float32) if DEMOD else 1.0
    offset = tl.load(bias + ch, mask=ch < C, other=0.0).to(tl.float32) if BIAS else 0.0
    t0 = tl.load(taps) if FIR else 0.0
    t1 = tl.load(taps + 1) if FIR else 0.0
    t2 = tl.load(taps + 2) if FIR else 0.0
    t3 = tl.load(taps + 3) if FIR else 0.0
    return d, offset, t0, t1, t2, t3


@triton.jit
def _filtered(base, y, ox, ok, H, W, left, xh, xw, t0, t1, t2, t3, one, two, three, FIR: tl.constexpr):
    """The output row that row y of the input completes, and what the three after it have got so far."""
    v = _row(base, y, ox, ok, H, W, left, xh, xw, t0, t1, t2, t3, FIR)
    if FIR:
        row = v
        v = one + row * t3
        one = two + row * t2
        two = three + row * t1
        three = row * t0
    return v, one, two, three


@triton.jit
def _preactivation(v, d, offset, noise, ox, nw, inside, DEMOD: tl.constexpr, NOISE: tl.constexpr, BIAS: tl.constexpr):
    """v demodulated, with the row of noise and the bias added: what the activation is applied to."""
    if DEMOD:
        v = v * d
    if NOISE:
        v += tl.load(noise + ox * nw, mask=inside, other=0.0).to(tl.float32)
    if BIAS:
        v += offset
    return v


@triton.jit(do_not_specialize=SIZES)
def tail_kernel(
    x, taps, demod, noise, bias, out, C, H, W, OH, OW, x_blocks, left, top, slope, gain, clamp,
    xn, xc, xh, xw, on, oc, oh, ow, nn, nh, nw,
    FIR: tl.constexpr, DEMOD: tl.constexpr, NOISE: tl.constexpr, BIAS: tl.constexpr, CLAMP: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_X: tl.constexpr,
):  # fmt: skip
    n, ch, ox, first, ok = _place(C, OW, x_blocks, ROWS, BLOCK_C, BLOCK_X)
    base = x + n * xn + ch * xc
    d, offset, t0, t1, t2, t3 = _factors(taps, demod, bias, n, ch, C, FIR, DEMOD, BIAS)
    HALO: tl.constexpr = 3 if FIR else 0
    one = tl.zeros(ok.shape, dtype=tl.float32)  # what the next output row has got so far, the one after it, ...
    two = one
    three = one
    for r in range(tl.minimum(ROWS, OH - first) + HALO):
        y = first + r - top
        v, one, two, three = _filtered(base, y, ox, ok, H, W, left, xh, xw, t0, t1, t2, t3, one, two, three, FIR)
        oy = first + r - HALO
        inside = ox < tl.where(oy >= first, OW, 0)  # the first rows with a filter only fill it
        valid = ok & inside
        v = _preactivation(v, d, offset, noise + n * nn + oy * nh, ox, nw, inside, DEMOD, NOISE, BIAS)
        v = tl.where(v > 0, v, v * slope) * gain
        if CLAMP:  # tl.minimum would take the clamp for a NaN
            v = tl.where(v > clamp, clamp, tl.where(v < -clamp, -clamp, v))
        tl.store(out + n * on + ch * oc + oy * oh + ox * ow, v.to(out.dtype.element_ty), mask=valid)


@triton.jit(do_not_specialize=SIZES)
def tail_backward_kernel(
    g, x, taps, demod, noise, bias, inner, by_channel, by_pixel,
    C, H, W, OH, OW, x_blocks, left, top, slope, gain, clamp, half,
    gn, gc, gh, gw, xn, xc, xh, xw, on, oc, oh, ow, nn, nh, nw,
    FIR: tl.constexpr, DEMOD: tl.constexpr, NOISE: tl.constexpr, BIAS: tl.constexpr, CLAMP: tl.constexpr,
    SUM_CHANNELS: tl.constexpr, SUM_PIXELS: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_X: tl.constexpr,
):  # fmt: skip
    n, ch, ox, first, ok = _place(C, OW, x_blocks, ROWS, BLOCK_C, BLOCK_X)
    base = x + n * xn + ch * xc
    d, offset, t0, t1, t2, t3 = _factors(taps, demod, bias, n, ch, C, FIR, DEMOD, BIAS)
    HALO: tl.constexpr = 3 if FIR else 0
    one = tl.zeros(ok.shape, dtype=tl.float32)  # as in the forward kernel
    two = one
    three = one
    by_demod = one
    by_bias = one
    for r in range(tl.minimum(ROWS, OH - first) + HALO):
        y = first + r - top
        filtered, one, two, three = _filtered(base, y, ox, ok, H, W, left, xh, xw, t0, t1, t2, t3, one, two, three, FIR)
        oy = first + r - HALO
        inside = ox < tl.where(oy >= first, OW, 0)  # the first rows with a filter only fill it
        valid = ok & inside
        v = _preactivation(filtered, d, offset, noise + n * nn + oy * nh, ox, nw, inside, DEMOD, NOISE, BIAS)
        grad = tl.load(g + n * gn + ch * gc + oy * gh + ox * gw, mask=valid, other=0.0).to(tl.float32) * gain
        grad = tl.where(v > 0, grad, grad * slope)
        if CLAMP:
            activated = tl.where(v > 0, v, v * slope) * gain
            grad = tl.where((activated >= -clamp) & (activated <= clamp), grad, 0.0)
        if SUM_CHANNELS:
            by_demod += grad * filtered
            by_bias += grad
        if SUM_PIXELS:
            at = ((n * tl.num_programs(1) + tl.program_id(1)) * OH + oy) * OW + ox
            tl.store(by_pixel + at, tl.sum(grad, 0, keep_dims=True), mask=inside)
        if DEMOD:
            grad = grad * d
        tl.store(inner + n * on + ch * oc + oy * oh + ox * ow, grad.to(inner.dtype.element_ty), mask=valid)
    if SUM_CHANNELS:
        at = (n * C + ch) * tl.num_programs(0) + tl.program_id(0)
        tl.store(by_channel + at, tl.sum(by_demod, 1, keep_dims=True), mask=ch < C)
        tl.store(by_channel + half + at, tl.sum(by_bias, 1, keep_dims=True), mask=ch < C)
