"""Carries an edit beyond the aligned crop: hair does not end where FFHQ's square does.

The network sees the square only. What it says there, as gain and bias of the photo, is smooth in colour, so it is
continued outwards over the rest of the edited region, which a second look at a wider crop of the photo finds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np

# Of the crop's side: added on every side of the second look.
MARGIN_SHARE = 0.3
# Of the crop's side: over this width an edit fades out towards a border, so that no square shows.
FEATHER_SHARE = 0.06
# Of the crop's side: Gaussians that carry the maps outwards; each takes over where the one before has nothing to carry.
_REACHES = (0.05, 0.15, 0.45)
# Of the wide square's side, at least 2 px: how far a piece's soft edge goes on beyond where it hangs together.
SOFT_EDGE_SHARE = 0.01
# Pixels that a Gaussian's sigma keeps where the maps are reduced before it: at full size they take 60 ms a face.
_LEAST_SIGMA = 10
# Weight of a region's pixels from which they hang together, and the mean weight at a border that is worth extending.
_CONNECTED = 0.3
# Mean edit along the border from which a piece beyond it belongs to the edit: on 60 photos background came to 0.32 to
# 0.52, locks to 0.64 and more.
_MET = 0.6
_TOUCHES = 0.01


@dataclass(frozen=True)
class EditMaps:
    """An edit of a square of S pixels: gain, bias [S,S,3] float32 (of 0..255), mask [S,S] float32 in [0,1]; flow
    [S,S,2] float32, x and y in the square's pixels of where each pixel is taken from, None: from its own place."""

    gain: np.ndarray
    bias: np.ndarray
    mask: np.ndarray
    flow: np.ndarray | None = None

    @property
    def side(self) -> int:
        return int(self.mask.shape[0])


def margin_px(side: int) -> int:
    """How much wider the wide square is on each side."""
    return round(MARGIN_SHARE * side)


def reaches_border(maps: EditMaps) -> bool:
    """Whether the edit is cut off by the crop."""
    return float((maps.mask * (1 - border_fade(maps.side))).mean()) > _TOUCHES * FEATHER_SHARE


def cut_off(maps: EditMaps) -> EditMaps:
    """The edit faded out towards the crop's border."""
    return replace(maps, mask=maps.mask * border_fade(maps.side))


def extended(maps: EditMaps, region: np.ndarray) -> EditMaps:
    """An edit that moves nothing, continued over a wider square.

    region [W,W] in [0,1], W = S + 2 * margin: where the network would edit the wide square. Inside the crop the
    network's mask is never exceeded. Beyond it the region counts where it hangs together with the edit across the
    border. Where the two do not meet, each fades out. The wide square's own border is faded.
    """
    margin = (region.shape[0] - maps.side) // 2
    inside = np.pad(border_fade(maps.side), margin)
    mask = np.pad(maps.mask, margin)
    crop = np.pad(np.ones_like(maps.mask), margin)
    joined = met((1 - crop) * region, reaching(maps.mask, margin), margin)
    within = np.minimum(mask, region)
    wide_mask = inside * mask + (1 - inside) * (crop * within + joined)
    gain, bias = (
        inside[..., None] * np.pad(values, ((margin, margin), (margin, margin), (0, 0)))
        + (1 - inside)[..., None] * carried_outwards(values, maps.mask * border_fade(maps.side), margin)
        for values in (maps.gain, maps.bias)
    )
    return cut_off(EditMaps(gain.astype(np.float32), bias.astype(np.float32), wide_mask.astype(np.float32)))


def reaching(mask: np.ndarray, margin: int) -> np.ndarray:
    """The mask [S,S] carried outwards over [W,W]: how much of the edit meets the border there."""
    return carried_outwards(mask[..., None], np.ones_like(mask), margin)[..., 0]


def met(region: np.ndarray, edit: np.ndarray, margin: int) -> np.ndarray:
    """The pieces of a region [W,W] beyond the crop that the edit [W,W] (of `reaching`) meets along their border.

    Other people's hair does not touch the crop; what a wide parsing takes for hair above a head touches it, but the
    edit ends before. Of the pieces that are kept, what lies beside the edit near the border is softened away.
    """
    place = np.arange(region.shape[0])
    beyond = np.maximum(margin - place, place - (len(place) - 1 - margin)).clip(0)
    beyond = np.maximum.outer(beyond, beyond)
    _, pieces = cv2.connectedComponents((region > _CONNECTED).astype(np.uint8), connectivity=8)
    along = np.flatnonzero((beyond == 1) & (pieces > 0))
    area = np.bincount(pieces.flat[along], minlength=pieces.max() + 1)
    share = np.bincount(pieces.flat[along], edit.flat[along], len(area)) / np.maximum(area, 1)
    solid = np.isin(pieces, np.flatnonzero(share > _MET)).astype(np.float32)
    reach = max(2, round(SOFT_EDGE_SHARE * len(place)))
    near = cv2.dilate(solid, np.ones(2 * [2 * reach + 1], np.uint8))  # the soft edge of what is kept
    passage = np.maximum(smooth_step(2 * edit), smooth_step(beyond / (FEATHER_SHARE * len(place)) - 0.5))
    kept: np.ndarray = (region * near * passage).astype(np.float32)
    return kept


def carried_outwards(values: np.ndarray, weight: np.ndarray, margin: int) -> np.ndarray:
    """values [S,S,C] as known where weight [S,S] is high, smoothly continued over [S+2*margin,S+2*margin,C]."""
    side = weight.shape[0]
    weighted = np.concatenate([values * weight[..., None], weight[..., None]], 2).astype(np.float32)
    known = np.pad(weighted, ((margin, margin), (margin, margin), (0, 0)))
    result = np.zeros((*known.shape[:2], values.shape[2]), np.float32)
    left = np.ones(known.shape[:2], np.float32)  # share of each pixel that no Gaussian has filled yet
    for reach in _REACHES:
        spread = blurred(known, reach * side)
        total = spread[..., -1]
        share = left * np.clip(total / 0.05, 0, 1)
        result += share[..., None] * spread[..., :-1] / np.maximum(total, 1e-6)[..., None]
        left -= share
    return result


def blurred(values: np.ndarray, sigma: float) -> np.ndarray:
    """values float32 [W,W,C] under a Gaussian of `sigma` pixels, 0 beyond; a wide one is taken of smaller maps."""
    width, less = len(values), max(int(sigma / _LEAST_SIGMA), 1)
    small = max(width // less, 1)
    if less > 1:
        values = cv2.resize(values, (small, small), interpolation=cv2.INTER_AREA)
    spread = cv2.GaussianBlur(values, (0, 0), sigma * small / width, borderType=cv2.BORDER_CONSTANT)
    return cv2.resize(spread, (width, width), interpolation=cv2.INTER_CUBIC) if less > 1 else spread


def border_fade(side: int) -> np.ndarray:
    """[side,side] float32: 1 inside, smoothly 0 towards the square's border."""
    from_border = np.minimum(np.arange(side), np.arange(side)[::-1]) / (FEATHER_SHARE * side)
    ramp = smooth_step(from_border)
    fade: np.ndarray = np.minimum.outer(ramp, ramp).astype(np.float32)
    return fade


def smooth_step(x: np.ndarray) -> np.ndarray:
    """0 up to 0, 1 from 1 on, smooth between."""
    x = np.clip(x, 0, 1)
    y: np.ndarray = x * x * (3 - 2 * x)
    return y
