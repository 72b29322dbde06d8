"""Edits with a strength, from whatever file holds one, and pairs made by them: the portrait's latent is moved until its
attribute has changed as it does from photo to sketch, in the place of mask-guided reconstruction. Composition, figures
and gate are the same."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from stylepairs.datagen.latent.attributes import ATTRIBUTES, Attribute
from stylepairs.datagen.latent.directions import Direction, load_direction
from stylepairs.datagen.latent.faces import FaceReader, load_reader
from stylepairs.datagen.latent.methods.latent_mapper import AttributeEdit, is_mapper, load_mapper
from stylepairs.datagen.portraits.portrait import Portrait
from stylepairs.datagen.portraits.sketch import Sketch
from stylepairs.datagen.reconstruction.batch import Progress
from stylepairs.datagen.reconstruction.inversion import Inversion
from stylepairs.datagen.reconstruction.objective import reference_colors, reference_errors
from stylepairs.datagen.reconstruction.prior import WPrior
from stylepairs.datagen.reconstruction.reconstruct import Found, Problem, Reconstruction, collect
from stylepairs.datagen.reconstruction.rendering import render, use_channels_last
from stylepairs.datagen.shell.errors import InputError
from stylepairs.datagen.stylegan.generator import Generator

FARTHEST = 4.0  # units: four deviations of the score; beyond it faces come apart
COARSE, FINE = 1.0, 0.25  # steps of the search
SMALLER = 0.01  # error that a unit of strength is worth: among equal ones the smallest is taken
LEAST_CHANGE = 0.1  # deviations: a sketch that changes the attribute by less is about something else
MOST_MISSED = 0.05  # share of a StyleSpace direction that rows of W+ may miss
# File, perhaps a strength. An attribute that is a classifier file may end in its side: "m.safetensors#b.pt@112".
_PLACE = re.compile(r"(.+?(?:\.(?:pt|ts)(?:#\d{1,4})?@\d{2,4})?)(?:@(-?[0-9.]+))?")

Edit = Direction | AttributeEdit  # move(ws [N,L,C], strength) -> ws, render(generator, ws, strength) -> images


def load_edit(path: Path, generator: Generator, digest: str, attribute: str = "") -> Edit:
    """The edit in a file: a direction, a public boundary (.npy), or of a mapper the attribute. Raises InputError."""
    if not is_mapper(path):
        direction = load_direction(path, generator, digest)
        if attribute not in ("", direction.info.attribute):
            raise InputError(f"{path}: is a direction, which moves one attribute; leave out {attribute}")
        return direction
    mapper = load_mapper(path, generator, digest)
    if attribute not in mapper.info.attributes:
        raise InputError(f"{path}: is a mapper; name the attribute to change: {', '.join(mapper.info.attributes)}")
    return AttributeEdit(mapper, attribute)


@dataclass(frozen=True)
class PairEdit:
    """An edit that pairs are made by; name: what provenance calls it; strength: of all pairs, None: of each its own."""

    edit: Edit
    name: str
    path: Path
    strength: float | None = None

    def moved(self, prior: WPrior, ws: torch.Tensor, strength: torch.Tensor | float) -> torch.Tensor:
        """ws [N,L,C] moved by strength, held where the prior knows faces."""
        return prior.held(ws, self.edit.move(ws, strength))


def edit_and_attribute(place: str) -> tuple[str, str]:
    """File and attribute of "FILE#attribute"; of "FILE", no attribute. Both may have a # in their path."""
    if not Path(place).exists():
        ends = (index for index, character in enumerate(place) if character == "#")
        there = next((end for end in ends if Path(place[:end]).is_file()), None)
        if there is not None:
            return place[:there], place[there + 1 :]
    name, sign, attribute = place.rpartition("#")
    return (name, attribute) if sign and "/" not in attribute and not Path(place).exists() else (place, "")


def load_pair_edit(place: str, generator: Generator, digest: str) -> PairEdit:
    """What pairs are to be made by; place: "FILE", of a mapper "FILE#attribute", at a strength "FILE@1.5".

    Raises InputError, also for an edit that no latent can hold.
    """
    match = _PLACE.fullmatch(place)
    text = match[2] if match else None
    name, attribute = edit_and_attribute(match[1] if match else place)
    path = Path(name)
    try:
        strength = None if text is None else float(text)
    except ValueError:
        raise InputError(f"{place}: {text} is no strength; write FILE@1.5") from None
    edit = load_edit(path, generator, digest, attribute)
    if isinstance(edit, AttributeEdit):
        name = f"latent mapper:{edit.attribute}"
    else:
        missed = edit.info.figures.get("missed_in_w_plus", 0.0)
        if missed > MOST_MISSED:
            raise InputError(
                f"{path}: moves styles that this generator's latents cannot hold ({missed:.0%} would be missed), and a "
                f"pair is its latents; take a direction in W or W+"
            )
        name = f"{edit.info.method}:{edit.info.attribute}"
    return PairEdit(edit, name if text is None else f"{name}@{text}", path, strength)


