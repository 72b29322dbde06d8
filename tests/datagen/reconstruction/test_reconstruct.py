"""Inversion, masked reconstruction and composition end to end on a small random generator, whose own image is the
portrait."""

from dataclasses import replace

import pytest
import torch

from stylepairs.datagen.compositing.compose import compose, laplacian_blend, region_mask
from stylepairs.datagen.images.perceptual import perceptual_distance
from stylepairs.datagen.portraits.portrait import Portrait
from stylepairs.datagen.portraits.sketch import Sketch
from stylepairs.datagen.reconstruction.inversion import invert
from stylepairs.datagen.reconstruction.prior import WPrior
from stylepairs.datagen.reconstruction.reconstruct import Problem, Reconstruction, reconstruct
from stylepairs.datagen.reconstruction.rendering import render
from stylepairs.datagen.reconstruction.settings import InversionSettings, ReconstructionSettings

SIDE = 32
STAGE0 = InversionSettings(steps=24, decay_steps=6, batch=2, learning_rate=0.1)
STAGE1 = ReconstructionSettings(
    steps=24, decay_steps=6, batch=2, learning_rate=0.1, coarse_to_fine_steps=6,
    reference_weight=1.0, prior_weight=0.004, multiplier_rate=0.1,
)  # fmt: skip


@pytest.fixture(scope="module")
def prior(generator):
    return WPrior.fit(generator, samples=2000)


@pytest.fixture(scope="module")
def inversions(generator, perceptual, portraits):
    return invert(generator, perceptual, portraits, STAGE0)


def paint_top(portrait: Portrait, value: float = 0.5) -> Sketch:
    mask = torch.zeros(1, SIDE, SIDE)
    mask[:, 4:12, 8:24] = 1
    image = portrait.image * (1 - mask) + value * mask
    return Sketch(image, mask, 1 - region_mask(mask), 8)


def test_inversion_comes_near_the_portrait_and_renders_again_to_the_bit(generator, portraits, inversions):
    start = generator.synthesis(generator.mapping.w_avg.expand(1, generator.num_ws, -1)).clamp(-1, 1)
    for portrait, inversion in zip(portraits, inversions, strict=True):
        error = (inversion.image - portrait.image).square().mean()
        assert error < 0.5 * (start - portrait.image).square().mean()
        again = generator.synthesis(
            inversion.ws.half().float().expand(2, -1, -1),
            [level.half().float()[None, None] for level in inversion.noise],
        )
        assert torch.equal(again[0], inversion.image)


def test_inversion_does_not_depend_on_neighbours(generator, perceptual, portraits):
    few = STAGE0.model_copy(update={"steps": 5, "decay_steps": 2})
    beside, alone = (invert(generator, perceptual, some, few)[-1] for some in (portraits, portraits[2:]))
    assert torch.equal(alone.ws, beside.ws)
    assert torch.equal(alone.image, beside.image)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_recomputed_blocks_leave_the_bits_of_both_stages_alone(generator, perceptual, portraits, prior, precision):
    sketches, results = [paint_top(portraits[0])], []
    for recompute_from_px in (4, 16, 2 * SIDE):  # every block, the finer ones, none
        changed = {"precision": precision, "recompute_from_px": recompute_from_px, "steps": 2, "decay_steps": 1}
        stage0, stage1 = (settings.model_copy(update=changed) for settings in (STAGE0, STAGE1))
        found = invert(generator, perceptual, portraits[:1], stage0, prior)
        made = reconstruct(Problem(generator, perceptual, prior, portraits[:1], found, sketches, stage1))
        tensors = [tensor for one in found for tensor in (one.ws, one.image, *one.noise)]
        results.append([*tensors, *(tensor for one in made for tensor in (one.ws_after, one.generated_after))])
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


def test_inversion_from_a_found_start_is_nearer_after_a_few_steps(generator, perceptual, portraits, inversions, prior):
    few = STAGE0.model_copy(update={"steps": 4, "decay_steps": 4, "warmup_steps": 1})
    known = {id(portrait.image): found for portrait, found in zip(portraits, inversions, strict=True)}

    def start(photo):
        return prior.whiten(known[id(photo)].ws), known[id(photo)].noise

    cold = invert(generator, perceptual, portraits, few, prior)
    warm = invert(generator, perceptual, portraits, few, prior, start=start)
    assert all(w.figures["psnr"] > c.figures["psnr"] for w, c in zip(warm, cold, strict=True))
    with pytest.raises(ValueError, match="start is"):
        invert(generator, perceptual, portraits[:1], few, prior, start=lambda photo: (start(photo)[0][:1], []))


