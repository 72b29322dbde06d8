"""Modulated, demodulated convolution (StyleGAN2, Karras et al. 2020, section 2.2), with one weight shared by the
batch."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from stylepairs.kernels.dispatch import apply, autocast_dtype, choose, without_autocast
from stylepairs.kernels.upfirdn2d import upfirdn2d

DEMODULATION_EPS = 1e-8


def modulated_conv2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    styles: torch.Tensor,
    up: int = 1,
    resample_kernel: torch.Tensor | None = None,
    demodulate: bool = True,
    impl: str = "auto",
) -> torch.Tensor:
    """Convolve x with weight scaled per sample by styles on its input channels, outputs rescaled to unit variance.

    x [N,Cin,H,W], weight [Cout,Cin,k,k] with odd k, styles [N,Cin]; up 1 or 2 (then resample_kernel, FIR of sum 1, is
    needed); demodulate divides by the norm of the scaled weight. Returns [N,Cout,H*up,W*up]. Differentiable twice.
    impl "shared" scales input and output around one convolution; "grouped" builds every sample's weight as the paper
    writes it, and is kept as the independent check; "pixelwise" does so too for 1x1 weights with fewer outputs than
    inputs (ToRGB), on a CPU, as one matrix product per sample.
    """
    small = weight.shape[2:] == (1, 1) and up == 1 and x.device.type == "cpu" and weight.shape[0] < weight.shape[1]
    chosen = choose("modulated_conv2d", impl, {"pixelwise": small, "shared": True, "grouped": True})
    if up not in (1, 2):
        raise ValueError(f"modulated_conv2d: up must be 1 or 2, got {up}")
    if up == 2 and resample_kernel is None:
        raise ValueError("modulated_conv2d: up=2 needs resample_kernel")
    if chosen == "grouped":
        return _grouped(x, weight, styles, up, resample_kernel, demodulate)
    if chosen == "pixelwise":
        per_sample = _per_sample(weight, styles, demodulate)[..., 0, 0]
        pixels = x.permute(0, 2, 3, 1).flatten(1, 2)
        product = apply(_PixelwiseProduct, pixels, per_sample.to(autocast_dtype(x)))
        return product.reshape(*product.shape[:2], *x.shape[2:])
    x = x * styles.to(x.dtype)[:, :, None, None]
    x = convolve(x, weight.to(x.dtype), up, resample_kernel)
    if demodulate:
        x = x * demodulation(weight, styles).to(x.dtype)[:, :, None, None]
    return x


def demodulation(weight: torch.Tensor, styles: torch.Tensor) -> torch.Tensor:
    """1 / norm of each sample's scaled filters, [N,Cout]: a matrix product of squared styles and summed squared
    weights.

    Full precision under autocast: the sums reach 67 000 with the embedded generator, float16 ends at 65 504.
    """
    with without_autocast(styles.device.type):
        styles = styles.to(weight.dtype)
        return (styles.square() @ weight.square().sum((2, 3)).t() + DEMODULATION_EPS).rsqrt()


def convolve(
    x: torch.Tensor, weight: torch.Tensor, up: int = 1, resample_kernel: torch.Tensor | None = None, groups: int = 1
) -> torch.Tensor:
    """Same-size correlation [N,Cin,H,W] -> [N,Cout,H,W], or (up=2) transposed convolution followed by the FIR
    filter."""
    if up == 1:
        return F.conv2d(x, weight, padding=weight.shape[-1] // 2, groups=groups)
    assert resample_kernel is not None
    x = stretch(x, weight, groups)
    return upfirdn2d(x, resample_kernel, padding=filter_padding(weight, resample_kernel), gain=4)


def stretch(x: torch.Tensor, weight: torch.Tensor, groups: int = 1) -> torch.Tensor:
    """Transposed convolution of stride 2, [N,Cin,H,W] -> [N,Cout,2H-2+k,2W-2+k], to be filtered."""
    size = weight.shape[-1]
    cout, cin = weight.shape[0] // groups, weight.shape[1]
    transposed = weight.reshape(groups, cout, cin, size, size).transpose(1, 2).reshape(groups * cin, cout, size, size)
    return F.conv_transpose2d(x, transposed, stride=2, groups=groups)


def filter_padding(weight: torch.Tensor, resample_kernel: torch.Tensor) -> tuple[int, int, int, int]:
    """Padding with which the FIR filter after `stretch` gives [N,Cout,2H,2W]."""
    size, taps = weight.shape[-1], resample_kernel.shape[0]
    before, after = size // 2 + (taps + 1) // 2 - (size - 1), size // 2 + (taps - 2) // 2 - (size - 2)
    return before, after, before, after


def _grouped(
    x: torch.Tensor,
    weight: torch.Tensor,
    styles: torch.Tensor,
    up: int,
    resample_kernel: torch.Tensor | None,
    demodulate: bool,
) -> torch.Tensor:
    n, filters = x.shape[0], _per_sample(weight, styles, demodulate).flatten(0, 1)
    out = convolve(x.reshape(1, -1, *x.shape[2:]), filters, up, resample_kernel, groups=n)
    return out.reshape(n, -1, *out.shape[2:])


def _per_sample(weight: torch.Tensor, styles: torch.Tensor, demodulate: bool) -> torch.Tensor:
    """Every sample's own weight, [N,Cout,Cin,k,k]."""
    scaled = weight[None] * styles[:, None, :, None, None]
    if demodulate:
        scaled = scaled * (scaled.square().sum((2, 3, 4), keepdim=True) + DEMODULATION_EPS).rsqrt()
    return scaled


class _PixelwiseProduct(torch.autograd.Function):
    """weight [N,Cout,Cin] times pixels [N,H*W,Cin] -> [N,Cout,H*W]; the gradient by pixels keeps their layout, which
    autograd's own would transpose."""

    @staticmethod
    def forward(ctx: Any, pixels: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(pixels, weight)
        return torch.bmm(weight, pixels.to(weight.dtype).transpose(1, 2))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        (gradient,), (pixels, weight) = gradients, ctx.saved_tensors
        by_pixels = torch.bmm(gradient.transpose(1, 2), weight).to(pixels.dtype) if ctx.needs_input_grad[0] else None
        by_weight = torch.bmm(gradient, pixels.to(weight.dtype)) if ctx.needs_input_grad[1] else None
        return by_pixels, by_weight
