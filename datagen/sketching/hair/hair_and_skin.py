"""Hair told from skin by colour: how much each pixel is hair, and where scalp shows through it.

Scalp lies in the direction in Lab that best parts the forehead's skin from the person's dense hair (Fisher's linear
discriminant, 1936), zero at the colour of the dense hair nearby, so that grey sides are hair too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from stylepairs.datagen.images.colors import srgb_to_lab
from stylepairs.datagen.portraits.portrait import CLASS, Portrait
from stylepairs.datagen.portraits.sketch import SketchRefused
from stylepairs.datagen.sketching.hair.hairline_curve import ANGLES, Hairline, smoothed
from stylepairs.datagen.sketching.hair.rays import pixels_polar
from stylepairs.datagen.sketching.hair.strands import HairPalette
from stylepairs.datagen.sketching.tools.texture import blurred_by_share

# Squared Lab distance between hair and skin at which colour can half tell them apart.
_TELLABLE = 150.0
# Of the side: how softly the area begins at the hairline, which is to stay as it is, and ends at the outline.
_LINE_SOFTNESS, _OUTLINE_SOFTNESS = 0.028, 0.012
# Scalp counts from this share on, and wholly from that one: between strands there is always some shade of skin.
_SHOWS, _BARE = 0.2, 0.5
# Scalp is red besides being light: from this share of the way to the skin's a* on a place counts wholly.
_REDNESS = 0.4
# Of the side: how far dense hair speaks for the colour of the hair around it.
_NEARBY = 0.06


def hairness(
    lab: torch.Tensor, matte: torch.Tensor, skin: torch.Tensor, hair: HairPalette | torch.Tensor
) -> torch.Tensor:
    """How much each pixel of lab [3,H,W] is hair [1,H,W], 0 to 1: nearer to the hair's colours than to the skin's; by
    matte [1,H,W] where the two are too alike.

    skin: the skin's smooth Lab [3,H,W]. hair: its palette, or the Lab [3,H,W] that it has pixel by pixel.
    """
    if isinstance(hair, HairPalette):
        low, usual, high = (color.to(lab)[:, None, None] for color in (hair.shadow, hair.mean, hair.highlight))
        axis = high - low
        at = (((lab - low) * axis).sum(0, keepdim=True) / axis.square().sum().clamp_min(1.0)).clamp(0, 1)
        near = low + at * axis
    else:
        near = usual = hair
    pairs = ((lab, near), (lab, skin), (usual, skin))
    from_hair, from_skin, apart = ((one - other).square().sum(0, keepdim=True) for one, other in pairs)
    trust = apart / (apart + _TELLABLE)
    return trust * from_skin / (from_skin + from_hair).clamp_min(1.0) + (1 - trust) * matte


@dataclass(frozen=True)
class Scalp:
    """How scalp is told from hair in a portrait: area [1,H,W] between hairline and outline; hair [3,H,W] colour of the
    dense hair nearby and skin [3], in Lab; axis [3] from one to the other, to be multiplied with colours; separation:
    Mahalanobis distance of the two."""

    area: torch.Tensor
    hair: torch.Tensor
    skin: torch.Tensor
    axis: torch.Tensor
    separation: float

    def mixed(self, lab: torch.Tensor) -> torch.Tensor:
        """The share of scalp [1,H,W] in each colour of lab [3,H,W], 0 dense hair, 1 skin."""
        away = self.skin[:, None, None] - self.hair
        axis = self.axis[:, None, None]
        whole = (away * axis).sum(0, keepdim=True).clamp_min(0.25 * self.separation**2)
        return (((lab - self.hair) * axis).sum(0, keepdim=True) / whole).clamp(0, 1)

    def share(self, lab: torch.Tensor) -> torch.Tensor:
        """The same over a strand's width."""
        return blurred_by_share(self.mixed(lab), 0.008)

    def shows(self, lab: torch.Tensor) -> torch.Tensor:
        """Where scalp shows within the area [1,H,W], 0 to 1."""
        return self.area * ((self.share(lab) - _SHOWS) / (_BARE - _SHOWS)).clamp(0, 1)

    def redness(self, lab: torch.Tensor) -> torch.Tensor:
        """Where a* is as much the skin's as scalp would make it [1,H,W], 0 to 1: fair locks and shine are not."""
        whole = (self.skin[1] - self.hair[1:2]).clamp_min(2.0)
        return (blurred_by_share((lab[1:2] - self.hair[1:2]) / whole, 0.012) / _REDNESS).clamp(0, 1)


