"""The batched optimiser: portraits leave and enter without touching each other."""

import pytest
import torch

from stylepairs.datagen.reconstruction import batch, in_hand
from stylepairs.datagen.reconstruction.batch import Batch, evaluated, optimise, optimise_all
from stylepairs.datagen.reconstruction.in_hand import InHand, Job, State, Verdict
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


def small_jobs(count: int, **changes) -> list[Job]:
    return [Job(torch.full((2, 3), index + 1.0), [torch.zeros(4, 4)], {}, **changes) for index in range(count)]


def squares(state: State) -> Verdict:
    """The square of each latent's sum, violated by half; its gradient is twice the sum."""
    total = state.u.sum((1, 2))
    return Verdict(total.square(), total > 15, total / total.abs() / 2, {"total": total})


@pytest.mark.parametrize("at_once", [1, 2, 4])
def test_verdicts_and_gradients_are_those_of_each_portrait_whatever_is_computed_together(at_once):
    settings, seen = SETTINGS.model_copy(update={"batch": 4}), []
    hand = InHand(small_jobs(1)[0], settings, 0.0, None)
    for place, job in enumerate(small_jobs(4)):
        hand.put(place, job)

    def objective(state: State) -> Verdict:
        seen.append(state)
        return squares(state)

    verdict, gradients = evaluated(objective, hand.state, settings, at_once)
    assert [len(state.u) for state in seen] == [at_once] * (4 // at_once)
    assert (seen[0] is hand.state) == (at_once == 4)
    assert verdict.loss.tolist() == [36.0, 144.0, 324.0, 576.0]
    assert verdict.met.tolist() == [False, False, True, True]
    assert verdict.violation.tolist() == [0.5] * 4
    assert verdict.figures["total"].tolist() == [6.0, 12.0, 18.0, 24.0]
    assert len(gradients) == 1
    assert gradients[0].mean((1, 2)).tolist() == [12.0, 24.0, 36.0, 48.0]
    assert not any(tensor.requires_grad for tensor in (verdict.loss, verdict.violation, verdict.figures["total"]))


def test_three_parts_are_put_together_like_two():
    settings = SETTINGS.model_copy(update={"batch": 3})
    hand = InHand(small_jobs(1)[0], settings, 0.0, None)
    verdict, gradients = evaluated(squares, hand.state, settings, 1)
    assert verdict.loss.tolist() == [36.0] * 3
    assert gradients[0].shape == (3, 2, 3)


def test_outcomes_of_all_come_in_the_order_of_the_jobs_and_progress_counts_them():
    jobs, calls = [make_job(seed, near=near) for seed, near in enumerate((0.0, 0.5, 0.02))], []
    outcomes = optimise_all(jobs, quadratic, SETTINGS, progress=lambda done, of: calls.append((done, of)))
    left = run(jobs)
    assert list(left) != [0, 1, 2]
    assert calls == [(1, 3), (2, 3), (3, 3)]
    assert all(torch.equal(outcome.u, left[index].u) for index, outcome in enumerate(outcomes))
    assert len(optimise_all(jobs, quadratic, SETTINGS)) == 3


@pytest.mark.parametrize("every", [optimise, optimise_all])
def test_unless_told_otherwise_a_step_is_captured_and_a_multiplier_stays(every, monkeypatch):
    captured, settings = [], SETTINGS.model_copy(update={"steps": 3, "decay_steps": 2})
    monkeypatch.setattr(batch, "graphed", lambda step, device: (captured.append(device), step)[1])
    found = list(every(small_jobs(1), squares, settings))
    outcome = found[0] if every is optimise_all else found[0][1]
    assert captured == [torch.device("cpu")]
    assert (outcome.steps, outcome.figures["multiplier"]) == (5, 1.0)
    list(every(small_jobs(1), squares, settings, capturable=False))
    assert len(captured) == 1


def test_the_finest_noise_map_decides_how_many_are_computed_together():
    seen = set()

    def objective(state: State) -> Verdict:
        seen.add(len(state.u))
        return squares(state)

    job = Job(torch.ones(2, 3), [torch.zeros(size, size) for size in (4, 4, 8, 16)], {})
    settings = SETTINGS.model_copy(update={"batch": 4, "steps": 1, "decay_steps": 1, "pixels_at_once": 2 * 16**2})
    list(optimise([job], objective, settings))
    assert seen == {2}


def waiting_batch(monkeypatch, jobs: list[Job], pause_at: int | None = None) -> Batch:
    monkeypatch.setattr(in_hand, "waits", lambda device: True)
    return Batch(jobs, SETTINGS, 0.0, pause_at)


def test_jobs_take_the_places_in_order_and_the_rest_stay_empty(monkeypatch):
    made = waiting_batch(monkeypatch, small_jobs(2))
    assert made.places == [0, 1, None]
    assert made.hand.state.u[:, 0, 0].tolist() == [1, 2, 1]
    assert waiting_batch(monkeypatch, small_jobs(5)).places == [0, 1, 2]


def test_nobody_is_asked_before_the_first_may_leave(monkeypatch):
    """Met in the very next step, it decays for 10; unless it decays already, or all pause."""
    assert waiting_batch(monkeypatch, small_jobs(1)).steps_to_go == 11
    assert waiting_batch(monkeypatch, small_jobs(1, step=2)).steps_to_go == 11
    assert waiting_batch(monkeypatch, small_jobs(1), pause_at=7).steps_to_go == 7
    assert waiting_batch(monkeypatch, small_jobs(2, step=5), pause_at=7).steps_to_go == 2
    later = [*small_jobs(1), *small_jobs(1, step=5)]
    assert waiting_batch(monkeypatch, later, pause_at=7).steps_to_go == 2
    assert waiting_batch(monkeypatch, later[::-1], pause_at=7).steps_to_go == 2


def test_how_long_it_takes_is_counted_anew_from_where_all_are(monkeypatch):
    made = waiting_batch(monkeypatch, small_jobs(2))
    for steps, decays, to_go in (((12, 25), (40, 20), 5), ((12, 45), (40, 40), 5), ((12, 14), (40, 40), 11)):
        made.hand.state.step[:2], made.hand.decay_from[:2] = torch.tensor(steps), torch.tensor(decays)
        assert list(made.leaving()) == []
        assert made.steps_to_go == to_go


def test_the_next_job_starts_afresh_in_the_place_of_one_that_left(monkeypatch):
    made = waiting_batch(monkeypatch, small_jobs(4))
    for _ in range(2):
        made.hand.advance(*evaluated(squares, made.hand.state, SETTINGS, 3), None)
    made.hand.state.step[:] = torch.tensor([39.0, 49.0, 39.0])
    made.hand.advance(*evaluated(squares, made.hand.state, SETTINGS, 3), None)
    assert [(index, outcome.steps) for index, outcome in made.leaving()] == [(1, 50)]
    assert made.places == [0, 3, 2]
    assert made.hand.state.step.tolist() == [40, 0, 40]
    assert made.hand.state.u[1].unique().tolist() == [4]
    assert made.steps_to_go == 10


def test_one_that_is_due_is_asked_at_once_and_a_cpu_after_every_step(monkeypatch):
    assert Batch(small_jobs(1), SETTINGS, 0.0, None).steps_to_go == 1
    made = waiting_batch(monkeypatch, small_jobs(1))
    made.hand.state.step[0] = 49.0
    assert list(made.leaving()) == []
    assert made.steps_to_go == 1
