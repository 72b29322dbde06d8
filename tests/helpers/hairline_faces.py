"""Drawn heads with a hairline that is known: radii by angle from the root of the nose."""

import hashlib

import numpy as np
import torch

from stylepairs.datagen.portraits.portrait import CLASS, Portrait

ROOT = np.array([0.5, 0.56])
LINE, OUTLINE = 0.28, 0.46
SKIN, HAIR = np.array([0.5, 0.1, -0.15]), np.array([-0.6, -0.7, -0.75])


def head(size=128, line=LINE, outline=OUTLINE, corners=0.0, scalp=0.0, seed=0, hair=HAIR, hat=False):
    """A head before a blue wall; line, outline: radii of hairline and hair, as shares of the side.

    corners: how far the line recedes at both temples. scalp: share of skin that shows over the middle of the front.
    """
    y, x = (np.mgrid[:size, :size] + 0.5) / size
    right, up = x - ROOT[0], ROOT[1] - y
    angle, radius = np.arctan2(right, up), np.hypot(right, up)
    edge = line + corners * np.exp(-(((np.abs(np.degrees(angle)) - 38) / 12) ** 2))
    inside = soft(outline - radius, size)
    matte = inside * soft(radius - edge, size) * soft(np.radians(100) - np.abs(angle), size)
    noise = np.random.default_rng(seed).standard_normal((4, 64))
    strands = noise[(radius * 20).astype(int) % 4, ((angle + 4) * 60).astype(int) % 64] * 0.1
    grain = np.random.default_rng(seed + 1).standard_normal((size, size)) * 0.01
    image = np.array([-0.4, -0.2, 0.5])[:, None, None]
    image = image + inside * (SKIN[:, None, None] * (1.1 - 0.4 * radius) - image)
    front = scalp * np.exp(-((angle / 0.6) ** 2)) * soft(edge + 0.07 - radius, size)
    strand_color = hair[:, None, None] + strands
    strand_color = strand_color + front * (SKIN[:, None, None] - strand_color)
    image = (image + matte * (strand_color - image) + grain).clip(-1, 1)
    label = np.where(matte > 0.5, CLASS["hair"], np.where(inside > 0.5, CLASS["skin"], 0)).astype(np.uint8)
    if hat:
        label[: size // 5] = CLASS["hat"]
    name = hashlib.sha256(image.tobytes()).hexdigest()
    tensor = torch.from_numpy(image).float()
    return Portrait("drawn", tensor, torch.from_numpy(label), torch.from_numpy(matte).float()[None], points(size), name)


def points(size):
    """68 landmarks: jaw, brows, nose, eyes; upright."""
    at = np.zeros((68, 2)) + [0.5, 0.66]
    turn = np.linspace(np.pi, 0, 17)
    at[:17] = np.stack([0.5 + 0.24 * np.cos(turn), 0.6 + 0.27 * np.sin(turn)], 1)
    at[17:27] = np.stack([np.linspace(0.33, 0.67, 10), 0.5 - 0.02 * np.abs(np.sin(np.linspace(0, 2 * np.pi, 10)))], 1)
    at[27] = ROOT
    for first, middle in ((36, 0.4), (42, 0.6)):
        at[first : first + 6] = [[middle + dx, 0.56] for dx in (-0.03, -0.01, 0.01, 0.03, 0.01, -0.01)]
    return torch.from_numpy(at * size - 0.5).float()


def mirrored(portrait):
    """The portrait seen in a mirror; only the landmarks that the hairline is found with."""
    order = [*range(16, -1, -1), *range(26, 16, -1), *range(27, 68)]
    order[36:48] = [45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40]
    flipped = portrait.points68[order] * torch.tensor([-1.0, 1.0]) + torch.tensor([portrait.size_px - 1.0, 0.0])
    return Portrait(
        portrait.name,
        portrait.image.flip(-1),
        portrait.label.flip(-1),
        portrait.hair.flip(-1),
        flipped,
        portrait.digest,
    )


def soft(distance, size):
    return np.clip(distance * size / 2 + 0.5, 0, 1)
