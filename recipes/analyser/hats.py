"""Puts painted hats on portraits, since the label maps of the splits have none: caps, beanies, brimmed hats, scarves.

A hat's outline is drawn in head widths around the points, filled with cloth that is lit like a dome, and becomes class
18; hair under it is no hair any more. Enough for a parser to tell cloth on a head from hair (figures of `evaluate.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from photos import Labelled
from textures import paint

from stylepairs.datagen.portraits.alignment import apply_transform
from stylepairs.datagen.portraits.portrait import CLASS

BROW_LEFT, BROW_RIGHT, TEMPLES, CHIN = 19, 24, (0, 16), 8  # of the 68 points, in the picture's left and right
CLOTHS = ("colour_noise", "stripes", "plaid", "clouds", "cells")
LEFT_OVER_SHARE = 0.25  # of the hair above a hat's edge: more beside the crown than this, and the hat is too small
HAIR, HAT = CLASS["hair"], CLASS["hat"]


@dataclass(frozen=True)
class Head:
    """Where a head is in a crop: centre of the edge line, unit vectors across and up, width between the temples."""

    middle: np.ndarray
    across: np.ndarray
    up: np.ndarray
    width_px: float

    def at(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Pixels [K,2] of places given in head widths: x to the right, y up from the brows."""
        return np.asarray(self.middle + self.width_px * (x[:, None] * self.across + y[:, None] * self.up))


def head_of(photo: Labelled) -> Head:
    """The head of an aligned crop."""
    points = apply_transform(photo.raw_to_aligned, photo.points68)
    brows = (points[BROW_LEFT] + points[BROW_RIGHT]) / 2
    across = points[TEMPLES[1]] - points[TEMPLES[0]]
    width = float(np.hypot(*across))
    across = across / width
    up = np.array([across[1], -across[0]])
    temples = (points[TEMPLES[0]] + points[TEMPLES[1]]) / 2
    # The middle of the head lies under the brows of a frontal face and between the temples of a turned one.
    return Head(brows + across * ((temples - brows) @ across), across, up, width)


