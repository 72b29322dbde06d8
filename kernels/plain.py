"""What the Triton kernels compute, in plain PyTorch operations: the reference of bias_act, upfirdn2d and layer_tail."""

from __future__ import annotations

import torch
import torch.nn.functional as F

Padding = tuple[int, int, int, int]  # left, right, top, bottom; negative crops


def bias_act(
    x: torch.Tensor, bias: torch.Tensor | None, dim: int, act: str, slope: float, gain: float, clamp: float | None
) -> torch.Tensor:
    """clamp(act(x + bias) * gain, -clamp, clamp); arguments as in `kernels.bias_act.bias_act`."""
    if bias is not None:
        x = x + bias.to(x.dtype).reshape([-1 if i == dim else 1 for i in range(x.ndim)])
    if act == "lrelu":
        x = F.leaky_relu(x, slope)
    elif act == "relu":
        x = F.relu(x)
    if gain != 1:
        x = x * gain
    return x if clamp is None else x.clamp(-clamp, clamp)


def upfirdn2d(
    x: torch.Tensor, kernel: torch.Tensor, up: int, down: int, padding: Padding, gain: float, separable: bool
) -> torch.Tensor:
    """Arguments as in `kernels.upfirdn2d.upfirdn2d`, but that the kernel is correlated.

    separable: a 1-D kernel runs along x, then along y.
    """
    if up > 1:
        x = _insert_zeros(x, up)
    if min(padding) < 0:
        x, padding = F.pad(x, padding), (0, 0, 0, 0)
    kernel = kernel.to(x.dtype)
    left, right, top, bottom = padding
    if separable:
        x = _depthwise(x, kernel[None, :] * gain, (1, down), (left, right, 0, 0))
        return _depthwise(x, kernel[:, None], (down, 1), (0, 0, top, bottom))
    square = torch.outer(kernel, kernel) if kernel.ndim == 1 else kernel
    return _depthwise(x, square * gain, (down, down), padding)


def layer_tail(
    x: torch.Tensor,
    demod: torch.Tensor | None,
    noise: torch.Tensor | None,
    bias: torch.Tensor | None,
    taps: torch.Tensor | None,
    settings: tuple[float, float, float | None, Padding],
) -> torch.Tensor:
    """clamp(gain * leaky_relu(fir(x) * demod + noise + bias, slope)); settings: slope, gain, clamp, padding."""
    slope, gain, clamp, padding = settings
    if taps is not None:
        x = upfirdn2d(x, taps, 1, 1, padding, gain=1.0, separable=True)
    if demod is not None:
        x = x * demod.to(x.dtype)[:, :, None, None]
    if noise is not None:
        x = x + noise.to(x.dtype)
    return bias_act(x, bias, 1, "lrelu", slope, gain, clamp)


def _depthwise(x: torch.Tensor, kernel: torch.Tensor, stride: tuple[int, int], padding: Padding) -> torch.Tensor:
    channels = x.shape[1]
    weight = kernel[None, None].expand(channels, 1, -1, -1)
    left, right, top, bottom = padding
    if left == right and top == bottom:
        return F.conv2d(x, weight, stride=stride, padding=(top, left), groups=channels)
    return F.conv2d(F.pad(x, padding), weight, stride=stride, groups=channels)


def _insert_zeros(x: torch.Tensor, up: int) -> torch.Tensor:
    n, c, h, w = x.shape
    x = F.pad(x.reshape(n, c, h, 1, w, 1), (0, up - 1, 0, 0, 0, up - 1))
    return x.reshape(n, c, h * up, w * up)
