"""Pairs by a latent direction: the portrait's latent moved until it comes nearest to the sketch, in the place of
mask-guided reconstruction. Composition, figures and gate are the same."""

from __future__ import annotations

from pathlib import Path

import torch

from stylepairs.datagen.latent.directions import Direction, load_direction
from stylepairs.datagen.portraits.sketch import Sketch
from stylepairs.datagen.reconstruction.batch import Progress
from stylepairs.datagen.reconstruction.inversion import Inversion
from stylepairs.datagen.reconstruction.objective import reference_colors, reference_errors
from stylepairs.datagen.reconstruction.reconstruct import Found, Problem, Reconstruction, collect
from stylepairs.datagen.reconstruction.rendering import render, use_channels_last
from stylepairs.datagen.shell.errors import InputError
from stylepairs.datagen.stylegan.generator import Generator

FARTHEST = 4.0  # units: four deviations of the score; beyond it faces come apart
COARSE, FINE = 1.0, 0.25  # steps of the search
MOST_MISSED = 0.05  # share of a StyleSpace direction that rows of W+ may miss


def load_pair_direction(path: Path, generator: Generator, digest: str) -> Direction:
    """A direction that pairs can be made along. Raises InputError, also for one that no latent can hold."""
    direction = load_direction(path, generator, digest)
    missed = direction.info.figures.get("missed_in_w_plus", 0.0)
    if missed > MOST_MISSED:
        raise InputError(
            f"{path}: moves styles that this generator's latents cannot hold ({missed:.0%} would be missed), and a "
            f"pair is its latents; take a direction in W or W+"
        )
    return direction


@torch.no_grad()
def edit_along(problem: Problem, direction: Direction, progress: Progress | None = None) -> list[Reconstruction]:
    """As `reconstruct`, for every portrait the strength at which it comes nearest to its sketch inside the edit mask.

    Of the settings only `batch` counts. Figures: strength (in the direction's units, either way), reference_error.
    """
    use_channels_last(problem.generator)
    found = []
    for done, (_, inversion, sketch) in enumerate(problem.cases, 1):
        found.append(_nearest(problem, direction, inversion, sketch))
        if progress is not None:
            progress(done, len(problem.cases))
    return collect(problem, found)


def _nearest(problem: Problem, direction: Direction, inversion: Inversion, sketch: Sketch) -> Found:
    strengths = torch.arange(-FARTHEST, FARTHEST + COARSE / 2, COARSE)
    errors = _errors(problem, direction, inversion, sketch, strengths)
    centre = float(strengths[errors.argmin()])
    fine = centre + torch.arange(-COARSE + FINE, COARSE - FINE / 2, FINE)
    fine = fine[fine.abs() <= FARTHEST]
    errors = _errors(problem, direction, inversion, sketch, fine)
    best = float(fine[errors.argmin()])
    figures = {"strength": best, "reference_error": float(errors.min())}
    figures |= {"steps": float(len(strengths) + len(fine)), "finite": float(errors.isfinite().all())}
    return Found(direction.move(inversion.ws[None], best)[0], inversion.noise, figures)


def _errors(
    problem: Problem, direction: Direction, inversion: Inversion, sketch: Sketch, strengths: torch.Tensor
) -> torch.Tensor:
    """Distance [K] of the render from the sketch at its own resolution, for each strength [K]."""
    ws = direction.move(inversion.ws.expand(len(strengths), -1, -1), strengths)
    width = problem.settings.batch
    images = torch.stack(render(problem.generator, list(ws), [inversion.noise] * len(ws), width))
    mask = sketch.edit_mask[None].expand(len(ws), -1, -1, -1)
    lab = torch.tensor([sketch.space == "lab"]).to(mask.device)
    reference = reference_colors(sketch.image[None], sketch.edit_mask[None], sketch.reference_px, lab)
    wanted = reference.expand(len(ws), -1, -1, -1)
    return reference_errors(images, [wanted], mask, lab.expand(len(ws)))[0]
