"""One-shot domain adaptation (DiFa, Zhang et al. 2022): a generator that takes the style of one picture and keeps its
faces, so that latents, directions and animations of the first apply in it.

Three losses, G_A the generator as it was, G_B as it becomes, w the same for both, v a network's vector of an image:
the change of v points to where the picture stands from G_A's mean (global); each small part of a rendering has a part
of the picture like it and the other way round (local); codes of both renderings agree in all elements but those in
which the domains differ most (selective cross-domain consistency).

Published: v and parts of CLIP ViT-B/32 and B/16, codes of e4e, 301 steps of 2, rate 2e-3; weights 1, 1.5 and 7, the
last one rising from 0 over the run; a code is the coarse 7 of 18 rows alone, the others are free to take the style, and
the 0.8 of its elements that differ least agree. Here v and parts are of CLIP where a file is given, else of the
ImageNet network that the package uses elsewhere; codes are of an encoder where one is given, else v itself. The rate is
twice as high, for half of the steps, and the weights are whole from the first.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from stylepairs.datagen.encoders.network import Encoder, encoded
from stylepairs.datagen.encoders.run_file import RunFile
from stylepairs.datagen.latent.methods.style_eyes import Eyes
from stylepairs.datagen.reconstruction.prior import WPrior
from stylepairs.datagen.reconstruction.rendering import use_channels_last
from stylepairs.datagen.shell.randomness import random_number
from stylepairs.datagen.stylegan.generator import Generator

CODE_ROWS = 7 / 18  # of W+: the coarse rows, which say who it is and how the head stands, not in what style
# The features that the direction is of are also held together: with the published weight nothing moves.
CODES_CONSISTENCY, FEATURES_CONSISTENCY = 7.0, 0.7
MEAN_SAMPLES = 64  # of G_A, whose mean the global direction starts from
LEAST_CHANGE = 0.1  # of the way to the picture
_BATCH = 8
_SAVE_EVERY = 50

Codes = Callable[[torch.Tensor], torch.Tensor]  # images [N,3,H,W] -> [N,L,C]


class AdaptationSettings(BaseModel):
    """How a generator is adapted; consistent_share: of a code's elements that agree; window: steps of running means;
    consistency_weight None: 7 for an encoder's codes, as published, FEATURES_CONSISTENCY for the features'."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    steps: int = Field(default=160, ge=1, le=10**7)
    batch: int = Field(default=2, ge=1, le=1024)
    learning_rate: float = Field(default=4e-3, gt=0)
    direction_weight: float = Field(default=1.0, ge=0)
    local_weight: float = Field(default=1.5, ge=0)
    consistency_weight: float | None = Field(default=None, ge=0)
    consistent_share: float = Field(default=0.8, gt=0, le=1)
    window: int = Field(default=30, ge=1)
    seed: int = 0


class RunningCodes(nn.Module):
    """Running means [L,C] of both domains' codes, and the mask [L,C] of the elements in which they have to agree."""

    source: torch.Tensor
    target: torch.Tensor

    def __init__(self, shape: tuple[int, int]):
        super().__init__()
        self.register_buffer("source", torch.zeros(shape))
        self.register_buffer("target", torch.zeros(shape))

    @torch.no_grad()
    def follow(self, source: torch.Tensor, target: torch.Tensor, keep: float) -> None:
        """Move the means to the codes [N,L,C] of a step; keep: the share of what they were."""
        for mean, codes in ((self.source, source), (self.target, target)):
            mean.lerp_(codes.mean(0), 1 - keep)

    def mask(self, share: float) -> torch.Tensor:
        """True for the `share` of the elements whose means differ least."""
        apart = (self.target - self.source).abs()
        mask: torch.Tensor = apart <= apart.flatten().kthvalue(max(1, round(share * apart.numel()))).values
        return mask


@dataclass(frozen=True)
class Domain:
    """What an adaptation follows: one picture [3,R,R] in [-1,1] at the generator's size, seen by eyes; codes of images;
    consistency_weight: where the settings leave it open."""

    style: torch.Tensor
    eyes: Eyes
    codes: Codes
    consistency_weight: float


def domain(generator: Generator, style: torch.Tensor, eyes: Eyes, encoder: Encoder | None, prior: WPrior) -> Domain:
    """The domain of a picture; encoder None: the eyes' own vectors are the codes, as one row."""
    if encoder is None:
        return Domain(style, eyes, lambda image: eyes(image)[0][:, None], FEATURES_CONSISTENCY)
    rows = max(1, round(CODE_ROWS * generator.num_ws))
    return Domain(style, eyes, lambda image: encoded(encoder, generator, prior, image)[0][:, :rows], CODES_CONSISTENCY)


