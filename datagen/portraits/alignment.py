"""Where a face lies in a photo: FFHQ's aligned square (Karras et al., 2019) and the crop with its padding.

Coordinates: (x, y) in pixels, pixel centres at integers. Transforms are 2x3 affine matrices, source -> target.
"""

from __future__ import annotations

import cv2
import numpy as np

from stylepairs.datagen.portraits.landmarks import eyes_and_mouth

# Shares of the crop's side, as in FFHQ: the padding's width, over which it fades, and the sigma of its blur.
_PAD_SHARE = 0.3
_PAD_BLUR_SHARE = 0.02


def square_transform(eyes_mouth: np.ndarray, size_px: int, share: float = 1.0, shift: float = 0.0) -> np.ndarray:
    """The transform that maps FFHQ's square for `eyes_mouth` [3,2] onto [size_px, size_px] pixels; [2,3] float64.

    share scales the square about its centre (0.85: tighter); shift moves it down the face by a share of FFHQ's side.
    A degenerate face (all three points equal) raises ValueError.
    """
    right, left, mouth = np.asarray(eyes_mouth, np.float64)
    eyes, eye_to_eye = (right + left) / 2, left - right
    eye_to_mouth = mouth - eyes
    across = eye_to_eye + np.array([eye_to_mouth[1], -eye_to_mouth[0]])
    length = np.hypot(*across)
    if not np.isfinite(length) or length < 1e-6:
        raise ValueError("the eyes and the mouth fall on one point")
    half = max(2.0 * np.hypot(*eye_to_eye), 1.8 * np.hypot(*eye_to_mouth))
    across = across / length
    down = np.array([-across[1], across[0]])
    centre = eyes + 0.1 * eye_to_mouth + 2 * half * shift * down
    scale = size_px / (2 * half * share)
    linear = scale * np.stack([across, down])
    return np.concatenate([linear, ((size_px - 1) / 2 - linear @ centre)[:, None]], 1)


def ffhq_transform(points68: np.ndarray, size_px: int) -> np.ndarray:
    """points68 [68,2] in photo pixels -> source_to_aligned [2,3] float64: FFHQ's oriented square onto size_px x
    size_px.

    Half side = max(2.0 |eye to eye|, 1.8 |eyes to mouth|), centre = eyes + 0.1 (mouth - eyes). Raises ValueError for a
    degenerate face.
    """
    return square_transform(eyes_and_mouth(np.asarray(points68, np.float64)), size_px)


def has_square(points68: np.ndarray) -> bool:
    """Whether there is a square for these landmarks: eyes and mouth do not fall on one point."""
    try:
        ffhq_transform(points68, 1)
    except ValueError:
        return False
    return True


def apply_transform(transform: np.ndarray, points: np.ndarray) -> np.ndarray:
    """transform [2,3], points [...,2] -> points [...,2]."""
    moved: np.ndarray = points @ transform[:, :2].T + transform[:, 2]
    return moved


def invert_transform(transform: np.ndarray) -> np.ndarray:
    """The inverse affine [2,3] of `transform` [2,3]; raises numpy.linalg.LinAlgError when it is singular."""
    inverse = np.linalg.inv(transform[:, :2])
    return np.concatenate([inverse, -(inverse @ transform[:, 2])[:, None]], 1)


def compose_transforms(second: np.ndarray, first: np.ndarray) -> np.ndarray:
    """The affine [2,3] that applies `first`, then `second`."""
    return np.concatenate([second[:, :2] @ first[:, :2], (second[:, :2] @ first[:, 2] + second[:, 2])[:, None]], 1)


def transform_scale(transform: np.ndarray) -> float:
    """Target pixels per source pixel of a similarity [2,3]."""
    return float(np.sqrt(abs(np.linalg.det(transform[:, :2]))))


def warp(
    image: np.ndarray, transform: np.ndarray, size_px: int, border: int = cv2.BORDER_REFLECT_101, value: int = 0
) -> np.ndarray:
    """image uint8 [H,W,3] or [H,W] -> [size_px,size_px,...] under `transform` [2,3] (source -> target).

    Antialiased: when the target is smaller, the photo's part under it is first reduced by area averaging.
    """
    image, transform = _cut(image, transform, size_px)
    scale = transform_scale(transform)
    if scale < 0.75:
        image, transform = _reduce(image, transform, scale)
    flags = cv2.INTER_CUBIC if transform_scale(transform) > 1 else cv2.INTER_LINEAR
    return cv2.warpAffine(image, transform, (size_px, size_px), flags=flags, borderMode=border, borderValue=[value] * 4)


