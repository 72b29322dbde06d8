"""GANSpace (Härkönen, Hertzmann, Lehtinen, Paris 2020): principal components of W, or of a layer's features, as edits
of layer ranges.

Published: incremental PCA of up to a million samples, 80 components, layer ranges picked by hand. In W all samples fit
into one covariance here. Components of features are carried over to W by least squares, as published.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from stylepairs.datagen.reconstruction.prior import signed
from stylepairs.datagen.shell.errors import InputError
from stylepairs.datagen.stylegan.generator import Generator

FEATURES_PX = 8  # side that features are averaged to: bounds their number


def components(w: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` widest principal components [K,C] of w [S,C], of unit length, and their deviations [K]."""
    if len(w) < 2 or count > w.shape[1]:
        raise InputError(f"{count} components of {len(w)} samples with {w.shape[1]} entries; ask for fewer")
    centred = (w - w.mean(0)).double()
    variance, basis = torch.linalg.eigh(centred.T @ centred / (len(w) - 1))
    kept = variance.argsort(descending=True)[:count]
    return signed(basis.T[kept]).float(), variance[kept].clamp_min(0).sqrt().float()


@torch.no_grad()
def feature_components(
    generator: Generator, w: torch.Tensor, resolution: int, count: int, batch: int = 16
) -> tuple[torch.Tensor, torch.Tensor]:
    """Components [K,C] of W that best follow the features of the block at `resolution`; each of the length that moves
    its feature coordinate by one deviation, and the deviations [K] of these coordinates. Raises InputError."""
    sides = generator.config.resolutions
    if resolution not in sides:
        raise InputError(f"features of side {resolution}: the generator has blocks of {', '.join(map(str, sides))}")
    if count >= len(w):  # less their mean, the samples span one direction less
        raise InputError(f"{count} components of the features of {len(w)} samples; ask for fewer, or sample more")
    found = []
    for rows in w.split(batch):
        kept: list[torch.Tensor] = []

        def keep(at: int, x: torch.Tensor, kept: list[torch.Tensor] = kept) -> torch.Tensor:
            if at == resolution:
                kept.append(F.adaptive_avg_pool2d(x, min(FEATURES_PX, resolution)).flatten(1))
            return x

        generator.synthesis(rows[:, None].expand(-1, generator.num_ws, -1), max_resolution=resolution, fuse=keep)
        found += kept
    features = torch.cat(found).double()
    features -= features.mean(0)
    # The samples' coordinates along the widest components, from the products of samples, which are fewer than features.
    variance, basis = torch.linalg.eigh(features @ features.T)
    coordinates = (basis * variance.clamp_min(0).sqrt()).flip(1)[:, :count]
    deviation = coordinates.std(0)
    # w from the coordinates: the least squares solution of w - mean = (u / deviation) X.
    solved = torch.linalg.lstsq(coordinates / deviation, (w - w.mean(0)).double()).solution
    return solved.float(), deviation.float()
