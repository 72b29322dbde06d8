"""Grow trained StyleGAN2 weights to a higher resolution or wider layers without changing what they compute (after
Net2Net, Chen et al. 2016, and progressive growing, Karras et al. 2018): new inputs start at zero, new outputs at
random."""

from __future__ import annotations

import math

import torch
from torch import nn

from stylepairs.datagen.stylegan.generator import Generator

State = dict[str, torch.Tensor]


def can_grow(old: State, target: Generator) -> bool:
    """Whether `target` has room for all of `old`, and the same mapping network."""
    new = target.state_dict()
    learned = {key: value.shape for key, value in old.items() if "resample_filter" not in key}
    mapping = {key: value.shape for key, value in new.items() if key.startswith("mapping.")}
    return mapping == {key: shape for key, shape in learned.items() if key.startswith("mapping.")} and all(
        key in new and all(a <= b for a, b in zip(shape, new[key].shape, strict=True)) for key, shape in learned.items()
    )


def grow_generator(old: State, target: Generator) -> None:
    """Fill `target` (same z_dim, w_dim and mapping depth) so that it renders what `old` rendered, upsampled."""
    new = target.state_dict()
    old_top = max(int(key.split(".")[1][1:]) for key in old if key.startswith("synthesis.b"))
    with torch.no_grad():
        for key, value in new.items():
            if "resample_filter" in key:
                continue
            if key in old:
                _widen(key, old[key], value, torgb="torgb" in key)
            elif key.endswith("torgb.weight") and int(key.split(".")[1][1:]) > old_top:
                value.zero_()  # a new resolution adds nothing to the skip image until it has learned to


def grow_offsets(old: State, target: nn.Module) -> None:
    """Fill `target`, of as many layers or more: old layers keep their offsets, new layers have none."""
    new = target.state_dict()
    with torch.no_grad():
        for key, value in old.items():
            new[key].zero_()
            new[key][: len(value)] = value


def _widen(key: str, old: torch.Tensor, new: torch.Tensor, torgb: bool) -> None:
    """Copy old into the leading corner of new; zero what feeds new inputs into old outputs."""
    corner = tuple(slice(0, size) for size in old.shape)
    if key.endswith(".weight") and old.ndim == 4:
        new[: old.shape[0], old.shape[1] :] = 0
        # ToRGB scales its styles by 1/sqrt(Cin) at run time, demodulated layers do not.
        old = old * math.sqrt(new.shape[1] / old.shape[1]) if torgb else old
    new[corner] = old
