"""Coarse steps: the lower blocks' render stands for the whole, and the full resolution goes on from where they came
to."""

from functools import partial

import pytest
import torch
from pydantic import ValidationError

from stylepairs.datagen.build.settings import BuildRecipe
from stylepairs.datagen.portraits.portrait import Portrait
from stylepairs.datagen.portraits.sketch import Sketch
from stylepairs.datagen.recipe import load_recipe
from stylepairs.datagen.reconstruction import inversion as stage0
from stylepairs.datagen.reconstruction.in_hand import State, Verdict
from stylepairs.datagen.reconstruction.inversion import invert, rendered, seen_render
from stylepairs.datagen.reconstruction.objective import downsample
from stylepairs.datagen.reconstruction.phases import Phase, Start, optimise_in_phases, phases_of, whole_latent
from stylepairs.datagen.reconstruction.prior import WPrior
from stylepairs.datagen.reconstruction.reconstruct import Problem, reconstruct
from stylepairs.datagen.reconstruction.settings import InversionSettings, ReconstructionSettings
from stylepairs.datagen.shell.errors import InputError
from stylepairs.datagen.stylegan.generator import Generator

SIDE, HALF = 64, 32
STAGE0 = InversionSettings(steps=8, decay_steps=4, warmup_steps=2, batch=2, learning_rate=0.1)
STAGE1 = ReconstructionSettings(
    steps=8, decay_steps=4, warmup_steps=2, batch=2, coarse_to_fine_steps=4, coarse_share=0.0
)
COARSE = {"coarse_share": 0.5}
PHASES = [Phase(HALF, 6), Phase(SIDE)]


@pytest.fixture(scope="module")
def prior(generator) -> WPrior:
    return WPrior.fit(generator, samples=2000)


@pytest.fixture(scope="module")
def inversions(generator, perceptual, portraits, prior):
    return invert(generator, perceptual, portraits, STAGE0, prior)


def paint_top(portrait: Portrait, reference_px: int = 16) -> Sketch:
    mask = torch.zeros(1, SIDE, SIDE)
    mask[:, 8:24, 16:48] = 1
    return Sketch(portrait.image * (1 - mask) + 0.5 * mask, mask, 1 - mask, reference_px, sketch_detail=1.0)


def starts_of(generator: Generator, count: int = 3, poison: int | None = None) -> list[Start]:
    """Portraits with a goal each; that of `poison` is not finite as long as it is seen coarsely."""
    goals = torch.randn(count, generator.num_ws, 24, generator=torch.Generator().manual_seed(1))
    noise = [level[0, 0] for level in generator.noise_maps()]

    def targets(index: int, phase: Phase) -> dict[str, torch.Tensor]:
        broken = index == poison and phase.size_px < SIDE
        return {"goal": goals[index], "factor": torch.tensor(float("nan") if broken else 1.0)}

    return [Start(0.1 * goal, noise, partial(targets, index)) for index, goal in enumerate(goals)]


def pulled(state: State) -> Verdict:
    """To the goal, with noise maps to 1 and a constraint that is violated."""
    error = (whole_latent(state) - state.targets["goal"]).square().mean((1, 2)) * state.targets["factor"]
    noise = sum((maps - 1).square().mean((1, 2, 3)) for maps in state.noise)
    return Verdict(error + noise, error < 0, torch.ones_like(error), {"error": error.detach()})


def run(generator: Generator, starts: list[Start], phases: list[Phase], progress=None):
    def render(u: torch.Tensor, noise: list[torch.Tensor], size_px: int) -> torch.Tensor:
        return torch.zeros(3, size_px, size_px)

    return optimise_in_phases(starts, phases, lambda _: pulled, render, STAGE0, 0.1, progress)


def assert_same(one, other):
    assert torch.equal(one.u, other.u)
    assert all(torch.equal(*maps) for maps in zip(one.noise, other.noise, strict=True))
    assert (one.steps, one.figures) == (other.steps, other.figures)


