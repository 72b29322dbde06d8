"""Edits with a strength, from whatever file holds one, and pairs made by them: the portrait's latent is moved until it
comes nearest to the sketch, in the place of mask-guided reconstruction. Composition, figures and gate are the same."""

from __future__ import annotations

from pathlib import Path

import torch

from stylepairs.datagen.latent.directions import Direction, DirectionInfo, load_direction
from stylepairs.datagen.latent.methods.latent_mapper import AttributeEdit, is_mapper, load_mapper
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


Edit = Direction | AttributeEdit  # move(ws [N,L,C], strength) -> ws, render(generator, ws, strength) -> images


def load_edit(path: Path, generator: Generator, digest: str, attribute: str = "") -> Edit:
    """The edit in a file: a direction, a public boundary (.npy), or of a mapper the attribute. Raises InputError."""
    if not is_mapper(path):
        return load_direction(path, generator, digest)
    mapper = load_mapper(path, generator, digest)
    if attribute not in mapper.info.attributes:
        raise InputError(f"{path}: is a mapper; name the attribute to change: {', '.join(mapper.info.attributes)}")
    return AttributeEdit(mapper, attribute)


def load_pair_edit(place: str, generator: Generator, digest: str) -> tuple[Edit, str, Path]:
    """The edit that pairs are to be made by, what provenance calls it, and its file; place: "FILE" or "FILE#attribute".

    Raises InputError, also for an edit that no latent can hold.
    """
    name, _, attribute = place.partition("#")
    path = Path(name)
    edit = load_edit(path, generator, digest, attribute)
    if isinstance(edit, AttributeEdit):
        return edit, f"latent mapper:{edit.attribute}", path
    _refuse_outside_w_plus(path, edit.info)
    return edit, f"{edit.info.method}:{edit.info.attribute}", path


def _refuse_outside_w_plus(path: Path, info: DirectionInfo) -> None:
    missed = info.figures.get("missed_in_w_plus", 0.0)
    if missed > MOST_MISSED:
        raise InputError(
            f"{path}: moves styles that this generator's latents cannot hold ({missed:.0%} would be missed), and a "
            f"pair is its latents; take a direction in W or W+"
        )


@torch.no_grad()
def edit_along(problem: Problem, edit: Edit, progress: Progress | None = None) -> list[Reconstruction]:
    """As `reconstruct`, for every portrait the strength at which it comes nearest to its sketch inside the edit mask.

    Of the settings only `batch` counts. Figures: strength (in the edit's units, either way), reference_error.
    """
    use_channels_last(problem.generator)
    found = []
    for done, (_, inversion, sketch) in enumerate(problem.cases, 1):
        found.append(_nearest(problem, edit, inversion, sketch))
        if progress is not None:
            progress(done, len(problem.cases))
    return collect(problem, found)


def _nearest(problem: Problem, edit: Edit, inversion: Inversion, sketch: Sketch) -> Found:
    strengths = torch.arange(-FARTHEST, FARTHEST + COARSE / 2, COARSE)
    errors = _errors(problem, edit, inversion, sketch, strengths)
    centre = float(strengths[errors.argmin()])
    fine = centre + torch.arange(-COARSE + FINE, COARSE - FINE / 2, FINE)
    fine = fine[fine.abs() <= FARTHEST]
    errors = _errors(problem, edit, inversion, sketch, fine)
    best = float(fine[errors.argmin()])
    figures = {"strength": best, "reference_error": float(errors.min())}
    figures |= {"steps": float(len(strengths) + len(fine)), "finite": float(errors.isfinite().all())}
    return Found(edit.move(inversion.ws[None], best)[0], inversion.noise, figures)


def _errors(
    problem: Problem, edit: Edit, inversion: Inversion, sketch: Sketch, strengths: torch.Tensor
) -> torch.Tensor:
    """Distance [K] of the render from the sketch at its own resolution, for each strength [K]."""
    ws = edit.move(inversion.ws.expand(len(strengths), -1, -1), strengths)
    width = problem.settings.batch
    images = torch.stack(render(problem.generator, list(ws), [inversion.noise] * len(ws), width))
    mask = sketch.edit_mask[None].expand(len(ws), -1, -1, -1)
    lab = torch.tensor([sketch.space == "lab"]).to(mask.device)
    reference = reference_colors(sketch.image[None], sketch.edit_mask[None], sketch.reference_px, lab)
    wanted = reference.expand(len(ws), -1, -1, -1)
    return reference_errors(images, [wanted], mask, lab.expand(len(ws)))[0]
