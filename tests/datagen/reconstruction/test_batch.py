"""The batched optimiser: portraits leave and enter without touching each other."""

import pytest
import torch

from stylepairs.datagen.reconstruction.batch import optimise
from stylepairs.datagen.reconstruction.in_hand import Job, State, Verdict
from stylepairs.datagen.reconstruction.settings import OptimiserSettings

SETTINGS = OptimiserSettings(
    steps=40, decay_steps=10, warmup_steps=3, learning_rate=0.2, noise_learning_rate=0, batch=3
)


def quadratic(state: State) -> Verdict:
    """Each portrait runs to its own goal, and has met it when near."""
    error = (state.u - state.targets["goal"]).square().mean((1, 2))
    loss = error * state.targets["poison"]
    return Verdict(loss, error < state.targets["near"], torch.zeros_like(error), {"error": error.detach()})


def make_job(seed: int, near: float = 0.0, poison: float = 1.0) -> Job:
    goal = torch.randn(4, 5, generator=torch.Generator().manual_seed(seed))
    targets = {"goal": goal, "near": torch.tensor(near), "poison": torch.tensor(poison)}
    return Job(torch.zeros(4, 5), [torch.zeros(8, 8)], targets)


def run(jobs: list[Job]) -> dict[int, object]:
    return dict(optimise(jobs, quadratic, SETTINGS))


def test_every_portrait_reaches_its_own_goal_and_comes_out_once():
    jobs = [make_job(seed) for seed in range(7)]
    outcomes = list(optimise(jobs, quadratic, SETTINGS))
    assert sorted(index for index, _ in outcomes) == list(range(7))
    for index, outcome in outcomes:
        assert (outcome.u - jobs[index].targets["goal"]).abs().max() < 0.3


def test_result_does_not_depend_on_neighbours_or_order():
    jobs = [make_job(seed, near=0.02 * seed) for seed in range(5)]
    together = run(jobs)
    for index, job in enumerate(jobs):
        alone = run([job])[0]
        assert torch.equal(alone.u, together[index].u)
    backwards = run(jobs[::-1])
    assert all(torch.equal(backwards[4 - index].u, together[index].u) for index in range(5))


def test_targets_given_as_a_function_are_made_when_the_portrait_enters():
    jobs, made, seen = [make_job(seed, near=0.02 * seed) for seed in range(7)], [], []

    def later(index: int) -> Job:
        def targets():
            made.append(index)
            return jobs[index].targets

        return Job(jobs[index].u, jobs[index].noise, targets)

    together = {}
    for index, outcome in optimise([later(index) for index in range(7)], quadratic, SETTINGS):
        together[index] = outcome
        seen.append(len(made) - len(together))
    assert made == list(range(7))
    assert max(seen) < SETTINGS.batch
    assert all(torch.equal(outcome.u, together[index].u) for index, outcome in run(jobs).items())


def test_a_batch_in_parts_takes_the_same_steps():
    """The objective is elementwise here, so that not even its rounding depends on the width."""
    jobs, widths = [make_job(seed, near=0.02 * seed) for seed in range(7)], set()

    def counted(state: State) -> Verdict:
        widths.add(len(state.u))
        pull = sum((maps - 1).square().mean((1, 2, 3)) for maps in state.noise)
        verdict = quadratic(state)
        return Verdict(verdict.loss + pull, verdict.met, verdict.violation, verdict.figures)

    for job, seed in zip(jobs, range(7), strict=True):
        job.noise = [torch.randn(8, 8, generator=torch.Generator().manual_seed(seed))]
    settings = SETTINGS.model_copy(update={"batch": 4, "noise_learning_rate": 0.1})
    whole = dict(optimise(jobs, counted, settings, multiplier_rate=0.1))
    assert widths == {4}
    widths.clear()
    parts = dict(optimise(jobs, counted, settings.model_copy(update={"pixels_at_once": 2 * 8 * 8}), 0.1))
    assert widths == {2}
    for index, outcome in whole.items():
        assert torch.equal(outcome.u, parts[index].u)
        assert torch.equal(outcome.noise[0], parts[index].noise[0])
        assert (outcome.steps, outcome.figures) == (parts[index].steps, parts[index].figures)


def test_parts_of_a_batch_are_equal_and_within_the_bound():
    assert [OptimiserSettings(batch=4).at_once(size_px) for size_px in (256, 512, 1024, 2048)] == [4, 4, 2, 1]
    assert OptimiserSettings(batch=3).at_once(1024) == 1  # two and one would round differently
    assert OptimiserSettings(batch=6, pixels_at_once=5 * 64**2).at_once(64) == 3


def test_a_portrait_that_has_met_its_goal_leaves_early():
    outcomes = run([make_job(1, near=0.5), make_job(1, near=0.0)])
    assert outcomes[0].steps < outcomes[1].steps == SETTINGS.steps + SETTINGS.decay_steps


def test_a_portrait_that_breaks_down_leaves_alone_and_is_marked():
    healthy = run([make_job(1), make_job(2)])
    mixed = run([make_job(1), make_job(3, poison=float("nan")), make_job(2)])
    assert mixed[1].figures["finite"] == 0
    assert mixed[1].u.isfinite().all()
    assert torch.equal(mixed[0].u, healthy[0].u)
    assert torch.equal(mixed[2].u, healthy[1].u)


def test_multiplier_grows_while_the_constraint_is_violated_and_shrinks_when_it_is_not():
    def violated(state: State) -> Verdict:
        verdict = quadratic(state)
        return Verdict(verdict.loss, verdict.met, state.targets["violation"])

    jobs = [make_job(1), make_job(2)]
    jobs[0].targets["violation"] = torch.tensor(0.5)
    jobs[1].targets["violation"] = torch.tensor(-0.5)
    outcomes = dict(optimise(jobs, violated, SETTINGS, multiplier_rate=0.05))
    assert outcomes[0].figures["multiplier"] > 1 > outcomes[1].figures["multiplier"]


def test_noise_maps_stay_normalised():
    def pull(state: State) -> Verdict:
        loss = sum((noise - 3).square().mean((1, 2, 3)) for noise in state.noise) + state.u.square().mean((1, 2))
        return Verdict(loss, loss < 0, torch.zeros_like(loss))

    job = make_job(1)
    job.noise = [torch.randn(8, 8, generator=torch.Generator().manual_seed(0))]
    settings = SETTINGS.model_copy(update={"noise_learning_rate": 0.1})
    outcome = dict(optimise([job], pull, settings))[0]
    assert outcome.noise[0].mean().item() == pytest.approx(0, abs=1e-5)
    assert outcome.noise[0].square().mean().item() == pytest.approx(1, abs=1e-4)


def test_no_jobs_is_no_work():
    assert run([]) == {}
