"""SeFa (Shen & Zhou 2021): directions in closed form, the eigenvectors of the generator's own first affine maps. No
samples, no labels."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from stylepairs.datagen.latent.styles import style_layers
from stylepairs.datagen.reconstruction.prior import signed
from stylepairs.datagen.shell.errors import InputError
from stylepairs.datagen.stylegan.generator import Generator


def factors(generator: Generator, layers: Sequence[int] | None, count: int) -> torch.Tensor:
    """The `count` directions [K,C] of unit length that the affine maps of rows `layers` of W+ (None: all) stretch most.

    As published, every map's columns are scaled to unit length first.
    """
    chosen = [layer for layer in style_layers(generator) if layers is None or layer.row in layers]
    weight = torch.cat([layer.affine.weight.detach().double().cpu() for layer in chosen])  # [channels, C]
    if count > weight.shape[1]:
        raise InputError(f"{count} directions of latents with {weight.shape[1]} entries; ask for fewer")
    weight = weight / weight.norm(dim=1, keepdim=True).clamp_min(1e-12)
    _, basis = torch.linalg.eigh(weight.T @ weight)
    return signed(basis.T.flip(0)[:count]).float()
