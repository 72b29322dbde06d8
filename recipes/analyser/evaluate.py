"""Measures the embedded face analyser on a labelled split: `evaluate.py --portraits DIR --out figures.json`.

Found faces and eye error on the photos as they came and on hard framings (small, frame-filling, turned, several in a
picture); false faces on textures, on photos with the face painted over and on pictures of --negatives; label
agreement in the given aligned crops, with painted hats too, and end to end (found, aligned and parsed by the
analyser, compared where the given label map lies).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from hats import with_hat
from photos import Labelled, degrade, read_split
from samples import BORDERS, similarity
from textures import PAINTERS, paint
from train import read_negatives

from stylepairs.datagen.portraits.alignment import (
    apply_transform,
    compose_transforms,
    crop_aligned,
    ffhq_transform,
    invert_transform,
    warp,
)
from stylepairs.datagen.portraits.analysis.analyser import Face, FaceAnalyser, load_analyser
from stylepairs.datagen.portraits.landmarks import eyes_and_mouth
from stylepairs.datagen.portraits.portrait import CLASS
from stylepairs.datagen.shell.errors import exit_on_bad_input

GROUPS = {  # the classes that the figure counts, sides merged
    "background": [0],
    "skin": [1],
    "brows": [2, 3],
    "eyes": [4, 5],
    "nose": [10],
    "lips": [12, 13],
    "hair": [17],
    "neck": [14],
    "cloth": [16],
}
FOUND_WITHIN = 0.25  # of the eye distance: both eye centres nearer than this is the face found
MIN_SCORE = 0.5
HAT_SEEN = 0.01  # of the crop: from here on features speak of a hat


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--portraits", type=Path, required=True, help="a split that was not trained on")
    parser.add_argument(
        "--negatives",
        type=Path,
        action="append",
        default=[],
        help="folder of pictures without faces; repeat for several",
    )
    parser.add_argument("--out", type=Path, help="writes the figures as JSON")
    parser.add_argument("--limit", type=int)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    split = read_split(arguments.portraits, arguments.limit)
    analyser = load_analyser()
    figures: dict[str, object] = {"photos": len(split), "min_score": MIN_SCORE}
    parts: list[Callable[[], dict[str, object]]] = [
        lambda: raw_figures(analyser, split),
        lambda: negative_figures(analyser, split, arguments.negatives),
        lambda: label_figures(analyser, split),
        lambda: hat_figures(analyser, split),
        lambda: end_to_end_figures(analyser, split),
        lambda: framing_figures(analyser, split),
    ]
    for part in parts:
        more = part()
        print(json.dumps(more, indent=1), flush=True)
        figures |= more
    if arguments.out:
        arguments.out.write_text(json.dumps(figures, indent=1) + "\n")


def raw_figures(analyser: FaceAnalyser, split: list[Labelled]) -> dict[str, object]:
    """Photos as they came: found, extra faces, eye and point errors in % of the eye distance, milliseconds per
    photo.
    """
    begin = time.perf_counter()
    results = [_match(analyser, photo.raw, [photo.points68]) for photo in split]
    spent = time.perf_counter() - begin
    return _summary("raw", results) | {"raw_find_ms": round(1000 * spent / len(split), 1)}


def framing_figures(analyser: FaceAnalyser, split: list[Labelled]) -> dict[str, object]:
    """The same photos made hard: a face of 40 px in a large picture, one that fills the frame, turns, light, groups."""
    figures: dict[str, object] = {}
    for name, make in FRAMINGS.items():
        results = []
        for index, photo in enumerate(split):
            image, faces = make(photo, split, np.random.default_rng([7, index]))
            results.append(_match(analyser, image, faces))
        figures |= _summary(name, results)
    return figures


def negative_figures(analyser: FaceAnalyser, split: list[Labelled], folders: list[Path]) -> dict[str, object]:
    """Pictures without faces: how many were made to hold one; the worst score of each set."""
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(2026)
    kinds = list(PAINTERS)
    sets = {
        "textures": [
            paint(int(rng.choice([96, 256, 640])), rng, kinds[i % len(kinds)] if i < 56 else None) for i in range(112)
        ],
        "painted_over": [_painted_over(photo) for photo in split],
        "sample_photos": [np.asarray(image) for image in load_sample_images().images],
    }
    for folder in folders:
        sets[folder.name] = read_negatives(folder)
    figures: dict[str, object] = {}
    for name, images in sets.items():
        scores = [max((face.score for face in analyser.find(image, 0.0)), default=0.0) for image in images]
        figures |= {f"negatives_{name}": len(images), f"invented_{name}": int(sum(s >= MIN_SCORE for s in scores))}
        figures[f"worst_score_{name}"] = round(max(scores, default=0.0), 3)
    return figures


def label_figures(analyser: FaceAnalyser, split: list[Labelled]) -> dict[str, object]:
    """Agreement with the given label maps in the given aligned crops."""
    pairs, mattes = [], []
    begin = time.perf_counter()
    for photo in split:
        label, hair = analyser.parse(photo.aligned[None])
        pairs.append((label[0].numpy(), photo.label))
        mattes.append(float(np.abs(hair[0, 0].numpy() - photo.hair / 255.0).mean()))
    figures = _agreement("label", pairs)
    return figures | {
        "matte_mean_abs_error": round(float(np.mean(mattes)), 4),
        "parse_ms": round(1000 * (time.perf_counter() - begin) / len(split), 1),
    }


def hat_figures(analyser: FaceAnalyser, split: list[Labelled]) -> dict[str, object]:
    """The crops with painted hats: IoU of the hat, its share called hair; bare heads with a hat found on them."""
    pairs, bare = [], []
    for index, photo in enumerate(split):
        image, truth, _ = with_hat(photo, np.random.default_rng([11, index]))
        label, _ = analyser.parse(np.stack([image, photo.aligned]))
        bare.append(float((label[1].numpy() == CLASS["hat"]).mean()) > HAT_SEEN)
        if image is not photo.aligned:
            pairs.append((label[0].numpy(), truth == CLASS["hat"]))
    called_hair = sum(int((found[hat] == CLASS["hair"]).sum()) for found, hat in pairs)
    return {
        "hats": len(pairs),
        "hat_iou": round(iou([(found == CLASS["hat"], hat) for found, hat in pairs]), 4),
        "hat_called_hair_%": round(100 * called_hair / sum(int(hat.sum()) for _, hat in pairs), 2),
        "hats_seen_%": round(100 * float(np.mean([(f == CLASS["hat"]).mean() > HAT_SEEN for f, _ in pairs])), 1),
        "hats_on_bare_heads": int(sum(bare)),
    }


def end_to_end_figures(analyser: FaceAnalyser, split: list[Labelled]) -> dict[str, object]:
    """Found, aligned and parsed by the analyser alone, the label map moved into the given crop and compared there."""
    pairs = []
    for photo in split:
        faces = analyser.find(photo.raw, MIN_SCORE)
        if not faces:
            pairs.append((np.zeros_like(photo.label), photo.label))
            continue
        move = ffhq_transform(faces[0].points68, 256)
        label, _ = analyser.parse(crop_aligned(photo.raw, move, 256)[None])
        to_given = compose_transforms(photo.raw_to_aligned, invert_transform(move))
        moved = cv2.warpAffine(
            label[0].numpy(), to_given, (256, 256), flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE
        )
        pairs.append((moved, photo.label))
    return _agreement("end_to_end", pairs)


def eye_errors(faces: list[Face], truth: np.ndarray) -> list[float]:
    """Of the face that is meant, points68 `truth`: the errors of both eyes in eye distances; [] where it is missed."""
    best = nearest(faces, truth)
    return _eyes(faces[best], truth).tolist() if best is not None else []


def nearest(faces: list[Face], truth: np.ndarray) -> int | None:
    """Which face has both its eyes near those of points68 `truth`; None: no one."""
    far = [float(_eyes(face, truth).max()) for face in faces]
    return int(np.argmin(far)) if far and min(far) <= FOUND_WITHIN else None


def _eyes(face: Face, truth: np.ndarray) -> np.ndarray:
    there, found = eyes_and_mouth(truth)[:2], eyes_and_mouth(face.points68)[:2]
    return np.asarray(np.linalg.norm(found - there, axis=-1) / np.hypot(*(there[0] - there[1])))


def _match(analyser: FaceAnalyser, image: np.ndarray, faces: list[np.ndarray]) -> dict[str, list[float]]:
    """faces: points68 that are there. Each found face answers for the nearest; what is left over is invented."""
    found = list(analyser.find(image, MIN_SCORE))
    eye, point, missed = [], [], 0
    for truth in faces:
        best = nearest(found, truth)
        if best is None:
            missed += 1
            continue
        face, unit = found.pop(best), np.hypot(*np.diff(eyes_and_mouth(truth)[:2], axis=0)[0])
        eye += _eyes(face, truth).tolist()
        point.append(float(np.linalg.norm(face.points68 - truth, axis=-1).mean() / unit))
    return {"eye": eye, "point": point, "missed": [missed], "faces": [len(faces)], "extra": [len(found)]}


def _summary(name: str, results: list[dict[str, list[float]]]) -> dict[str, object]:
    total = {key: [value for result in results for value in result[key]] for key in results[0]}
    faces = sum(total["faces"])
    return {
        f"{name}_found_%": round(100 * (1 - sum(total["missed"]) / faces), 2),
        f"{name}_extra_faces": int(sum(total["extra"])),
        f"{name}_eye_error_median_%": round(100 * float(np.median(total["eye"] or [np.nan])), 2),
        f"{name}_eye_error_p95_%": round(100 * float(np.percentile(total["eye"] or [np.nan], 95)), 2),
        f"{name}_point_error_median_%": round(100 * float(np.median(total["point"] or [np.nan])), 2),
    }


def _agreement(name: str, pairs: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, object]:
    """IoU per class pooled over all pixels, its mean, and the mean over photos of the hair's."""
    pooled = {group: iou([(np.isin(a, c), np.isin(b, c)) for a, b in pairs]) for group, c in GROUPS.items()}
    hair = [iou([(a == 17, b == 17)]) for a, b in pairs]
    per_photo = [
        iou([(np.isin(a, c), np.isin(b, c))]) for a, b in pairs for c in GROUPS.values() if np.isin(b, c).any()
    ]
    return {
        f"{name}_iou": {group: round(value, 4) for group, value in pooled.items()},
        f"{name}_mean_iou": round(float(np.mean(list(pooled.values()))), 4),
        f"{name}_mean_iou_by_photo": round(float(np.mean(per_photo)), 4),
        f"{name}_hair_iou_by_photo": {
            "mean": round(float(np.mean(hair)), 4),
            "median": round(float(np.median(hair)), 4),
        },
    }


