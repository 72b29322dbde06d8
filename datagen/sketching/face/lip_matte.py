"""The lips of a portrait as a soft matte with the image's own edges, and the outline that a warp moves."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from stylepairs.datagen.images.colors import srgb_to_lab
from stylepairs.datagen.images.filters import blurred, grown, mean_of, read_at
from stylepairs.datagen.portraits.face_frame import FaceFrame
from stylepairs.datagen.portraits.landmarks import INNER_LIPS, LEFT_CORNER, RIGHT_CORNER, mouth_width
from stylepairs.datagen.portraits.portrait import Portrait
from stylepairs.datagen.portraits.regions import labelled, polygon
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

# Shares of the mouth's width: the cut-out beyond it, how far lips may reach beyond the label, where the skin's colour
# is taken, over what distance that colour may change. _SLACK_OF_HEIGHT: the slack at most, as a share of the lips'
# height.
_MARGIN = 0.35
_SLACK, _SLACK_OF_HEIGHT = 0.06, 0.4
_SKIN_RING = (0.07, 0.22)
_SKIN_SCALE = 0.25
# What is between the lips is lip in the shadow of the other, not teeth or the dark, where it is at most so much darker
# than lip and at least so red for its lightness: closed mouths.
_SHADOW_LIGHT, _SHADOW_RED = 0.5, 0.75
# Of the lips' area: where the label map shows more than that between them, the mouth is open, whatever the colours say.
_PARTED = 0.45
# Teeth are whiter than lips by so much (in lightness less 1.2 times redness, and in redness a*), and less red than
# skin; they are between the landmarks' inner lines, which err by this share of the mouth's width.
_REDNESS, _TEETH_WHITER, _TEETH_LESS_RED, _LESS_RED_THAN_SKIN = 1.2, 10.0, 5.0, 3.5
_GAP_SLACK = 0.05
# Lips nearer to the skin's colour than the first of these, in Lab, are not told from it; farther than the second, they
# are.
_ALIKE, _DIFFERENT = 1.5, 4.0


def lip_matte(portrait: Portrait) -> torch.Tensor:
    """The share of lip in each pixel [1,H,W]: neither skin, nor teeth, nor the dark between them. 0 without lips."""
    lips, inside = labelled(portrait, "u_lip", "l_lip"), labelled(portrait, "mouth")
    width = mouth_width(portrait.points68)
    if not bool(lips.any()) or width < 1:
        return torch.zeros_like(lips)
    cut = CutOut.around(lips + inside, width, _MARGIN * width)
    image = cut.magnified(portrait.image, "bicubic").clamp(-1, 1)
    gap = torch.maximum(polygon(portrait, portrait.points68[INNER_LIPS].cpu().numpy()), inside)
    lips, inside, skin, gap = cut.magnified(torch.cat([lips, inside, labelled(portrait, "skin"), gap])).split(1)
    matte = _share_of_lip(image, lips, inside, skin, width * cut.factor)
    matte = _without_teeth(srgb_to_lab(image), matte, gap, skin, width * cut.factor)
    return cut.put_back(matte, portrait.size_px)


@dataclass(frozen=True)
class LipOutline:
    """Points [K,2] in pixels along the lips, from the subject's right to the left: the outer lines, the inner ones."""

    upper_outer: torch.Tensor
    upper_inner: torch.Tensor
    lower_inner: torch.Tensor
    lower_outer: torch.Tensor


def lip_outline(portrait: Portrait, matte: torch.Tensor, columns: int = 9) -> LipOutline:
    """The lips' outline, read from the matte to a fraction of a pixel; the landmarks' where it shows none."""
    points = portrait.points68
    corner, axis = points[RIGHT_CORNER], points[LEFT_CORNER] - points[RIGHT_CORNER]
    frame = FaceFrame.between(corner, points[LEFT_CORNER])
    width, down = frame.unit_px, frame.down
    at = torch.linspace(0.12, 0.88, columns, device=points.device)
    lines = [points[rows] - corner for rows in _LINES]
    depths = [interpolated(at * width, line @ frame.across, line @ down) for line in lines]
    outer_up, inner_up, inner_low, outer_low = depths
    between = (inner_up + inner_low) / 2
    reach = torch.linspace(0, 0.35, 141, device=points.device) * width
    found = []
    for sign, outer, inner in ((-1, outer_up, inner_up), (1, outer_low, inner_low)):
        depth = between[:, None] + sign * reach
        place = corner + at[:, None, None] * axis + depth[..., None] * down
        share = read_at(matte, place, padding="zeros")[0]
        first, last = first_run(share, reach)
        seen = last - first > 0.01 * width
        near = (between + sign * last - outer).abs() < 0.15 * width
        good = seen & near
        found.append((
            smoothed(torch.where(good, between + sign * first, inner)),
            smoothed(torch.where(good, between + sign * last, outer)),
        ))  # fmt: skip
    (upper_inner, upper_outer), (lower_inner, lower_outer) = found
    base = corner + at[:, None] * axis

    def placed(depth: torch.Tensor) -> torch.Tensor:
        return base + depth[:, None] * down

    return LipOutline(placed(upper_outer), placed(upper_inner), placed(lower_inner), placed(lower_outer))


