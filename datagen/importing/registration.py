"""Where an after lies on its before and in what light: sub-pixel shift and colour cast, found on what the edit leaves.

Phase correlation (Kuglin and Hines, 1975) begins, the enhanced correlation coefficient (Evangelidis and Psarakis, 2008)
refines: it does not mind brightness and contrast. The cast is a gain and an offset for each channel.
"""

from __future__ import annotations

import contextlib

import cv2
import numpy as np
from scipy.optimize import least_squares

from stylepairs.datagen.portraits.alignment import (
    apply_transform,
    compose_transforms,
    crop_aligned,
    invert_transform,
    warp,
)

_ECC_STOP = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 100, 1e-6)
_ECC_BLUR_PX = 5
# Of the side: matches that lie further apart are chance.
_FURTHEST = 0.2
# Of the crop's side: what is this near to a photo's edge tells nothing of its place.
_EDGE = 0.03
# Differences, 0..255, from which a pixel counts less and less towards the cast, and values that may have been clipped.
_CAST_SCALE = 4.0
_LOW, _HIGH = 6, 249
_CAST_PIXELS = 8000
_CAST_BLUR_PX = 1.5


def find_shift(
    before: np.ndarray, after: np.ndarray, told: np.ndarray, start: np.ndarray | None = None
) -> tuple[np.ndarray, float] | None:
    """How far (x, y) the crop `after` lies from `before`, both uint8 [S,S,3], and how well both then correlate.

    told [S,S] bool: where they show the same. start: where to begin; None: nothing is known. None where nothing in them
    matches within a fifth of the side.
    """
    one, other = _grey(before), _grey(after)
    starts = [np.zeros(2), _roughly(one, other, told)] if start is None else [start]
    mask, found = told.astype(np.uint8) * 255, []
    for begin in starts:
        matrix = np.array([[1, 0, begin[0]], [0, 1, begin[1]]], np.float32)
        with contextlib.suppress(cv2.error):  # it did not converge
            value, at = cv2.findTransformECC(one, other, matrix, cv2.MOTION_TRANSLATION, _ECC_STOP, mask, _ECC_BLUR_PX)
            moved = np.asarray(at, np.float64)[:, 2]
            if np.isfinite(value) and np.hypot(*moved) < _FURTHEST * one.shape[0]:
                found.append((moved, float(value)))
    return max(found, key=lambda one: one[1]) if found else None


def find_cast(before: np.ndarray, after: np.ndarray, outside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gain [3] and offset [3] with which after = gain * before + offset outside the edit; crops uint8 [S,S,3].

    Robust: pixels that differ for another reason count little. Pixels that may be clipped do not count.
    """
    flat = [cv2.GaussianBlur(image, (0, 0), _CAST_BLUR_PX).astype(np.float64) for image in (before, after)]
    gain, offset = np.ones(3), np.zeros(3)
    for channel in range(3):
        x, y = (image[..., channel] for image in flat)
        use = outside & (x > _LOW) & (x < _HIGH) & (y > _LOW) & (y < _HIGH)
        if use.sum() < 100:
            continue
        step = max(1, int(use.sum()) // _CAST_PIXELS)
        x, y = x[use][::step], y[use][::step]
        # Around the mean, where gain and offset do not depend on each other.
        middle = x.mean()
        fitted = least_squares(
            lambda p, x=x, y=y, middle=middle: p[0] * (x - middle) + p[1] - y,
            (1.0, float(np.median(y - x)) + middle),
            loss="soft_l1",
            f_scale=_CAST_SCALE,
        ).x
        gain[channel], offset[channel] = fitted[0], fitted[1] - fitted[0] * middle
    return gain, offset


def without_cast(after: np.ndarray, gain: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """The picture uint8 [S,S,3] with gain and offset undone, everywhere."""
    clean: np.ndarray = np.clip(np.rint((after - offset) / np.clip(gain, 0.1, 10)), 0, 255)
    return clean.astype(np.uint8)


def cut_out(before: np.ndarray, after: np.ndarray, move: np.ndarray, size_px: int, shift: np.ndarray) -> np.ndarray:
    """The after's crop, shifted by `shift` pixels of the before; only what the before shows too is looked at."""
    height, width = after.shape[:2]
    scale = np.array([before.shape[1] / width, before.shape[0] / height])
    # A pixel of the after, (a + 0.5) scale - 0.5 by its own frame, shows what the before has `shift` less.
    to_before = np.concatenate([np.diag(scale), (0.5 * scale - 0.5 - shift)[:, None]], 1)
    low, high = apply_transform(
        invert_transform(to_before), np.array([[-0.5, -0.5], [before.shape[1] - 0.5, before.shape[0] - 0.5]])
    )
    x0, y0 = (int(np.clip(np.ceil(v + 0.5 - 1e-6), 0, side // 4)) for v, side in zip(low, (width, height), strict=True))
    x1, y1 = (
        int(np.clip(np.floor(v + 0.5 + 1e-6), side - side // 4, side))
        for v, side in zip(high, (width, height), strict=True)
    )
    to_crop = compose_transforms(move, to_before)
    to_crop[:, 2] += to_crop[:, :2] @ np.array([x0, y0], np.float64)
    return crop_aligned(np.ascontiguousarray(after[y0:y1, x0:x1]), to_crop, size_px)


def _roughly(before: np.ndarray, after: np.ndarray, told: np.ndarray) -> np.ndarray:
    """The whole shift (x, y) in pixels of the crop by phase correlation of what lies outside the edit."""
    weight = cv2.GaussianBlur(told.astype(np.float32), (0, 0), 0.01 * before.shape[0])
    window = weight * cv2.createHanningWindow(before.shape[::-1], cv2.CV_32F)
    planes = [(image - np.average(image, weights=weight + 1e-6)) * window for image in (before, after)]
    (x, y), _ = cv2.phaseCorrelate(planes[0].astype(np.float64), planes[1].astype(np.float64))
    return np.array([x, y])


def _grey(image: np.ndarray) -> np.ndarray:
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.float32)


def well_inside(shape: tuple[int, ...], move: np.ndarray, size_px: int) -> np.ndarray:
    """Where a crop [S,S] shows the photo, and not near its edge."""
    shown = warp(np.full(shape, 255, np.uint8), move, size_px, cv2.BORDER_CONSTANT, 0)
    framed = cv2.copyMakeBorder(shown, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    radius = max(1, round(_EDGE * size_px))
    inner = cv2.erode(framed, np.ones((2 * radius + 1, 2 * radius + 1), np.uint8), borderValue=0)
    found: np.ndarray = inner[1:-1, 1:-1] > 254
    return found
