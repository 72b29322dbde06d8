"""Regions that users give: a mask image framed as the aligned crop, or a polygon in shares of it."""

from __future__ import annotations

import functools
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from stylepairs.datagen.images.files import load_photo
from stylepairs.datagen.portraits.portrait import Portrait
from stylepairs.datagen.portraits.regions import feather
from stylepairs.datagen.shell.errors import InputError

Polygon = tuple[tuple[float, float], ...]
Region = str | Polygon
# Of the crop: smaller is a slip of the pen, larger is not a region but the picture.
_LEAST, _GREATEST = 0.001, 0.6
_AS_CHOICE = 'in a recipe a list means choices, so write one polygon as [[[x, y], ...]] or as text "x,y x,y x,y"'


def checked_region(region: object) -> Region:
    """The region as it is used: a mask's path, or a polygon's points. Raises ValueError, one line.

    >>> checked_region("0.3,0.2 0.7,0.2 0.5,0.4")
    ((0.3, 0.2), (0.7, 0.2), (0.5, 0.4))
    """
    if not isinstance(region, str):
        return _checked_polygon(_points(region))
    words = region.replace(";", " ").split()
    if words and all(_pair(word) is not None for word in words):
        return _checked_polygon(tuple(pair for word in words if (pair := _pair(word)) is not None))
    _mask_of(region)
    return region


def region_mask(region: Region, portrait: Portrait) -> torch.Tensor:
    """The region [1,H,W] in [0,1] at the portrait's size, edges antialiased."""
    size = portrait.size_px
    if isinstance(region, str):
        mask = torch.from_numpy(_mask_of(region))[None, None].to(portrait.image)
        mask = F.interpolate(mask, size=(size, size), mode="bilinear", antialias=True, align_corners=False)[0]
    else:
        # Filling takes in the pixels on the outline: drawn four times finer, that is an eighth of a pixel.
        canvas = np.zeros((4 * size, 4 * size), np.float32)
        points = np.asarray(region) * 4 * size - 0.5
        cv2.fillPoly(canvas, [np.rint(points * 16).astype(np.int32)], 1.0, shift=4)
        mask = F.avg_pool2d(torch.from_numpy(canvas)[None].to(portrait.image), 4)
    return feather(mask, 0.003)


def _points(region: object) -> Polygon:
    try:
        return tuple((float(x), float(y)) for x, y in region)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        raise ValueError(f"neither a mask image's path nor a polygon [[x, y], ...]; {_AS_CHOICE}") from None


def _pair(word: str) -> tuple[float, float] | None:
    try:
        x, y = (float(part) for part in word.split(","))
    except ValueError:
        return None
    return x, y


def _checked_polygon(points: Polygon) -> Polygon:
    if len(points) < 3:
        raise ValueError(f"a polygon needs 3 points or more, here {len(points)}; {_AS_CHOICE}")
    if not all(-0.5 <= value <= 1.5 for point in points for value in point):
        raise ValueError(
            f"the polygon has a point far outside the crop; give shares of its side, 0 to 1, not pixels: {points}"
        )
    canvas = np.zeros((256, 256), np.uint8)
    cv2.fillPoly(canvas, [np.rint(np.asarray(points) * 256 * 16).astype(np.int32)], 1, shift=4)
    _check_share(float(canvas.mean()), "the polygon")
    return points


def _check_share(share: float, what: str) -> None:
    if share < _LEAST:
        raise ValueError(
            f"{what} covers {100 * share:.2g} % of the crop ({100 * _LEAST:g} % at least); nothing to grow in"
        )
    if share > _GREATEST:
        raise ValueError(
            f"{what} covers {100 * share:.0f} % of the crop ({100 * _GREATEST:g} % at most); mark the bangs only"
        )


def _mask_of(path: str) -> np.ndarray:
    """The mask image [S,S] float32 in [0,1]."""
    try:
        modified = Path(path).stat().st_mtime_ns
    except OSError:
        raise ValueError(f"{path}: no such mask image (nor a polygon, which is written x,y x,y x,y)") from None
    return _read_mask(path, modified)


@functools.lru_cache(maxsize=8)
def _read_mask(path: str, _modified: int) -> np.ndarray:
    try:
        photo = load_photo(path)
    except InputError as error:
        raise ValueError(f"{error}; a mask is a PNG, white where the bangs go") from None
    pixels = cv2.cvtColor(photo.pixels, cv2.COLOR_RGB2GRAY)
    if photo.alpha is not None:  # a brush on an empty layer
        pixels = np.minimum(pixels, photo.alpha)
    if pixels.shape[0] != pixels.shape[1]:
        raise ValueError(
            f"{path}: {pixels.shape[1]} x {pixels.shape[0]} pixels; a mask is square, framed as the aligned crop"
        )
    mask = pixels.astype(np.float32) / 255
    _check_share(float((mask > 0.5).mean()), path)
    return mask