def test_phases_go_by_the_share_of_steps_and_the_generators_side():
    coarse = InversionSettings(steps=120, coarse_share=0.5)
    assert phases_of(coarse, 256) == [Phase(128, 60), Phase(256)]
    assert phases_of(coarse.model_copy(update={"coarse_divisor": 4}), 256) == [Phase(64, 60), Phase(256)]
    assert phases_of(coarse.model_copy(update={"coarse_divisor": 64}), 256) == [Phase(32, 60), Phase(256)]
    assert phases_of(coarse, 32) == [Phase(32)]  # too small
    assert phases_of(InversionSettings(steps=120, coarse_share=0.0), 256) == [Phase(256)]
    assert phases_of(InversionSettings(steps=1, coarse_share=0.4), 256) == [Phase(256)]


def test_a_phase_knows_what_its_render_reads(generator):
    whole = Phase(SIDE)
    assert (whole.rows, whole.maps) == (generator.num_ws, len(generator.noise_maps()))
    ws, noise = torch.randn(1, whole.rows, 24), generator.noise_maps()
    coarse = Phase(HALF)
    full = generator.synthesis(ws, noise, max_resolution=HALF)
    assert torch.equal(generator.synthesis(ws[:, : coarse.rows], noise[: coarse.maps], max_resolution=HALF), full)


@pytest.mark.parametrize("wrong, says", [("coarse_divisor=3", "power of two"), ("coarse_share=1.2", "equal to 1")])
def test_a_wrong_setting_says_what_is_wrong(wrong, says):
    name, value = wrong.split("=")
    with pytest.raises(ValidationError, match=says):
        ReconstructionSettings.model_validate({name: value})
    with pytest.raises(InputError, match=says):
        load_recipe("bangs", "datagen", BuildRecipe, [f"reconstruction.{wrong}"])


@pytest.mark.slow
def test_phases_of_one_size_are_one_run_to_the_bit(generator, perceptual, portraits, inversions, prior, monkeypatch):
    whole = run(generator, starts_of(generator), [Phase(SIDE)])
    for one, other in zip(whole, run(generator, starts_of(generator), [Phase(SIDE, 5), Phase(SIDE)]), strict=True):
        assert_same(one, other)
        assert one.steps == STAGE0.steps + STAGE0.decay_steps
    monkeypatch.setattr(stage0, "phases_of", lambda settings, size_px: [Phase(SIDE, 3), Phase(SIDE, 6), Phase(SIDE)])
    for one, other in zip(invert(generator, perceptual, portraits, STAGE0, prior), inversions, strict=True):
        assert torch.equal(one.image, other.image)
        assert one.figures == other.figures


def test_what_a_coarse_render_does_not_read_keeps_its_bits(generator):
    starts = starts_of(generator)
    for start, paused in zip(starts, run(generator, starts, PHASES[:1]), strict=True):
        rows, maps = PHASES[0].rows, PHASES[0].maps
        assert paused.steps == PHASES[0].end
        assert torch.equal(paused.u[rows:], start.u[rows:])
        assert all(torch.equal(*level) for level in zip(paused.noise[maps:], start.noise[maps:], strict=True))
        assert not torch.equal(paused.u[:rows], start.u[:rows])
        assert not any(torch.equal(*level) for level in zip(paused.noise[:maps], start.noise[:maps], strict=True))


def test_the_next_phase_moves_all_and_goes_on_from_the_last(generator):
    starts = starts_of(generator)
    for start, coarse, made in zip(
        starts, run(generator, starts, PHASES[:1]), run(generator, starts, PHASES), strict=True
    ):
        assert made.steps == STAGE0.steps + STAGE0.decay_steps
        assert made.figures["multiplier"] > coarse.figures["multiplier"] > 1
        assert made.figures["error"] < coarse.figures["error"]
        assert not any(torch.equal(*level) for level in zip(made.noise, start.noise, strict=True))
        assert not (made.u == start.u).all(1).any()