def test_each_stage_begins_at_a_share_of_the_way_from_the_mean_latent(
    generator, perceptual, portraits, inversions, prior
):
    still = {"steps": 1, "decay_steps": 1, "learning_rate": 1e-9, "noise_learning_rate": 0.0, "start_share": 0.25}
    stage0, stage1 = (settings.model_copy(update=still) for settings in (STAGE0, STAGE1))
    given = prior.whiten(inversions[0].ws)
    found = invert(generator, perceptual, portraits[:1], stage0, prior, start=lambda _: (given, inversions[0].noise))
    torch.testing.assert_close(prior.whiten(found[0].ws), 0.25 * given, atol=0.02, rtol=0.02)
    problem = Problem(generator, perceptual, prior, portraits[:1], inversions[:1], [paint_top(portraits[0])], stage1)
    torch.testing.assert_close(prior.whiten(reconstruct(problem)[0].ws_after), 0.25 * given, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("noise_rate", [0.0, 0.02])
def test_reconstruction_meets_the_sketch_inside_and_keeps_the_photo_outside(
    generator, perceptual, portraits, inversions, prior, noise_rate
):
    sketches = [paint_top(portrait) for portrait in portraits]
    settings = STAGE1.model_copy(update={"noise_learning_rate": noise_rate})
    found = reconstruct(Problem(generator, perceptual, prior, portraits, inversions, sketches, settings))
    for sketch, inversion, made in zip(sketches, inversions, found, strict=True):
        inside = sketch.edit_mask.bool().expand(3, -1, -1)
        wanted = sketch.image[inside].mean()
        assert (made.generated_after[inside].mean() - wanted).abs() < (inversion.image[inside].mean() - wanted).abs()
        assert made.figures["keep_error"] < 1.5 * made.figures["keep_tolerance"]
        assert torch.equal(made.generated_before, inversion.image) is (noise_rate == 0)
        both = render(generator, [made.ws_before, made.ws_after], [made.noise] * 2, settings.batch)
        assert all(map(torch.equal, both, (made.generated_before, made.generated_after)))  # the halves share the maps


def test_an_edit_that_leaves_nothing_to_keep_stays_finite(generator, perceptual, portraits, inversions, prior):
    everywhere = torch.ones(1, SIDE, SIDE)
    sketch = Sketch(torch.full((3, SIDE, SIDE), 0.5), everywhere, 1 - everywhere, 8)
    made = reconstruct(Problem(generator, perceptual, prior, portraits[:1], inversions[:1], [sketch], STAGE1))[0]
    assert made.figures["finite"] == 1
    assert made.ws_after.isfinite().all()


@pytest.mark.slow
def test_only_a_sketch_with_detail_of_its_own_pulls_on_the_detail(generator, perceptual, portraits, inversions, prior):
    sketch = paint_top(portraits[0])
    stripes = 0.4 * torch.tensor([1.0, -1.0]).repeat(SIDE // 2) * sketch.edit_mask
    striped = replace(sketch, image=(sketch.image + stripes).clamp(-1, 1))

    def run(sketch: Sketch, weight: float) -> Reconstruction:
        settings = STAGE1.model_copy(update={"detail_weight": weight})
        return reconstruct(Problem(generator, perceptual, prior, portraits[:1], inversions[:1], [sketch], settings))[0]

    def distance(made: Reconstruction) -> float:
        features = (perceptual.features(x[None]) for x in (made.generated_after, striped.image))
        return float(perceptual_distance(*features, striped.edit_mask[None]))

    without = run(striped, 1.0)
    assert torch.equal(without.ws_after, run(striped, 0.0).ws_after)
    assert distance(run(replace(striped, sketch_detail=1.0), 1.0)) < distance(without)


def test_sketches_of_one_call_share_their_resolution(generator, perceptual, portraits, inversions, prior):
    sketches = [paint_top(portraits[0]), paint_top(portraits[1])]
    sketches[1] = Sketch(sketches[1].image, sketches[1].edit_mask, sketches[1].keep_mask, 16)
    problem = Problem(generator, perceptual, prior, portraits[:2], inversions[:2], sketches, STAGE1)
    with pytest.raises(ValueError, match="reference_px"):
        reconstruct(problem)


@pytest.mark.parametrize("photo_detail", [0.0, 1.0])
def test_keep_region_is_bit_identical_after_compose(portraits, inversions, photo_detail):
    portrait, sketch = portraits[0], paint_top(portraits[0])
    sketch = Sketch(sketch.image, sketch.edit_mask, sketch.keep_mask, 8, "lab", photo_detail)
    made = Reconstruction(
        inversions[0].ws, inversions[0].ws, inversions[0].noise, inversions[0].image, sketch.image.flip(2), {}
    )
    composed = compose(portrait, made, sketch)
    outside = (composed.mask == 0).expand(3, -1, -1)
    assert outside.float().mean() > 0.3
    assert torch.equal(composed.after[outside], portrait.image[outside])
    assert not torch.equal(composed.after, portrait.image)
    assert torch.equal(composed.mask, (composed.mask * 255).round() / 255)


def test_blend_gives_each_side_its_own_image():
    photo, edited = torch.zeros(3, 64, 64), torch.ones(3, 64, 64)
    torch.testing.assert_close(laplacian_blend(photo, edited, torch.ones(1, 64, 64)), edited)
    torch.testing.assert_close(laplacian_blend(photo, edited, torch.zeros(1, 64, 64)), photo)
