"""Makes training samples of the three networks from labelled photos: framing, rotation, several faces, no face at
all.
"""

from __future__ import annotations

import cv2
import numpy as np
from hats import with_hat
from photos import Labelled, degrade, occlude
from textures import paint

from stylepairs.datagen.portraits.alignment import (
    apply_transform,
    compose_transforms,
    crop_aligned,
    square_transform,
    transform_scale,
    warp,
)
from stylepairs.datagen.portraits.analysis.networks import DETECTOR_STRIDE_PX, DETECTOR_UNIT_PX, LANDMARK_INPUT_PX
from stylepairs.datagen.portraits.landmarks import MIRROR_68, eyes_and_mouth

CANVAS_PX = 160  # of the detector's training pictures: two and a half of the largest faces it answers for
FACE_PX = (16.0, 56.0)  # sides of half the FFHQ square that one pyramid level answers for; levels are a factor 2 apart
IGNORED_PX = (9.0, 84.0)  # beyond FACE_PX up to here a face is neither demanded nor forbidden
MINED_PX = 192  # side of a mined false detection: twice the landmark crop
CROP_SHARE, CROP_SHIFT = 0.85, 0.06  # the landmark crop: a share of FFHQ's square, moved down the face
BORDERS = (cv2.BORDER_REFLECT_101, cv2.BORDER_REPLICATE, cv2.BORDER_CONSTANT)
MIRROR_CLASSES = np.array([0, 1, 3, 2, 5, 4, 6, 8, 7, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18], np.uint8)


