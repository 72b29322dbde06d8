"""MaskFaceGAN's constraints (Pernus, Struc, Dobrisek 2023; MartinPernus/MaskFaceGAN): a face parser holds the shape,
an attribute classifier drives the edit, masked pixels hold the rest, and the noise maps finish.

The two phases, their weights and terms are `datagen/latent/methods/mask_face_gan.py`'s. Changed beyond what is said
there: the attribute classifier is a logistic one on four statistics of the edit mask, mean colour (Lab / 50) and mean
hair matte, fitted to two samples: the photo counts as without the attribute (probability 0.02), the rough edit as with
it (0.98). The parser is ours; its region is the hair matte, that of the sketch where it changes it, else the photo's.
The reconstruction mask is the sketch's keep mask (published: skin, less the region as it is parsed while it changes).
The start is stage 0, which is what their first 500 steps on pixels alone do; the rate makes our fewer steps reach as
far as their 500 at 1e-3; the noise maps are not drawn anew in between. No `size` term, off by default there.
Composition is ours, as for all.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from baselines.harness import embedded_parser, hair_matte, noise_regularisation
from stylepairs.datagen.images.colors import srgb_to_lab
from stylepairs.datagen.latent.methods.mask_face_gan import (
    ATTRIBUTE_WEIGHT,
    PARSER_WEIGHT,
    attribute_divergence,
    attribute_probability,
    two_phases,
)
from stylepairs.datagen.portraits.portrait import Portrait
from stylepairs.datagen.portraits.sketch import Sketch
from stylepairs.datagen.reconstruction.batch import Progress
from stylepairs.datagen.reconstruction.in_hand import Job, State
from stylepairs.datagen.reconstruction.inversion import Inversion
from stylepairs.datagen.reconstruction.objective import LAB_SCALE
from stylepairs.datagen.reconstruction.reconstruct import Problem, Reconstruction, collect


def reconstruct(
    problem: Problem, progress: Progress | None = None, parser: nn.Module | None = None
) -> list[Reconstruction]:
    """As `reconstruction.reconstruct`; of the settings steps, decay_steps, batch and precision count.

    parser None: the embedded one.
    """
    parser = parser or embedded_parser()

    def latent_loss(image: torch.Tensor, state: State) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        matte, targets = hair_matte(parser, image), state.targets
        found = statistics(image, matte, targets["edit_mask"])
        probability = attribute_probability(found, targets["without"], targets["with"])
        loss = ATTRIBUTE_WEIGHT * attribute_divergence(probability)
        shape = targets["parser_weight"] * (matte - targets["hair"]).square().mean((1, 2, 3))
        return loss + shape, {"attribute": probability}

    jobs = [_job(parser, *case) for case in problem.cases]
    found = two_phases(problem.generator, jobs, latent_loss, problem.settings, noise_regularisation, progress)
    return collect(problem, found)


def statistics(image: torch.Tensor, matte: torch.Tensor, edit_mask: torch.Tensor) -> torch.Tensor:
    """Mean Lab / 50 and mean hair matte [N,4] within the edit mask."""
    lab = srgb_to_lab(image.clamp(-1, 1)) / LAB_SCALE
    matte = F.interpolate(matte, size=image.shape[-2:], mode="area")
    values = torch.cat([lab, matte], 1)
    return (values * edit_mask).sum((2, 3)) / edit_mask.sum((2, 3)).clamp_min(1e-6)


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
