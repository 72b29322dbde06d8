"""A frozen inverted bottleneck (MobileNetV2, Sandler et al. 2018) in one operation: 1x1 convolution, ReLU6, depthwise
convolution, ReLU6, 1x1 convolution; and the strided convolution that such networks begin with."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from stylepairs.kernels.dispatch import apply, choose, is_traced

Layer = tuple[torch.Tensor, torch.Tensor]  # weight [Cout,Cin/groups,k,k], bias [Cout]
_SIX_BF16 = 0x40C0  # the bits of 6
_FUSED_DTYPES = (torch.float32, torch.bfloat16)


def inverted_bottleneck(
    x: torch.Tensor, expand: Layer | None, depthwise: Layer, project: Layer, stride: int = 1, impl: str = "auto"
) -> torch.Tensor:
    """project(relu6(depthwise(relu6(expand(x))))), plus x where the shapes allow it (stride 1, as many channels).

    x [N,C,H,W]; expand [E,C,1,1] or None (x goes to the depthwise layer as it is), depthwise [E,1,k,k] with k odd,
    project [D,E,1,1], each with its bias; stride 1 or 2, padded as TensorFlow does ("SAME": all of an odd total to the
    right and bottom). Returns [N,D,H/stride,W/stride] in x's dtype.
    impl "reference" composes plain operations; "fused" is for frozen weights on a CPU, in float32 or bfloat16: one
    autograd function with a gradient to x alone, which raises where a second derivative is asked for.
    """
    layers = [layer for layer in (expand, depthwise, project) if layer is not None]
    chosen = choose("inverted_bottleneck", impl, {"fused": _can_fuse(x, layers), "reference": True})
    if chosen == "reference":
        return _reference(x, expand, depthwise, project, stride)
    if not torch.is_grad_enabled() or not x.requires_grad:
        return _forward(x, expand, depthwise, project, stride)[0]
    return apply(_Bottleneck, x, expand, depthwise, project, stride)


def strided_stem(x: torch.Tensor, layer: Layer, impl: str = "auto") -> torch.Tensor:
    """relu6 of a 3x3 convolution at stride 2, not padded: x [N,C,H,W], weight [D,C,3,3] -> [N,D,(H-1)//2,(W-1)//2].

    impl as in `inverted_bottleneck`.
    """
    chosen = choose("strided_stem", impl, {"fused": _can_fuse(x, [layer]), "reference": True})
    if chosen == "reference":
        return F.relu6(F.conv2d(x, *_in(x.dtype, layer), stride=2))
    if not torch.is_grad_enabled() or not x.requires_grad:
        return _stem(x, layer)
    return apply(_Stem, x, *layer)


def _can_fuse(x: torch.Tensor, layers: list[Layer]) -> bool:
    if is_traced() or torch.is_autocast_enabled("cpu"):
        return False
    trains = torch.is_grad_enabled() and any(value.requires_grad for layer in layers for value in layer)
    return x.device.type == layers[0][0].device.type == "cpu" and x.dtype in _FUSED_DTYPES and not trains


def _reference(x: torch.Tensor, expand: Layer | None, depthwise: Layer, project: Layer, stride: int) -> torch.Tensor:
    weight, bias = _in(x.dtype, depthwise)
    total = weight.shape[-1] - stride
    y = x if expand is None else F.relu6(F.conv2d(x, *_in(x.dtype, expand)))
    y = F.pad(y, (total // 2, total - total // 2) * 2)
    y = F.relu6(F.conv2d(y, weight, bias, stride=stride, groups=len(weight)))
    y = F.conv2d(y, *_in(x.dtype, project))
    return x + y if _has_residual(x, project, stride) else y


def _has_residual(x: torch.Tensor, project: Layer, stride: int) -> bool:
    return stride == 1 and len(project[0]) == x.shape[1]


class _Bottleneck(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, expand: Layer | None, depthwise: Layer, project: Layer, stride: int
    ) -> torch.Tensor:
        out, wide, narrow = _forward(x, expand, depthwise, project, stride)
        ctx.save_for_backward(None if expand is None else wide, narrow)
        ctx.layers, ctx.stride, ctx.size = (expand, depthwise, project), stride, x.shape[2:]
        ctx.residual = _has_residual(x, project, stride)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        wide, narrow = ctx.saved_tensors
        expand, depthwise, project = ctx.layers
        by_x = _across(gradient, project)
        by_x = _depthwise_backward(_relu6_backward_(by_x, narrow), depthwise[0], ctx.stride, ctx.size)
        if expand is not None:
            by_x = _across(_relu6_backward_(by_x, wide), expand)
        if ctx.residual:
            by_x += gradient
        return by_x, None, None, None, None


class _Stem(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        y = _stem(x, (weight, bias))
        ctx.size = x.shape[2:]
        ctx.save_for_backward(y, weight)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        y, weight = ctx.saved_tensors
        gradient = torch.ops.aten.hardtanh_backward(gradient, y, 0.0, 6.0)
        columns = weight.flatten(1).to(gradient.dtype).t() @ gradient.flatten(2)  # [N,C*9,pixels]
        return F.fold(columns, ctx.size, 3, stride=2), None, None


def _forward(
    x: torch.Tensor, expand: Layer | None, depthwise: Layer, project: Layer, stride: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The block's output, and what its two ReLU6 gave (without expand the first is x)."""
    x = _channels_last(x)
    wide = x if expand is None else _relu6_(F.conv2d(x, *_in(x.dtype, expand)))
    weight, bias = _in(x.dtype, depthwise)
    padding = weight.shape[-1] // 2
    if stride == 2:
        weight = F.pad(weight, (1, 0, 1, 0))  # a row and column of zeros: TensorFlow's padding without a padded copy
    narrow = _relu6_(F.conv2d(wide, weight, bias, stride=stride, padding=padding, groups=len(weight)))
    out = F.conv2d(narrow, *_in(x.dtype, project))
    return (out.add_(x) if _has_residual(x, project, stride) else out), wide, narrow


def _across(gradient: torch.Tensor, layer: Layer) -> torch.Tensor:
    """Back through a 1x1 convolution."""
    return F.conv2d(gradient, layer[0].to(gradient.dtype).transpose(0, 1))


def _depthwise_backward(gradient: torch.Tensor, weight: torch.Tensor, stride: int, size: torch.Size) -> torch.Tensor:
    channels, padding = len(weight), weight.shape[-1] // 2
    weight = weight.to(gradient.dtype)
    if stride == 2 and gradient.dtype == torch.float32:
        weight, odd = F.pad(weight, (1, 0, 1, 0)), (size[0] % 2, size[1] % 2)
        return F.conv_transpose2d(gradient, weight, None, stride, padding, odd, channels)
    if stride == 2:
        # In bfloat16 oneDNN's own form takes 25 times as long as this: zeros between, then a plain convolution.
        spread = gradient.new_zeros((len(gradient), *size, channels)).permute(0, 3, 1, 2)
        spread[:, :, 1::2, 1::2] = gradient
        gradient = spread
    return F.conv2d(gradient, weight.flip(2, 3), padding=padding, groups=channels)


def _stem(x: torch.Tensor, layer: Layer) -> torch.Tensor:
    return _relu6_(F.conv2d(_channels_last(x), *_in(x.dtype, layer), stride=2))


def _relu6_(x: torch.Tensor) -> torch.Tensor:
    """In place. Bits of bfloat16 numbers that are not negative are in their order: 16-bit integers go 4 times as fast
    (and a NaN becomes 0 or 6)."""
    if x.dtype == torch.bfloat16:
        x.view(torch.int16).clamp_(0, _SIX_BF16)
        return x
    return F.relu6(x, inplace=True)


def _relu6_backward_(gradient: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """In place; y: what ReLU6 gave."""
    torch.ops.aten.hardtanh_backward.grad_input(gradient, y, 0.0, 6.0, grad_input=gradient)
    return gradient


def _in(dtype: torch.dtype, layer: Layer) -> Layer:
    return layer[0].to(dtype), layer[1].to(dtype)


def _channels_last(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous(memory_format=torch.channels_last)
