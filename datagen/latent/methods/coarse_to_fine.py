"""Coarse-to-fine boundaries (Wu, Yang, Jin, SIGGRAPH 2021): a boundary from scores edits faces, only the wanted region
of the edit is kept and diffused back into a latent, and a boundary between these paired latents moves that region and
little else. Double chin and hairline are the worked examples.

Published: coarse rows 0 to 6 of 18 move; the composite of region and original is met by 100 steps on W+ under a pixel
and a VGG term; the fine boundary is an SVM for each row on 14 788 pairs. Here the diffusion is mask-guided
reconstruction, whose sketch is the composite; each row of the boundary has the length that its pairs differ by, so that
rows that do not move stay out; and the SVM is regularised to what a few dozen pairs can tell. At test the edit is
warped so that landmarks outside the region come to where they were, then pasted with a soft mask.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from stylepairs.datagen.images.perceptual import Perceptual
from stylepairs.datagen.latent.directions import Direction, DirectionInfo
from stylepairs.datagen.latent.faces import FaceReader
from stylepairs.datagen.latent.methods.interfacegan import linear_svm
from stylepairs.datagen.latent.people import Person, noise_fixed
from stylepairs.datagen.portraits.portrait import bare_portrait
from stylepairs.datagen.portraits.sketch import Sketch
from stylepairs.datagen.reconstruction.inversion import Inversion
from stylepairs.datagen.reconstruction.prior import WPrior
from stylepairs.datagen.reconstruction.reconstruct import Problem, reconstruct
from stylepairs.datagen.reconstruction.settings import ReconstructionSettings
from stylepairs.datagen.shell.errors import InputError
from stylepairs.datagen.sketching.tools.warp import point_flow, warp_image
from stylepairs.datagen.stylegan.generator import Generator

COARSE_SHARE = 7 / 18  # of the rows: those that the coarse edit moves
GROWN, SOFT = 0.03, 0.025  # of the side: how far a region is grown, and how softly it ends
REFERENCE_PX = 32  # the composite is met at this side inside the region
LEAST_PAIRS = 8
_TOGETHER = 8  # faces that are rendered together
REGULARISATION = 1e-2


@dataclass(frozen=True)
class LatentPairs:
    """Latents before and after [P,L,C] whose images differ in the region alone."""

    before: torch.Tensor
    after: torch.Tensor


@dataclass(frozen=True)
class Diffusion:
    """What a composite is diffused back into a latent with."""

    generator: Generator
    reader: FaceReader
    perceptual: Perceptual
    prior: WPrior
    settings: ReconstructionSettings


def coarse_edit(direction: Direction, ws: torch.Tensor, strength: float) -> torch.Tensor:
    """ws [N,L,C] moved along a coarse boundary in the coarse rows only."""
    rows = max(1, round(COARSE_SHARE * ws.shape[1]))
    moved = direction.move(ws, strength)
    return torch.cat([moved[:, :rows], ws[:, rows:]], 1)


@torch.no_grad()
def region_of(reader: FaceReader, image: torch.Tensor, classes: Sequence[str]) -> torch.Tensor:
    """Where the classes are in any of the images [N,3,H,W] of one person, grown, with soft edges [1,H,W]."""
    return reader.region(image, classes, GROWN, SOFT)


def make_pairs(
    tools: Diffusion,
    coarse: Direction,
    ws: torch.Tensor,
    strength: float,
    classes: Sequence[str],
    on_pair: Callable[[int, int], None] | None = None,
) -> LatentPairs:
    """Paired latents of ws [N,L,C]: the coarse edit's region, diffused back into the original (semantic diffusion).

    classes: the region, of the label map. Pairs whose optimisation broke down are left out.
    """
    generator = tools.generator
    noise = [level[0, 0] for level in generator.noise_maps()]
    with torch.no_grad():
        before, edited = (
            torch.cat([generator.synthesis(part).clamp(-1, 1) for part in latents.split(_TOGETHER)])
            for latents in (ws, coarse_edit(coarse, ws, strength))
        )
    portraits, inversions, sketches = [], [], []
    for index in range(len(ws)):
        image = before[index]
        region = region_of(tools.reader, torch.stack([image, edited[index]]), classes)
        portraits.append(bare_portrait(f"sample {index}", image))
        inversions.append(Inversion(ws[index], noise, image, {}))
        composite = image.lerp(edited[index], region)
        sketches.append(Sketch(composite, region, 1 - region, min(REFERENCE_PX, image.shape[-1])))
    problem = Problem(generator, tools.perceptual, tools.prior, portraits, inversions, sketches, tools.settings)
    made = [
        (w, found.ws_after)
        for w, found in zip(ws, reconstruct(problem, on_pair), strict=True)
        if found.figures["finite"]
    ]
    if not made:
        raise InputError("the edit of every sampled face broke down; take a smaller --strength")
    return LatentPairs(torch.stack([pair[0] for pair in made]), torch.stack([pair[1] for pair in made]))


def fine_boundary(pairs: LatentPairs, info: DirectionInfo) -> Direction:
    """The direction from before to after: row by row the normal of an SVM, at the length that the pairs differ by.

    Raises InputError for fewer than LEAST_PAIRS pairs.
    """
    count = len(pairs.before)
    if count < LEAST_PAIRS:
        raise InputError(f"{count} pairs; a fine boundary needs at least {LEAST_PAIRS}")
    labels = [0] * count + [1] * count
    rows = []
    for row in range(pairs.before.shape[1]):
        before, after = pairs.before[:, row].double(), pairs.after[:, row].double()
        # Each pair about its own middle: what differs between people is no part of the attribute.
        middle = (before + after) / 2
        points = torch.cat([before - middle, after - middle])
        scale = points.square().mean().sqrt().clamp_min(1e-12)
        machine = linear_svm(REGULARISATION).fit((points / scale).numpy(), labels)
        normal = F.normalize(torch.from_numpy(machine.coef_[0]), dim=0)
        rows.append(normal * ((after - before) @ normal).mean())
    figures = info.figures | {"pairs": float(count)}
    known = info.model_copy(update={"space": "w+", "layers": tuple(range(len(rows))), "figures": figures})
    return Direction(torch.stack(rows).float(), known)


@torch.no_grad()
def edit_and_warp(
    generator: Generator,
    reader: FaceReader,
    direction: Direction,
    person: Person,
    strength: float,
    classes: Sequence[str],
    warp: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The person edited in the region alone, and the region: [3,H,W], [1,H,W].

    warp: the edit is first warped so that landmarks outside the region lie where they were; without it the face's edge
    may break where the region ends.
    """
    with noise_fixed(generator, person.noise):
        before = generator.synthesis(person.ws[None]).clamp(-1, 1)
        edited = direction.render(generator, person.ws[None], strength).clamp(-1, 1)
    if person.portrait is not None:
        before = person.portrait.image[None]
    region = region_of(reader, torch.cat([before, edited]), classes)
    image = edited[0]
    if warp:
        image = _brought_back(reader, before, edited, region)
    return before[0].lerp(image, region), region


def _brought_back(reader: FaceReader, before: torch.Tensor, edited: torch.Tensor, region: torch.Tensor) -> torch.Tensor:
    """edited [1,3,H,W] warped so that its landmarks outside the region lie where those of `before` do; [3,H,W]."""
    side = edited.shape[-1]
    points = reader.read(torch.cat([before, edited])).points68 * side - 0.5
    at = points[0].round().long().clamp(0, side - 1)
    outside = region[0, at[:, 1], at[:, 0]] < 0.5
    if int(outside.sum()) < 3:
        return edited[0]
    return warp_image(edited[0], point_flow(side, points[1][outside], points[0][outside]))
