"""Low-rank deltas on the frozen weights of a trained editor, its base: what a new edit adds to it is a small file.

After LoRA (Hu et al. 2021): a weight W [O,I] becomes W + up @ down with up [O,r], down [r,I], up zero at first. Of a
convolution, as in E2GAN (Gong et al. 2024): down has the layer's kernel, up is 1 x 1. LoRA's factor alpha / r is 1.
What is too small for that, or not the base's own (what reads a new edit's style), is learnt whole, and so are biases.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn
from torch.nn.utils import parametrize

# How a state dict names the frozen weight of a layer with a delta, and the delta's two factors.
_FROZEN = ".parametrizations.weight.original"
_DELTA = ".parametrizations.weight.0."


class LowRank(nn.Module):
    """weight -> weight + up @ down, for a weight [O,I] or [O,I,k,k]."""

    def __init__(self, weight: torch.Tensor, rank: int):
        super().__init__()
        self.down = nn.Parameter(weight.new_empty(rank, *weight.shape[1:]))
        self.up = nn.Parameter(weight.new_zeros(weight.shape[0], rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return added(weight, self.up, self.down)


def added(weight: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """weight [O,...] + up [O,r] @ down [r,...]; the factors may not fit, then ValueError."""
    if up.shape != (len(weight), len(down)) or down.shape[1:] != weight.shape[1:]:
        raise ValueError(f"factors {list(up.shape)}, {list(down.shape)} of a weight {list(weight.shape)}")
    return weight + (up @ down.flatten(1)).view_as(weight)


def attach(model: nn.Module, rank: int, base: Mapping[str, torch.Tensor]) -> None:
    """Freeze what the model has of its base, by the base's state, and let low-rank deltas learn in its place."""
    for name, layer in list(model.named_modules()):
        if not isinstance(layer, nn.Conv2d | nn.Linear) or not layer.weight.requires_grad:
            continue
        weight, own = layer.weight, base.get(f"{name}.weight")
        sides = len(weight) + weight[0].numel()
        if own is None or not torch.equal(own, weight) or 2 * rank * sides > weight.numel():
            continue  # learnt whole
        weight.requires_grad_(False)
        parametrize.register_parametrization(layer, "weight", LowRank(weight, rank))


def is_attached(model: nn.Module) -> bool:
    """Whether the model learns deltas on a base."""
    return any(isinstance(module, LowRank) for module in model.modules())


def is_frozen(name: str) -> bool:
    """Whether a tensor of a model's state is a base's weight under a delta."""
    return name.endswith(_FROZEN)


def folded(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A model's state with its deltas in the weights: that of an ordinary model with the same output."""
    # torch's remove_parametrizations would take the deltas from all copies of a layer.
    base = {name.removesuffix(_FROZEN) + ".weight": tensor for name, tensor in state.items() if is_frozen(name)}
    return on_base(base, {name: tensor for name, tensor in state.items() if not is_frozen(name)})


def on_base(base: Mapping[str, torch.Tensor], adapter: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state of a base with the trained state of an adapter in it. Raises KeyError, ValueError where they do not
    fit."""
    state = dict(base)
    for name, tensor in adapter.items():
        layer, delta, factor = name.partition(_DELTA)
        if not delta:
            state[name] = tensor
        elif factor == "up":
            weight = f"{layer}.weight"
            state[weight] = added(base[weight], tensor, adapter[f"{layer}{_DELTA}down"])
        elif factor != "down":
            raise ValueError(f"no factor: {name}")
    return state
