"""The forehead's own coordinates: across from temple to temple, up from the brows to the hairline."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from stylepairs.datagen.images.colors import lab_to_srgb, srgb_to_lab
from stylepairs.datagen.images.filters import blurred
from stylepairs.datagen.portraits.portrait import CLASS, Portrait
from stylepairs.datagen.portraits.regions import dilate

# In units of the distance from the brows to below the nose, which the forehead's height equals in the canon of thirds.
_USUAL_HEIGHT = 0.95
_LEAST_HEIGHT, _GREATEST_HEIGHT = 0.5, 1.35
# Where hair begins lower than this the hairline itself is hidden by it.
_HIDDEN_BELOW = 0.5
_COLUMNS = 41
# Of the side: the bands of a skin's grain.
_GRAIN = (0.003, 0.012)


@dataclass(frozen=True)
class Forehead:
    """A portrait's forehead; fields [1,H,W] over the whole crop.

    across: -1 and 1 at the temples (image left, right). up: 0 at the top of the brows, 1 at the middle of the hairline.
    hairline: `up` of the hairline in each pixel's own column. right, upward [2]: unit vectors in the image. height_px:
    one unit of `up`. half_width_px: one of `across`, the mean of both sides. third_px: from the brows to below the
    nose, what a forehead is usually high. hairy: 1 where hair is, by label or matte. found: share of the columns over
    the forehead in which a hairline was seen.
    """

    across: torch.Tensor
    up: torch.Tensor
    hairline: torch.Tensor
    right: torch.Tensor
    upward: torch.Tensor
    height_px: float
    half_width_px: float
    third_px: float
    hairy: torch.Tensor
    found: float


def forehead(portrait: Portrait) -> Forehead:
    """Measures the forehead of a portrait, also of a bald one or one behind a fringe, where its height is the usual."""
    points = portrait.points68.to(portrait.image)
    right, upward = _axes(points)
    brows = points[[18, 19, 20, 23, 24, 25]]
    base = ((brows - points[27]) @ upward).mean()
    # To where the nose meets the lip.
    third = float((base - (points[33] - points[27]) @ upward).clamp_min(1.0))
    steps = torch.arange(portrait.size_px, device=points.device, dtype=points.dtype)
    from_bridge = torch.stack(torch.meshgrid(steps, steps, indexing="xy")) - points[27][:, None, None]
    aside = (from_bridge * right[:, None, None]).sum(0, keepdim=True)
    above = (from_bridge * upward[:, None, None]).sum(0, keepdim=True) - base
    widths = [float(((points[index] - points[27]) @ right).abs()) for index in (0, 16)]
    # A turned head shows little of one side, never nothing.
    left_px, right_px = (max(0.93 * width, 0.25 * sum(widths)) for width in widths)
    across = torch.where(aside < 0, aside / left_px, aside / right_px)
    hairy = torch.maximum((portrait.label == CLASS["hair"]).float()[None], (portrait.hair > 0.5).float())
    columns, heights, seen = _hairline_heights(across, above, hairy, portrait, third)
    middle = np.abs(columns) < 0.45
    usual = _USUAL_HEIGHT * third
    height = usual if seen[middle].mean() < 0.5 else float(np.median(heights[middle & seen]))
    if height < _HIDDEN_BELOW * third:
        height, seen = usual, np.zeros_like(seen)
    height = float(np.clip(height, _LEAST_HEIGHT * third, _GREATEST_HEIGHT * third))
    line = _smooth_line(columns, heights / height, seen)
    at = np.interp(across.cpu().numpy().ravel(), columns, line).reshape(across.shape)
    return Forehead(
        across=across,
        up=above / height,
        hairline=torch.from_numpy(at).to(across),
        right=right,
        upward=upward,
        height_px=height,
        half_width_px=(left_px + right_px) / 2,
        third_px=third,
        hairy=hairy,
        found=float(seen[np.abs(columns) < 0.7].mean()),
    )


def usual_hairline(across: torch.Tensor) -> torch.Tensor:
    """`up` of a common hairline: flat over the brows, falling at the temples."""
    aside = across.abs().clamp(max=1)
    return 1 - 0.12 * aside**2 - 0.45 * aside**6


def continue_skin(portrait: Portrait, face: Forehead, hole: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """The image [3,H,W] with the forehead's skin carried on into hole [1,H,W]: tone and shading from the skin that is
    seen, its grain renewed."""
    lab = srgb_to_lab(portrait.image)
    known = sure_skin(portrait, face, hole)
    smooth = carried_on(lab, known)
    # A forehead bends away under the hairline: less light.
    smooth = torch.cat([smooth[:1] * (1 - 0.06 * ((face.up - 0.6) / 0.4).clamp(0, 1.5)), smooth[1:]])
    noise = torch.from_numpy(rng.normal(size=lab[:1].shape)).to(lab)
    light = smooth[:1]
    sharp = [lab[:1], *(_blur(lab[:1] * known, sigma) / _blur(known, sigma).clamp_min(1e-3) for sigma in _GRAIN)]
    soft = [noise, *(_blur(noise, sigma) for sigma in _GRAIN)]
    for index in range(len(_GRAIN)):
        own, new = sharp[index] - sharp[index + 1], soft[index] - soft[index + 1]
        # Median of what varies: wrinkles and shines are not grain. New grain, without pores to sit in, is held back.
        spread = 0.9 * own[known > 0.5].abs().median() if bool((known > 0.5).any()) else 0.0
        light = light + new / new.std() * spread
    skin = lab_to_srgb(torch.cat([light, smooth[1:]])).clamp(-1, 1)
    return portrait.image + (skin - portrait.image) * hole


def skin_tone(portrait: Portrait, face: Forehead, hole: torch.Tensor) -> torch.Tensor:
    """The skin's smooth colour [3,H,W] in Lab, carried on over all that is not skin, and over hole [1,H,W]."""
    return carried_on(srgb_to_lab(portrait.image), sure_skin(portrait, face, hole))


