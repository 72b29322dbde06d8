"""Coarse-to-fine boundaries and MaskFaceGAN on a drawn scorer: what moves, and what stays to the bit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from helpers.tiny_build import tiny_generator

from stylepairs.datagen.images.perceptual import load_perceptual
from stylepairs.datagen.latent.directions import DirectionInfo, direction_in_w
from stylepairs.datagen.latent.faces import SEEN_PX, FaceReader, SeenFaces
from stylepairs.datagen.latent.methods import coarse_to_fine, mask_face_gan
from stylepairs.datagen.latent.methods.coarse_to_fine import LatentPairs, coarse_edit, edit_and_warp, fine_boundary
from stylepairs.datagen.latent.people import sampled_people
from stylepairs.datagen.latent.scorers import Score, Scorer
from stylepairs.datagen.reconstruction.prior import WPrior
from stylepairs.datagen.reconstruction.settings import OptimiserSettings, ReconstructionSettings
from stylepairs.datagen.shell.errors import InputError

INFO = DirectionInfo(method="coarse_to_fine", attribute="top")
QUICK = {"steps": 20, "decay_steps": 10, "warmup_steps": 1}


class TopIsHair(FaceReader):
    """The upper half is hair; landmarks are a fixed grid."""

    def read(self, image: torch.Tensor) -> SeenFaces:
        seen = F.interpolate(image, size=(SEEN_PX, SEEN_PX), mode="bilinear")
        classes = torch.zeros(len(image), 19, SEEN_PX, SEEN_PX)
        classes[:, 17, : SEEN_PX // 2] = 1
        classes[:, 1] = 1 - classes[:, 17]
        points = torch.rand(68, 2, generator=torch.Generator().manual_seed(0)).expand(len(image), 68, 2)
        return SeenFaces(seen, seen, classes, classes[:, 17:18], points, torch.ones(len(image)))


READER = TopIsHair(torch.nn.Identity(), torch.nn.Identity(), "")
SCORER = Scorer(
    (Score("top", lambda x, _: x[..., : x.shape[-2] // 2, :].mean((1, 2, 3)), True, ("hair",)),), READER, ""
)


def normal(seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(16, generator=torch.Generator().manual_seed(seed)), dim=0)


def test_a_coarse_edit_moves_the_coarse_rows_alone():
    generator = tiny_generator()
    ws = torch.zeros(2, generator.num_ws, 16)
    moved = coarse_edit(direction_in_w(normal(), generator, None, INFO), ws, -2.0)
    assert moved[:, :3].norm(dim=-1).allclose(torch.full((2, 3), 2.0))
    assert not moved[:, 3:].any()


@pytest.mark.slow
def test_diffused_pairs_change_inside_the_region_more_than_a_coarse_edit_does():
    generator = tiny_generator()
    ws = torch.stack([person.ws for person in sampled_people(generator, 4, 1.0)])
    coarse = direction_in_w(2 * normal(), generator, None, INFO)
    settings = ReconstructionSettings.model_validate(QUICK | {"coarse_share": 0.0})
    tools = coarse_to_fine.Diffusion(generator, READER, load_perceptual("pyramid"), WPrior.fit(generator), settings)
    pairs = coarse_to_fine.make_pairs(tools, coarse, ws, -1.0, ("hair",))
    assert torch.equal(pairs.before, ws)

    def share_below(after: torch.Tensor) -> float:
        change = (generator.synthesis(after).clamp(-1, 1) - generator.synthesis(ws).clamp(-1, 1)).abs()
        return float(change[..., 20:, :].mean() / change[..., :12, :].mean())

    assert share_below(pairs.after) < 0.9 * share_below(coarse_edit(coarse, ws, -1.0))


@pytest.mark.slow
def test_a_fine_boundary_is_what_pairs_differ_by_row_by_row():
    draw = torch.Generator().manual_seed(3)
    before = torch.randn(40, 5, 16, generator=draw)
    step = torch.zeros(5, 16)
    step[1], step[3] = 0.8 * normal(1), 0.3 * normal(2)
    after = before + step + 0.02 * torch.randn(40, 5, 16, generator=draw)
    found = fine_boundary(LatentPairs(before, after), INFO)
    assert float(F.cosine_similarity(found.offsets[1], step[1], dim=0)) > 0.95
    assert float(found.offsets[1].norm()) == pytest.approx(0.8, rel=0.1)
    assert float(found.offsets[[0, 2, 4]].norm(dim=1).max()) < 0.1
    assert found.info.figures["pairs"] == 40
    with pytest.raises(InputError, match="needs at least 8"):
        fine_boundary(LatentPairs(before[:7], after[:7]), INFO)


def test_an_edit_at_test_keeps_what_is_outside_its_region_to_the_bit():
    generator = tiny_generator()
    (person,) = sampled_people(generator, 1)
    direction = direction_in_w(normal(), generator, None, INFO)
    for warp in (False, True):
        image, region = edit_and_warp(generator, READER, direction, person, 2.0, ("hair",), warp)
        before = generator.synthesis(person.ws[None])[0].clamp(-1, 1)
        outside = (region == 0).expand(3, -1, -1)
        assert outside.any()
        assert torch.equal(image[outside], before[outside])
        assert not torch.allclose(image, before, atol=0.05)


@pytest.mark.parametrize("strength", [1.5, -1.5])
def test_mask_face_gan_moves_the_attribute_and_blends_the_rest(strength):
    generator = tiny_generator()
    people = sampled_people(generator, 2, 1.0)
    settings = OptimiserSettings.model_validate(QUICK | {"batch": 2, "precision": "fp32"})
    wanted = mask_face_gan.Wanted(strength)
    found = mask_face_gan.edit(generator, SCORER, 0.1, people, wanted, settings)
    for person, (made, picture) in zip(people, found, strict=True):
        before = generator.synthesis(person.ws[None])[0].clamp(-1, 1)
        # Of the latents alone: the noise maps are moved for the pixels outside, and in so small a picture they weigh.
        moved = generator.synthesis(made.ws[None])[..., :16, :].mean() - before[:, :16].mean()
        assert float(moved) * strength > 0
        assert made.figures["attribute"] > 0.3  # 0.02 at the start
        assert torch.equal(picture[:, -8:], before[:, -8:])


@pytest.mark.parametrize("change", [0.4, -2.0])
def test_the_change_that_is_asked_for_is_where_the_attributes_loss_is_least(change):
    without = torch.tensor([[0.3]])
    shares = torch.linspace(0.5, 1.5, 101)[:, None]
    ends = mask_face_gan.with_attribute(without, change)
    probability = mask_face_gan.attribute_probability(without + shares * change, without, ends)
    assert float(shares[mask_face_gan.attribute_divergence(probability).argmin()]) == pytest.approx(1)


def test_mask_face_gan_refuses_a_score_without_gradients():
    blind = replace(SCORER, scores=[replace(SCORER.scores[0], differentiable=False)])
    with pytest.raises(InputError, match="has no gradient"):
        mask_face_gan.edit(tiny_generator(), blind, 0.1, [], mask_face_gan.Wanted(1.0), OptimiserSettings())


def test_divergence_is_zero_at_its_target_alone():
    target = torch.tensor([0.2, 0.95])
    assert mask_face_gan.divergence(target, target).abs().max() < 1e-6
    assert (mask_face_gan.divergence(torch.tensor([0.3, 0.7]), target) > 0).all()
