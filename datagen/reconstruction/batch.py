"""A batch of portraits optimised together, each on its own: those that have converged leave, new ones take their place.

The batch keeps its width; the results of places without a portrait are dropped. Convolutions give the same bits for a
sample whatever the others in a batch of one width hold, so a portrait's result does not depend on its neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from stylepairs.datagen.reconstruction.in_hand import AfterStep, InHand, Job, Objective, Outcome, State, Verdict
from stylepairs.datagen.reconstruction.settings import OptimiserSettings
from stylepairs.kernels.gpu.cuda_graph import graphed

Progress = Callable[[int, int], None]  # portraits done, all


def optimise(
    jobs: Sequence[Job],
    objective: Objective,
    settings: OptimiserSettings,
    multiplier_rate: float = 0.0,
    after_step: AfterStep | None = None,
    capturable: bool = True,
    pause_at: int | None = None,
) -> Iterator[tuple[int, Outcome]]:
    """Yield (job index, outcome) as portraits leave, in order of leaving.

    A portrait leaves `decay_steps` after it was met or has used up `steps`; one whose loss is not finite leaves at
    once, with the figure `finite` = 0 and the last state that was finite. after_step may move the state in place after
    each step (back onto a sphere, ...), each portrait for itself. capturable False: objective or after_step read
    values on the host, or do other operations from step to step, so that no CUDA graph can replay them. pause_at: all
    leave after this step, at their full rate and whether met or not; jobs made of their outcomes go on from there.
    """
    if not jobs:
        return
    batch = Batch(jobs, settings, multiplier_rate, pause_at)
    hand, at_once = batch.hand, settings.at_once(len(jobs[0].noise[-1]))

    def step() -> None:
        hand.advance(*evaluated(objective, hand.state, settings, at_once), after_step)

    run = graphed(step, hand.state.u.device) if capturable else step
    while any(index is not None for index in batch.places):
        for _ in range(batch.steps_to_go):
            run()
        yield from batch.leaving()


def optimise_all(
    jobs: Sequence[Job],
    objective: Objective,
    settings: OptimiserSettings,
    multiplier_rate: float = 0.0,
    progress: Progress | None = None,
    after_step: AfterStep | None = None,
    capturable: bool = True,
    pause_at: int | None = None,
) -> list[Outcome]:
    """The outcomes of `optimise` in the order of the jobs; progress(done, all) is called as portraits leave."""
    outcomes: dict[int, Outcome] = {}
    for index, outcome in optimise(jobs, objective, settings, multiplier_rate, after_step, capturable, pause_at):
        outcomes[index] = outcome
        if progress is not None:
            progress(len(outcomes), len(jobs))
    return [outcomes[index] for index in range(len(jobs))]


def evaluated(
    objective: Objective, state: State, settings: OptimiserSettings, at_once: int
) -> tuple[Verdict, list[torch.Tensor]]:
    """The objective's verdict and its gradients by what moves, `at_once` portraits at a time to bound the memory."""
    width = len(state.u)
    verdicts, gradients = [], []
    for start in range(0, width, at_once):
        part = state if at_once == width else state.rows(slice(start, start + at_once))
        verdict = objective(part)
        gradients.append(torch.autograd.grad(verdict.loss.sum(), part.moving(settings)))
        figures = {key: value.detach() for key, value in verdict.figures.items()}
        verdicts.append(Verdict(verdict.loss.detach(), verdict.met, verdict.violation.detach(), figures))
    if len(verdicts) == 1:
        return verdicts[0], list(gradients[0])
    whole = Verdict(
        torch.cat([one.loss for one in verdicts]),
        torch.cat([one.met for one in verdicts]),
        torch.cat([one.violation for one in verdicts]),
        {key: torch.cat([one.figures[key] for one in verdicts]) for key in verdict.figures},
    )
    return whole, [torch.cat(parts) for parts in zip(*gradients, strict=True)]


class Batch:
    """Which job is in which place, and which comes next.

    places: a job's index for each place, None where none is. steps_to_go: how many steps it takes until a portrait may
    leave; to look earlier would be in vain.
    """

    def __init__(self, jobs: Sequence[Job], settings: OptimiserSettings, multiplier_rate: float, pause_at: int | None):
        self.jobs, self.settings, self.pause_at = jobs, settings, pause_at
        self.hand = InHand(jobs[0], settings, multiplier_rate, pause_at)
        self.places: list[int | None] = [0, *[None] * (settings.batch - 1)]
        self.next_job = 1
        steps = [jobs[0].step, *(self._enter(place) for place in range(1, settings.batch))]
        self.steps_to_go = self._fewest_steps(steps, [settings.steps] * settings.batch)

    def leaving(self) -> Iterator[tuple[int, Outcome]]:
        """The outcomes of those that have left; the next jobs take their places."""
        hand = self.hand
        left, steps, decay_from = torch.stack([hand.left.float(), hand.state.step, hand.decay_from]).tolist()
        for place, gone in enumerate(left):
            if gone:
                index = self.places[place]
                if index is not None:
                    assert hand.kept is not None
                    yield index, hand.kept.outcome(place)
                steps[place], decay_from[place] = self._enter(place), self.settings.steps
        self.steps_to_go = self._fewest_steps(steps, decay_from)

    def _enter(self, place: int) -> int:
        """Put the next job, if there is one, in this place; the steps that it has behind it."""
        if self.next_job == len(self.jobs):
            self.places[place] = None
            return 0  # any value will do: nobody is there
        job, self.places[place] = self.jobs[self.next_job], self.next_job
        self.next_job += 1
        self.hand.put(place, job)
        return job.step

    def _fewest_steps(self, steps: Sequence[float], decay_from: Sequence[float]) -> int:
        """Steps after which the first finite portrait may leave: it could be met in the very next one."""
        if not self.hand.waits:
            return 1
        if self.pause_at is None:
            decays = [min(start, step + 1) for step, start in zip(steps, decay_from, strict=True)]
            ends = [start + self.settings.decay_steps for start in decays]
        else:
            ends = [float(self.pause_at)] * len(steps)
        left = [end - step for end, step, index in zip(ends, steps, self.places, strict=True) if index is not None]
        return max(1, int(min(left, default=0)))
