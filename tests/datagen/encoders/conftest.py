"""A small generator that encoders are trained for."""

import pytest
import torch

from stylepairs.datagen.stylegan.generator import Generator, GeneratorConfig


@pytest.fixture(scope="module")
def generator() -> Generator:
    """64 px, frozen, with noise."""
    torch.manual_seed(0)
    network = Generator(GeneratorConfig(16, 16, 64, 3, 512, 16, 2)).eval().requires_grad_(False)
    for layer in network.synthesis.noisy_layers():
        layer.noise_strength.fill_(0.1)
    return network
