"""Grow trained StyleGAN2 weights to a higher resolution or wider layers without changing what they compute (after
Net2Net, Chen et al. 2016, and progressive growing, Karras et al. 2018): new inputs start at zero, new outputs at
random."""

from __future__ import annotations

import math

import torch

from stylepairs.datagen.stylegan.discriminator import Discriminator
from stylepairs.datagen.stylegan.generator import Generator

State = dict[str, torch.Tensor]


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


def grow_discriminator(old: State, target: Discriminator) -> None:
    """Fill `target` so that it scores nearly as `old` scored the downsampled image.

    The new top block starts as the old fromrgb followed by a plain downsampling through the skip path.
    """
    new = target.state_dict()
    if old["b4.conv.weight"].shape != new["b4.conv.weight"].shape:
        raise ValueError("grow_discriminator: channels at 4x4 must stay; keep channel_max")
    old_top = max(int(key.split(".")[0][1:]) for key in old)
    top = target.config.img_resolution
    with torch.no_grad():
        for key, value in new.items():
            if key in old and "resample_filter" not in key:
                _widen_equalised(old[key], value)
        for resolution in target.config.resolutions:
            if resolution <= old_top:
                break
            _pass_through(new, resolution)
        if top > old_top:
            # Where the new top is narrower than the old one, its leading channels are all that fits.
            shared = min(new[f"b{top}.fromrgb.bias"].shape[0], old[f"b{old_top}.fromrgb.bias"].shape[0])
            for name in ("weight", "bias"):
                new[f"b{top}.fromrgb.{name}"][:shared] = old[f"b{old_top}.fromrgb.{name}"][:shared]


def _widen(key: str, old: torch.Tensor, new: torch.Tensor, torgb: bool) -> None:
    """Copy old into the leading corner of new; zero what feeds new inputs into old outputs."""
    corner = tuple(slice(0, size) for size in old.shape)
    if key.endswith(".weight") and old.ndim == 4:
        new[: old.shape[0], old.shape[1] :] = 0
        # ToRGB scales its styles by 1/sqrt(Cin) at run time, demodulated layers do not.
        old = old * math.sqrt(new.shape[1] / old.shape[1]) if torgb else old
    new[corner] = old


def _widen_equalised(old: torch.Tensor, new: torch.Tensor) -> None:
    """The same for layers whose run-time weight is weight / sqrt(fan-in)."""
    if old.ndim < 2:
        new[: old.shape[0]] = old
        return
    new[: old.shape[0], old.shape[1] :] = 0
    gain = math.sqrt(new.shape[1] / old.shape[1])
    new[tuple(slice(0, size) for size in old.shape)] = old * gain


def _pass_through(state: State, resolution: int) -> None:
    """A block that returns its (leading) input channels downsampled: conv1 silent, skip the identity."""
    state[f"b{resolution}.conv1.weight"].zero_()
    skip = state[f"b{resolution}.skip.weight"]
    skip.zero_()
    shared = min(skip.shape[:2])
    # sqrt(fan-in) undoes the equalised rate, sqrt(2) the variance-keeping gain of the block.
    skip[torch.arange(shared), torch.arange(shared)] = math.sqrt(skip.shape[1]) * math.sqrt(2.0)
