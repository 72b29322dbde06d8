"""The prior's coordinates: of unit variance, exactly back again, and the same whatever signs eigenvectors come with."""

from __future__ import annotations

import copy

import pytest
import torch

from stylepairs.datagen.reconstruction.prior import LEAST_DEVIATION, WPrior
from stylepairs.datagen.stylegan.generator import Generator

SIDE = 16


def test_coordinates_do_not_hang_on_the_signs_that_the_library_gives_eigenvectors(
    generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual, eigh = WPrior.fit(generator, samples=500), torch.linalg.eigh

    def turned(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        values, vectors = eigh(matrix)
        return values, vectors * torch.tensor([1.0, -1.0]).to(vectors).repeat(len(values))[: len(values)]

    monkeypatch.setattr(torch.linalg, "eigh", turned)
    other = WPrior.fit(generator, samples=500)
    assert torch.equal(other.basis, usual.basis)
    w = generator.mapping.to_w(torch.randn(4, generator.config.z_dim, generator=torch.Generator().manual_seed(1)))
    torch.testing.assert_close(other.whiten(w), usual.whiten(w), rtol=0, atol=0)
    torch.testing.assert_close(usual.unwhiten(usual.whiten(w)), w, rtol=0, atol=1e-4)


def test_what_hardly_varies_is_not_blown_up(generator: Generator) -> None:
    """A channel that is the same for every sample: a rounding off it is no large step."""
    still = copy.deepcopy(generator)
    to_w = still.mapping.to_w
    still.mapping.to_w = lambda z: torch.cat([to_w(z)[:, :-1], torch.ones(len(z), 1)], 1)
    prior = WPrior.fit(still, samples=500)
    assert float(prior.deviation.min()) == pytest.approx(LEAST_DEVIATION * float(prior.deviation.max()))
    w = still.mapping.to_w(torch.randn(4, still.config.z_dim, generator=torch.Generator().manual_seed(1)))
    torch.testing.assert_close(prior.whiten(w * (1 + 1e-6)), prior.whiten(w), rtol=0, atol=1e-2)
