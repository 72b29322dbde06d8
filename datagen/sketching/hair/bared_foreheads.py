"""A forehead without the fringe that hangs over it: skin carried on under it, and the hairline grown anew."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from stylepairs.datagen.images.filters import overall_mean
from stylepairs.datagen.portraits.portrait import CLASS, Portrait
from stylepairs.datagen.portraits.regions import dilate, feather
from stylepairs.datagen.portraits.sketch import SketchRefused
from stylepairs.datagen.sketching.hair.foreheads import Forehead, continue_skin, usual_hairline
from stylepairs.datagen.sketching.hair.strands import grow_hair, own_flow, shade_skin
from stylepairs.datagen.sketching.hair.strokes import StrandStyle

# The arc of the hairline that a fringe hides: `across` of its feet, and how boxy it is (2 an ellipse). Over how much of
# its radius the skin passes into hair.
_TEMPLE, _ARCH, _PASSAGE = 0.84, 3.0, 0.16
# `across` of a brow's outer half; hair on more of the forehead just above it is a fringe that hangs on at the side.
_BESIDE, _MAX_BESIDE = (0.5, 0.75), 0.5
# The degree from which on a fringe that grows, or skin that is bared, is opaque.
APPEARS = 0.15


@dataclass(frozen=True)
class BaredForehead:
    """image [3,H,W], label [H,W], hair [1,H,W] without the fringe; painted [1,H,W] in [0,1]: where it was painted."""

    image: torch.Tensor
    painted: torch.Tensor
    label: torch.Tensor
    hair: torch.Tensor


def fringe_share(portrait: Portrait, face: Forehead) -> float:
    """The share of the middle of the forehead that hair covers."""
    line, out = _hidden_hairline(face)
    # Where label and matte agree: hair at the temples is no fringe, nor is haze.
    middle = _bared(face, out) * ((face.across.abs() < 0.6) & (face.up < 0.85 * line)).float()
    return float(overall_mean(torch.minimum((portrait.label == CLASS["hair"]).float()[None], portrait.hair), middle))


def bare_forehead(
    portrait: Portrait, face: Forehead, min_fringe: float, degree: float, rng: np.random.Generator
) -> BaredForehead:
    """The forehead bared from the fringe's tips upwards, by `degree` in [0,1] of its height.

    Raises SketchRefused where hair covers less than min_fringe of the middle of the forehead, or what is under it, or
    where it ends, cannot be told.
    """
    line, out = _hidden_hairline(face)
    fringe = _bared(face, out) * torch.maximum(face.hairy, portrait.hair)
    share = fringe_share(portrait, face)
    if share < min_fringe:
        raise SketchRefused(
            f"{portrait.name}: hair covers {100 * share:.0f} % of the middle of the forehead "
            f"(min_fringe {100 * min_fringe:g} %); no bangs to take away"
        )
    low = float(torch.quantile(face.up[fringe > 0.5], 0.02))
    if (
        low < 0.08
        and float(overall_mean(face.hairy, ((face.across.abs() < 0.6) & (face.up < 0.04) & (face.up > -0.12)).float()))
        > 0.3
    ):
        raise SketchRefused(f"{portrait.name}: the fringe hides the brows; what is under it cannot be told")
    for side in (-1, 1):
        over = face.across * side
        beside = (over > _BESIDE[0]) & (over < _BESIDE[1]) & (face.up > 0.04) & (face.up < 0.16)
        if float(overall_mean(face.hairy, beside.float())) > _MAX_BESIDE:
            raise SketchRefused(
                f"{portrait.name}: the fringe runs into the hair beside the face; taken away it would end in a cut"
            )
    # From its tips upwards.
    height = low + degree * (line - low) - face.up
    uncovered = fringe * (height > 0).float()
    brows = ((portrait.label == CLASS["l_brow"]) | (portrait.label == CLASS["r_brow"])).float()[None]
    # With the shadow that it throws on the skin around it.
    hole = feather(dilate(uncovered, 0.04), 0.02) * (1 - feather(dilate(brows, 0.012), 0.006))
    eyes, upwards = ((x * face.height_px / (0.02 * portrait.size_px) + 1).clamp(0, 1) for x in (face.up, height))
    inside = ((1.02 - out) / _PASSAGE).clamp(0, 1) * min(1.0, degree / APPEARS)
    hole = hole * inside * feather(eyes, 0.004) * upwards
    bare = continue_skin(portrait, face, hole, rng)
    image, alpha = _regrown_hairline(portrait, face, bare, out, hole, rng)
    hair = torch.maximum(portrait.hair * (1 - hole), alpha)
    label = torch.where((hole[0] > 0.5) & (alpha[0] < 0.5), CLASS["skin"], portrait.label.int()).to(torch.uint8)
    return BaredForehead(image, torch.maximum(hole, alpha), label, hair)


def _hidden_hairline(face: Forehead) -> tuple[torch.Tensor, torch.Tensor]:
    """`up` of the hairline that a fringe hides, in each column, and how far out of the forehead a pixel is [1,H,W]: 1
    on the arc of that hairline, which turns down at the temples."""
    line = usual_hairline(face.across) * max(1.0, 0.9 * face.third_px / face.height_px)
    sides, height = face.across.abs() / _TEMPLE, face.up.clamp_min(0) / line
    return line, (sides**_ARCH + height**_ARCH) ** (1 / _ARCH)


def _bared(face: Forehead, out: torch.Tensor) -> torch.Tensor:
    """What of the forehead may be bared [1,H,W], 0 or 1."""
    return ((out < 1) & (face.up > 0.04)).float()


def _regrown_hairline(
    portrait: Portrait,
    face: Forehead,
    bare: torch.Tensor,
    out: torch.Tensor,
    hole: torch.Tensor,
    rng: np.random.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Hair that grows from the bared hairline (where out [1,H,W] is 1) into the own hair, so that the skin does not end
    in a cut: image [3,H,W] and its alpha [1,H,W]."""
    near = feather(dilate((hole > 0.5).float(), 0.025), 0.01)
    region = ((out - 0.86) / 0.2).clamp(0, 1) * ((1.3 - out) / 0.2).clamp(0, 1) * near
    length = 0.35 * face.height_px / portrait.size_px
    style = StrandStyle(
        density=0.8, length=length, ragged=0.4, lock_width=0.01, clumping=0.15, root_shadow=0.0, lock_cover=1.9
    )
    painted, alpha = grow_hair(portrait, region, own_flow(portrait), style, rng)
    alpha = alpha * region.clamp(0, 1)
    skin = shade_skin(bare, alpha, 0.06)
    return skin + (painted - skin) * alpha, alpha
