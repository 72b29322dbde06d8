"""Whether a portrait wears glasses, by the thin lines that frames draw where a bare face has none."""

from __future__ import annotations

import torch
from kornia.filters import gaussian_blur2d

from stylepairs.datagen.images.colors import srgb_to_lab
from stylepairs.datagen.images.filters import read_at
from stylepairs.datagen.portraits.landmarks import eye_centres
from stylepairs.datagen.portraits.portrait import Portrait
from stylepairs.datagen.portraits.regions import labelled

# The face is read in a frame whose unit is the eye distance: so many points a unit, eyes at (-0.5, 0) and (0.5, 0).
_POINTS = 60
_ACROSS, _DOWN = (-1.2, 1.2), (-0.5, 0.7)
# Larger crops are read at this side: what the figures mean was measured there.
_SIDE_PX = 128
# In points: width of a line, over how much of its length it is meaned, how far beside it the skin is read.
_LINE, _ALONG, _BESIDE = 1.5, 2.5, 4
# (left, right, top, bottom) in eye distances: the bridge of the nose, under the eyes, the temples, beside the nose.
_BRIDGE = (-0.1, 0.1, -0.35, 0.35)
_UNDER_EYES = ((-0.75, -0.25, 0.22, 0.62), (0.25, 0.75, 0.22, 0.62))
_TEMPLES = ((-1.0, -0.78, -0.24, 0.15), (0.78, 1.0, -0.24, 0.15))
_BESIDE_NOSE = ((-0.3, -0.1, 0.0, 0.4), (0.1, 0.3, 0.0, 0.4))
_SKIN = (-0.6, 0.6, -0.17, 0.7)
# Logistic regression on the roots of four figures in L, counted as in skin of lightness _LIT: a dark line over the
# bridge, a bright one under the eyes, a dark one at the temples, a bright upright one beside the nose. Fitted on 200
# portraits, 59 with glasses. The bias is for label maps that know frames, all but thin wires: with -16.9, which finds
# those that hardly show, one bare face in four counts as one with glasses, by its wrinkles, shadows and sharp light.
_WEIGHTS, _BIAS, _LIT = (3.1, 1.3, 3.5, 3.5), -24.9, 60.0
# Thick frames are no thin line: their bridge is a dark (or bright) bar of so many L. Six of 60 portraits with dark
# frames have 54 to 69; of 407 bare faces the two highest, painted eyes and brows that meet, 48 and 41.
_BAR_L = 50.0


def wears_glasses(portrait: Portrait) -> bool:
    """Whether there are glasses: by the label map's class, a bar across the nose, or thin lines of a frame.

    Of 1905 varied portraits (98 of them not trained on) the label map is silent on 23 that have such lines: 6 wear thin
    wires, 17 have wrinkles, hard shadows, sharp light. Of 97 others, all 9 with glasses are
    found, and 3 bare ones taken for such. Missed are wires that hardly show.
    """
    labels = float(labelled(portrait, "eye_g").mean()) > 0.002
    return labels or _bar(portrait) > _BAR_L or frame_score(portrait) > 0


def frame_score(portrait: Portrait) -> float:
    """How much the lines at nose, cheeks and temples look like those of thin frames; over 0: like them."""
    light = _eye_strip(portrait)
    dark, bright = _lines(light)
    upright = _lines(light.mT)[1].T
    figures = (
        _part(dark, _BRIDGE).mean(1).amax(),
        torch.stack([_part(bright, place).amax(0).mean() for place in _UNDER_EYES]).mean(),
        torch.stack([_part(dark, place).amax(0).mean() for place in _TEMPLES]).mean(),
        torch.stack([_part(upright, place).amax(1).mean() for place in _BESIDE_NOSE]).mean(),
    )
    # Lines are fainter in dark skin and poor light.
    lit = (_part(light[0], _SKIN).median() / _LIT).clamp_min(0.1).sqrt()
    return float(sum(w * (figure / lit).sqrt() for w, figure in zip(_WEIGHTS, figures, strict=True))) + _BIAS


def _eye_strip(portrait: Portrait) -> torch.Tensor:
    """Lightness [1,h,w] around the eyes, in the frame of the eyes."""
    if portrait.size_px > _SIDE_PX:
        portrait = portrait.resized(_SIDE_PX)
    centre, across, down = _frame(portrait)
    u, v = (torch.linspace(*ends, round((ends[1] - ends[0]) * _POINTS) + 1).to(across) for ends in (_ACROSS, _DOWN))
    places = centre + v[:, None, None] * down + u[None, :, None] * across
    return read_at(srgb_to_lab(portrait.image)[:1], places, padding="zeros")


def _frame(portrait: Portrait) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The middle between the eyes [2], the step from the right to the left one [2], the same turned downwards [2]."""
    right, left = eye_centres(portrait.points68)
    across = left - right
    return (left + right) / 2, across, torch.stack([-across[1], across[0]])


def _lines(light: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """How much darker, and how much brighter, than both what is above and what is below it each point of [1,h,w] is:
    two [h,w]."""
    smooth = gaussian_blur2d(light[None], (11, 17), (_LINE, _ALONG), "replicate")[0, 0]
    padded = torch.cat([smooth[:1].expand(_BESIDE, -1), smooth, smooth[-1:].expand(_BESIDE, -1)])
    above, below = padded[: -2 * _BESIDE], padded[2 * _BESIDE :]
    dark, bright = torch.minimum(above, below) - smooth, smooth - torch.maximum(above, below)
    return dark.clamp_min(0), bright.clamp_min(0)


def _part(plane: torch.Tensor, place: tuple[float, float, float, float]) -> torch.Tensor:
    """What of the eyes' strip [h,w] lies in a place (left, right, top, bottom)."""
    starts = (_ACROSS[0], _ACROSS[0], _DOWN[0], _DOWN[0])
    left, right, top, bottom = (round((at - start) * _POINTS) for at, start in zip(place, starts, strict=True))
    return plane[top : bottom + 1, left : right + 1]


def _bar(portrait: Portrait) -> float:
    """The strongest bar across the bridge of the nose, in L."""
    middle, across, down = _frame(portrait)
    along = torch.linspace(-0.35, 0.35, 71, device=across.device)[:, None, None] * down
    wide = torch.linspace(-0.06, 0.06, 7, device=across.device)[None, :, None] * across
    light = read_at(srgb_to_lab(portrait.image)[:1], middle + along + wide, padding="zeros")[0].mean(1)
    step = 15  # of 71: 0.15 eye distances above and below
    bar = (light[: -2 * step] + light[2 * step :]) / 2 - light[step:-step]
    return float(bar.abs().max())
