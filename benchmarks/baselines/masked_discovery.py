"""Mask-Guided Discovery (Yang, Rokeby, Snelgrove 2020, arXiv 2105.07273; bmolab/masked-gan-manifold): only rows 2 to
7 of W+ move, held by perceptual distances outside and inside.

As published: loss = 0.5 (outside + |inside - c|) + 0.3 (distance from the seed - 4)^2, `outside` the perceptual
distance to the photo weighted by area over all that is not edited, the spring's length in units of W+ over the free
rows; noise maps fixed; the start is the seed plus 1e-3 of noise (a spring has no direction at length 0).

Changed: the published method looks for *any* change of size c = 0.25 in a rectangle, 36 of them along a path. Here
`inside` is the distance to the rough edit in the edit mask, c = 0, and the chain has one link, so that it has no
stiffener. L-BFGS (500 times up to 8 iterations) becomes Adam at our rate, in our whitened coordinates, with as many
steps as ours. EfficientNet features in place of LPIPS-Alex, under soft masks in place of strips.
"""

from __future__ import annotations

import torch

from baselines.harness import (
    frozen_except,
    gaussian_like,
    scheduled,
    seed_of,
    verdict,
)
from stylepairs.datagen.images.perceptual import Perceptual, perceptual_distance
from stylepairs.datagen.portraits.portrait import Portrait
from stylepairs.datagen.portraits.sketch import Sketch
from stylepairs.datagen.reconstruction.batch import Progress, optimise_all
from stylepairs.datagen.reconstruction.in_hand import Job, Objective, State, Verdict
from stylepairs.datagen.reconstruction.inversion import Inversion, features_of, stored_features
from stylepairs.datagen.reconstruction.prior import WPrior
from stylepairs.datagen.reconstruction.reconstruct import Found, Problem, Reconstruction, collect
from stylepairs.datagen.reconstruction.rendering import synthesise, use_channels_last
from stylepairs.datagen.stylegan.generator import Generator

FREE_ROWS = range(2, 8)
MASK_WEIGHT = 0.5
SPRING_WEIGHT, REST_LENGTH = 0.3, 4.0
START_NOISE = 1e-3


def reconstruct(problem: Problem, progress: Progress | None = None) -> list[Reconstruction]:
    """As `reconstruction.reconstruct`; of the settings steps, decay_steps, warmup_steps, learning_rate, batch and
    precision count."""
    generator, perceptual, prior, settings = problem.generator, problem.perceptual, problem.prior, problem.settings
    use_channels_last(generator)
    total = settings.steps + settings.decay_steps
    schedule = scheduled(
        settings, settings.learning_rate, 0.0, settings.warmup_steps / total, settings.decay_steps / total
    )
    jobs = [_job(perceptual, prior, *case) for case in problem.cases]
    objective = _objective(generator, perceptual, prior, settings.precision)
    outcomes = optimise_all(jobs, objective, schedule, progress=progress)
    found = [Found(prior.unwhiten(one.u), one.noise, one.figures | {"steps": float(one.steps)}) for one in outcomes]
    return collect(problem, found)


def mask_loss(outside: torch.Tensor, inside: torch.Tensor, offset: float = 0.0) -> torch.Tensor:
    """L_X: perceptual distances outside and inside [N], the latter to be `offset` (published: 0.25 from the seed)."""
    return MASK_WEIGHT * (outside + (inside - offset).abs())


def spring_loss(ws: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
    """(|ws - seed| - rest length)^2 over the free rows of [N,L,C] -> [N]."""
    rows = slice(FREE_ROWS.start, FREE_ROWS.stop)
    length = ((ws - seed)[:, rows].square().sum((1, 2)) + 1e-12).sqrt()
    return SPRING_WEIGHT * (length - REST_LENGTH).square()


def _job(perceptual: Perceptual, prior: WPrior, portrait: Portrait, inversion: Inversion, sketch: Sketch) -> Job:
    noise = gaussian_like(inversion.ws[None], seed_of(portrait)[None], torch.zeros(1))[0]
    free = torch.zeros_like(inversion.ws)
    free[FREE_ROWS.start : FREE_ROWS.stop] = START_NOISE
    targets = {"seed": inversion.ws, "edit_mask": sketch.edit_mask, "keep_mask": sketch.keep_mask}
    targets |= features_of(perceptual, portrait.image)
    wanted = features_of(perceptual, sketch.image)
    targets |= {key.replace("feature", "wanted"): value for key, value in wanted.items()}
    return Job(prior.whiten(inversion.ws + free * noise), inversion.noise, targets)


def _objective(generator: Generator, perceptual: Perceptual, prior: WPrior, precision: str) -> Objective:
    def objective(state: State) -> Verdict:
        ws = prior.unwhiten(torch.stack(frozen_except(state.u.unbind(1), FREE_ROWS), 1))
        image = synthesise(generator, ws, state.noise, precision)
        seen, targets = perceptual.guiding(image), state.targets
        photo = stored_features(targets)
        wanted = [targets[f"wanted{level}"] for level in range(len(photo))]
        outside = perceptual_distance(seen, photo, targets["keep_mask"])
        inside = perceptual_distance(seen, wanted, targets["edit_mask"])
        return verdict(
            mask_loss(outside, inside) + spring_loss(ws, targets["seed"]), {"outside": outside, "inside": inside}
        )

    return objective
