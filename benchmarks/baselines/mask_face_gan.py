"""MaskFaceGAN's constraints (Pernus, Struc, Dobrisek 2023; MartinPernus/MaskFaceGAN): a face parser holds the shape,
an attribute classifier drives the edit, masked pixels hold the rest, and the noise maps finish.

As published: images in [0,1]; loss = 2 masked MSE + 0.005 KL(attribute, 0.95) + 0.5 MSE of the parser's region (hair
attributes only), means over all pixels; then, latents frozen, noise maps alone: 2 masked MSE + 1 noise
regularisation, at 0.1, each map brought back to zero mean and unit variance; two steps on latents for one on noise.

Changed. The attribute classifier was trained on CelebA, and its weights are no part of this project. In its place
stands a logistic classifier on four statistics of the edit mask, mean colour (Lab / 50) and mean hair matte, fitted
to two samples: the photo counts as without the attribute (probability 0.02), the rough edit as with it (0.98). The
parser is ours; its region is the hair matte, to be that of the sketch where it changes the matte, else the photo's.
The reconstruction mask is the sketch's keep mask (published: skin, less the region as it is parsed while it changes).
The start is stage 0, which is what their first 500 steps on pixels alone do; the rate makes our fewer steps reach as
far as their 500 at 1e-3; the noise maps are not drawn anew in between. No `size` term, off by default there.
Composition is ours, as for all.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from baselines.harness import (
    embedded_parser,
    hair_matte,
    noise_regularisation,
    scheduled,
    total_steps,
    verdict,
)
from stylepairs.datagen.images.colors import srgb_to_lab
from stylepairs.datagen.portraits.portrait import Portrait
from stylepairs.datagen.portraits.sketch import Sketch
from stylepairs.datagen.reconstruction.batch import Progress, optimise_all
from stylepairs.datagen.reconstruction.in_hand import Job, Objective, State, Verdict
from stylepairs.datagen.reconstruction.inversion import Inversion
from stylepairs.datagen.reconstruction.objective import LAB_SCALE
from stylepairs.datagen.reconstruction.reconstruct import Found, Problem, Reconstruction, collect
from stylepairs.datagen.reconstruction.rendering import synthesise, use_channels_last
from stylepairs.datagen.stylegan.generator import Generator

PIXEL_WEIGHT, ATTRIBUTE_WEIGHT, PARSER_WEIGHT, NOISE_WEIGHT = 2.0, 0.005, 0.5, 1.0
TARGET = 0.95
LATENT_REACH = 500 * 1e-3  # published steps of the edit times their rate
NOISE_LEARNING_RATE = 0.1
LATENT_SHARE = 2 / 3
# Logit of the classifier for the sketch; minus it for the photo.
_LOGIT = 4.0


def reconstruct(
    problem: Problem, progress: Progress | None = None, parser: nn.Module | None = None
) -> list[Reconstruction]:
    """As `reconstruction.reconstruct`; of the settings steps, decay_steps, batch and precision count.

    parser None: the embedded one.
    """
    generator, settings = problem.generator, problem.settings
    use_channels_last(generator)
    parser = parser or embedded_parser()
    rate = LATENT_REACH / (LATENT_SHARE * total_steps(settings))
    on_latents = scheduled(settings, rate, share=LATENT_SHARE)
    on_noise = scheduled(settings, 1e-9, NOISE_LEARNING_RATE, share=1 - LATENT_SHARE)
    jobs = [_job(parser, *case) for case in problem.cases]
    edited = optimise_all(jobs, _latent_objective(generator, parser, settings.precision), on_latents, progress=progress)
    jobs = [Job(one.u, one.noise, job.targets) for one, job in zip(edited, jobs, strict=True)]
    finished = optimise_all(jobs, _noise_objective(generator, settings.precision), on_noise)
    found = [
        # The latents of the first phase: in the second they stand still.
        Found(first.u, last.noise, _figures(first.figures, last.figures) | {"steps": float(first.steps + last.steps)})
        for first, last in zip(edited, finished, strict=True)
    ]
    return collect(problem, found)


def masked_mse(image: torch.Tensor, target: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean over all pixels of M * (G - x)^2 -> [N]; images [N,3,H,W] in [-1,1], compared in [0,1]."""
    return (mask * ((image - target) / 2).square()).mean((1, 2, 3))


