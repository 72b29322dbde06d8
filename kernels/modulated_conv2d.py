"""Modulated, demodulated convolution (StyleGAN2, Karras et al. 2020, section 2.2), with one weight shared by the
batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from stylepairs.kernels.dispatch import choose
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
    writes it, and is kept as the independent check.
    """
    chosen = choose("modulated_conv2d", impl, {"shared": True, "grouped": True})
    if up not in (1, 2):
        raise ValueError(f"modulated_conv2d: up must be 1 or 2, got {up}")
    if up == 2 and resample_kernel is None:
        raise ValueError("modulated_conv2d: up=2 needs resample_kernel")
    if chosen == "grouped":
        return _grouped(x, weight, styles, up, resample_kernel, demodulate)
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
    if torch.is_autocast_enabled(styles.device.type):
        with torch.autocast(styles.device.type, enabled=False):
            return demodulation(weight, styles.to(weight.dtype))
    return (styles.square() @ weight.square().sum((2, 3)).t() + DEMODULATION_EPS).rsqrt()


def convolve(
    x: torch.Tensor, weight: torch.Tensor, up: int = 1, resample_kernel: torch.Tensor | None = None, groups: int = 1
) -> torch.Tensor:
    """Same-size correlation [N,Cin,H,W] -> [N,Cout,H,W], or (up=2) transposed convolution followed by the FIR
    filter."""
    if up == 1:
        return F.conv2d(x, weight, padding=weight.shape[-1] // 2, groups=groups)
    assert resample_kernel is not None
    size = weight.shape[-1]
    cout, cin = weight.shape[0] // groups, weight.shape[1]
    transposed = weight.reshape(groups, cout, cin, size, size).transpose(1, 2).reshape(groups * cin, cout, size, size)
    x = F.conv_transpose2d(x, transposed, stride=2, groups=groups)
    taps = resample_kernel.shape[0]
    before, after = size // 2 + (taps + 1) // 2 - (size - 1), size // 2 + (taps - 2) // 2 - (size - 2)
    return upfirdn2d(x, resample_kernel, padding=(before, after, before, after), gain=4)


def _grouped(
    x: torch.Tensor,
    weight: torch.Tensor,
    styles: torch.Tensor,
    up: int,
    resample_kernel: torch.Tensor | None,
    demodulate: bool,
) -> torch.Tensor:
    n = x.shape[0]
    per_sample = weight[None] * styles[:, None, :, None, None]  # [N,Cout,Cin,k,k]
    if demodulate:
        per_sample = per_sample * (per_sample.square().sum((2, 3, 4), keepdim=True) + DEMODULATION_EPS).rsqrt()
    out = convolve(x.reshape(1, -1, *x.shape[2:]), per_sample.flatten(0, 1), up, resample_kernel, groups=n)
    return out.reshape(n, -1, *out.shape[2:])