def crop_aligned(photo: np.ndarray, transform: np.ndarray, size_px: int) -> np.ndarray:
    """photo uint8 [H,W,3] -> aligned uint8 [size_px,size_px,3] under `transform` (of ffhq_transform).

    What lies outside the photo is its reflection, blurred and faded to the median colour as in FFHQ, except that
    FFHQ's blur begins a third of the padding inside the photo: here the photo's own pixels stay as they are, since
    edits are pasted back over them.
    """
    crop = warp(*_halved(photo, transform, size_px), size_px)
    corners = np.array([0.0, size_px - 1])
    if _distance_inside(photo.shape[:2], transform, corners).min() >= 0:
        return crop
    inside = _distance_inside(photo.shape[:2], transform, np.arange(size_px, dtype=np.float64))
    # FFHQ's mask: 0 at the photo's edge, 1 at the padding's outer end. It weighs the median colour; three times it, the
    # blur, which so is full after a third of the padding.
    weight = np.clip(-inside / (_PAD_SHARE * size_px), 0, 1)[..., None].astype(np.float32)
    pixels = crop.astype(np.float32)
    sigma = _PAD_BLUR_SHARE * size_px
    blurred = cv2.GaussianBlur(pixels, (0, 0), sigma, borderType=cv2.BORDER_REFLECT_101)
    pixels += (blurred - pixels) * np.clip(weight * 3, 0, 1)
    visible = inside >= 0
    median = np.median(crop[visible], axis=0) if visible.any() else np.median(crop, axis=(0, 1))
    pixels += (median.astype(np.float32) - pixels) * weight
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def _distance_inside(shape: tuple[int, ...], transform: np.ndarray, along: np.ndarray) -> np.ndarray:
    """For each target pixel of a grid [K,K] over `along` [K], how far inside the photo it lies, in target pixels
    (negative: outside)."""
    xs, ys = np.meshgrid(along, along)
    source = apply_transform(invert_transform(transform), np.stack([xs, ys], -1))
    h, w = shape[:2]
    x, y = source[..., 0], source[..., 1]
    return np.minimum(np.minimum(x + 0.5, w - 0.5 - x), np.minimum(y + 0.5, h - 0.5 - y)) * transform_scale(transform)


def _cut(image: np.ndarray, transform: np.ndarray, size_px: int) -> tuple[np.ndarray, np.ndarray]:
    """The part of the photo that the target square can see or reflect, so that warping costs the crop and not the
    photo.
    """
    corners = apply_transform(
        invert_transform(transform), np.array([[-0.5, -0.5], [size_px, -0.5], [-0.5, size_px], [size_px, size_px]])
    )
    h, w = image.shape[:2]
    low, high = np.floor(corners.min(0)).astype(int), np.ceil(corners.max(0)).astype(int)
    margin = int(np.ceil(4 + 4 / max(transform_scale(transform), 1e-3)))
    if low[0] < 0 or low[1] < 0 or high[0] >= w or high[1] >= h:
        return image, transform  # a reflection may reach anywhere
    x0, y0 = np.maximum(low - margin, 0)
    x1, y1 = min(high[0] + margin + 1, w), min(high[1] + margin + 1, h)
    moved = transform.copy()
    moved[:, 2] += transform[:, :2] @ np.array([x0, y0], np.float64)
    return image[y0:y1, x0:x1], moved


def _halved(photo: np.ndarray, transform: np.ndarray, size_px: int) -> tuple[np.ndarray, np.ndarray]:
    """The part that the target square can see, halved while it has four times its resolution, and the transform from
    it: OpenCV reduces by halves ten times faster than by what is left."""
    image, transform = _cut(photo, transform, size_px)
    while transform_scale(transform) < 0.25:
        if image.shape != photo.shape:  # it was cut, with a margin: an odd row or column is not missed
            image = image[: image.shape[0] // 2 * 2, : image.shape[1] // 2 * 2]
        image, transform = _reduce(image, transform, 0.5)
    return image, transform


def _reduce(image: np.ndarray, transform: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """image reduced so that `transform` nearly keeps its scale, and the transform from the reduced image."""
    h, w = image.shape[:2]
    new_w, new_h = max(round(w * scale), 1), max(round(h * scale), 1)
    sx, sy = new_w / w, new_h / h
    small = cv2.resize(image, (new_w, new_h), interpolation=cv2.INTER_AREA)
    to_full = np.array([[1 / sx, 0, 0.5 / sx - 0.5], [0, 1 / sy, 0.5 / sy - 0.5]])
    return small, compose_transforms(transform, to_full)
