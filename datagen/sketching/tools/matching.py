"""How far an image has gone along a known edit: the degree at which the edited photo looks most like it.

Registration with one unknown (Lucas & Kanade 1981, over a family of edits instead of translations): exact to some
hundredths of the full edit even where that moves things by a few pixels only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from stylepairs.datagen.sketching.tools.texture import blurred_by_share

# Of the side: light that changes over more than _LIGHT is the generator's to decide; below _GRAIN, resampling shows.
_LIGHT = 0.06
_GRAIN = 0.008
# Root mean square, in image units of [-1,1], below which a difference between two images is noise.
_NOISE = 0.012
_FROM, _TO, _COARSE_STEPS, _FINE = -0.5, 1.5, 11, 4


@dataclass(frozen=True)
class Match:
    """degree: in [-0.5, 1.5], 0 as before, 1 the full edit. explained: share in [0,1] of what differs between before
    and after that the edit at this degree accounts for; 0 for an unchanged image, and about 0 for another edit.
    """

    degree: float
    explained: float

    def figures(self, asked: float) -> dict[str, float]:
        """What features report of it: degree, explained, and how far the degree is from the one asked for."""
        return {"degree": self.degree, "degree_error": abs(self.degree - asked), "explained": self.explained}


def match_degree(
    before: torch.Tensor, after: torch.Tensor, edited: Callable[[float], torch.Tensor], region: torch.Tensor
) -> Match:
    """Where after [3,H,W] lies in the family edited(degree) [3,H,W], edited(0) being before.

    Compared are details only (finer than 6 % of the side), within region [1,H,W].
    """
    weight = region / region.sum().clamp_min(1e-6)
    target = _detail(after)

    def error(degree: float) -> float:
        return float(((_detail(edited(degree)) - target).square().mean(0, keepdim=True) * weight).sum())

    none = float(((_detail(before) - target).square().mean(0, keepdim=True) * weight).sum())
    step = (_TO - _FROM) / (_COARSE_STEPS - 1)
    degrees = [_FROM + step * index for index in range(_COARSE_STEPS)]
    best, least = _lowest(degrees, [error(degree) for degree in degrees])
    fine = [best + step / _FINE * index for index in range(-_FINE, _FINE + 1)]
    best, least = _lowest(fine, [error(degree) for degree in fine])
    explained = 1 - (min(least, none) + _NOISE**2) / (none + _NOISE**2)
    return Match(min(max(best, _FROM), _TO), explained)


def detail_ratio(before: torch.Tensor, after: torch.Tensor, region: torch.Tensor) -> float:
    """Fine texture (under 1 % of the side) of after over that of before, root mean square within region [1,H,W]."""
    texture = [
        ((image - blurred_by_share(image, _GRAIN)).square().mean(0, keepdim=True) * region).sum()
        for image in (before, after)
    ]
    return float((texture[1] / texture[0].clamp_min(1e-9)).sqrt())


def _lowest(at: list[float], errors: list[float]) -> tuple[float, float]:
    """The place and value of the least error, refined by the parabola through its neighbours."""
    index = min(range(len(errors)), key=errors.__getitem__)
    if not 0 < index < len(errors) - 1:
        return at[index], errors[index]
    left, here, right = errors[index - 1 : index + 2]
    bend = left - 2 * here + right
    shift = 0.5 * (left - right) / bend if bend > 0 else 0.0
    return at[index] + shift * (at[1] - at[0]), max(here - 0.25 * (left - right) * shift, 0.0)


def _detail(image: torch.Tensor) -> torch.Tensor:
    """The image [3,H,W] between grain and light. Light is smooth: it is found at a quarter of the size."""
    smooth = blurred_by_share(image, _GRAIN)
    small = F.interpolate(smooth[None], scale_factor=0.25, mode="area")[0]
    light = F.interpolate(
        blurred_by_share(small, _LIGHT)[None], size=image.shape[-2:], mode="bilinear", align_corners=False
    )
    return smooth - light[0]
