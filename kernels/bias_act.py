"""Bias, activation, gain and clamp in one operation (StyleGAN2, Karras et al. 2020)."""

from __future__ import annotations

import math

import torch

from stylepairs.kernels import plain
from stylepairs.kernels.dispatch import Fits, choose, triton_fits, with_triton

_SLOPES = {"linear": 1.0, "relu": 0.0}
# Gains that keep the variance of unit Gaussian input, as in the official release.
DEFAULT_GAIN = {"linear": 1.0, "lrelu": math.sqrt(2.0), "relu": math.sqrt(2.0)}


def bias_act(
    x: torch.Tensor,
    bias: torch.Tensor | None = None,
    dim: int = 1,
    act: str = "linear",
    slope: float = 0.2,
    gain: float | None = None,
    clamp: float | None = None,
    impl: str = "auto",
) -> torch.Tensor:
    """clamp(act(x + bias) * gain, -clamp, clamp).

    x: any shape; bias [x.shape[dim]] or None; act "linear", "relu" or "lrelu" (with slope); gain None takes the
    activation's own (sqrt 2 for the rectifiers); clamp None leaves the range open. Differentiable twice.
    impl "triton" is one kernel on a GPU, for x [N,C,H,W] and dim 1.
    """
    if act not in DEFAULT_GAIN:
        raise ValueError(f"bias_act: unknown activation {act!r}; there are: {', '.join(DEFAULT_GAIN)}")
    gain = DEFAULT_GAIN[act] if gain is None else gain
    usable: dict[str, Fits] = {"reference": True}
    if act != "linear" or gain != 1 or clamp is not None or impl == "triton":  # a sum alone is one operation as it is
        usable = with_triton(usable, _triton_fits(x, dim), x.device)
    if choose("bias_act", impl, usable) == "triton":
        from stylepairs.kernels.gpu.triton_layer import layer_tail

        return layer_tail(x, bias=bias, slope=_SLOPES.get(act, slope), gain=gain, clamp=clamp)
    return plain.bias_act(x, bias, dim, act, slope, gain, clamp)


def _triton_fits(x: torch.Tensor, dim: int) -> Fits:
    if x.ndim != 4 or dim != 1:
        return "it takes x [N,C,H,W] and dim 1"
    return triton_fits(x, x.dtype, x[0].numel() if len(x) else 0)
