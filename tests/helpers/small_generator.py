"""A small random generator of a module's SIDE, and portraits that are its own images."""

from __future__ import annotations

import pytest
import torch

from stylepairs.datagen.images.perceptual import Perceptual, load_perceptual
from stylepairs.datagen.portraits.portrait import Portrait
from stylepairs.datagen.stylegan.generator import Generator, GeneratorConfig


@pytest.fixture(scope="module")
def generator(request) -> Generator:
    torch.manual_seed(0)
    generator = Generator(GeneratorConfig(16, 24, request.module.SIDE, 3, 512, 32, 2)).eval().requires_grad_(False)
    for layer in generator.synthesis.noisy_layers():
        layer.noise_strength.fill_(0.05)
    return generator


@pytest.fixture(scope="module")
def perceptual() -> Perceptual:
    return load_perceptual("pyramid")


@pytest.fixture(scope="module")
def portraits(generator) -> list[Portrait]:
    images = generator(torch.randn(3, 16, generator=torch.Generator().manual_seed(3))).clamp(-1, 1)
    blank = torch.zeros(images.shape[2:], dtype=torch.uint8)
    return [Portrait(str(i), x, blank, blank[None].float(), torch.zeros(68, 2), str(i)) for i, x in enumerate(images)]