def find_scalp(portrait: Portrait, line: Hairline) -> Scalp:
    """What tells scalp from hair in this portrait, learned from its forehead and its dense hair.

    Raises SketchRefused where there is too little of either.
    """
    lab = srgb_to_lab(portrait.image)
    if not line.found.any():
        raise SketchRefused(f"{portrait.name}: no hairline is found; bald, or hidden")
    area, forehead = hair_area(portrait, line, _LINE_SOFTNESS), _forehead(portrait, line)
    inside = (area * portrait.hair > 0.8)[0]
    least = 2e-4 * inside.numel()
    if forehead.sum() < least or inside.sum() < least:
        raise SketchRefused(f"{portrait.name}: too little forehead or hair to tell one from the other")
    skin, hair = lab[:, forehead], lab[:, inside]
    # Twice: what shows scalp itself is no example of dense hair.
    for _ in range(2):
        axis, separation = _discriminant(skin, hair)
        share = axis @ (hair - hair.mean(1, keepdim=True)) / separation**2
        hair = hair[:, share <= torch.quantile(share, 0.85)]
    axis, separation = _discriminant(skin, hair)
    typical = hair.mean(1)[:, None, None]
    share = (axis[:, None, None] * (lab - typical)).sum(0, keepdim=True) / separation**2
    dense = (area * portrait.hair) * (1 - share / 0.5).clamp(0, 1)
    # A little of the typical colour everywhere, for places with no dense hair around them.
    near = (blurred_by_share(lab * dense, _NEARBY) + 0.02 * typical) / (blurred_by_share(dense, _NEARBY) + 0.02)
    return Scalp(area, near, skin.mean(1), axis, separation)


def pixels_by_line(
    line: Hairline, portrait: Portrait
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Angle and radius of every pixel, and brow, line and outline at its angle; [H,W] each."""
    known = line.filled()
    angle, radius = (values.cpu().numpy() for values in pixels_polar(line.frame, portrait))
    brow, at, outline = (
        np.interp(angle, ANGLES, smoothed(values, np.radians(3))) for values in (known.brow, known.line, known.outline)
    )
    return angle, radius, brow, at, outline


def hair_area(portrait: Portrait, line: Hairline, softness: float, before: float = 0.0) -> torch.Tensor:
    """Between hairline and outline [1,H,W] where the analyser sees hair, be it thin; soft at the outline, and over
    `softness` of the side at its beginning, which is so far before the line."""
    size_px = portrait.size_px
    angle, radius, _, at, outline = pixels_by_line(line, portrait)
    above = np.clip(((radius - at) / size_px + before) / softness, 0, 1)
    below = np.clip((outline - radius) / (_OUTLINE_SOFTNESS * size_px), 0, 1)
    inside = torch.from_numpy(above * below * (np.abs(angle) <= ANGLES[-1])).to(portrait.image)[None]
    return inside * ((blurred_by_share(portrait.hair, 0.012) - 0.25) / 0.35).clamp(0, 1)


def _discriminant(skin: torch.Tensor, hair: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Fisher's axis [3] of colours [3,N], scaled so that axis . (skin - hair) is distance^2; the distance."""
    # Four units of Lab are no difference between a person's hair and skin.
    spread = 0.5 * torch.cov(skin) + 0.5 * torch.cov(hair) + 4.0 * torch.eye(3).to(skin)
    apart = skin.mean(1) - hair.mean(1)
    axis = torch.linalg.solve(spread, apart)
    return axis, max(float(axis @ apart), 1e-6) ** 0.5


def _forehead(portrait: Portrait, line: Hairline) -> torch.Tensor:
    """Bare skin between brows and hairline, bool [H,W]."""
    size_px = portrait.size_px
    angle, radius, brow, at, _ = pixels_by_line(line, portrait)
    between = (radius > brow) & (radius < at - 0.02 * size_px) & (np.abs(angle) <= np.radians(50))
    skin = (portrait.label == CLASS["skin"]) & (portrait.hair[0] < 0.1)
    return torch.from_numpy(between).to(skin.device) & skin
