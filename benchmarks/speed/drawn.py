"""Random generators, and portraits that they drew themselves, ready to be reconstructed for a sketch each.

Imports no more than reconstruction does: `benchmarks/memory.py` weighs processes that use it.
"""

from __future__ import annotations

from typing import Any

import torch

from stylepairs.datagen.portraits.portrait import Portrait
from stylepairs.datagen.reconstruction.inversion import Inversion
from stylepairs.datagen.stylegan.generator import Generator, GeneratorConfig

_NEVER = 1_000_000  # warm-up during which no portrait may leave early


def random_generator(resolution: int, channel_base: int, seed: int = 0) -> Generator:
    """Frozen, with random weights, its noise switched on as in a trained one."""
    torch.manual_seed(seed)
    generator = Generator(GeneratorConfig(img_resolution=resolution, channel_base=channel_base))
    generator.eval().requires_grad_(False)
    for layer in generator.synthesis.noisy_layers():
        layer.noise_strength.fill_(0.1)
    return generator


def drawn(generator: Generator, ws: torch.Tensor) -> tuple[list[Portrait], list[Inversion]]:
    """What the generator draws of ws [N,L,C], as portraits and as the inversions that they are."""
    with torch.no_grad():
        images = [generator.synthesis(w[None])[0].clamp(-1, 1) for w in ws]
    noise = [level[0, 0] for level in generator.noise_maps()]
    portraits = [_portrait(str(index), image) for index, image in enumerate(images)]
    return portraits, [Inversion(w, noise, image, {}) for w, image in zip(ws, images, strict=True)]


def patch(image: torch.Tensor) -> torch.Tensor:
    """The region [1,H,W] that is edited: over the upper third."""
    size = image.shape[-1]
    mask = image.new_zeros(1, size, size)
    mask[:, size // 8 : size // 3, size // 4 : 3 * size // 4] = 1
    return mask


def exactly(steps: int) -> dict[str, Any]:
    """Settings with which every portrait leaves after so many steps, all of them at full resolution."""
    return {"steps": steps - 1, "decay_steps": 1, "warmup_steps": _NEVER, "coarse_share": 0.0}


def _portrait(name: str, image: torch.Tensor) -> Portrait:
    blank = image.new_zeros(image.shape[1:], dtype=torch.uint8)
    return Portrait(name, image, blank, blank[None].float(), torch.zeros(68, 2), name)
