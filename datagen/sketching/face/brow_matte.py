"""One eyebrow of a portrait: its soft matte with the image's own edges, its line, and whether it can be seen at all."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from stylepairs.datagen.images.colors import srgb_to_lab
from stylepairs.datagen.images.filters import blurred, grown, mean_of, read_at
from stylepairs.datagen.portraits.face_frame import FaceFrame, pixel_places
from stylepairs.datagen.portraits.landmarks import EYE, Side
from stylepairs.datagen.portraits.portrait import Portrait
from stylepairs.datagen.portraits.regions import labelled
from stylepairs.datagen.sketching.face.soft_mattes import (
    CutOut,
    first_run,
    interpolated,
    log_likelihood,
    relative_to,
    smoothed,
    told_by_color,
    with_own_edges,
)

# Landmarks of a brow from its inner to its outer end.
_BROW: dict[Side, list[int]] = {"right": [21, 20, 19, 18, 17], "left": [22, 23, 24, 25, 26]}
# Shares of the brow's length: the cut-out beyond the label, how far hairs may reach beyond it, how near to the eye,
# where the skin's colour is taken (above: the lids are shaded), over what distance that colour may change.
_MARGIN = 0.4
_SLACK, _FROM_EYE = 0.1, 0.05
_SKIN_RING, _LIDS = (0.14, 0.3), 0.22
_SKIN_SCALE = 0.3
# How sure the label map is of what it says; the colours say the rest.
_TRUST = 0.85
# A pixel 1/1.2 of the way from the skin's to the hairs' mean colour is all hair.
_SOLID = 1.2
# Half the height of a brow that the matte does not show, in brow lengths.
_HALF_HEIGHT = 0.08
# Places along a brow where it may be hidden.
_LOOKED_AT = 33


@dataclass(frozen=True)
class BrowLine:
    """A brow in its own frame. inner: its inner end [2] in pixels; along, up: unit vectors [2] towards the outer
    end and away from the eye; length in pixels; upper, lower [K,2]: its edges in pixels, from the inner to the outer
    end, at shares `at` [K] of its length.
    """

    inner: torch.Tensor
    along: torch.Tensor
    up: torch.Tensor
    length: float
    at: torch.Tensor
    upper: torch.Tensor
    lower: torch.Tensor


def brow_matte(portrait: Portrait, side: Side) -> torch.Tensor:
    """The share of brow hair in each pixel [1,H,W]: without head hair and glasses; 0 where no brow is labelled."""
    inner, along, _, length = _frame(portrait, side)
    brow = labelled_brow(portrait, side)
    if not bool(brow.any()) or length < 1:
        return torch.zeros_like(brow)
    cut = CutOut.around(brow, length, _MARGIN * length)
    image = cut.magnified(portrait.image, "bicubic").clamp(-1, 1)
    other = torch.maximum(labelled(portrait, "hair", "hat", "eye_g"), portrait.hair)
    masks = [brow, labelled(portrait, "l_eye", "r_eye"), labelled(portrait, "skin"), other]
    brow, eye, skin, other = cut.magnified(torch.cat(masks)).split(1)
    found = _share_of_brow(image, brow, eye, skin, other, length * cut.factor)
    return cut.put_back(found, portrait.size_px)


def brow_line(portrait: Portrait, side: Side, matte: torch.Tensor, columns: int = 9) -> BrowLine:
    """The brow's edges, read from its matte to a fraction of a pixel; from the landmarks where it shows none."""
    inner, along, up, length = _frame(portrait, side)
    at = torch.linspace(0.06, 0.94, columns, device=up.device)
    middle = _middle(portrait, side, at * length)
    base = inner + at[:, None] * length * along
    reach = torch.linspace(0, 0.8, 161, device=up.device) * length
    top = middle + 0.3 * length
    share = read_at(matte, base[:, None] + (top[:, None] - reach)[..., None] * up, padding="zeros")[0]
    # Edges lie where half of what a thin or fair brow shows there is reached.
    first, last = first_run(share / share.amax(1, keepdim=True).clamp_min(0.25), reach)
    seen = last - first > 0.02 * length
    upper = smoothed(torch.where(seen, top - first, middle + _HALF_HEIGHT * length))
    lower = smoothed(torch.where(seen, top - last, middle - _HALF_HEIGHT * length))
    return BrowLine(inner, along, up, length, at, base + upper[:, None] * up, base + lower[:, None] * up)


