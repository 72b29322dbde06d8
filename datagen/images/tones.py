"""How lightness and chroma go along when a surface takes another colour in the same light.

Lightness moves by a shift of its logit: monotone, so strands keep their order; flat at the ends, so that black hair
made blond does not burn out and blond hair made black keeps its detail. Hair of every colour then has light and shade
as its like has: in 368 portraits the logits of locks deviate by 0.32 to 0.39, of strands by 0.18 to 0.23, from black
hair (mean L 8) to light (65).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

Mean = Callable[[torch.Tensor], torch.Tensor]  # of lightness [1,H,W], over a region or around each place

# How chroma goes with light, as a power of it, by the surface's lightness: 1 as on a matt surface, 0 not at all, below
# 0 shine is paler. Measured on the hair of 787 photos: the slope of b on lightness is 1 to 2 times a matt surface's
# under L 35, 0.6 times at 40, 0.2 at 50 and 60 (of a: 0.7, -0.4, -0.9). In shade light hair, too, is nearly matt.
_MATT_UNDER, _PER_LIGHTNESS = 15.0, 1 / 30
_PALEST, _SHADE = -1.0, 0.5
# Least share of a surface's own variation of hue that is kept, however far its colour goes.
_HUE_VARIATION = 0.3
# Lightness added at both ends before the logit, which bounds the slope: next to black all contrast is noise.
_TOE = 3.0
_SPAN = 100 + 2 * _TOE


def logit(light: torch.Tensor) -> torch.Tensor:
    """Where lightness, in 0 to 100, lies on the tone curve."""
    return torch.logit((light + _TOE) / _SPAN, eps=1e-6)


def toned(light: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Lightness moved by `shift` along the tone curve; a shift of 0 gives it back to the bit."""
    start = logit(light)
    return light + _SPAN * (torch.sigmoid(start + shift) - torch.sigmoid(start))


def tone_shift(light: torch.Tensor, target: torch.Tensor, mean: Mean, steps: int = 5) -> torch.Tensor:
    """The shift along the tone curve that makes lightness's mean target, found in fixed-point steps: after 5 within
    0.1 L."""
    wanted = logit(target)
    shift = wanted - logit(mean(light))
    for _ in range(steps - 1):
        shift = shift + wanted - logit(mean(toned(light, shift)))
    return shift


def toned_to(light: torch.Tensor, target: torch.Tensor, mean: Mean, steps: int = 5) -> torch.Tensor:
    """Lightness moved along the tone curve by `tone_shift`."""
    return toned(light, tone_shift(light, target, mean, steps))


def steepened(light: torch.Tensor, moved: torch.Tensor) -> torch.Tensor:
    """How many times its contrast fine detail has where the tone curve took lightness from `light` to `moved`."""
    before, after = logit(light), logit(moved)
    # A sigmoid has the slope of its value times what that leaves to 1.
    return torch.exp(F.logsigmoid(after) + F.logsigmoid(-after) - (F.logsigmoid(before) + F.logsigmoid(-before)))


def in_shade(chroma: torch.Tensor, of: torch.Tensor, light: torch.Tensor) -> torch.Tensor:
    """Chroma (a, b) [...,2,H,W] of a surface of lightness `of`, where light makes it `light` [...,1,H,W]."""
    power = (1 - _PER_LIGHTNESS * (of - _MATT_UNDER)).clamp(_PALEST, 1.0)
    power = torch.where(light < of, power.clamp_min(_SHADE), power)
    return chroma * ((light + 16).clamp_min(1.0) / (of + 16).clamp_min(1.0)) ** power


def rechromed(
    lab: torch.Tensor, light: torch.Tensor, own: torch.Tensor, target: torch.Tensor, kept: torch.Tensor
) -> torch.Tensor:
    """Chroma [...,2,H,W] of a surface lab [...,3,H,W] whose colour around there goes from `own` to `target`, in the
    light that falls there now [...,1,H,W], and some of its variation of hue: all of it where kept [...,1,H,W] is 1.
    """
    darker = ((_light(target) + 16) / (_light(own) + 16)).clamp(max=1.0)
    share = kept + (1 - kept) * _HUE_VARIATION * darker
    varied = _chroma(lab) - in_shade(_chroma(own), _light(own), _light(lab))
    return in_shade(_chroma(target), _light(target), light) + share * varied


def _light(lab: torch.Tensor) -> torch.Tensor:
    return lab[..., :1, :, :]


def _chroma(lab: torch.Tensor) -> torch.Tensor:
    return lab[..., 1:, :, :]
