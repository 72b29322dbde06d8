"""The shape of a fringe: where it lies on the forehead and which way its hair falls, by style."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F

from stylepairs.datagen.portraits.portrait import CLASS, Portrait
from stylepairs.datagen.portraits.regions import class_region, feather
from stylepairs.datagen.sketching.hair.foreheads import USUAL_HEIGHT, Forehead, usual_hairline

Style = Literal["full", "side_left", "side_right", "curtain", "wispy", "micro"]
# Of the forehead's height: how far above the hairline the fringe's hair begins, and over what it blends into the own.
_RISE, _BLEND = 0.5, 0.35
# `up` at which the hair of a fringe would meet, behind the hairline: it fans out from there.
_APEX = 2.6
_MICRO = 0.5
# Of the forehead's height: how far above a region of the user's its hair begins, in the own hair.
_CUSTOM_RISE = 0.2
# `across` of the parting of a side-swept fringe, and how far the fringe reaches at its other end.
_PARTING, _REACH = -0.62, 0.97
# Where a worn fringe is read: up to this `across`, above this `up`, of lengths from cropped to over the brows.
_READ_TO, _READ_FROM = 0.85, 0.02
_READ_LENGTHS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
# The share of a fringe's height in which skin between its strands is a gap: below, its tips stand free. What is
# smaller than so much of the side and so many pixels, across or down, tells nothing.
_UPPER, _TELLING, _TELLING_PX = 0.8, 5 / 128, 5
# Shaded skin between strands looks this much like hair.
_HAIR = 0.75


@dataclass(frozen=True)
class Fringe:
    """region [1,H,W]: where hair is wanted, soft; flow [2,H,W]: which way it falls, unit; blend [1,H,W]: 1 where it is
    shown whole, down to 0 where the own hair takes over; light [1,H,W]: where its bend catches the light; gaps in
    [0,1]: how far locks stand apart."""

    region: torch.Tensor
    flow: torch.Tensor
    blend: torch.Tensor
    light: torch.Tensor
    gaps: float = 0.0


def styled_fringe(portrait: Portrait, face: Forehead, style: Style, length: float, rng: np.random.Generator) -> Fringe:
    """A fringe that reaches down by `length` of the forehead: 0 not past the hairline, 1 to the brows.

    rng: unevenness of its lower edge; no two fringes are cut by the same scissors.
    """
    across, fall = face.across, _fall(face, style, length)
    uneven = _uneven(across, rng) * (0.10 if style == "wispy" else 0.05)
    over = (face.up - fall + uneven * min(length, 0.5) * 2) * face.height_px
    # Half a pixel's ramp: antialiased, the strands make the edge.
    below = (over / 1.5 + 0.5).clamp(0, 1)
    sides = ((1.02 - across.abs()) * face.half_width_px / 2).clamp(0, 1)
    top = _top(portrait, face)
    # Behind glasses.
    never = class_region(portrait, ["background", "l_ear", "r_ear", "hat", "l_eye", "r_eye", "nose", "eye_g"], 0.004)
    region = below * sides * top * (1 - never)
    # Lighter where it bends down over the forehead, darker at its tips; in units of the hair's spread.
    sheen = 0.10 * torch.exp(-((face.up - face.hairline - 0.05) ** 2) / (2 * 0.25**2))
    sheen = sheen - 0.10 * (0.5 - face.up).clamp(0, 0.5)
    return Fringe(region, _falling(face, style), top, sheen, gaps=1.0 if style == "wispy" else 0.0)


@dataclass(frozen=True)
class WornFringe:
    """The fringe that a person wears, as the style and length that are most like it; likeness in [0,1]: overlap of the
    two over the forehead, intersection over union."""

    style: Style
    length: float
    likeness: float


def worn_fringe(face: Forehead) -> WornFringe:
    """What the hair on a forehead is most like among all styles and lengths; likeness 0 where there is none."""
    # Its lower edge may have been taken for the hairline: heights are those of a usual forehead at least.
    height_px = max(face.height_px, USUAL_HEIGHT * face.third_px)
    up, hairline = face.up * (face.height_px / height_px), usual_hairline(face.across)
    face = replace(face, up=up, hairline=hairline, height_px=height_px)
    place = (face.across.abs() < _READ_TO) & (up > _READ_FROM) & (up < hairline)
    hair = face.hairy[place] > 0.5
    found = WornFringe("full", 0.0, 0.0)
    styles: tuple[Style, ...] = ("full", "micro", "side_left", "side_right", "curtain")  # wispy lies as full does
    for style in styles:
        for length in _READ_LENGTHS:
            lies = (up > _fall(face, style, length))[place]
            likeness = float((lies & hair).sum() / (lies | hair).sum().clamp_min(1))
            if likeness > found.likeness:
                found = WornFringe(style, length, likeness)
    return found


def custom_fringe(portrait: Portrait, face: Forehead, mask: torch.Tensor, grown: float) -> Fringe:
    """A fringe in a region of the user's, mask [1,H,W] in [0,1]; grown in [0,1]: how much of its height hair covers."""
    inside = mask > 0.5
    ups = face.up[inside] if bool(inside.any()) else face.up[mask > 0]
    low, high = (float(value) for value in torch.quantile(ups, torch.tensor([0.01, 0.99]).to(ups)))
    reached = ((face.up - (high - grown * (high - low))) * face.height_px / 1.5 + 0.5).clamp(0, 1)
    never = class_region(portrait, ["background", "hat"], 0.004)
    mask = (mask * reached if grown < 1 else mask) * (1 - never)
    # It grows out of hair that is above it, and over own hair it fades out to all sides.
    rise = max(1, round(_CUSTOM_RISE * face.height_px))
    above = F.max_pool2d(F.pad(mask[None], (0, 0, 0, rise)), (rise + 1, 1), 1)[0]
    hairy = feather(face.hairy, 0.004)
    region = torch.maximum(mask, above * hairy * (1 - never))
    blend = 1 - hairy * (1 - feather(mask, 0.5 * _CUSTOM_RISE * face.height_px / portrait.size_px))
    return Fringe(region, _falling(face, "full"), blend, torch.zeros_like(mask))


