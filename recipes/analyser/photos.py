"""Reads a split of labelled portraits into memory and degrades pictures the way real photos are degraded."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from stylepairs.datagen.images.files import through_jpeg
from stylepairs.datagen.portraits.alignment import apply_transform, ffhq_transform, invert_transform
from stylepairs.datagen.portraits.landmarks import MESH_TO_68
from stylepairs.datagen.shell.errors import InputError


@dataclass(frozen=True)
class Labelled:
    """One photo of a split: raw uint8 [H,W,3] RGB, points68 [68,2] in raw pixels; aligned, label and hair are 256
    x 256.
    """

    name: str
    raw: np.ndarray
    points68: np.ndarray
    aligned: np.ndarray
    label: np.ndarray
    hair: np.ndarray
    raw_to_aligned: np.ndarray


def read_split(folder: Path, limit: int | None = None) -> list[Labelled]:
    """All photos of `folder` (aligned/, label/, hair/, landmarks.npz, index.jsonl; raw/ where there is one), by name.

    Without raw/, the aligned crop stands in for the photo. The mesh may lie in raw or in aligned pixels. limit: None =
    no limit. Raises InputError for another folder.
    """
    try:
        with np.load(folder / "landmarks.npz") as stored:
            labelled = (folder / "index.jsonl").is_file() and {"name", "mesh468"} <= set(stored)
    except (OSError, ValueError):
        labelled = False
    if not labelled:
        raise InputError(
            f"{folder}: no split of labelled portraits (index.jsonl, landmarks.npz with mesh468): see README.md"
        )
    names = sorted(json.loads(line)["name"] for line in (folder / "index.jsonl").read_text().splitlines())
    with np.load(folder / "landmarks.npz") as stored:
        points = dict(zip(stored["name"].tolist(), stored["mesh468"][:, MESH_TO_68].astype(np.float64), strict=True))
        known = (
            stored["raw_to_aligned256"] if "raw_to_aligned256" in stored else np.tile(np.eye(2, 3), (len(points), 1, 1))
        )
        moves = dict(zip(stored["name"].tolist(), known, strict=True))
    return [_labelled(folder, name, points[name], moves[name]) for name in names[:limit]]


def _labelled(folder: Path, name: str, points68: np.ndarray, raw_to_aligned: np.ndarray) -> Labelled:
    aligned = read_rgb(folder / "aligned" / f"{name}.jpg")
    raw = folder / "raw" / f"{name}.jpg"
    if _is_aligned(points68):
        points68 = apply_transform(invert_transform(raw_to_aligned), points68)
    return Labelled(
        name=name,
        raw=read_rgb(raw) if raw.is_file() else aligned,
        points68=points68,
        aligned=aligned,
        label=read_grey(folder / "label" / f"{name}.png"),
        hair=read_grey(folder / "hair" / f"{name}.png"),
        raw_to_aligned=raw_to_aligned,
    )


def _is_aligned(points68: np.ndarray) -> bool:
    """Whether the points lie as in an aligned crop of 256 px: level eyes at FFHQ's distance around its middle."""
    return bool((np.abs(ffhq_transform(points68, 256) - np.eye(2, 3)) < (0.02, 0.02, 2)).all())


def degrade(image: np.ndarray, rng: np.random.Generator, strength: float = 1.0) -> np.ndarray:
    """image uint8 [H,W,3] -> the same scene under another light, camera, resolution and compression."""
    if rng.random() < 0.5 * strength:
        image = _lower_resolution(image, rng)
    pixels: np.ndarray = image.astype(np.float32) / 255
    pixels = _light(pixels, rng, strength)
    if rng.random() < 0.15:
        sigma = rng.uniform(0.3, 1.6)
        pixels = cv2.GaussianBlur(pixels, (0, 0), sigma)
    if rng.random() < 0.4:
        grain = rng.normal(0, rng.uniform(0.005, 0.07), pixels.shape[: 2 + (rng.random() < 0.6)]).astype(np.float32)
        pixels = pixels + (grain if grain.ndim == 3 else grain[..., None])
    image = np.clip(pixels * 255 + 0.5, 0, 255).astype(np.uint8)
    if rng.random() < 0.25:
        image = through_jpeg(image, int(rng.integers(20, 90)))
    return image


def occlude(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A bar, a disc or a picture's edge over part of the picture, in place."""
    side = image.shape[0]
    colour = [int(c) for c in rng.integers(0, 256, 3)]
    x, y = (int(v) for v in rng.integers(0, side, 2))
    if rng.random() < 0.5:
        w, h = (int(v) for v in rng.integers(side // 12, side // 3, 2))
        cv2.rectangle(image, (x, y), (x + w, y + h), colour, -1)
    else:
        cv2.circle(image, (x, y), int(rng.integers(side // 16, side // 6)), colour, -1)
    return image


def _light(pixels: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    if rng.random() < 0.15:
        grey = pixels @ np.array([0.299, 0.587, 0.114], np.float32)
        tint = 1 + rng.normal(0, 0.06, 3) * (rng.random() < 0.5)
        pixels = grey[..., None] * tint.astype(np.float32)
    elif rng.random() < 0.6 * strength:
        grey = pixels.mean(-1, keepdims=True)
        pixels = grey + (pixels - grey) * np.float32(rng.uniform(0.4, 1.6))
        pixels = pixels * (1 + rng.normal(0, 0.12, 3).astype(np.float32))
    if rng.random() < 0.6 * strength:
        pixels = np.clip(pixels, 0, 1) ** np.float32(np.exp(rng.normal(0.1, 0.45)))
    if rng.random() < 0.6 * strength:
        middle = np.float32(pixels.mean())
        pixels = middle + (pixels - middle) * np.float32(rng.uniform(0.5, 1.4)) + np.float32(rng.normal(0, 0.1))
    if rng.random() < 0.35 * strength:  # light from one side
        h, w = pixels.shape[:2]
        angle = rng.uniform(0, 2 * np.pi)
        ramp = np.linspace(-1, 1, w, dtype=np.float32) * np.cos(angle) + np.linspace(-1, 1, h, dtype=np.float32)[
            :, None
        ] * np.sin(angle)
        pixels = pixels * (1 + np.float32(rng.uniform(0.1, 0.9)) * ramp[..., None]).astype(np.float32)
    return np.asarray(np.clip(pixels, 0, 1))


def _lower_resolution(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    side = image.shape[0]
    small = max(int(side * np.exp(-rng.uniform(0, 1.4))), 10)
    up = [cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_NEAREST][int(rng.choice(3, p=[0.5, 0.45, 0.05]))]
    return cv2.resize(
        cv2.resize(image, (small, small), interpolation=cv2.INTER_AREA), image.shape[1::-1], interpolation=up
    )


def read_grey(path: Path) -> np.ndarray:
    """uint8 [H,W] of a PNG with one channel."""
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise InputError(f"{path}: cannot be read as an image")
    return image


def read_rgb(path: Path) -> np.ndarray:
    """uint8 [H,W,3] RGB."""
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise InputError(f"{path}: cannot be read as an image")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