def test_a_portrait_that_breaks_down_in_a_coarse_phase_stays_out_of_the_next(generator):
    calls: list[tuple[int, int]] = []
    healthy = run(generator, starts_of(generator), PHASES)
    mixed = run(generator, starts_of(generator, poison=1), PHASES, lambda *counts: calls.append(counts))
    assert mixed[1].figures["finite"] == 0
    assert mixed[1].steps == 1
    assert mixed[1].u.shape == healthy[1].u.shape
    assert mixed[1].u.isfinite().all()
    assert_same(mixed[0], healthy[0])
    assert_same(mixed[2], healthy[2])
    assert calls == sorted(calls)
    assert calls[-1] == (6, 6)


@pytest.mark.slow
def test_coarse_results_do_not_depend_on_neighbours_or_order(generator, perceptual, portraits, inversions, prior):
    settings = STAGE0.model_copy(update=COARSE)
    together = invert(generator, perceptual, portraits, settings, prior)
    backwards = invert(generator, perceptual, portraits[::-1], settings, prior)[::-1]
    alone = invert(generator, perceptual, portraits[2:], settings, prior)
    for one, other in zip([*together, together[2]], [*backwards, *alone], strict=True):
        assert torch.equal(one.image, other.image)
        assert one.figures == other.figures
    assert not torch.equal(together[0].image, inversions[0].image)

    sketches, settings1 = [paint_top(portrait) for portrait in portraits], STAGE1.model_copy(update=COARSE)
    made = reconstruct(Problem(generator, perceptual, prior, portraits, inversions, sketches, settings1))
    last = reconstruct(Problem(generator, perceptual, prior, portraits[2:], inversions[2:], sketches[2:], settings1))[0]
    assert torch.equal(made[2].ws_after, last.ws_after)
    assert made[2].figures == last.figures
    assert all(map(torch.equal, made[2].noise, last.noise))
    assert not any(map(torch.equal, last.noise, inversions[2].noise))  # they move, too


@pytest.mark.slow
def test_at_its_start_a_coarse_phase_sees_the_whole_render_made_small(generator, prior, inversions):
    starts = [Start(prior.whiten(one.ws), one.noise, lambda phase: {}) for one in inversions[:2]]
    settings, seen = STAGE1.model_copy(update={"precision": "fp32"}), []

    def objective(phase: Phase):
        def looks(state: State) -> Verdict:
            seen.append(seen_render(generator, prior.unwhiten(state.u), state, settings, phase))
            loss = seen[-1].square().mean((1, 2, 3))
            return Verdict(loss, loss < 0, torch.zeros_like(loss))

        return looks

    optimise_in_phases(starts, PHASES[:1], objective, partial(rendered, generator, prior, settings), settings)
    whole = torch.stack([downsample(one.image, HALF) for one in inversions[:2]])
    without = generator.synthesis(torch.stack([one.ws for one in inversions[:2]]), max_resolution=HALF)
    torch.testing.assert_close(seen[0], whole, atol=1e-3, rtol=0)
    assert (without - whole).abs().max() > 0.1


def test_a_sketch_finer_than_the_coarse_render_is_met_all_the_same(generator, perceptual, portraits, inversions, prior):
    sketch, settings = paint_top(portraits[0], SIDE), STAGE1.model_copy(update=COARSE | {"steps": 20})
    made = reconstruct(Problem(generator, perceptual, prior, portraits[:1], inversions[:1], [sketch], settings))[0]
    inside = sketch.edit_mask.bool().expand(3, -1, -1)
    wanted = sketch.image[inside]
    before, after = ((image[inside] - wanted).abs().mean() for image in (inversions[0].image, made.generated_after))
    assert made.figures["finite"] == 1
    assert after < 0.8 * before
