"""Procedural pictures without faces: what the detector must stay silent on."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

Painter = Callable[[int, np.random.Generator], np.ndarray]


def paint(side_px: int, rng: np.random.Generator, kind: str | None = None) -> np.ndarray:
    """A texture or scene, uint8 [side,side,3]; kind None draws one at random (names: PAINTERS)."""
    name = kind or str(rng.choice(list(PAINTERS)))
    image = PAINTERS[name](side_px, rng)
    if kind is None and rng.random() < 0.4:  # one texture seen through another
        other = PAINTERS[str(rng.choice(list(PAINTERS)))](side_px, rng)
        weight = _noise(side_px, rng)[..., None] if rng.random() < 0.7 else np.float32(rng.uniform(0.2, 0.8))
        image = np.clip(image * weight + other * (1 - weight), 0, 255).astype(np.uint8)
    return image


def _colour(rng: np.random.Generator) -> np.ndarray:
    if rng.random() < 0.3:  # skin and hair tones, so that colour alone is never a face
        tones = [[224, 180, 150], [190, 140, 110], [140, 95, 70], [90, 60, 45], [60, 40, 30], [210, 170, 120]]
        return np.clip(np.array(tones[int(rng.integers(6))]) + rng.normal(0, 14, 3), 0, 255)
    return rng.uniform(0, 255, 3)


def _mix(weight: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """weight [H,W] in [0,1] between two colours -> uint8 [H,W,3]."""
    a, b = _colour(rng), _colour(rng)
    return np.asarray(np.clip(a + (b - a) * weight[..., None], 0, 255).astype(np.uint8))


def _noise(side: int, rng: np.random.Generator, octaves: int | None = None) -> np.ndarray:
    """Fractal noise [side,side] in [0,1]."""
    octaves = octaves or int(rng.integers(1, 7))
    total = np.zeros((side, side), np.float32)
    first = int(rng.integers(1, 5))
    fall = rng.uniform(0.4, 0.9)
    for octave in range(octaves):
        cells = min(2 ** (first + octave), side)
        grid = rng.random((cells, cells)).astype(np.float32)
        total += np.float32(fall**octave) * cv2.resize(grid, (side, side), interpolation=cv2.INTER_CUBIC)
    total -= total.min()
    return total / max(float(total.max()), 1e-6)


def _wave(side: int, rng: np.random.Generator) -> np.ndarray:
    ys, xs = np.mgrid[:side, :side].astype(np.float32)
    angle, period = rng.uniform(0, np.pi), np.exp(rng.uniform(np.log(4), np.log(side)))
    bend = _noise(side, rng, 2) * rng.uniform(0, side / 3) * (rng.random() < 0.5)
    return np.asarray((xs * np.cos(angle) + ys * np.sin(angle) + bend) / period)


def _clouds(side: int, rng: np.random.Generator) -> np.ndarray:
    return _mix(_noise(side, rng), rng)


def _colour_noise(side: int, rng: np.random.Generator) -> np.ndarray:
    cells = int(rng.integers(8, side))
    return cv2.resize(
        rng.integers(0, 256, (cells, cells, 3), np.uint8), (side, side), interpolation=int(rng.integers(0, 3))
    )


def _stripes(side: int, rng: np.random.Generator) -> np.ndarray:
    wave = _wave(side, rng)
    return _mix((wave % 1 < rng.uniform(0.2, 0.8)) if rng.random() < 0.5 else np.sin(wave * 2 * np.pi) / 2 + 0.5, rng)


def _plaid(side: int, rng: np.random.Generator) -> np.ndarray:
    return np.asarray((_stripes(side, rng) // 2 + _stripes(side, rng) // 2).astype(np.uint8))


def _checkers(side: int, rng: np.random.Generator) -> np.ndarray:
    return _mix(((np.floor(_wave(side, rng)) + np.floor(_wave(side, rng))) % 2).astype(np.float32), rng)


def _gradient(side: int, rng: np.random.Generator) -> np.ndarray:
    ys, xs = np.mgrid[:side, :side].astype(np.float32) / side
    cx, cy = rng.uniform(-0.2, 1.2, 2)
    flat = np.clip(xs * rng.normal() + ys * rng.normal() + rng.uniform(0, 1), 0, 1)
    return _mix(flat if rng.random() < 0.5 else np.clip(np.hypot(xs - cx, ys - cy), 0, 1), rng)


def _rings(side: int, rng: np.random.Generator) -> np.ndarray:
    ys, xs = np.mgrid[:side, :side].astype(np.float32)
    cx, cy = rng.uniform(0, side, 2)
    return _mix(
        np.sin(np.hypot(xs - cx, (ys - cy) * rng.uniform(0.6, 1.6)) / rng.uniform(1.5, side / 8)) / 2 + 0.5, rng
    )


def _shapes(side: int, rng: np.random.Generator) -> np.ndarray:
    image = _clouds(side, rng) if rng.random() < 0.5 else _gradient(side, rng)
    for _ in range(int(rng.integers(2, 60))):
        colour = [int(c) for c in _colour(rng)]
        x, y = (int(v) for v in rng.integers(0, side, 2))
        a, b = (int(v) + 1 for v in np.exp(rng.uniform(0, np.log(side / 3), 2)))
        kind = rng.integers(4)
        if kind == 0:
            cv2.ellipse(image, (x, y), (a, b), int(rng.integers(180)), 0, 360, colour, -1, cv2.LINE_AA)
        elif kind == 1:
            cv2.rectangle(image, (x, y), (x + a, y + b), colour, -1)
        elif kind == 2:
            cv2.fillPoly(
                image,
                [rng.integers([x - a, y - b], [x + a + 1, y + b + 1], (int(rng.integers(3, 7)), 2)).astype(np.int32)],
                colour,
                cv2.LINE_AA,
            )
        else:
            cv2.line(
                image,
                (x, y),
                tuple(int(v) for v in rng.integers(0, side, 2)),
                colour,
                int(rng.integers(1, 6)),
                cv2.LINE_AA,
            )
    return image


def _heads_without_faces(side: int, rng: np.random.Generator) -> np.ndarray:
    """Ovals on shoulders, buttons and balls: the outline of a person and nothing inside."""
    image = paint(side, rng, str(rng.choice(["clouds", "gradient", "stripes"])))
    for _ in range(int(rng.integers(1, 4))):
        x, y, r = (
            int(rng.integers(0, side)),
            int(rng.integers(0, side)),
            int(np.exp(rng.uniform(np.log(6), np.log(side / 3)))),
        )
        cv2.ellipse(image, (x, y + 3 * r), (2 * r, 2 * r), 0, 180, 360, [int(c) for c in _colour(rng)], -1, cv2.LINE_AA)
        cv2.ellipse(
            image, (x, y), (r, int(r * rng.uniform(1, 1.5))), 0, 0, 360, [int(c) for c in _colour(rng)], -1, cv2.LINE_AA
        )
        if rng.random() < 0.6:
            cv2.ellipse(
                image, (x, y - r // 2), (int(r * 1.1), r), 0, 180, 360, [int(c) for c in _colour(rng)], -1, cv2.LINE_AA
            )
    return image


def _text(side: int, rng: np.random.Generator) -> np.ndarray:
    image = (
        _gradient(side, rng) if rng.random() < 0.5 else np.full((side, side, 3), int(rng.integers(180, 256)), np.uint8)
    )
    colour, scale = [int(c) for c in _colour(rng)], rng.uniform(0.3, 1.5)
    letters = list("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,:;!?%&()")
    for y in range(int(12 * scale), side + 10, max(int(26 * scale), 6)):
        cv2.putText(
            image,
            "".join(rng.choice(letters, 40)),
            (int(rng.integers(-20, 10)), y),
            int(rng.integers(0, 8)),
            scale,
            colour,
            int(rng.integers(1, 3)),
            cv2.LINE_AA,
        )
    return image


def _plants(side: int, rng: np.random.Generator) -> np.ndarray:
    image = _clouds(side, rng)
    spread, shrink = rng.uniform(0.2, 0.7), rng.uniform(0.65, 0.82)
    for _ in range(int(rng.integers(1, 8))):
        colour = [int(c) for c in (_colour(rng) * 0.5 + np.array([20, 70, 20]))]
        tips = [
            (
                rng.uniform(0, side),
                rng.uniform(side * 0.5, side * 1.1),
                rng.normal(-np.pi / 2, 0.3),
                side * rng.uniform(0.05, 0.3),
            )
        ]
        for _ in range(7):
            grown = []
            for x, y, angle, length in tips:
                x2, y2 = x + np.cos(angle) * length, y + np.sin(angle) * length
                cv2.line(image, (int(x), int(y)), (int(x2), int(y2)), colour, max(int(length / 10), 1), cv2.LINE_AA)
                grown += [(x2, y2, angle + d * spread + rng.normal(0, 0.1), length * shrink) for d in (-1, 1)]
            tips = grown
    return image


def _cells(side: int, rng: np.random.Generator) -> np.ndarray:
    n = int(rng.integers(4, 120))
    small = side // 2
    seeds = rng.uniform(0, small, (n, 2)).astype(np.float32)
    ys, xs = np.mgrid[:small, :small].astype(np.float32)
    distance = (xs[..., None] - seeds[:, 0]) ** 2 + (ys[..., None] - seeds[:, 1]) ** 2
    if rng.random() < 0.5:
        image = np.stack([_colour(rng) for _ in range(n)]).astype(np.uint8)[distance.argmin(-1)]
    else:
        nearest = np.sqrt(np.partition(distance, 1, -1)[..., :2])
        image = _mix(np.clip((nearest[..., 1] - nearest[..., 0]) / rng.uniform(1, 8), 0, 1), rng)
    return np.asarray(cv2.resize(image, (side, side), interpolation=cv2.INTER_LINEAR))


def _bricks(side: int, rng: np.random.Generator) -> np.ndarray:
    image = np.full((side, side, 3), _colour(rng), np.uint8)
    h = int(rng.integers(5, max(side // 5, 6)))
    w, gap = int(h * rng.uniform(1, 3)), int(rng.integers(1, 4))
    base = _colour(rng)
    for row, y in enumerate(range(0, side, h)):
        for x in range(-w * (row % 2) // 2, side, w):
            cv2.rectangle(
                image,
                (x + gap, y + gap),
                (x + w, y + h),
                [int(c) for c in np.clip(base + rng.normal(0, 15, 3), 0, 255)],
                -1,
            )
    return image


def _houses(side: int, rng: np.random.Generator) -> np.ndarray:
    """Fronts with windows and doors: dark spots in rows, the commonest false faces."""
    image = _gradient(side, rng)
    for _ in range(int(rng.integers(1, 4))):
        x, y = int(rng.integers(-side // 4, side)), int(rng.integers(0, side))
        w, h = int(rng.integers(side // 6, side)), int(rng.integers(side // 5, side))
        wall, glass = [int(c) for c in _colour(rng)], [int(c) for c in _colour(rng) * rng.uniform(0.1, 0.9)]
        cv2.rectangle(image, (x, y), (x + w, y + h), wall, -1)
        if rng.random() < 0.5:
            cv2.fillPoly(
                image,
                [np.array([[x - w // 8, y], [x + w // 2, y - h // 3], [x + w + w // 8, y]], np.int32)],
                [int(c) for c in _colour(rng)],
            )
        columns, rows = int(rng.integers(2, 7)), int(rng.integers(1, 7))
        dx, dy = max(w // columns, 3), max(h // (rows + 1), 3)
        for i in range(columns):
            for j in range(rows):
                cv2.rectangle(
                    image,
                    (x + i * dx + dx // 4, y + j * dy + dy // 4),
                    (x + i * dx + 3 * dx // 4, y + j * dy + 3 * dy // 4),
                    glass,
                    -1,
                )
        cv2.rectangle(image, (x + w // 2 - dx // 4, y + h - dy), (x + w // 2 + dx // 4, y + h), glass, -1)
    return image


PAINTERS: dict[str, Painter] = {
    "clouds": _clouds,
    "colour_noise": _colour_noise,
    "stripes": _stripes,
    "plaid": _plaid,
    "checkers": _checkers,
    "gradient": _gradient,
    "rings": _rings,
    "shapes": _shapes,
    "heads_without_faces": _heads_without_faces,
    "text": _text,
    "plants": _plants,
    "cells": _cells,
    "bricks": _bricks,
    "houses": _houses,
}
