"""A plain latent direction (InterFaceGAN, Shen et al. 2020): the attribute is scored on generated samples, a
hyperplane is fitted to the scores, and the portrait moves along its normal, all rows of W+ alike.

Published: 500 000 samples, an attribute network's scores, a linear SVM on the top and bottom 2 %, steps of -3 to 3
chosen by hand. Here: 1024 samples; the score is what our parser and colours say (below); ridge regression over all
samples, in the Gaussianised W, and the normal in W of its hyperplane there; the portrait walks along the line
until the score is the sketch's. Nothing is optimised, so the number of steps says nothing.

Score of an image for a sketch: where the sketch is about colour (Lab), the mean Lab colour of its own hair, along the
line from the photo's mean colour to the sketch's in the edit mask; else the hair matte, coarse, along its change from
the photo to the sketch: so "hair on the forehead" for a fringe. What changes neither has no direction and stays as it
is.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from baselines.harness import embedded_parser, hair_matte
from stylepairs.datagen.images.colors import srgb_to_lab
from stylepairs.datagen.portraits.portrait import Portrait
from stylepairs.datagen.portraits.sketch import Sketch
from stylepairs.datagen.reconstruction.batch import Progress
from stylepairs.datagen.reconstruction.inversion import Inversion
from stylepairs.datagen.reconstruction.objective import LAB_SCALE
from stylepairs.datagen.reconstruction.prior import WPrior
from stylepairs.datagen.reconstruction.reconstruct import Found, Problem, Reconstruction, collect
from stylepairs.datagen.reconstruction.rendering import render, use_channels_last
from stylepairs.datagen.stylegan.generator import Generator

SAMPLES = 1024
RIDGE = 0.1  # of the samples' number: what noise in the score is worth against a whitened latent of unit variance
FARTHEST = 3.0  # standard deviations of the latent along the direction, as published
STRIDES = 15
GRID_PX = 16


@dataclass(frozen=True)
class ScoredSamples:
    """Latents u [S,C], whitened, and of their images: mean Lab / 50 of the hair [S,3], matte [S,256], hairy [S]."""

    u: torch.Tensor
    colors: torch.Tensor
    mattes: torch.Tensor
    hairy: torch.Tensor


_samples: weakref.WeakKeyDictionary[nn.Module, ScoredSamples] = weakref.WeakKeyDictionary()


def reconstruct(
    problem: Problem, progress: Progress | None = None, parser: nn.Module | None = None
) -> list[Reconstruction]:
    """As `reconstruction.reconstruct`; of the settings only `batch` counts. parser None: the embedded one.

    The samples are drawn and scored once for a generator object.
    """
    generator, prior, width = problem.generator, problem.prior, problem.settings.batch
    use_channels_last(generator)
    parser = parser or embedded_parser()
    if generator not in _samples:
        _samples[generator] = score_samples(generator, prior, parser, width)
    found = []
    for done, case in enumerate(problem.cases, 1):
        found.append(_edited(generator, prior, parser, *case, width))
        if progress is not None:
            progress(done, len(problem.cases))
    return collect(problem, found)


@torch.no_grad()
def score_samples(generator: Generator, prior: WPrior, parser: nn.Module, width: int, seed: int = 0) -> ScoredSamples:
    """Draw SAMPLES latents and describe their images; the same seed gives the same samples."""
    draw = torch.Generator().manual_seed(seed)
    z = torch.randn(SAMPLES, generator.config.z_dim, generator=draw).to(generator.mapping.w_avg.device)
    w = generator.mapping.to_w(z)
    parts = []
    for rows in w.split(width):
        image = generator.synthesis(rows[:, None].expand(-1, generator.num_ws, -1)).clamp(-1, 1)
        parts.append(describe(image, hair_matte(parser, image)))
    colors, mattes, hairy = (torch.cat(column) for column in zip(*parts, strict=True))
    return ScoredSamples(prior.whiten(w), colors, mattes, hairy)


def describe(image: torch.Tensor, matte: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """image [N,3,H,W], matte [N,1,h,w] -> mean Lab / 50 under the matte [N,3], coarse matte [N,256], any hair [N]."""
    lab = srgb_to_lab(image.clamp(-1, 1)) / LAB_SCALE
    weight = F.interpolate(matte, size=image.shape[-2:], mode="bilinear", antialias=True, align_corners=False)
    color = (lab * weight).sum((2, 3)) / weight.sum((2, 3)).clamp_min(1e-6)
    coarse = F.adaptive_avg_pool2d(matte, GRID_PX).flatten(1)
    return color, coarse, weight.mean((1, 2, 3)) > 0.02


def fit_direction(u: torch.Tensor, score: torch.Tensor) -> torch.Tensor:
    """Unit normal [C] of the ridge regression of score [S] on whitened latents u [S,C], towards higher scores."""
    centred, wanted = (u - u.mean(0)).double(), (score - score.mean()).double()
    gram = centred.T @ centred + RIDGE * len(u) * torch.eye(u.shape[1], dtype=torch.float64, device=u.device)
    return F.normalize(torch.linalg.solve(gram, centred.T @ wanted), dim=0).float()


@torch.no_grad()
def _edited(
    generator: Generator,
    prior: WPrior,
    parser: nn.Module,
    portrait: Portrait,
    inversion: Inversion,
    sketch: Sketch,
    width: int,
) -> Found:
    samples, axis = _samples[generator], _axis(parser, portrait, sketch)
    if axis is None:
        return Found(inversion.ws, inversion.noise, {"finite": 1.0, "steps": 0.0, "score_reached": 0.0})
    values = samples.colors[samples.hairy] if sketch.space == "lab" else samples.mattes
    latents = samples.u[samples.hairy] if sketch.space == "lab" else samples.u
    direction = fit_direction(latents, values @ axis)
    start = prior.whiten(inversion.ws)
    ws = [prior.unwhiten(start + FARTHEST * k / STRIDES * direction) for k in range(STRIDES + 1)]
    scores = _scores(generator, parser, ws, inversion, sketch, width) @ axis
    # What the inversion's own colours miss is no part of the edit: the change is what has to be right.
    share = (scores - scores[0]) / axis.square().sum()
    best = first_reached(share)
    figures = {"finite": 1.0, "steps": float(STRIDES), "score_reached": float(share[best])}
    return Found(ws[best], inversion.noise, figures)


def first_reached(share: torch.Tensor) -> int:
    """The step at which the share [K] of the wanted change first comes to 1 (it, or the one before where that is
    nearer); where it never does, the step that comes nearest."""
    reached: list[int] = torch.nonzero(share >= 1).flatten().tolist()
    if not reached:
        return int(share.argmax())
    return reached[0] - 1 if reached[0] and 1 - share[reached[0] - 1] < share[reached[0]] - 1 else reached[0]


def _axis(parser: nn.Module, portrait: Portrait, sketch: Sketch) -> torch.Tensor | None:
    """The change that the sketch wants: of mean colour [3] or coarse matte [256]; None where there is next to none."""
    images = torch.stack([portrait.image, sketch.image])
    if sketch.space == "lab":
        mask = sketch.edit_mask[None].expand(2, -1, -1, -1)
        lab = srgb_to_lab(images) / LAB_SCALE
        means = (lab * mask).sum((2, 3)) / mask.sum((2, 3)).clamp_min(1e-6)
    else:
        mattes = hair_matte(parser, images)
        if sketch.hair is not None:
            mattes = torch.stack([portrait.hair, sketch.hair])
        means = F.adaptive_avg_pool2d(mattes, GRID_PX).flatten(1)
    axis = means[1] - means[0]
    return axis if float(axis.norm()) > 1e-3 else None


def _scores(
    generator: Generator,
    parser: nn.Module,
    ws: Sequence[torch.Tensor],
    inversion: Inversion,
    sketch: Sketch,
    width: int,
) -> torch.Tensor:
    """What the score is made of, for each latent: [K,3] or [K,256]."""
    images = torch.stack(render(generator, ws, [inversion.noise] * len(ws), width))
    described = [describe(part, hair_matte(parser, part)) for part in images.split(width)]
    return torch.cat([color if sketch.space == "lab" else coarse for color, coarse, _ in described])
