"""A drawn face with all its landmarks, for tests of the features that warp it."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch

from stylepairs.datagen.portraits.portrait import CLASS, Portrait
from stylepairs.datagen.portraits.regions import feather
from stylepairs.datagen.portraits.sketch import AnalysedPair, Sketch


def ellipse(size_px: int, x: float, y: float, across: float, down: float) -> torch.Tensor:
    """[1,H,W], all in shares of the side."""
    at = (torch.arange(size_px) + 0.5) / size_px
    return feather((((at[:, None] - y) / down).square() + ((at - x) / across).square() <= 1).float()[None], 0.006)


def landmarks() -> np.ndarray:
    """[68,2] in shares of the side: a frontal face, its eyes a quarter of the side apart."""
    turn = np.linspace(0, math.pi, 17)
    jaw = np.stack([0.5 - 0.25 * np.cos(turn), 0.48 + 0.42 * np.sin(turn)], -1)
    brow = np.array([[x, 0.385 - 0.02 * math.sin(math.pi * i / 4)] for i, x in enumerate(np.linspace(0.29, 0.45, 5))])
    nose = np.array([[0.5, y] for y in np.linspace(0.46, 0.6, 4)] + [[x, 0.63] for x in np.linspace(0.45, 0.55, 5)])
    eye = np.array([[-0.055, 0], [-0.02, -0.02], [0.02, -0.02], [0.055, 0], [0.02, 0.018], [-0.02, 0.018]])
    turn = np.linspace(math.pi, 3 * math.pi, 13)[:12]
    lips = np.stack([0.5 + 0.11 * np.cos(turn), 0.74 + 0.025 * np.sin(turn)], -1)
    inner = np.stack([0.5 + 0.085 * np.cos(turn[::1][[0, 2, 3, 4, 6, 8, 9, 10]]), np.full(8, 0.74)], -1)
    mirrored = brow[::-1] * [-1, 1] + [1, 0]
    return np.concatenate([jaw, brow, mirrored, nose, eye + [0.375, 0.46], eye + [0.625, 0.46], lips, inner])


def face(size_px: int = 96, seed: int = 0) -> Portrait:
    """Skin with texture before a blue wall, neck and a dark jacket, brows, eyes, nose and lips where the points say."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.from_numpy(landmarks()).float() * size_px - 0.5
    image = torch.tensor([-0.5, -0.4, 0.4])[:, None, None].expand(3, size_px, size_px).clone()
    label = torch.zeros(size_px, size_px, dtype=torch.uint8)
    texture = feather_noise(size_px, generator)
    parts = [
        ("neck", (0.5, 0.9, 0.16, 0.3), (0.35, 0.05, -0.15)),
        ("cloth", (0.2, 1.1, 0.22, 0.2), (-0.8, -0.8, -0.75)),
        ("cloth", (0.8, 1.1, 0.22, 0.2), (-0.8, -0.8, -0.75)),
        ("skin", (0.5, 0.5, 0.25, 0.4), (0.6, 0.25, 0.05)),
        ("r_brow", (0.37, 0.375, 0.09, 0.014), (-0.6, -0.7, -0.7)),
        ("l_brow", (0.63, 0.375, 0.09, 0.014), (-0.6, -0.7, -0.7)),
        ("r_eye", (0.375, 0.46, 0.055, 0.02), (0.8, 0.8, 0.8)),
        ("l_eye", (0.625, 0.46, 0.055, 0.02), (0.8, 0.8, 0.8)),
        ("r_eye", (0.375, 0.46, 0.018, 0.018), (-0.8, -0.8, -0.8)),
        ("l_eye", (0.625, 0.46, 0.018, 0.018), (-0.8, -0.8, -0.8)),
        ("u_lip", (0.5, 0.74, 0.11, 0.025), (0.4, -0.4, -0.4)),
    ]
    for name, place, color in parts:
        shape = ellipse(size_px, *place)
        image = image * (1 - shape) + (torch.tensor(color)[:, None, None] + texture) * shape
        label[shape[0] > 0.5] = CLASS[name]
    return Portrait("drawn", image.clamp(-1, 1), label, torch.zeros(1, size_px, size_px), points, "0" * 64)


def with_wire_glasses(portrait: Portrait) -> Portrait:
    """The drawn face behind round glasses: thin frames, dark with a bright lower edge, a bridge and arms."""
    size = portrait.size_px
    image = portrait.image
    middle = portrait.points68[[27]].mean(0) / size
    dark, bright = torch.zeros_like(image[:1]), torch.zeros_like(image[:1])
    for x in (0.375, 0.625):
        outer, inner = ellipse(size, x, 0.48, 0.1, 0.085), ellipse(size, x, 0.48, 0.088, 0.073)
        dark = torch.maximum(dark, outer - inner)
        shine = ellipse(size, x, 0.492, 0.1, 0.085) - outer
        bright = torch.maximum(bright, shine.clamp_min(0))
    rows = ((torch.arange(size) / size - middle[1]).abs() < 0.007).float()[:, None]
    columns = torch.arange(size) / size
    for start, end in ((0.47, 0.53), (0.25, 0.28), (0.72, 0.75)):
        dark = torch.maximum(dark, (rows * ((columns > start) & (columns < end)))[None])
    image = image - 0.8 * dark * (image + 1) + 0.6 * bright * (1 - image)
    return replace(portrait, image=image)


def feather_noise(size_px: int, generator: torch.Generator) -> torch.Tensor:
    """Texture [1,H,W] of freckles, a few hundredths strong."""
    noise = torch.nn.functional.interpolate(
        torch.randn(1, 1, 48, 48, generator=generator), size=(size_px, size_px), mode="bicubic"
    )
    return 0.08 * noise[0]


def mirrored(portrait: Portrait) -> Portrait:
    """The portrait in a mirror: left and right change their names."""
    swap = {"l_brow": "r_brow", "l_eye": "r_eye"}
    label = portrait.label.flip(-1)
    for left, right in swap.items():
        at_left, at_right = label == CLASS[left], label == CLASS[right]
        label = torch.where(at_left, CLASS[right], torch.where(at_right, CLASS[left], label)).to(torch.uint8)
    order = [*range(16, -1, -1), *range(26, 16, -1), *range(27, 31), *range(35, 30, -1)]
    order += [45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40]
    order += [54, 53, 52, 51, 50, 49, 48, 59, 58, 57, 56, 55, 64, 63, 62, 61, 60, 67, 66, 65]
    points = portrait.points68[order].clone()
    points[:, 0] = portrait.size_px - 1 - points[:, 0]
    return replace(portrait, image=portrait.image.flip(-1), label=label, hair=portrait.hair.flip(-1), points68=points)


def seen(before: Portrait, sketch: Sketch) -> AnalysedPair:
    return AnalysedPair(before, sketch.applied_to(before))