@torch.no_grad()
def edit_along(problem: Problem, by: PairEdit, progress: Progress | None = None) -> list[Reconstruction]:
    """As `reconstruct`, for every portrait at the edit's strength, or at that which does what its sketch does.

    The latter is where the edit's attribute, a built-in one, has changed as it does from photo to sketch; where the
    sketch leaves the attribute alone, or it is not built in, where the render comes nearest to the sketch in its mask.
    Of the settings only `batch` counts. Figures: strength (in the edit's units, either way); missed, the attribute's
    distance from the wanted change in deviations, or reference_error, as in `reconstruct`.
    """
    use_channels_last(problem.generator)
    measure = _attribute_of(by.edit) if by.strength is None else None
    found = []
    for done in range(len(problem.cases)):
        found.append(_found(problem, done, by, measure))
        if progress is not None:
            progress(done + 1, len(problem.cases))
    return collect(problem, found)


def _found(problem: Problem, index: int, by: PairEdit, measure: _Measure | None) -> Found:
    """One portrait's latent, moved."""
    portrait, inversion, sketch = problem.cases[index]
    if by.strength is not None:
        ws = by.moved(problem.prior, inversion.ws[None], by.strength)[0]
        return Found(ws, inversion.noise, {"strength": by.strength, "steps": 1.0, "finite": 1.0})
    if measure is not None:
        errors = _attribute_errors(problem, by, measure, portrait, inversion, sketch)
        if errors is not None:
            return _searched(problem, by, inversion, "missed", errors)
    return _searched(problem, by, inversion, "reference_error", partial(_sketch_errors, problem, by, inversion, sketch))


Errors = Callable[[torch.Tensor], torch.Tensor]  # strengths [K] -> how far each is from what is wanted, [K]


def _searched(problem: Problem, by: PairEdit, inversion: Inversion, name: str, errors_of: Errors) -> Found:
    """The strength with the least error, by a coarse and a fine search; of equal ones the smallest."""
    strengths = torch.arange(-FARTHEST, FARTHEST + COARSE / 2, COARSE)
    centre = float(strengths[(errors_of(strengths) + SMALLER * strengths.abs()).argmin()])
    fine = centre + torch.arange(-COARSE + FINE, COARSE - FINE / 2, FINE)
    fine = fine[fine.abs() <= FARTHEST]
    errors = errors_of(fine)
    index = int((errors + SMALLER * fine.abs()).argmin())
    best, error = float(fine[index]), float(errors[index])
    steps = float(len(strengths) + len(fine))
    figures = {"strength": best, name: error, "steps": steps, "finite": float(math.isfinite(error))}
    return Found(by.moved(problem.prior, inversion.ws[None], best)[0], inversion.noise, figures)


@dataclass(frozen=True)
class _Measure:
    """The edit's attribute and its deviation over samples."""

    attribute: Attribute
    deviation: float
    reader: FaceReader

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """images [N,3,H,W] -> [N], in deviations."""
        found: torch.Tensor = self.attribute.read(self.reader.read(images)) / self.deviation
        return found


def _attribute_of(edit: Edit) -> _Measure | None:
    """None for what is not built in: metadata of a file must not name other files to be read."""
    if isinstance(edit, AttributeEdit):
        info = edit.mapper.info
        name, deviation = edit.attribute, info.deviations[info.attributes.index(edit.attribute)]
    else:
        name, deviation = edit.info.attribute, edit.info.deviation or 0.0
    return _Measure(ATTRIBUTES[name], deviation, load_reader()) if name in ATTRIBUTES and deviation > 0 else None


def _attribute_errors(
    problem: Problem, by: PairEdit, measure: _Measure, portrait: Portrait, inversion: Inversion, sketch: Sketch
) -> Errors | None:
    """How far the attribute's change is from that of the sketch; None where the sketch hardly changes it."""
    measure = replace(measure, reader=measure.reader.to(portrait.image.device))
    before, wanted = measure(torch.stack([portrait.image, sketch.image]))
    (start,) = measure(inversion.image[None])
    change = float(wanted - before)
    if not abs(change) > LEAST_CHANGE or not bool(start.isfinite()):
        return None

    def errors(strengths: torch.Tensor) -> torch.Tensor:
        reached = measure(_rendered(problem, by, inversion, strengths)) - start
        missed: torch.Tensor = (reached - change).abs().nan_to_num(math.inf).cpu()
        # Never the other way: far out, where the face comes apart, any figure may come by chance.
        return missed.where(strengths * float(change) >= 0, math.inf)

    return errors


def _rendered(problem: Problem, by: PairEdit, inversion: Inversion, strengths: torch.Tensor) -> torch.Tensor:
    """Renders [K,3,H,W] of the inversion at each strength."""
    ws = by.moved(problem.prior, inversion.ws.expand(len(strengths), -1, -1), strengths)
    images: list[torch.Tensor] = render(
        problem.generator, list(ws), [inversion.noise] * len(ws), problem.settings.batch
    )
    return torch.stack(images)


def _sketch_errors(
    problem: Problem, by: PairEdit, inversion: Inversion, sketch: Sketch, strengths: torch.Tensor
) -> torch.Tensor:
    """Distance [K] of the render from the sketch at its own resolution, for each strength [K]."""
    images = _rendered(problem, by, inversion, strengths)
    mask = sketch.edit_mask[None].expand(len(images), -1, -1, -1)
    lab = torch.tensor([sketch.space == "lab"]).to(mask.device)
    reference = reference_colors(sketch.image[None], sketch.edit_mask[None], sketch.reference_px, lab)
    wanted = reference.expand(len(images), -1, -1, -1)
    return reference_errors(images, [wanted], mask, lab.expand(len(images)))[0].nan_to_num(math.inf).cpu()