def hidden_share(portrait: Portrait, side: Side) -> float:
    """The share of the brow's length, a little under whose landmarks its hairs lie, that head hair or a hat hides."""
    inner, along, up, length = _frame(portrait, side)
    at = torch.linspace(0, 1, _LOOKED_AT, device=up.device) * length
    places = inner + at[:, None] * along + _middle(portrait, side, at)[:, None] * up
    over = torch.maximum(labelled(portrait, "hair", "hat"), portrait.hair)
    return float((read_at(over, places, padding="zeros")[0] > 0.5).float().mean())


def labelled_brow(portrait: Portrait, side: Side) -> torch.Tensor:
    """What the label map calls brow in the side's half of the picture [1,H,W], 0 or 1."""
    return labelled(portrait, "l_brow", "r_brow") * _half(portrait, side)


def _frame(portrait: Portrait, side: Side) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, float]:
    """Inner end [2], unit vectors along and up [2], length in pixels."""
    marks = portrait.points68[_BROW[side]]
    frame = FaceFrame.between(marks[0], marks[-1])
    away = (marks.mean(0) - portrait.points68[EYE[side]].mean(0)) @ frame.down
    return marks[0], frame.across, frame.down if float(away) > 0 else -frame.down, frame.unit_px


def _middle(portrait: Portrait, side: Side, at: torch.Tensor) -> torch.Tensor:
    """How far up the brow's middle lies, as its landmarks have it, at distances `at` [K] from its inner end."""
    inner, along, up, length = _frame(portrait, side)
    marks = portrait.points68[_BROW[side]] - inner
    return interpolated(at, marks @ along, marks @ up) - _HALF_HEIGHT * length


def _half(portrait: Portrait, side: Side) -> torch.Tensor:
    """The side's half of the picture [1,H,W], 0 or 1, parted between the brows."""
    inner_right, inner_left = portrait.points68[21], portrait.points68[22]
    leftness = (pixel_places(portrait.hair) - (inner_left + inner_right) / 2) @ (inner_left - inner_right)
    return ((leftness > 0) if side == "left" else (leftness <= 0)).float()[None]


def _share_of_brow(
    image: torch.Tensor, brow: torch.Tensor, eye: torch.Tensor, skin: torch.Tensor, other: torch.Tensor, length: float
) -> torch.Tensor:
    """The share of brow hair [1,h,w] in a magnified cut-out; brow, eye, skin and other hair [1,h,w] as labelled."""
    core, eye = (brow > 0.5).float(), (eye > 0.3).float()
    prior = blurred(brow, 0.05 * length)
    allowed = blurred(grown(core, _SLACK * length), _SLACK / 2 * length)
    allowed = allowed * (1 - grown(eye, _FROM_EYE * length)) * (1 - grown(other, 0.02 * length)).clamp(0, 1)
    ring = grown(core, _SKIN_RING[1] * length) - grown(core, _SKIN_RING[0] * length)
    ring = ring * (skin > 0.9) * (1 - grown(eye, _LIDS * length)) * (other < 0.1)
    features = relative_to(srgb_to_lab(image), ring, _SKIN_SCALE * length)
    # A label that lies beside its brow holds skin as well: of what it holds, the half least like skin begins.
    held, unlike = prior > 0.6, -log_likelihood(features, ring)
    middle = unlike[held].median() if bool(held.any()) else 0.0
    likely = _TRUST * (1.3 * prior).clamp(0, 1)
    share, hair, bare = told_by_color(
        features,
        part=(held & (unlike >= middle)).float(),
        around=ring,
        chances=(1 - _TRUST + likely * allowed, 1 - likely),
        allowed=allowed,
        sure=(0.7, prior > 0.25),
        others=[],
    )
    found = share * _share_of_hair(features, hair, bare)
    return with_own_edges(found, image, 0.02 * length, 1e-3) * allowed


def _share_of_hair(features: torch.Tensor, hair: torch.Tensor, skin: torch.Tensor) -> torch.Tensor:
    """How far each pixel's colour lies on the way from skin to hair [1,h,w]: between hairs, and at edges, part of it.

    A likelihood alone would call half-covered pixels hair. Distances are counted in the skin's own variations.
    """
    middle = mean_of(features, skin)
    spread = mean_of((features - middle).square(), skin) + 4.0
    way = mean_of(features, hair) - middle
    share = ((features - middle) * way / spread).sum(0, keepdim=True) / (way.square() / spread).sum().clamp_min(1e-3)
    return (_SOLID * share).clamp(0, 1)
