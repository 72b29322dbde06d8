"""How lightness and chroma go along when a surface takes another colour in the same light.

Lightness moves by a shift of its logit: monotone, so strands keep their order; flat at the ends, so that black hair
made blond does not burn out and blond hair made black keeps its detail.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

Mean = Callable[[torch.Tensor], torch.Tensor]  # of lightness [1,H,W], over a region or around each place

# Lightness added at both ends before the logit, which bounds the slope of the tone curve: wide where hair is lightened
# (crushed blacks would become noise), narrow where it is darkened (light strands must not turn black).
_TOE_DARKER, _TOE_LIGHTER, _LIGHTER = 4.0, 16.0, 20.0
# How chroma goes with light, as a power of it, by the surface's lightness: 1 as on a matt surface, 0 not at all, below
# 0 shine is paler. Measured on the hair of 787 photos: the slope of b on lightness is 1 to 2 times a matt surface's
# under L 35, 0.6 times at 40, 0.2 at 50 and 60 (of a: 0.7, -0.4, -0.9). In shade light hair, too, is nearly matt.
_MATT_UNDER, _PER_LIGHTNESS = 15.0, 1 / 30
_PALEST, _SHADE = -1.0, 0.5


class ToneCurve:
    """Lightness in a region whose mean rises by `rise` (below 0: falls)."""

    def __init__(self, rise: float) -> None:
        self.toe = _TOE_DARKER + (_TOE_LIGHTER - _TOE_DARKER) * min(max(rise / _LIGHTER, 0.0), 1.0)
        self.span = 100 + 2 * self.toe

    def logit(self, light: torch.Tensor) -> torch.Tensor:
        """Where lightness, in 0 to 100, lies on the curve."""
        return torch.logit((light + self.toe) / self.span, eps=1e-6)

    def moved(self, light: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        """Lightness moved by `shift` along the curve; a shift of 0 gives it back to the bit."""
        start = self.logit(light)
        return light + self.span * (torch.sigmoid(start + shift) - torch.sigmoid(start))

    def meeting(self, light: torch.Tensor, target: torch.Tensor, mean: Mean, steps: int) -> torch.Tensor:
        """Lightness moved so far along the curve, in fixed-point steps, that its mean becomes target."""
        wanted, moved, shift = self.logit(target), light, torch.zeros((), dtype=light.dtype, device=light.device)
        for _ in range(steps):
            shift = shift + wanted - self.logit(mean(moved))
            moved = self.moved(light, shift)
        return moved


def in_shade(chroma: torch.Tensor, of: torch.Tensor, light: torch.Tensor) -> torch.Tensor:
    """Chroma (a, b) [2,H,W] of a surface of lightness `of`, where light makes it `light` [1,H,W]."""
    power = (1 - _PER_LIGHTNESS * (of - _MATT_UNDER)).clamp(_PALEST, 1)
    power = torch.where(light < of, power.clamp_min(_SHADE), power)
    return chroma * ((light + 16).clamp_min(1) / (of + 16).clamp_min(1)) ** power