def carried_on(values: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """values [C,H,W] smoothed where known [1,H,W] is 1 and carried on from there, near ones first."""
    total = (values * known).sum((1, 2), keepdim=True) / known.sum().clamp_min(1e-3)
    for sigma in (0.25, 0.12, 0.06, 0.03, 0.015):
        weight = _blur(known, sigma)
        total = total + (_blur(values * known, sigma) / weight.clamp_min(1e-4) - total) * (weight / 0.25).clamp(0, 1)
    return total


def sure_skin(portrait: Portrait, face: Forehead, hole: torch.Tensor) -> torch.Tensor:
    """Skin [1,H,W] of forehead, nose and upper cheeks, 0 or 1, away from hair, its shadow, eyes and brows."""
    skin = torch.isin(portrait.label.long(), torch.tensor([CLASS["skin"], CLASS["nose"]], device=portrait.label.device))
    seen = skin.float()[None] * (1 - hole.round())
    near = torch.maximum(dilate(face.hairy, 0.03), dilate(1 - seen, 0.016))
    sure = (1 - near).clamp(0, 1).round() * (face.across.abs() < 0.8).float() * (face.up > -1.2).float()
    light = srgb_to_lab(portrait.image)[:1]
    if float(sure.sum()) < 1:
        return seen
    # Skin in shadow, or seen through hair, would be carried on as a stain.
    middle = light[sure > 0.5].median()
    spread = 1.48 * (light[sure > 0.5] - middle).abs().median()
    return sure * ((light > middle - 1.5 * spread) & (light < middle + 3 * spread)).float()


def _blur(x: torch.Tensor, share: float) -> torch.Tensor:
    """Gaussian blur of [C,H,W] by `share` of the side."""
    sigma = max(share * x.shape[-1], 0.3)
    return blurred(x, sigma, round(2.5 * sigma))


def _axes(points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit vectors to the image's right and up the face; half by the line of the eyes, half by that from the chin."""
    eyes = points[42:48].mean(0) - points[36:42].mean(0)
    from_eyes = torch.stack([eyes[1], -eyes[0]])
    from_chin = points[27] - points[8]
    upward = from_eyes / from_eyes.norm().clamp_min(1e-6) + from_chin / from_chin.norm().clamp_min(1e-6)
    upward = upward / upward.norm().clamp_min(1e-6)
    return torch.stack([-upward[1], upward[0]]), upward


def _hairline_heights(
    across: torch.Tensor, above: torch.Tensor, hairy: torch.Tensor, portrait: Portrait, third: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """In columns over the forehead: their `across` [C], pixels above the brows where hair begins [C], and whether hair
    is met there before the background or nothing [C]."""
    columns = np.linspace(-0.95, 0.95, _COLUMNS)
    x, y, hair = (value[0].cpu().numpy() for value in (across, above, hairy))
    background = (portrait.label == CLASS["background"]).cpu().numpy()
    width = 1.2 * (columns[1] - columns[0])
    heights, seen = np.zeros(_COLUMNS), np.zeros(_COLUMNS, bool)
    rows = np.arange(0.1 * third, 1.6 * third, max(1.0, 0.02 * third))
    for index, column in enumerate(columns):
        strip = (np.abs(x - column) < width) & (y > 0) & (y < 1.6 * third)
        which = np.digitize(y[strip], rows)
        count = np.bincount(which, minlength=len(rows) + 1).clip(1)
        covered = np.bincount(which, hair[strip], len(rows) + 1) / count
        outside = np.bincount(which, background[strip], len(rows) + 1) / count
        starts, leaves = np.nonzero(covered > 0.5)[0], np.nonzero(outside > 0.5)[0]
        if len(starts) and (len(leaves) == 0 or starts[0] < leaves[0]):
            seen[index], heights[index] = True, rows[min(starts[0], len(rows) - 1)]
    return columns, heights, seen


def _smooth_line(columns: np.ndarray, heights: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """The hairline [C]: what was seen, smoothed, nowhere far from the usual one."""
    usual = usual_hairline(torch.from_numpy(columns)).numpy()
    line = np.where(seen, np.clip(heights, usual - 0.35, usual + 0.3), usual)
    padded = np.pad(line, 4, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, 9)
    return 0.5 * np.median(windows, axis=1) + 0.5 * windows.mean(axis=1)