def fringe_gaps(fringe: Fringe, face: Forehead, hair: torch.Tensor) -> tuple[float, float]:
    """How closed the fringe is where hair [1,H,W] is seen, 0 to 1: the share of skin in its upper four fifths, and the
    spread of its strands' lengths (standard deviation over the columns, as a share of the full length).

    Both are 0 where it is too small to tell.
    """
    wanted = (fringe.region[0] > 0.5) & (face.hairy[0] < 0.5)
    rows = torch.arange(wanted.shape[0], device=wanted.device)[:, None]
    top, end = torch.where(wanted, rows, wanted.shape[0]).amin(0), torch.where(wanted, rows, -1).amax(0) + 1
    telling_px = max(_TELLING_PX, round(_TELLING * wanted.shape[0]))
    columns = end - top >= telling_px
    if int(columns.sum()) < telling_px:
        return 0.0, 0.0
    upper = wanted & (rows < top + _UPPER * (end - top)) & columns
    # Hair that hangs on at the top: up to the first row that shows skin.
    hanging = ((hair[0] > _HAIR) | (rows < top) | ~wanted).float().cumprod(0) * wanted
    lengths = (hanging.sum(0) / wanted.sum(0).clamp_min(1))[columns]
    return float((hair[0][upper] <= _HAIR).float().mean()), float(lengths.std())


def _fall(face: Forehead, style: Style, length: float) -> torch.Tensor:
    """`up` of the fringe's lower edge [1,H,W]."""
    across, low = face.across, 1 - length
    if style == "micro":
        low = 1 - _MICRO * length
    if style in ("side_left", "side_right"):
        # Swept to the subject's left: to the right in the image.
        along = across if style == "side_left" else -across
        way = ((along - _PARTING) / (_REACH - _PARTING)).clamp(0, 1)
        start = torch.minimum(face.hairline, torch.full_like(across, 0.97))
        swept = start - (start - low) * way**0.75
        # Before the parting there is no fringe.
        return swept + 4 * (_PARTING - along).clamp_min(0)
    if style == "curtain":
        way = (across.abs() / 0.8).clamp(0, 1.2)
        start = torch.minimum(face.hairline, torch.full_like(across, 0.95))
        return start - (start - low + 0.15 * length) * way**1.15
    # Cut along the brows' arc, a little longer at the temples.
    return low - 0.10 * length * across.abs() ** 3


def _falling(face: Forehead, style: Style) -> torch.Tensor:
    """Unit vectors [2,H,W] in the image along which the hair falls."""
    ratio = face.half_width_px / face.height_px
    aside = face.across * ratio / (_APEX - face.up).clamp_min(0.4)
    if style in ("side_left", "side_right"):
        sign = 1.0 if style == "side_left" else -1.0
        along = sign * face.across
        # Nearly level at the parting, falling ever more on the way across.
        aside = sign * (1.5 - 0.75 * ((along - _PARTING) / 1.6).clamp(0, 1)) + 0.3 * aside
    elif style == "curtain":
        # Straight down out of the parting, then in an arc towards the temples.
        aside = 0.9 * torch.tanh(face.across / 0.12) * (0.45 + 0.8 * face.across.abs()) + 0.3 * aside
    vectors = aside * face.frame.across[:, None, None] + face.frame.down[:, None, None]
    return F.normalize(vectors, dim=0)


def _top(portrait: Portrait, face: Forehead) -> torch.Tensor:
    """1 on the forehead, fading out behind the hairline where the own hair is."""
    above = face.up - face.hairline - _RISE
    skin = (portrait.label == CLASS["skin"]).float()[None]
    fade = (-above / _BLEND).clamp(0, 1)
    behind = ((face.up - face.hairline) * face.height_px / 2).clamp(0, 1)
    # Behind the hairline only where there is hair to fall from or skin that shows through it, nothing beyond the head.
    return fade * (1 - behind * (1 - feather(torch.maximum(face.hairy, skin), 0.006)))


def _uneven(across: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Waves of random height along the fringe's edge, about 1 high."""
    total = torch.zeros_like(across)
    for frequency in (1.3, 3.1, 6.7, 13.0):
        total = total + torch.sin(frequency * across + float(rng.uniform(0, 2 * np.pi))) * float(rng.normal()) * 0.6
    return total


def hat_share(portrait: Portrait, face: Forehead) -> float:
    """The share of the forehead and what is above it that a hat covers."""
    zone = (face.across.abs() < 0.9) & (face.up > 0.2) & (face.up < 1.4)
    return float(((portrait.label == CLASS["hat"])[None] & zone).sum() / zone.sum().clamp_min(1))
