"""Upsample, FIR-filter, downsample (StyleGAN2, Karras et al. 2020): the resampling of every StyleGAN2 layer."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from stylepairs.kernels import plain
from stylepairs.kernels.dispatch import choose, is_traced, triton_fits, with_triton

# Up to this side two products with banded matrices take a fifth (16 px) to a half of a transposed convolution's time
# on a CPU; they grow with the cube of the side.
_LARGEST_MATRIX_PX = 128


def setup_filter(taps: Sequence[float] = (1, 3, 3, 1), gain: float = 1.0) -> torch.Tensor:
    """Outer product of 1-D taps, [len, len] float32, with sum `gain`: what NVIDIA's release keeps as
    `resample_filter`."""
    square = np.outer(taps, taps)  # not torch's: on the meta device that imports its compiler, which takes seconds
    return torch.tensor(square * (gain / square.sum()), dtype=torch.float32)


def upfirdn2d(
    x: torch.Tensor,
    kernel: torch.Tensor,
    up: int = 1,
    down: int = 1,
    padding: plain.Padding = (0, 0, 0, 0),
    flip_filter: bool = False,
    gain: float = 1.0,
    impl: str = "auto",
) -> torch.Tensor:
    """Insert up-1 zeros after each pixel, pad, convolve each channel with `kernel`, keep every down-th pixel.

    x [N,C,H,W]; kernel [kh,kw], or [k] for the outer product of its taps, run as two 1-D passes; padding (left,
    right, top, bottom), negative crops; flip_filter correlates instead of convolving; gain multiplies the result.
    Returns [N,C,(H*up+pad-kh)//down+1, ...]. Differentiable twice.
    impl "matrices" multiplies small images by a matrix from each side (CPU, up > 1, down 1, 1-D kernel without a
    gradient); "transposed" upsamples without inserting zeros (a transposed convolution; up > 1, down 1, padding as
    upsample2d's); "separable" needs a 1-D kernel; "reference" runs the full 2-D kernel; "triton" is one kernel on a
    GPU, with a gradient to x alone.
    """
    usable = {
        "matrices": _can_multiply(x, kernel, up, down),
        "transposed": _can_transpose(kernel, up, down, padding),
        "separable": kernel.ndim == 1,
        "reference": True,
    }
    elements = x.shape[1] * (x.shape[2] * up + sum(padding[2:])) * (x.shape[3] * up + sum(padding[:2]))
    fits = triton_fits(x, x.dtype, elements, kernel)
    chosen = choose("upfirdn2d", impl, with_triton(usable, fits, x.device))
    turns = flip_filter == (chosen == "transposed")  # a transposed convolution convolves, the others correlate
    kernel = kernel.flip(tuple(range(kernel.ndim))) if turns else kernel
    if chosen == "matrices":
        return _by_matrices(x, kernel, up, padding, gain)
    if chosen == "transposed":
        return _transposed(x, kernel, up, padding, gain)
    if chosen == "triton":
        from stylepairs.kernels.gpu import triton_layer

        return triton_layer.upfirdn2d(x, kernel, up, down, padding, gain)
    return plain.upfirdn2d(x, kernel, up, down, padding, gain, separable=chosen == "separable")


def upsample2d(x: torch.Tensor, kernel: torch.Tensor, up: int = 2, impl: str = "auto") -> torch.Tensor:
    """Upsample [N,C,H,W] by `up` with an FIR kernel of sum 1; the mean is kept."""
    taps = kernel.shape[0]
    before, after = (taps + up - 1) // 2, (taps - up) // 2
    return upfirdn2d(x, kernel, up=up, padding=(before, after, before, after), gain=up * up, impl=impl)


def _can_multiply(x: torch.Tensor, kernel: torch.Tensor, up: int, down: int) -> bool:
    fixed = kernel.device.type == "cpu" and not (kernel.requires_grad and torch.is_grad_enabled())
    small = max(x.shape[2:]) <= _LARGEST_MATRIX_PX
    return x.device.type == "cpu" and fixed and kernel.ndim == 1 and up > 1 and down == 1 and small and not is_traced()


def _by_matrices(x: torch.Tensor, kernel: torch.Tensor, up: int, padding: plain.Padding, gain: float) -> torch.Tensor:
    n, channels, height, width = x.shape
    left, right, top, bottom = padding
    taps = tuple(kernel.tolist())
    rows = _filter_matrix(taps, height, up, (top, bottom), gain, x.dtype).expand(n * channels, -1, -1)
    columns = _filter_matrix(taps, width, up, (left, right), 1.0, x.dtype).expand(n * channels, -1, -1)
    # Each image by itself: a product of all together could round otherwise in another batch.
    return (rows @ x.reshape(-1, height, width) @ columns.mT).view(n, channels, rows.shape[1], columns.shape[1])


@functools.lru_cache(maxsize=64)
def _filter_matrix(
    taps: tuple[float, ...], size_px: int, up: int, padding: tuple[int, int], gain: float, dtype: torch.dtype
) -> torch.Tensor:
    """[size_px*up+pad-k+1, size_px]: what upfirdn does to one axis, the taps correlated."""
    with torch.inference_mode(False):  # kept for calls that need gradients
        correlated = torch.tensor(taps, dtype=torch.float64) * gain
        out_px = size_px * up + sum(padding) - len(taps) + 1
        tap = up * torch.arange(size_px) + padding[0] - torch.arange(out_px)[:, None]
        inside = (tap >= 0) & (tap < len(taps))
        return torch.where(inside, correlated[tap.clamp(0, len(taps) - 1)], 0.0).to(dtype)


def _can_transpose(kernel: torch.Tensor, up: int, down: int, padding: plain.Padding) -> bool:
    left, right, top, bottom = padding
    same = (left, right) == (top, bottom) and len(set(kernel.shape)) == 1
    # What a transposed convolution crops before the image, and adds after it, cannot be negative.
    return up > 1 and down == 1 and same and left < kernel.shape[0] and 0 <= up + right - left - 1 < up


def _transposed(x: torch.Tensor, kernel: torch.Tensor, up: int, padding: plain.Padding, gain: float) -> torch.Tensor:
    kernel = kernel.to(x.dtype)
    square = (torch.outer(kernel, kernel) if kernel.ndim == 1 else kernel) * gain
    weight = square.expand(x.shape[1], 1, -1, -1)
    left, right = padding[:2]
    crop, extra = square.shape[0] - 1 - left, up + right - left - 1
    return F.conv_transpose2d(x, weight, stride=up, padding=crop, output_padding=extra, groups=x.shape[1])