def iou(masks: list[tuple[np.ndarray, np.ndarray]]) -> float:
    both, either = sum(int((a & b).sum()) for a, b in masks), sum(int((a | b).sum()) for a, b in masks)
    return both / either if either else 1.0


def _painted_over(photo: Labelled) -> np.ndarray:
    """The photo with its face's features under a smooth patch of skin."""
    raw, points = photo.raw.copy(), photo.points68
    mask: np.ndarray = np.zeros(raw.shape[:2], np.uint8)
    cv2.fillConvexPoly(mask, cv2.convexHull(points.astype(np.float32)).astype(np.int32), 255)
    mask = cv2.dilate(mask, np.ones((3, 3), np.uint8), iterations=max(int(np.ptp(points[:, 0]) * 0.05), 2))
    raw[mask > 0] = raw[mask > 0].mean(0).astype(np.uint8)
    return raw


def _place(
    photo: Labelled, canvas: int, side: float, angle: float, target: np.ndarray, border: int
) -> tuple[np.ndarray, np.ndarray]:
    """The photo so that FFHQ's square of its face measures `side` px, turned, its centre on `target`."""
    move = ffhq_transform(photo.points68, 100)
    scale = side / 100 * np.sqrt(abs(np.linalg.det(move[:, :2])))
    turn = similarity(scale, angle, eyes_and_mouth(photo.points68).mean(0), target)
    return warp(photo.raw, turn, canvas, border), apply_transform(turn, photo.points68)