def with_hat(photo: Labelled, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image uint8 [H,W,3], label and hair uint8 [H,W] of an aligned crop with a hat of a kind drawn at random.

    A crop whose hair would stand out widely beside the hat comes back as it is.
    """
    head, kind = head_of(photo), str(rng.choice(["cap", "beanie", "brim", "scarf"], p=[0.3, 0.3, 0.2, 0.2]))
    size = photo.label.shape[0]
    parts = [_filled(outline, size) for outline in _outlines(head, kind, rng)]
    whole = np.maximum.reduce(parts)
    ys, xs = np.mgrid[:size, :size]
    above = ((xs - head.middle[0]) * head.up[0] + (ys - head.middle[1]) * head.up[1]) > 0.25 * head.width_px
    hair_above = (photo.label == HAIR) & above
    if (hair_above & (whole == 0)).sum() > LEFT_OVER_SHARE * max(int(hair_above.sum()), 1):
        return photo.aligned, photo.label, photo.hair
    image = photo.aligned.astype(np.float32)
    shadow = cv2.GaussianBlur(np.roll(whole, round(0.05 * head.width_px), 0).astype(np.float32), (0, 0), 3)
    image *= 1 - rng.uniform(0.1, 0.5) * shadow[..., None]
    light = np.clip(float(np.percentile(photo.aligned[photo.label == CLASS["skin"]].mean(-1), 70)) / 190, 0.35, 1.2)
    cloth = _cloth(rng, kind)
    for k, part in enumerate(parts):
        cover = cv2.GaussianBlur(part.astype(np.float32), (0, 0), rng.uniform(0.5, 1.1))[..., None]
        fill = _cloth(rng, kind) if k and rng.random() < 0.25 else cloth
        shade = _dome(part, rng) * light * (rng.uniform(0.6, 1.0) if k else 1.0)
        image += (np.clip(fill * shade[..., None], 0, 255) - image) * cover
    label, hair = photo.label.copy(), photo.hair.copy()
    label[whole > 0], hair[whole > 0] = HAT, 0
    return np.clip(image, 0, 255).astype(np.uint8), label, hair


def _outlines(head: Head, kind: str, rng: np.random.Generator) -> list[np.ndarray]:
    """Polygons [K,2] in pixels, the one behind first: the crown, then a band, a visor or a brim."""
    half, edge = rng.uniform(0.53, 0.68), rng.uniform(0.1, 0.42)  # of the crown, and its height above the brows
    tilt, bow = rng.normal(0, 0.03), rng.uniform(-0.02, 0.12)
    height = edge + rng.uniform(0.45, 0.85) * (1.2 if kind == "beanie" else 1.0)
    t = np.linspace(0, np.pi, 40)
    power = rng.uniform(0.55, 1.0)  # under 1 the crown is boxy
    rise = np.sin(t) ** power
    top = np.stack([half * np.cos(t), edge - 0.05 + (height - edge) * rise], 1)
    x = np.linspace(-1, 1, 25)
    front = np.stack([half * x, edge - 0.05 + bow * (1 - x**2) + tilt * x], 1)  # from left to right, along the forehead
    if kind == "scarf":
        return [_scarf(head, half, height, edge, rng)]
    crown = _placed(head, np.concatenate([front, top]))
    if kind == "beanie":
        band = rng.uniform(0.08, 0.22)
        low, high = front * [1.03, 1.0] - [0, band * 0.3], front[::-1] * [1.03, 1.0] + [0, band]
        return [crown, _placed(head, np.concatenate([low, high]))] if rng.random() < 0.7 else [crown]
    if kind == "cap":
        side, depth = rng.uniform(-0.25, 0.25), rng.uniform(0.1, 0.3)
        wide = half * rng.uniform(0.75, 0.98)
        low = np.stack([side * 0.3 + wide * x, edge - 0.02 - depth * (1 - x**2) ** rng.uniform(0.4, 0.8)], 1)
        high = np.stack([side * 0.3 + wide * x[::-1], edge + 0.04 * (1 - x**2) + bow], 1)
        return [crown, _placed(head, np.concatenate([low, high]))]
    wide, thick = half * rng.uniform(1.3, 2.1), rng.uniform(0.05, 0.16)
    sag = rng.uniform(-0.1, 0.12)
    low = np.stack([wide * x, edge + sag * x**2 - thick * np.sqrt(1 - x**2)], 1)
    high = np.stack([wide * x[::-1], edge + sag * x**2 + 0.6 * thick * np.sqrt(1 - x**2)], 1)
    return [crown, _placed(head, np.concatenate([low, high]))]


def _scarf(head: Head, half: float, height: float, edge: float, rng: np.random.Generator) -> np.ndarray:
    """Cloth around the face and down to the shoulders, open over an oval from forehead to chin: one closed outline."""
    t = np.linspace(0, 2 * np.pi, 60)
    inner_half, low = rng.uniform(0.44, 0.52), rng.uniform(-1.2, -1.02)
    middle, reach = (edge + low) / 2, (edge - low) / 2
    oval = np.stack([inner_half * np.sin(t), middle + reach * np.cos(t)], 1)
    over = np.linspace(0, np.pi, 30)
    top = np.stack([half * 1.05 * np.cos(over), (height - 0.1) * np.sin(over)], 1)
    wide = half * rng.uniform(1.2, 1.9)
    outer = np.concatenate([top, [[-half * 1.1, -0.8], [-wide, -1.8], [wide, -1.8], [half * 1.1, -0.8]]])
    # A cut from the outer outline to the oval makes a ring of one polygon; even-odd filling leaves the face open.
    return _placed(head, np.concatenate([outer, outer[:1], oval, oval[:1], outer[:1]]))


def _filled(outline: np.ndarray, size: int) -> np.ndarray:
    """1 inside an outline, uint8 [size,size]."""
    cover = np.zeros((size, size), np.uint8)
    cv2.fillPoly(cover, [np.round(outline).astype(np.int32)], 1)
    return cover


def _placed(head: Head, outline: np.ndarray) -> np.ndarray:
    return head.at(outline[:, 0], outline[:, 1])


def _cloth(rng: np.random.Generator, kind: str) -> np.ndarray:
    """Cloth [256,256,3] in 0..255: one colour, with a weave, ribs or a pattern of its own."""
    colour = rng.uniform(20, 235) + rng.normal(0, 45 if rng.random() < 0.6 else 8, 3)
    fill = np.broadcast_to(colour, (256, 256, 3)).astype(np.float32)
    if rng.random() < 0.3:
        pattern = paint(256, rng, str(rng.choice(CLOTHS))).astype(np.float32)
        fill = fill + (pattern - fill) * np.float32(rng.uniform(0.1, 0.8))
    if kind == "beanie" or rng.random() < 0.3:  # ribs or folds, wavy
        ys, xs = np.mgrid[:256, :256].astype(np.float32)
        turn = rng.normal(0, 0.25)
        wave = np.sin((xs + turn * ys + 3 * np.sin(ys / rng.uniform(8, 30))) * 2 * np.pi / rng.uniform(4, 24))
        fill = fill * (1 + rng.uniform(0.03, 0.22) * wave[..., None])
    grain = cv2.GaussianBlur(rng.normal(0, 1, (256, 256)).astype(np.float32), (0, 0), rng.uniform(0.5, 1.5))
    return np.asarray(np.clip(fill * (1 + rng.uniform(0.01, 0.12) * grain[..., None]), 0, 255))


def _dome(cover: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Light [H,W] on a rounded piece of cloth (cover, 1 inside): brighter towards a side, darker along its border."""
    size = cover.shape[0]
    depth = cv2.distanceTransform(cover, cv2.DIST_L2, 3)
    round_off = 1 - rng.uniform(0.2, 0.6) * np.exp(-depth / rng.uniform(4, 16))
    ys, xs = np.mgrid[:size, :size].astype(np.float32) / size - 0.5
    side = 1 + rng.normal(0, 0.5) * xs - rng.uniform(-0.2, 0.6) * ys
    folds = cv2.resize(rng.normal(0, 1, (6, 6)).astype(np.float32), (size, size), interpolation=cv2.INTER_CUBIC)
    return np.asarray(round_off * side * (1 + rng.uniform(0, 0.12) * folds), np.float32)