def attribute_divergence(probability: torch.Tensor, target: float = TARGET) -> torch.Tensor:
    """KL divergence of a Bernoulli `probability` [N] from the smoothed target."""
    wanted = torch.tensor([target, 1 - target], device=probability.device)
    found = torch.stack([probability, 1 - probability], -1).clamp_min(1e-6)
    return (wanted * (wanted / found).log()).sum(-1)


def statistics(image: torch.Tensor, matte: torch.Tensor, edit_mask: torch.Tensor) -> torch.Tensor:
    """Mean Lab / 50 and mean hair matte [N,4] within the edit mask."""
    lab = srgb_to_lab(image.clamp(-1, 1)) / LAB_SCALE
    matte = F.interpolate(matte, size=image.shape[-2:], mode="area")
    values = torch.cat([lab, matte], 1)
    return (values * edit_mask).sum((2, 3)) / edit_mask.sum((2, 3)).clamp_min(1e-6)


def attribute_probability(found: torch.Tensor, without: torch.Tensor, with_it: torch.Tensor) -> torch.Tensor:
    """The classifier: where `found` [N,4] lies between the photo's statistics and the sketch's -> [N] in (0,1)."""
    axis = with_it - without
    share = ((found - without) * axis).sum(-1) / axis.square().sum(-1).clamp_min(1e-8)
    return torch.sigmoid(_LOGIT * (2 * share - 1))


@torch.no_grad()
def _job(parser: nn.Module, portrait: Portrait, inversion: Inversion, sketch: Sketch) -> Job:
    images = torch.stack([portrait.image, sketch.image])
    without, with_it = statistics(images, hair_matte(parser, images), sketch.edit_mask[None].expand(2, -1, -1, -1))
    hair = portrait.hair if sketch.hair is None else sketch.hair
    about_hair = sketch.space == "lab" or sketch.hair is not None
    targets = {
        "photo": portrait.image,
        "edit_mask": sketch.edit_mask,
        "keep_mask": sketch.keep_mask,
        "without": without,
        "with": with_it,
        "hair": F.interpolate(hair[None], size=(256, 256), mode="bilinear", align_corners=False)[0],
        "parser_weight": torch.tensor(PARSER_WEIGHT if about_hair else 0.0, device=hair.device),
    }
    return Job(inversion.ws, inversion.noise, targets)


def _latent_objective(generator: Generator, parser: nn.Module, precision: str) -> Objective:
    def objective(state: State) -> Verdict:
        image, targets = synthesise(generator, state.u, state.noise, precision), state.targets
        matte = hair_matte(parser, image)
        found = statistics(image, matte, targets["edit_mask"])
        probability = attribute_probability(found, targets["without"], targets["with"])
        loss = (
            PIXEL_WEIGHT * masked_mse(image, targets["photo"], targets["keep_mask"])
            + ATTRIBUTE_WEIGHT * attribute_divergence(probability)
            + targets["parser_weight"] * (matte - targets["hair"]).square().mean((1, 2, 3))
        )
        return verdict(loss, {"attribute": probability})

    return objective


def _noise_objective(generator: Generator, precision: str) -> Objective:
    def objective(state: State) -> Verdict:
        image = synthesise(generator, state.u.detach() + 0 * state.u, state.noise, precision)
        pixels = masked_mse(image, state.targets["photo"], state.targets["keep_mask"])
        return verdict(PIXEL_WEIGHT * pixels + NOISE_WEIGHT * noise_regularisation(state.noise))

    return objective


def _figures(first: dict[str, float], last: dict[str, float]) -> dict[str, float]:
    return first | {"finite": min(first["finite"], last["finite"]), "loss": last["loss"]}
