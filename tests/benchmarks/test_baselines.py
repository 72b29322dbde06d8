"""The baselines: each published loss against a hand computation, and each method on a small random generator, whose own
images are the portraits."""

import functools
import math

import pytest
import torch
import torch.nn.functional as F
from baselines import (
    harness,
    latent_direction,
    mask_face_gan,
    masked_discovery,
    projector,
    pulse,
)
from torch import nn

from stylepairs.datagen.compositing.compose import region_mask
from stylepairs.datagen.images.perceptual import perceptual_distance
from stylepairs.datagen.latent.methods import mask_face_gan as published
from stylepairs.datagen.portraits.sketch import Sketch
from stylepairs.datagen.reconstruction.in_hand import State
from stylepairs.datagen.reconstruction.inversion import invert
from stylepairs.datagen.reconstruction.prior import WPrior
from stylepairs.datagen.reconstruction.reconstruct import Problem
from stylepairs.datagen.reconstruction.settings import InversionSettings, OptimiserSettings, ReconstructionSettings

SIDE = 32
SETTINGS = ReconstructionSettings(steps=7, decay_steps=2, batch=2)
METHODS = [projector, pulse, masked_discovery, mask_face_gan, latent_direction]


class BrightIsHair(nn.Module):
    """Stands in for the parser: the matte is what is bright."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return 4 * image.mean(1, keepdim=True).expand(-1, 20, -1, -1)


@pytest.fixture(scope="module", autouse=True)
def few_samples():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latent_direction, "SAMPLES", 64)
        yield


@pytest.fixture(scope="module")
def prior(generator) -> WPrior:
    return WPrior.fit(generator, samples=4000)


@pytest.fixture(scope="module")
def inversions(generator, perceptual, prior, portraits):
    settings = InversionSettings(steps=10, decay_steps=4, batch=2, learning_rate=0.1)
    return invert(generator, perceptual, portraits, settings, prior)


@pytest.fixture(scope="module")
def sketches(portraits) -> list[Sketch]:
    mask = torch.zeros(1, SIDE, SIDE)
    mask[:, 4:12, 8:24] = 1
    return [Sketch(x.image * (1 - mask) + 0.7 * mask, mask, 1 - region_mask(mask), 8) for x in portraits]


@pytest.fixture(scope="module")
def run(generator, perceptual, prior, portraits, inversions, sketches):
    @functools.cache
    def run(method, chosen=(0, 1, 2), settings=SETTINGS):
        own = {"parser": BrightIsHair()} if method in (mask_face_gan, latent_direction) else {}
        lists = [[values[index] for index in chosen] for values in (portraits, inversions, sketches)]
        return method.reconstruct(Problem(generator, perceptual, prior, *lists, settings), **own)

    return run


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__.rsplit(".", 1)[1])
@pytest.mark.slow
def test_the_same_latents_come_out_again_alone_and_among_others(method, run):
    together = run(method)
    alone = run(method, chosen=(2,))[0]
    assert torch.equal(together[2].ws_after, alone.ws_after)
    assert torch.equal(together[2].generated_after, alone.generated_after)
    assert all(torch.equal(a, b) for a, b in zip(together[2].noise, alone.noise, strict=True))
    for made in together:
        assert made.figures["finite"] == 1
        assert {"psnr_outside", "prior_distance", "latent_shift", "steps"} <= made.figures.keys()


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS[:3], ids=lambda method: method.__name__.rsplit(".", 1)[1])
def test_each_method_lowers_its_loss_in_as_many_steps_as_ours(method, run):
    brief = SETTINGS.model_copy(update={"steps": 1, "decay_steps": 1})
    for first, last in zip(run(method, settings=brief), run(method), strict=True):
        assert last.figures["steps"] == SETTINGS.steps + SETTINGS.decay_steps
        assert last.figures["loss"] < first.figures["loss"]


def test_mask_face_gan_gets_the_attribute_first_and_then_finishes_by_noise(run, inversions):
    for made, inversion in zip(run(mask_face_gan), inversions, strict=True):
        assert made.figures["steps"] == SETTINGS.steps + SETTINGS.decay_steps
        assert made.figures["attribute"] > 0.2  # the photo's is 0.02
        assert not torch.equal(made.noise[-1], inversion.noise[-1])


def test_noise_regularisation_by_hand():
    stripes = torch.tensor([1.0, 1.0, -1.0, -1.0]).repeat(4).expand(1, 1, 16, 16)
    # 16 px: mean(n * roll_x) = 0 (half of the neighbours agree), mean(n * roll_y) = 1. Pooled to 8 px: columns
    # alternate, so mean(n * roll_x) = -1 and mean(n * roll_y) = 1. Nothing below.
    assert harness.noise_regularisation([stripes])[0].item() == pytest.approx(0 + 1 + 1 + 1)


def test_published_schedule_keeps_the_number_of_steps():
    settings = ReconstructionSettings(steps=70, decay_steps=25)
    schedule = harness.scheduled(settings, 0.1, 0.1, rampup=0.05, rampdown=0.25)
    assert (schedule.steps + schedule.decay_steps, schedule.decay_steps, schedule.warmup_steps) == (95, 24, 5)
    shares = [harness.scheduled(settings, 0.1, share=share) for share in (2 / 3, 1 / 3)]
    assert sum(one.steps + one.decay_steps for one in shares) == 95


def test_projector_explores_as_published(generator):
    found = projector.exploration_scale(torch.tensor([0.0, 0.375, 0.75, 1.0]), 10.0)
    torch.testing.assert_close(found, torch.tensor([0.5, 0.125, 0.0, 0.0]))
    draw = torch.Generator().manual_seed(1)
    w = generator.mapping.to_w(torch.randn(20_000, 16, generator=draw))
    assert projector.latent_deviation(generator) == pytest.approx(float(w.std(0).norm()), rel=0.02)


def test_exploration_noise_depends_on_seed_and_step_alone():
    x = torch.zeros(2, 3, 4)
    both = harness.gaussian_like(x, torch.tensor([5.0, 9.0]), torch.tensor([1.0, 2.0]))
    alone = harness.gaussian_like(x[:1], torch.tensor([9.0]), torch.tensor([2.0]))
    later = harness.gaussian_like(x[:1], torch.tensor([9.0]), torch.tensor([3.0]))
    assert torch.equal(both[1], alone[0])
    assert not torch.equal(alone, later)


def test_pulse_losses_by_hand():
    ws = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    # Two rows at a right angle: of the four pairs two have (pi / 2)^2; times C / 8.
    assert pulse.geocross(ws).item() == pytest.approx((math.pi / 2) ** 2 / 2 * 2 / 8, rel=1e-3)
    black, grey = torch.full((1, 3, 32, 32), -1.0), torch.zeros(1, 3, 32, 32)
    assert pulse.downscaling_loss(grey, pulse.downscaled(black)).item() == pytest.approx(0.25)
    nearly = grey + 0.02
    assert pulse.downscaling_loss(nearly, pulse.downscaled(grey)).item() == pytest.approx(pulse.EPS)


def test_pulse_stays_on_its_sphere(prior, inversions, run):
    sphere = pulse.Sphere(prior)
    ws = inversions[0].ws
    torch.testing.assert_close(sphere.to_w(sphere.to_v(ws)), ws, atol=1e-4, rtol=1e-4)
    after = sphere.to_v(run(pulse, chosen=(0,))[0].ws_after).norm(dim=-1)
    torch.testing.assert_close(after, sphere.to_v(ws).norm(dim=-1), rtol=5e-3, atol=0)


def test_pulse_sphere_is_standard_normal_in_each_dimension(generator, prior):
    v = pulse.Sphere(prior).to_v(
        generator.mapping.to_w(torch.randn(4000, 16, generator=torch.Generator().manual_seed(2)))
    )
    assert (v.std(0) - 1).abs().max() < 0.1


def test_sphere_step_keeps_direction():
    u = torch.tensor([[[3.0, 4.0]]])
    state = State(u, [], {"radius": torch.tensor([[[10.0]]])}, torch.zeros(1), torch.ones(1))
    pulse.onto_sphere(state)
    torch.testing.assert_close(state.u, torch.tensor([[[6.0, 8.0]]]))


def test_masked_discovery_losses_by_hand(inversions, run):
    outside, inside = torch.tensor([0.2]), torch.tensor([0.1])
    assert masked_discovery.mask_loss(outside, inside).item() == pytest.approx(0.5 * 0.3)
    assert masked_discovery.mask_loss(outside, inside, offset=0.25).item() == pytest.approx(0.5 * 0.35)
    seed = torch.zeros(1, 8, 2)
    moved = seed.clone()
    moved[0, 3] = torch.tensor([3.0, 0.0])
    moved[0, 0] = 100  # not a free row
    assert masked_discovery.spring_loss(moved, seed).item() == pytest.approx(0.3 * (3 - 4) ** 2)
    after = run(masked_discovery, chosen=(0,))[0].ws_after
    torch.testing.assert_close(after[:2], inversions[0].ws[:2], atol=2e-3, rtol=2e-3)
    assert (after[2:] - inversions[0].ws[2:]).abs().max() > 0.05


def test_mask_face_gan_losses_by_hand():
    photo, white = torch.zeros(1, 3, 4, 4), torch.ones(1, 3, 4, 4)
    half = torch.zeros(1, 1, 4, 4)
    half[..., :2, :] = 1
    assert published.masked_mse(white, photo, half).item() == pytest.approx(0.25 / 2)
    probability = torch.tensor([0.95, 0.5])
    wanted = 0.95 * math.log(0.95 / 0.5) + 0.05 * math.log(0.05 / 0.5)
    torch.testing.assert_close(
        published.attribute_divergence(probability), torch.tensor([0.0, wanted]), atol=1e-6, rtol=1e-5
    )


def test_mask_face_gan_attribute_tells_photo_from_sketch():
    without, with_it = torch.tensor([[1.0, 0.0, 0.0, 0.0]]), torch.tensor([[1.0, 0.0, 0.0, 1.0]])
    low, middle, high = (
        published.attribute_probability(x, without, with_it).item() for x in (without, (without + with_it) / 2, with_it)
    )
    assert (low, middle, high) == pytest.approx((0.018, 0.5, 0.982), abs=1e-3)


def test_mask_face_gan_statistics_see_the_edit_mask_only():
    image = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :4, :] = 1
    changed = image.clone()
    changed[..., 4:, :] = 0
    matte = torch.ones(1, 1, 8, 8)
    torch.testing.assert_close(
        mask_face_gan.statistics(image, matte, mask), mask_face_gan.statistics(changed, matte * mask, mask)
    )


def test_direction_finds_the_axis_that_the_score_follows():
    draw = torch.Generator().manual_seed(0)
    u = torch.randn(400, 6, generator=draw)
    wanted = F.normalize(torch.tensor([1.0, -2.0, 0.0, 0.0, 0.5, 0.0]), dim=0)
    found = latent_direction.fit_direction(u, u @ wanted + 0.1 * torch.randn(400, generator=draw))
    assert found.norm().item() == pytest.approx(1)
    assert float(found @ wanted) > 0.99


def test_direction_moves_all_rows_alike_towards_the_score(generator, prior, inversions, run):
    made = run(latent_direction, chosen=(0,))[0]
    shift = prior.whiten(made.ws_after) - prior.whiten(inversions[0].ws)
    assert shift.norm(dim=-1).min() > 0
    assert (shift - shift.mean(0)).abs().max() < 0.05 * shift.abs().max()
    assert shift.square().sum(-1).sqrt().max() < latent_direction.FARTHEST + 0.1
    assert made.figures["score_reached"] > 0


def test_direction_stops_where_the_score_is_first_reached():
    first = latent_direction.first_reached
    assert first(torch.tensor([0.0, 0.4, 0.9, 1.3, 1.0])) == 2
    assert first(torch.tensor([0.0, 0.4, 0.6, 1.1, 0.9])) == 3
    assert first(torch.tensor([0.0, -0.4, 0.3, 0.2])) == 2


@pytest.mark.slow
@pytest.mark.parametrize("space", ["w", "w+"])
def test_the_projector_comes_nearer_to_a_photo_and_stays_in_its_space(generator, perceptual, portraits, space):
    def distances(steps):
        settings = OptimiserSettings(steps=steps, decay_steps=steps, batch=3)
        found = projector.project(generator, perceptual, portraits, settings, space)
        images = [generator.synthesis(one.ws[None], [level[None, None] for level in one.noise]) for one in found]
        pairs = zip(images, portraits, strict=True)
        return found, [perceptual_distance(perceptual(x), perceptual(p.image[None])).item() for x, p in pairs]

    found, near = distances(15)
    assert all(after < before for after, before in zip(near, distances(1)[1], strict=True))
    for one in found:
        assert torch.equal(one.ws, one.ws[:1].expand_as(one.ws)) == (space == "w")
