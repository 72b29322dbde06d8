"""NVIDIA's projector (Karras et al. 2020; NVlabs/stylegan2-ada-pytorch, projector.py) on the rough edit as its
target.

As published: loss = perceptual distance to the whole image + 1e5 noise regularisation; Adam at 0.1 on latents and
noise maps, ramp-up over the first 5 % and cosine ramp-down over the last 25 % of the steps; exploration noise on the
latents of 0.05 w_std max(0, 1 - t / 0.75)^2; noise maps brought back to zero mean and unit variance after each step.
It has no masks, no pixel term and no latent prior.

Changed: W+ (as rosinality's --w_plus) from the stage-0 latents, not W from the mean, since W does not hold a real
portrait; as many steps as ours, not 1000; the perceptual features at hand in place of LPIPS-VGG.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from baselines.harness import (
    gaussian_like,
    noise_regularisation,
    progress_share,
    scheduled,
    seed_of,
    verdict,
)
from stylepairs.datagen.images.perceptual import Perceptual, perceptual_distance
from stylepairs.datagen.portraits.portrait import Portrait
from stylepairs.datagen.reconstruction.batch import Progress, optimise_all
from stylepairs.datagen.reconstruction.in_hand import Job, Objective, State, Verdict
from stylepairs.datagen.reconstruction.inversion import features_of, stored_features
from stylepairs.datagen.reconstruction.reconstruct import Found, Problem, Reconstruction, collect
from stylepairs.datagen.reconstruction.rendering import synthesise, use_channels_last
from stylepairs.datagen.reconstruction.settings import OptimiserSettings
from stylepairs.datagen.stylegan.generator import Generator

LEARNING_RATE = 0.1
RAMPUP, RAMPDOWN = 0.05, 0.25
NOISE_WEIGHT = 1e5
EXPLORATION, EXPLORATION_UNTIL = 0.05, 0.75
_W_SAMPLES = 10_000


def reconstruct(problem: Problem, progress: Progress | None = None) -> list[Reconstruction]:
    """As `reconstruction.reconstruct`; of the settings only steps, decay_steps, batch and precision count."""
    jobs = [
        Job(inversion.ws, inversion.noise, {"seed": seed_of(portrait)} | features_of(problem.perceptual, sketch.image))
        for portrait, inversion, sketch in problem.cases
    ]
    found = _found(problem.generator, problem.perceptual, jobs, problem.settings, progress)
    return collect(problem, found)


def project(
    generator: Generator,
    perceptual: Perceptual,
    portraits: Sequence[Portrait],
    settings: OptimiserSettings,
    space: Literal["w", "w+"] = "w",
    progress: Progress | None = None,
) -> list[Found]:
    """The projector as published, stage 0's peer: from the mean latent in W (or, as others use it, W+), to the photo.

    Of the settings only steps + decay_steps (published: 1000), batch and precision count. In the portraits' order.
    """
    rows = 1 if space == "w" else generator.num_ws
    start = generator.mapping.w_avg.expand(rows, -1).clone()
    noise = [maps[0, 0].clone() for maps in generator.noise_maps()]
    jobs = [Job(start, noise, {"seed": seed_of(one)} | features_of(perceptual, one.image)) for one in portraits]
    return _found(generator, perceptual, jobs, settings, progress)


def _found(
    generator: Generator,
    perceptual: Perceptual,
    jobs: Sequence[Job],
    settings: OptimiserSettings,
    progress: Progress | None,
) -> list[Found]:
    use_channels_last(generator)
    schedule = scheduled(settings, LEARNING_RATE, LEARNING_RATE, RAMPUP, RAMPDOWN)
    objective = _objective(generator, perceptual, schedule)
    # Its noise is drawn on the host, anew in each step.
    outcomes = optimise_all(jobs, objective, schedule, progress=progress, capturable=False)
    return [
        Found(one.u.expand(generator.num_ws, -1), one.noise, one.figures | {"steps": float(one.steps)})
        for one in outcomes
    ]


def exploration_scale(progress: torch.Tensor, w_std: float) -> torch.Tensor:
    """Standard deviation of the noise on the latents at `progress` in [0,1]."""
    return w_std * EXPLORATION * (1 - progress / EXPLORATION_UNTIL).clamp_min(0).square()


@torch.no_grad()
def latent_deviation(generator: Generator) -> float:
    """w_std: the root of the mean squared distance of latents w from their mean."""
    draw = torch.Generator().manual_seed(123)
    z = torch.randn(_W_SAMPLES, generator.config.z_dim, generator=draw).to(generator.mapping.w_avg.device)
    w = generator.mapping.to_w(z)
    return float((w - w.mean(0)).square().sum(1).mean().sqrt())


def _objective(generator: Generator, perceptual: Perceptual, schedule: OptimiserSettings) -> Objective:
    w_std = latent_deviation(generator)

    def objective(state: State) -> Verdict:
        scale = exploration_scale(progress_share(state, schedule), w_std).to(state.u.device)
        explored = state.u + gaussian_like(state.u, state.targets["seed"], state.step) * scale.view(-1, 1, 1)
        ws = explored.expand(-1, generator.num_ws, -1)  # in W there is one row
        image = synthesise(generator, ws, state.noise, schedule.precision, schedule.recompute_from_px)
        distance = perceptual_distance(perceptual.guiding(image), stored_features(state.targets))
        return verdict(distance + NOISE_WEIGHT * noise_regularisation(state.noise), {"distance": distance})

    return objective
