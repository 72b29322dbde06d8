"""The directions of W that renders answer to."""

import pytest
import torch

from stylepairs.datagen.encoders.curvature import fit_curvature
from stylepairs.datagen.images.perceptual import load_perceptual
from stylepairs.datagen.reconstruction.prior import WPrior
from stylepairs.datagen.stylegan.generator import Generator, GeneratorConfig


@pytest.fixture(scope="module")
def generator() -> Generator:
    torch.manual_seed(0)
    return Generator(GeneratorConfig(16, 16, 32, 3, 512, 32, 2)).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def prior(generator) -> WPrior:
    return WPrior.fit(generator, 2000)


@pytest.fixture(scope="module")
def curvature(generator, prior):
    return fit_curvature(generator, load_perceptual("pyramid"), prior, probes=200)


@pytest.mark.slow
def test_found_directions_move_the_render_more_than_chance(generator, prior, curvature):
    """At latents that the fit has not seen, by the mean over the directions found and as many random ones."""
    u = torch.randn(16, 1, 16, generator=torch.Generator().manual_seed(9)) * 0.5
    u = u.expand(-1, generator.num_ws, -1)
    chance = torch.randn(16, 4, generator=torch.Generator().manual_seed(8))
    chance = chance / chance.norm(dim=0)

    def moved(directions):
        total = 0.0
        for direction in directions.T:
            step = 0.05 * direction
            total += float((synthesise(u + step) - synthesise(u - step)).square().mean())
        return total

    def synthesise(latents):
        return generator.synthesis(prior.unwhiten(latents))

    assert moved(curvature.basis[:, :4]) > 2 * moved(chance)


def test_directions_are_orthonormal_and_the_strongest_are_scaled_most(curvature):
    assert torch.allclose(curvature.basis.T @ curvature.basis, torch.eye(16), atol=1e-4)
    assert (curvature.scale.diff() >= 0).all()
    assert 0 < curvature.scale[0] < curvature.scale[-1] <= 1