def _small(photo: Labelled, _split: list[Labelled], rng: np.random.Generator) -> tuple[np.ndarray, list[np.ndarray]]:
    """A face 40 px wide in a picture of 900."""
    layer, points = _place(photo, 900, 90, rng.uniform(-10, 10), rng.uniform(80, 820, 2), cv2.BORDER_CONSTANT)
    background = cv2.GaussianBlur(paint(900, rng), (0, 0), 2)
    return np.where(layer.any(-1, keepdims=True), layer, background), [points]


def _filling(photo: Labelled, _split: list[Labelled], rng: np.random.Generator) -> tuple[np.ndarray, list[np.ndarray]]:
    """From the brows to the chin, nothing else."""
    side = int(rng.choice([200, 400, 700]))
    layer, points = _place(
        photo, side, side * rng.uniform(1.7, 2.0), rng.uniform(-8, 8), np.array([0.5, 0.47]) * side, BORDERS[0]
    )
    return layer, [points]


def _turned(photo: Labelled, _split: list[Labelled], rng: np.random.Generator) -> tuple[np.ndarray, list[np.ndarray]]:
    angle = rng.uniform(20, 30) * rng.choice([-1, 1])
    layer, points = _place(
        photo, 360, rng.uniform(120, 300), angle, rng.uniform(140, 220, 2), BORDERS[int(rng.integers(3))]
    )
    return layer, [points]


def _poor(photo: Labelled, _split: list[Labelled], rng: np.random.Generator) -> tuple[np.ndarray, list[np.ndarray]]:
    """Poor light, grain, compression."""
    return degrade(degrade(photo.raw, rng), rng), [photo.points68]


def _group(photo: Labelled, split: list[Labelled], rng: np.random.Generator) -> tuple[np.ndarray, list[np.ndarray]]:
    """Four photos side by side, faces of unequal size."""
    tiles, faces = [], []
    for i in range(4):
        other = photo if i == 0 else split[int(rng.integers(len(split)))]
        tile, points = _place(
            other, 300, rng.uniform(110, 260), rng.uniform(-15, 15), rng.uniform(130, 170, 2), cv2.BORDER_REPLICATE
        )
        tiles.append(tile)
        faces.append(points + np.array([300 * (i % 2), 300 * (i // 2)]))
    return np.vstack([np.hstack(tiles[:2]), np.hstack(tiles[2:])]), faces


FRAMINGS = {"small": _small, "filling": _filling, "turned": _turned, "poor": _poor, "group": _group}


if __name__ == "__main__":
    with exit_on_bad_input():
        main()