def similarity(scale: float, angle_deg: float, source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The [2,3] transform that scales and rotates about `source` and puts it on `target`."""
    a = np.deg2rad(angle_deg)
    linear = scale * np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]])
    return np.concatenate([linear, (target - linear @ source)[:, None]], 1)


def mirror(image: np.ndarray, points68: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mirrored picture and its points."""
    moved = points68[MIRROR_68].copy()
    moved[:, 0] = image.shape[1] - 1 - moved[:, 0]
    return np.ascontiguousarray(image[:, ::-1]), moved


def detector_sample(split: list[Labelled], hard: list[np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """image uint8 [160,160,3] and its targets: heat [20,20], points [20,20,6], where they count, and where heat is
    ignored.
    """
    kind = rng.random()
    faces: list[np.ndarray] = []
    if kind < 0.62:
        image, faces = _one_scene(split, rng)
    elif kind < 0.78:
        image, faces = _several_faces(split, rng)
    elif hard and kind < 0.84:
        image = _random_part(hard[int(rng.integers(len(hard)))], rng)
    elif kind < 0.90:
        image = without_face(split[int(rng.integers(len(split)))], rng)
    else:
        image = paint(CANVAS_PX, rng)
    if rng.random() < 0.15:
        image = _framed(image, faces, rng)
    return {"image": degrade(image, rng), **detector_targets(faces)}


def detector_targets(faces: list[np.ndarray]) -> dict[str, np.ndarray]:
    """faces: eyes and mouth [3,2] in canvas pixels."""
    cells = CANVAS_PX // DETECTOR_STRIDE_PX
    heat, ignored = np.zeros((cells, cells), np.float32), np.zeros((cells, cells), bool)
    points, weight = np.zeros((cells, cells, 6), np.float32), np.zeros((cells, cells), np.float32)
    grid = (np.arange(cells) + 0.5) * DETECTOR_STRIDE_PX - 0.5
    xs, ys = np.meshgrid(grid, grid)
    for face in faces:
        side = 0.5 / transform_scale(square_transform(face, 1))
        centre = face.mean(0)
        far2 = ((xs - centre[0]) ** 2 + (ys - centre[1]) ** 2) / DETECTOR_STRIDE_PX**2
        if not FACE_PX[0] <= side <= FACE_PX[1]:
            if IGNORED_PX[0] < side < IGNORED_PX[1]:
                ignored |= far2 < (0.5 * side / DETECTOR_STRIDE_PX) ** 2 + 2
            continue
        bump = np.exp(-far2 / (2 * 0.7**2)).astype(np.float32)
        near = bump > np.maximum(weight, 0.3)
        offsets = (face[None, None] - np.stack([xs, ys], -1)[:, :, None]).reshape(cells, cells, 6) / DETECTOR_UNIT_PX
        points[near], weight[near] = offsets[near], bump[near]
        bump[np.unravel_index(far2.argmin(), far2.shape)] = 1
        heat = np.maximum(heat, bump)
    return {"heat": heat, "points": points, "weight": weight, "ignored": ignored & (heat < 0.5)}


def landmark_sample(
    split: list[Labelled], hard: list[np.ndarray], mined: list[np.ndarray], rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """image uint8 [96,96,3], points68 [68,2] in it, face 1.0 or 0.0 (then the points mean nothing)."""
    points = np.zeros((68, 2), np.float32)
    kind = rng.random()
    if kind < 0.60:
        image, points = _face_crop(split, rng)
        return {"image": image, "points": points, "face": np.ones((), np.float32)}
    if mined and kind < 0.72:
        image = _mined_crop(mined[int(rng.integers(len(mined)))], rng)
    elif kind < 0.77:
        image = paint(LANDMARK_INPUT_PX, rng)
    elif hard and kind < 0.86:
        image = _random_part(hard[int(rng.integers(len(hard)))], rng, LANDMARK_INPUT_PX)
    elif kind < 0.93:
        image = without_face(split[int(rng.integers(len(split)))], rng, LANDMARK_INPUT_PX)
    else:
        image = _wrong_crop(split[int(rng.integers(len(split)))], rng)
    return {"image": degrade(image, rng), "points": points, "face": np.zeros((), np.float32)}


def parser_sample(split: list[Labelled], rng: np.random.Generator, strength: float = 0.7) -> dict[str, np.ndarray]:
    """An aligned crop, moved a little, degraded: image uint8 [256,256,3], label and hair uint8 [256,256]."""
    photo = split[int(rng.integers(len(split)))]
    image, label, hair = photo.aligned, photo.label, photo.hair
    kind = rng.random()
    if kind < 0.25:
        image = recolour_hair(image, hair, rng)
    elif kind < 0.37:
        image, label, hair = with_hat(photo, rng)
    if rng.random() < 0.15:
        image, label, hair = cut_off(image, label, hair, rng)
    if rng.random() < 0.5:
        image, label, hair = image[:, ::-1], MIRROR_CLASSES[label[:, ::-1]], hair[:, ::-1]
    size = label.shape[0]
    middle = np.array([(size - 1) / 2] * 2)
    scale = np.exp(rng.normal(0, 0.05 * strength))
    move = similarity(scale, rng.normal(0, 3 * strength), middle, middle + rng.normal(0, 0.02 * size * strength, 2))
    move[:, :2] *= 1 + rng.normal(0, 0.03 * strength, (1, 2))
    border = BORDERS[int(rng.integers(2))]
    image = cv2.warpAffine(image, move, (size, size), flags=cv2.INTER_LINEAR, borderMode=border)
    label = cv2.warpAffine(np.ascontiguousarray(label), move, (size, size), flags=cv2.INTER_NEAREST, borderMode=border)
    hair = cv2.warpAffine(np.ascontiguousarray(hair), move, (size, size), flags=cv2.INTER_LINEAR, borderMode=border)
    image = degrade(image, rng, 0.7 * strength)
    if rng.random() < 0.05:
        image = occlude(image, rng)
    return {"image": image, "label": label, "hair": hair}


def cut_off(
    image: np.ndarray, label: np.ndarray, hair: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The crop of a photo that ends within the head at a side or above; what is missing is filled as alignment does."""
    size = label.shape[0]
    left, right, top = (int(rng.uniform(0, 0.35) * size * (rng.random() < 0.5)) for _ in range(3))
    inside = np.ix_(range(top, size), range(left, size - right))
    move = np.array([[1.0, 0.0, left], [0.0, 1.0, top]])
    filled = crop_aligned(np.ascontiguousarray(image[inside]), move, size)
    around = (top, 0, left, right, cv2.BORDER_REFLECT_101)
    label, hair = (cv2.copyMakeBorder(np.ascontiguousarray(plane[inside]), *around) for plane in (label, hair))
    return filled, label, hair


def recolour_hair(image: np.ndarray, hair: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The hair in another colour, as edits make it: the lightness keeps its pattern, the colour is replaced."""
    lab = cv2.cvtColor(image, cv2.COLOR_RGB2LAB).astype(np.float32)
    weight = (hair.astype(np.float32) / 255)[..., None]
    target = cv2.cvtColor(rng.integers(0, 256, (1, 1, 3), np.uint8), cv2.COLOR_RGB2LAB).astype(np.float32)[0, 0]
    mean = (lab * weight).sum((0, 1)) / max(float(weight.sum()), 1.0)
    edited = target + (lab - mean) * np.array([rng.uniform(0.6, 1.2), 0.4, 0.4], np.float32)
    mixed = lab + (edited - lab) * weight * np.float32(rng.uniform(0.4, 1))
    return np.asarray(cv2.cvtColor(np.clip(mixed, 0, 255).astype(np.uint8), cv2.COLOR_LAB2RGB))


def _draw_angle(rng: np.random.Generator) -> float:
    return float(rng.normal(0, 10) if rng.random() < 0.55 else rng.uniform(-40, 40))


def _one_scene(split: list[Labelled], rng: np.random.Generator) -> tuple[np.ndarray, list[np.ndarray]]:
    """A photo seen at a random scale, turn and framing: also cut faces, and faces too large for one pyramid level."""
    photo = split[int(rng.integers(len(split)))]
    raw, points = mirror(photo.raw, photo.points68) if rng.random() < 0.5 else (photo.raw, photo.points68)
    face = eyes_and_mouth(points)
    side = 0.5 / transform_scale(square_transform(face, 1))
    wanted = (
        np.exp(rng.uniform(np.log(13), np.log(64)))
        if rng.random() < 0.88
        else np.exp(rng.uniform(np.log(64), np.log(260)))
    )
    margin = min(wanted * 0.3, CANVAS_PX / 2 - 1)
    target = rng.uniform(margin, CANVAS_PX - margin, 2)
    move = similarity(wanted / side, _draw_angle(rng), face.mean(0), target)
    image = warp(raw, move, CANVAS_PX, BORDERS[int(rng.integers(1, 3))])
    if rng.random() < 0.6:
        inside = warp(np.full(raw.shape[:2], 255, np.uint8), move, CANVAS_PX, cv2.BORDER_CONSTANT)
        other = paint(CANVAS_PX, rng) if rng.random() < 0.6 else np.full_like(image, rng.integers(0, 256, 3, np.uint8))
        image = np.where(inside[..., None] > 127, image, other)
    faces = [apply_transform(move, face)]
    if wanted < IGNORED_PX[1] and rng.random() < 0.25:
        image = _tight(image, faces[0].mean(0), wanted, rng)
    return image, faces


def _tight(image: np.ndarray, centre: np.ndarray, side: float, rng: np.random.Generator) -> np.ndarray:
    """A photo that ends close around the face, in the grey that surrounds each pyramid level."""
    reach = side * rng.uniform(0.48, 0.8, 2)
    low, high = np.maximum(np.rint(centre - reach), 0).astype(int), np.rint(centre + reach).astype(int)
    framed = np.full_like(image, 127)
    framed[low[1] : high[1], low[0] : high[0]] = image[low[1] : high[1], low[0] : high[0]]
    return framed


def _several_faces(split: list[Labelled], rng: np.random.Generator) -> tuple[np.ndarray, list[np.ndarray]]:
    """Several heads, each in a soft oval or its rectangle, over a texture or another photo's faceless part."""
    image = paint(CANVAS_PX, rng) if rng.random() < 0.6 else without_face(split[int(rng.integers(len(split)))], rng)
    faces: list[np.ndarray] = []
    for _ in range(int(rng.integers(1, 6))):
        photo = split[int(rng.integers(len(split)))]
        face = eyes_and_mouth(photo.points68)
        side = 0.5 / transform_scale(square_transform(face, 1))
        wanted = np.exp(rng.uniform(np.log(13), np.log(48)))
        centre = rng.uniform(wanted * 0.4, CANVAS_PX - wanted * 0.4, 2)
        if any(np.hypot(*(centre - f.mean(0))) < 1.0 * (wanted + 2 * np.hypot(*(f[1] - f[0]))) for f in faces):
            continue
        move = similarity(wanted / side, _draw_angle(rng), face.mean(0), centre)
        layer = warp(photo.raw, move, CANVAS_PX, cv2.BORDER_REPLICATE)
        mask = _paste_mask(photo.raw.shape[:2], move, centre, wanted, rng)
        image = (layer * mask + image * (1 - mask)).astype(np.uint8)
        faces.append(apply_transform(move, face))
    return image, faces


def _paste_mask(
    shape: tuple[int, ...], move: np.ndarray, centre: np.ndarray, wanted: float, rng: np.random.Generator
) -> np.ndarray:
    ys, xs = np.mgrid[:CANVAS_PX, :CANVAS_PX].astype(np.float32)
    dx, dy = (xs - centre[0]) / wanted, (ys - centre[1] + 0.1 * wanted) / wanted
    reach = rng.uniform(0.55, 1.0)
    if rng.random() < 0.5:
        mask = (np.hypot(dx / 0.95, dy / 1.15) < reach).astype(np.float32)
        mask = cv2.GaussianBlur(mask, (0, 0), max(0.04 * wanted, 0.5))
    else:
        mask = (np.maximum(np.abs(dx), np.abs(dy)) < reach).astype(np.float32)
        mask *= warp(np.full(shape, 255, np.uint8), move, CANVAS_PX, cv2.BORDER_CONSTANT) > 127
    return np.asarray(mask[..., None])


def without_face(photo: Labelled, rng: np.random.Generator, size_px: int = CANVAS_PX) -> np.ndarray:
    """A photo whose face was painted over: hair, suit, flag and wall stay."""
    raw = photo.raw.copy()
    centre = photo.points68[17:].mean(0)
    reach = np.ptp(photo.points68[:17], axis=0).max()
    mask = np.zeros(raw.shape[:2], np.uint8)
    cv2.ellipse(mask, tuple(int(v) for v in centre), (int(reach * 0.5), int(reach * 0.7)), 0, 0, 360, 255, -1)
    inside = mask > 0
    fill = raw[inside].mean(0)
    choice = rng.random()
    if choice < 0.5:
        cover = np.clip(
            fill + rng.normal(0, rng.uniform(0, 20), (raw.shape[0] // 8 + 1, raw.shape[1] // 8 + 1, 3)), 0, 255
        ).astype(np.uint8)
        cover = cv2.resize(cover, raw.shape[1::-1], interpolation=cv2.INTER_CUBIC)
    elif choice < 0.75 or raw.shape[0] < 3 * reach:  # rolled, a crop would bring the face back
        cover = cv2.resize(paint(128, rng), raw.shape[1::-1])
    else:
        cover = np.roll(raw, int(reach * 1.6), axis=0)
    soft = cv2.GaussianBlur(mask, (0, 0), max(reach * rng.uniform(0.01, 0.08), 0.6)).astype(np.float32)[..., None] / 255
    raw = (cover * soft + raw * (1 - soft)).astype(np.uint8)
    scale = size_px / max(raw.shape[:2]) * np.exp(rng.uniform(-0.5, 1.5))
    middle = np.array(raw.shape[1::-1]) * rng.uniform(0.2, 0.8, 2)
    return warp(
        raw,
        similarity(scale, _draw_angle(rng), middle, np.array([size_px / 2] * 2)),
        size_px,
        BORDERS[int(rng.integers(3))],
    )


def _random_part(image: np.ndarray, rng: np.random.Generator, size_px: int = CANVAS_PX) -> np.ndarray:
    """A part of a faceless picture at a random scale, turned by anything."""
    h, w = image.shape[:2]
    scale = np.exp(rng.uniform(np.log(min(size_px / max(h, w), 1)), np.log(1.5)))
    move = similarity(
        scale, rng.uniform(-180, 180), np.array([w, h]) * rng.uniform(0.1, 0.9, 2), np.array([size_px / 2] * 2)
    )
    return warp(image, move, size_px, BORDERS[int(rng.integers(2))])


def _face_crop(split: list[Labelled], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    photo = split[int(rng.integers(len(split)))]
    raw, points = mirror(photo.raw, photo.points68) if rng.random() < 0.5 else (photo.raw, photo.points68)
    base = square_transform(eyes_and_mouth(points), LANDMARK_INPUT_PX, CROP_SHARE, CROP_SHIFT)
    rough = rng.random() < 0.4  # as the detector leaves it; else as the second pass sees it
    middle = np.array([(LANDMARK_INPUT_PX - 1) / 2] * 2)
    angle, size, shift = (rng.normal(0, 10), 0.14, 0.07) if rough else (rng.normal(0, 4), 0.06, 0.03)
    jitter = similarity(
        np.exp(rng.normal(0, size)), angle, middle, middle + rng.normal(0, shift, 2) * LANDMARK_INPUT_PX
    )
    move = compose_transforms(jitter, base)
    if rng.random() < 0.3:  # small faces: enlarged from few pixels
        factor = max(rng.uniform(0.15, 1.0) / transform_scale(move) * 0.6, 1e-3)
        if factor < 1:
            small = cv2.resize(raw, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
            sx, sy = small.shape[1] / raw.shape[1], small.shape[0] / raw.shape[0]
            to_full = np.array([[1 / sx, 0, 0.5 / sx - 0.5], [0, 1 / sy, 0.5 / sy - 0.5]])
            image = warp(small, compose_transforms(move, to_full), LANDMARK_INPUT_PX, BORDERS[int(rng.integers(3))])
        else:
            image = warp(raw, move, LANDMARK_INPUT_PX, BORDERS[int(rng.integers(3))])
    else:
        image = warp(raw, move, LANDMARK_INPUT_PX, BORDERS[int(rng.integers(3))])
    image = degrade(image, rng)
    if rng.random() < 0.12:
        image = occlude(image, rng)
    return image, apply_transform(move, points).astype(np.float32)


def _mined_crop(mined: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A false detection as the landmark network may meet it again."""
    if rng.random() < 0.5:
        mined = mined[:, ::-1]
    middle, target = np.array([(MINED_PX - 1) / 2] * 2), (LANDMARK_INPUT_PX - 1) / 2 + rng.normal(0, 5, 2)
    move = similarity(np.exp(rng.normal(0, 0.12)), rng.normal(0, 10), middle, target)
    return warp(np.ascontiguousarray(mined), move, LANDMARK_INPUT_PX)


def _wrong_crop(photo: Labelled, rng: np.random.Generator) -> np.ndarray:
    """A crop that a wrong detection would make: beside the face, far too tight or far too wide."""
    base = square_transform(eyes_and_mouth(photo.points68), LANDMARK_INPUT_PX, CROP_SHARE, CROP_SHIFT)
    middle = np.array([(LANDMARK_INPUT_PX - 1) / 2] * 2)
    angle = rng.uniform(0, 2 * np.pi)
    if rng.random() < 0.6:
        scale = np.exp(rng.normal(0, 0.5))
        away = np.array([np.cos(angle), np.sin(angle)]) * LANDMARK_INPUT_PX * rng.uniform(0.45, 1.2) * max(scale, 1)
    else:
        scale, away = (rng.uniform(2.2, 5) if rng.random() < 0.5 else rng.uniform(0.15, 0.42)), rng.normal(0, 8, 2)
    move = compose_transforms(similarity(scale, rng.normal(0, 20), middle, middle + away), base)
    return warp(photo.raw, move, LANDMARK_INPUT_PX, BORDERS[int(rng.integers(3))])


def _framed(image: np.ndarray, faces: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Grey outside the picture, as the detector pads its pyramid levels; faces stay where they are."""
    del faces
    top, left = (int(v) for v in rng.integers(0, 24, 2))
    framed = np.full_like(image, 127)
    bottom, right = (int(v) for v in CANVAS_PX - rng.integers(0, 24, 2))
    framed[top:bottom, left:right] = image[top:bottom, left:right]
    return framed
