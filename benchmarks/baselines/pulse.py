"""PULSE (Menon et al. 2020; adamian98/pulse): the face on the latent sphere that looks like the rough edit when
small.

As published: loss = 100 L2 + 0.05 GEOCROSS, where L2 is the mean squared error of the 32 px bicubic downsample,
images in [0,1], not pulling below 2e-3, and GEOCROSS the squared geodesic angles between the rows of W+; Adam at 0.4
on latents in Gaussianised W, per dimension, put back onto the sphere of their initial radius after each step; so are
the first five noise maps (ours: zero mean, unit variance), the others fixed. The rate rises over 45 % of the steps
and falls again.

Changed: the start is stage 0 (its latents, radii and noise maps; nothing is drawn, and no map zeroed); the fall of
the rate is a cosine, not a line; as many steps as ours (published: 100); "small" is a quarter of the side where that
is less than 32 px. The last step is the result, as there is no better one to tell it from without looking.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from baselines.harness import frozen_except, scheduled, verdict
from stylepairs.datagen.reconstruction.batch import Progress, optimise_all
from stylepairs.datagen.reconstruction.in_hand import Job, Objective, State, Verdict
from stylepairs.datagen.reconstruction.prior import WPrior
from stylepairs.datagen.reconstruction.reconstruct import Found, Problem, Reconstruction, collect
from stylepairs.datagen.reconstruction.rendering import synthesise, use_channels_last
from stylepairs.datagen.stylegan.generator import Generator

LEARNING_RATE = 0.4
RAMPUP = 0.45
L2_WEIGHT, GEOCROSS_WEIGHT = 100.0, 0.05
EPS = 2e-3
SMALL_PX = 32
FREE_NOISE = range(5)


def reconstruct(problem: Problem, progress: Progress | None = None) -> list[Reconstruction]:
    """As `reconstruction.reconstruct`; of the settings only steps, decay_steps, batch and precision count."""
    generator = problem.generator
    use_channels_last(generator)
    schedule = scheduled(problem.settings, LEARNING_RATE, LEARNING_RATE, RAMPUP, 1 - RAMPUP)
    sphere = Sphere(problem.prior)
    jobs = []
    for _, inversion, sketch in problem.cases:
        start = sphere.to_v(inversion.ws)
        targets = {"small": downscaled(sketch.image[None])[0], "radius": start.norm(dim=-1, keepdim=True)}
        jobs.append(Job(start, inversion.noise, targets))
    objective = _objective(generator, sphere, schedule.precision)
    outcomes = optimise_all(jobs, objective, schedule, progress=progress, after_step=onto_sphere)
    found = [Found(sphere.to_w(one.u), one.noise, one.figures | {"steps": float(one.steps)}) for one in outcomes]
    return collect(problem, found)


class Sphere:
    """W made standard normal in each dimension: v = (leaky_relu_5(w) - mean) / deviation."""

    def __init__(self, prior: WPrior):
        self.mean = prior.mean
        self.deviation = (prior.basis.square() * prior.deviation.square()[:, None]).sum(0).sqrt()

    def to_v(self, w: torch.Tensor) -> torch.Tensor:
        return (F.leaky_relu(w, 5.0) - self.mean) / self.deviation

    def to_w(self, v: torch.Tensor) -> torch.Tensor:
        return F.leaky_relu(v * self.deviation + self.mean, 0.2)


def onto_sphere(state: State) -> None:
    """Put each row of the latents back to its radius, in place."""
    state.u.mul_(state.targets["radius"] / state.u.norm(dim=-1, keepdim=True).clamp_min(1e-9))


def downscaled(image: torch.Tensor) -> torch.Tensor:
    """image [N,3,H,W] in [-1,1] -> antialiased bicubic [N,3,s,s] in [0,1]."""
    size_px = min(SMALL_PX, image.shape[-1] // 4)
    small = F.interpolate(image, size=(size_px, size_px), mode="bicubic", antialias=True, align_corners=False)
    return (small + 1) / 2


def downscaling_loss(image: torch.Tensor, small: torch.Tensor) -> torch.Tensor:
    """Mean squared error [N] of the downscaled image from `small`, constant once it is below EPS."""
    return (downscaled(image) - small).square().mean((1, 2, 3)).clamp_min(EPS)


def geocross(ws: torch.Tensor) -> torch.Tensor:
    """C / 8 times the mean, over all pairs of rows of ws [N,L,C], of the squared geodesic angle -> [N]."""
    apart = ((ws[:, :, None] - ws[:, None]).square().sum(-1) + 1e-9).sqrt()
    along = ((ws[:, :, None] + ws[:, None]).square().sum(-1) + 1e-9).sqrt()
    angle = 2 * torch.atan2(apart, along)
    return angle.square().mean((1, 2)) * ws.shape[-1] / 8


def _objective(generator: Generator, sphere: Sphere, precision: str) -> Objective:
    def objective(state: State) -> Verdict:
        ws = sphere.to_w(state.u)
        image = synthesise(generator, ws, frozen_except(state.noise, FREE_NOISE), precision)
        small = downscaling_loss(image, state.targets["small"])
        return verdict(L2_WEIGHT * small + GEOCROSS_WEIGHT * geocross(ws), {"small_error": small})

    return objective