def adapt(
    generator: Generator,
    wanted: Domain,
    settings: AdaptationSettings,
    state: RunFile | None = None,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> Generator:
    """The generator adapted to the domain; the given one stays as it is.

    state: a file that a stopped run goes on from, and that is gone at the end. Draws depend on (seed, step) alone.
    Raises InputError for a state of another run.
    """
    use_channels_last(generator)
    adapted = copy.deepcopy(generator)
    learned = [parameter.requires_grad_() for parameter in adapted.synthesis.parameters()]
    optimizer = torch.optim.Adam(learned, settings.learning_rate, betas=(0.0, 0.99))
    with torch.no_grad():
        style = wanted.eyes(wanted.style[None])
        around = _images(generator, _latents(generator, MEAN_SAMPLES, settings.seed, -1))
        mean = torch.cat([wanted.eyes(part)[0] for part in around.split(_BATCH)]).mean(0, keepdim=True)
        codes = wanted.codes(around[:_BATCH])
    running = RunningCodes((codes.shape[1], codes.shape[2]))
    running.follow(codes, codes, 0.0)
    modules, optimizers = {"synthesis": adapted.synthesis, "codes": running}, {"adam": optimizer}
    known = settings.model_dump_json()
    count = settings.steps
    for step in range(count) if state is None else state.steps(modules, optimizers, known, count, _SAVE_EVERY):
        w = _latents(generator, settings.batch, settings.seed, step)
        loss = _loss(generator, adapted, wanted, (style[0] - mean, style[1]), running, w, settings)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        on_step(step + 1, float(loss.detach()))
    return adapted.eval().requires_grad_(False)


def _loss(
    generator: Generator,
    adapted: Generator,
    wanted: Domain,
    style: tuple[torch.Tensor, torch.Tensor],
    running: RunningCodes,
    w: torch.Tensor,
    settings: AdaptationSettings,
) -> torch.Tensor:
    """style: where the picture's vector [1,D] stands from the mean, and its parts [1,T,E]."""
    with torch.no_grad():
        before = _images(generator, w)
        vector_before, codes_before = wanted.eyes(before)[0], wanted.codes(before)
    after = _images(adapted, w)
    vector, parts = wanted.eyes(after)
    codes = wanted.codes(after)
    running.follow(codes_before, codes.detach(), 1 - 1 / settings.window)
    turned = direction_cost(vector - vector_before, style[0]).mean()
    weight = wanted.consistency_weight if settings.consistency_weight is None else settings.consistency_weight
    apart = ((codes - codes_before).abs() * running.mask(settings.consistent_share)).mean()
    return (
        settings.direction_weight * turned + settings.local_weight * local_cost(parts, style[1]).mean() + weight * apart
    )


def direction_cost(change: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """1 - cosine of changes [N,D] and the wanted one [1,D] -> [N]; changes shorter than LEAST_CHANGE of it count as of
    that length: at the first step all are 0, where a cosine's gradient is endless and would fill Adam's memory."""
    length = wanted.norm(dim=1).clamp_min(1e-12)
    counted = change.norm(dim=1).clamp_min(1e-12).maximum(LEAST_CHANGE * length)
    cost: torch.Tensor = 1 - (change * wanted).sum(1) / (counted * length)
    return cost


def local_cost(parts: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
    """Parts [N,T,E] of renderings against those of the style [1,S,E] -> [N]: the larger of both ways' mean cosine cost
    to the nearest part."""
    cost = 1 - F.normalize(parts, dim=2) @ F.normalize(style, dim=2).transpose(1, 2)  # [N,T,S]
    return torch.maximum(cost.amin(2).mean(1), cost.amin(1).mean(1))


def _latents(generator: Generator, count: int, seed: int, step: int) -> torch.Tensor:
    """w [N,C] of a step."""
    draw = torch.Generator().manual_seed(random_number("adapt", seed, step) >> 1)
    z = torch.randn(count, generator.config.z_dim, generator=draw).to(generator.mapping.w_avg.device)
    with torch.no_grad():
        return generator.mapping.to_w(z)


def _images(generator: Generator, w: torch.Tensor) -> torch.Tensor:
    ws = w[:, None].expand(-1, generator.num_ws, -1)
    return torch.cat([generator.synthesis(part) for part in ws.split(_BATCH)])