# Landmarks along the outer and inner lines, each from the subject's right corner to the left one.
_LINES = ([48, 49, 50, 51, 52, 53, 54], [60, 61, 62, 63, 64], [60, 67, 66, 65, 64], [48, 59, 58, 57, 56, 55, 54])


def _share_of_lip(
    image: torch.Tensor, lips: torch.Tensor, inside: torch.Tensor, skin: torch.Tensor, width: float
) -> torch.Tensor:
    """The share of lip [1,h,w] in a magnified cut-out; lips, inside and skin [1,h,w] as labelled, width the mouth's."""
    # What lips may reach beyond their label goes by their own height: on narrow ones a band as on full ones is a blur.
    slack = min(_SLACK * width, _SLACK_OF_HEIGHT * float(lips.sum()) / 2 / width)
    lips, inside = blurred(lips, 0.025 * width), blurred(inside, 0.025 * width)
    mouth = ((lips + inside) > 0.5).float()
    ring = grown(mouth, _SKIN_RING[1] * width) - grown(mouth, _SKIN_RING[0] * width)
    ring = ring * (skin > 0.9)
    lab = srgb_to_lab(image)
    features = relative_to(lab, ring, _SKIN_SCALE * width)
    allowed = blurred(grown(mouth, slack), slack / 2)
    between = _between(lab, lips, inside)
    share, lip, bare = told_by_color(
        features,
        part=(lips > 0.75).float(),
        around=ring,
        chances=(0.02 + 0.96 * lips * allowed, 0.02 + 0.96 * (1 - lips - inside).clamp(0, 1)),
        allowed=allowed,
        sure=(0.8, lips > 0.3),
        others=[log_likelihood(features, weight) + (0.01 + 0.48 * inside).log() for weight in between],
    )
    apart: torch.Tensor = (mean_of(features, lip) - mean_of(features, bare)).norm()
    different: torch.Tensor = ((apart - _ALIKE) / (_DIFFERENT - _ALIKE)).clamp(0, 1)
    return different * with_own_edges(share, image, 0.03 * width, 2e-3)


def _without_teeth(
    lab: torch.Tensor, matte: torch.Tensor, gap: torch.Tensor, skin: torch.Tensor, width: float
) -> torch.Tensor:
    """The matte [1,h,w] less what between the lips (gap [1,h,w], and a little around it) is as white as teeth: label
    maps close mouths that show a narrow row of them."""
    zone = blurred(grown((gap > 0.3).float(), _GAP_SLACK * width), _GAP_SLACK / 2 * width)
    lip, inner = matte * (matte > 0.8) * (zone < 0.5), zone[0] > 0.5
    if float(lip.sum()) < 8 or int(inner.sum()) < 8:
        return matte
    white = lab[:1] - _REDNESS * lab[1:2]
    brightest = white[0][inner].topk(max(4, int(inner.sum()) // 8)).indices
    tooth = lab[:, inner][:, brightest].mean(1)[:, None, None]
    own = mean_of(lab, lip)
    whiter, less_red = tooth[0] - _REDNESS * tooth[1] - own[0] + _REDNESS * own[1], own[1] - tooth[1]
    paler = mean_of(lab, (skin > 0.9).float())[1] - tooth[1]  # highlights on lips are as red as skin
    if float(whiter) < _TEETH_WHITER or float(less_red) < _TEETH_LESS_RED or float(paler) < _LESS_RED_THAN_SKIN:
        return matte
    shares = torch.cat([(white - own[0] + _REDNESS * own[1]) / whiter, (own[1:2] - lab[1:2]) / less_red])
    toothlike = ((shares.amin(0, keepdim=True) - 0.3) / 0.4).clamp(0, 1)
    return matte * (1 - zone * toothlike)


def _between(lab: torch.Tensor, lips: torch.Tensor, inside: torch.Tensor) -> list[torch.Tensor]:
    """Weights [1,h,w] of what is seen between the lips and is no lip: teeth, dark; [] for closed lips."""
    core, lip = (inside > 0.6).float(), (lips > 0.75).float()
    if float(core.sum()) < 8 or float(lip.sum()) < 8:
        return []
    middle = (lab[:1] * core).sum() / core.sum()
    own = mean_of(lab, lip)
    parts = [core * (lab[:1] > middle), core * (lab[:1] <= middle)]
    parted = float(inside.sum()) > _PARTED * float(lips.sum())
    return parts if parted or not all(_is_shaded_lip(mean_of(lab, part), own) for part in parts) else []


def _is_shaded_lip(color: torch.Tensor, lip: torch.Tensor) -> bool:
    """Whether a colour between the lips, Lab [3,1,1], is that of lip in the shade."""
    shade = (color[0] + 16) / (lip[0] + 16)
    return bool((shade > _SHADOW_LIGHT) & (color[1] > _SHADOW_RED * shade * lip[1]))
