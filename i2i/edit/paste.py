"""Puts the edit of a face back into the photo at the photo's own size, and leaves every other pixel its bits."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import product

import cv2
import numpy as np

from stylepairs.datagen.portraits.alignment import apply_transform, invert_transform, transform_scale
from stylepairs.i2i.edit.beyond_crop import EditMaps

# Sides of the photo's pieces that are blended one at a time: they stay in the processor's cache, those without an edit
# are passed over, and a 100-megapixel photo needs no gigabytes of float32.
PIECE_ROWS, PIECE_COLUMNS = 128, 512
# Pixels that cubic interpolation reads around a place.
_READ_AROUND = 2


def paste(
    result: np.ndarray,
    photo: np.ndarray,
    edited: np.ndarray,
    maps: EditMaps,
    transform: np.ndarray,
    region: np.ndarray | None = None,
) -> None:
    """Add one face's edit to `result` and to `edited`, in place.

    result, photo uint8 or uint16 [H,W,3]; edited [H,W] float16, how much of each pixel has been edited already: faces
    whose squares overlap share the hair between them and do not add up; transform [2,3] maps the photo onto the maps'
    square; region [H,W] in [0,1], how much of each pixel may be edited, None: all of it.
    """
    top_value, depth = np.iinfo(photo.dtype).max, cv2.CV_8U if photo.dtype == np.uint8 else cv2.CV_16U
    gain, mask, flow = maps.gain, maps.mask, maps.flow
    bias: np.ndarray = maps.bias * np.float32(top_value / 255)
    if flow is not None:  # in the photo's pixels
        flow = flow @ np.linalg.inv(transform[:, :2]).T.astype(np.float32)
    scale = transform_scale(transform)
    if scale > 1:  # the photo's face is smaller than the crop: average over what one photo pixel covers
        gain, bias, mask = (cv2.GaussianBlur(x, (0, 0), 0.5 * scale) for x in (gain, bias, mask))
        flow = None if flow is None else cv2.GaussianBlur(flow, (0, 0), 0.5 * scale)
    x0, y0, x1, y1 = covered(transform, mask, photo.shape)

    def blend(place: tuple[int, int]) -> None:
        top, left = place
        bottom, right = min(top + PIECE_ROWS, y1), min(left + PIECE_COLUMNS, x1)
        here, size = np.s_[top:bottom, left:right], (right - left, bottom - top)
        onto = transform.copy()
        onto[:, 2] += transform[:, :2] @ np.array([left, top], np.float64)
        weight = enlarged(mask, onto, size, cv2.INTER_LINEAR).clip(0, 1)
        if region is not None:
            weight *= region[here]
        if not weight.any():
            return
        before = edited[here].astype(np.float32)
        alone = weight * (1 - before)
        gains, biases = (enlarged(values, onto, size, cv2.INTER_CUBIC) for values in (gain, bias))
        if flow is None:
            # OpenCV rounds and saturates as it adds. Where the share is 0 nothing is added, and bits are kept.
            share = cv2.cvtColor(alone, cv2.COLOR_GRAY2RGB)
            change = cv2.multiply(photo[here], gains, dtype=cv2.CV_32F)
            result[here] = cv2.add(result[here], cv2.multiply(change + biases, share), dtype=depth)
        else:
            pixels = taken_from(photo, place, weight[..., None] * enlarged(flow, onto, size, cv2.INTER_CUBIC))
            own = pixels + weight[..., None] * (gains * pixels + biases)
            # What two faces move lies between their two edits: differences of moved pixels do not add up.
            share = (alone / np.maximum(alone + before, 1e-6))[..., None]
            mixed = result[here] + share * (own - result[here])
            result[here] = np.where(share > 0, mixed.round().clip(0, top_value), result[here])
        edited[here] = np.maximum(edited[here], weight)

    with ThreadPoolExecutor(cv2.getNumThreads()) as pool:  # pieces do not overlap: any order gives the same
        list(pool.map(blend, product(range(y0, y1, PIECE_ROWS), range(x0, x1, PIECE_COLUMNS))))


def taken_from(photo: np.ndarray, place: tuple[int, int], flow: np.ndarray) -> np.ndarray:
    """The photo's piece that begins at `place` (top, left), each pixel from flow [h,w,2] (x, y) pixels away, float32;
    the photo's border goes on."""
    rows, columns = np.indices(flow.shape[:2], np.float32)
    x: np.ndarray = columns + flow[..., 0] + np.float32(place[1])
    y: np.ndarray = rows + flow[..., 1] + np.float32(place[0])
    # OpenCV reads no picture with sides above 32 767 px: of the photo it gets what the piece needs.
    (left, right), (top, bottom) = (
        np.clip([int(at.min()) - _READ_AROUND, int(at.max()) + 1 + _READ_AROUND], 0, length - 1)
        for at, length in ((x, photo.shape[1]), (y, photo.shape[0]))
    )
    part = photo[top : bottom + 1, left : right + 1].astype(np.float32)
    x, y = x - np.float32(left), y - np.float32(top)
    return np.asarray(cv2.remap(part, x, y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE))


def enlarged(values: np.ndarray, transform: np.ndarray, size: tuple[int, int], interpolation: int) -> np.ndarray:
    """A map of the crop as the photo's rectangle of `size` (width, height) sees it; 0 beyond the crop."""
    return cv2.warpAffine(values, transform, size, flags=interpolation | cv2.WARP_INVERSE_MAP)


def covered(transform: np.ndarray, mask: np.ndarray, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """The photo's rectangle x0, y0, x1, y1 (ends excluded) that a crop's mask [S,S] may touch; empty where it is 0."""
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    if not len(rows):
        return 0, 0, 0, 0
    # Between a pixel of the mask and its neighbour the weight falls to 0; past the crop's border there is none.
    low = np.maximum([columns[0] - 1, rows[0] - 1], 0)
    high = np.minimum([columns[-1] + 1, rows[-1] + 1], len(mask) - 1)
    corners = np.array([[low[0], low[1]], [high[0], low[1]], [low[0], high[1]], [high[0], high[1]]], np.float64)
    points = apply_transform(invert_transform(transform), corners)
    x0, y0 = np.maximum(np.floor(points.min(0)).astype(int), 0)
    x1, y1 = np.ceil(points.max(0)).astype(int) + 1
    return int(x0), int(y0), int(min(x1, shape[1])), int(min(y1, shape[0]))
