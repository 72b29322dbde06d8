"""A batch of portraits optimised together, each on its own: those that have converged leave, new ones take their place.

The batch keeps its width; free places go on idly and their results are dropped. Convolutions give the same bits for a
sample whatever the others in a batch of one width hold, so a portrait's result does not depend on its neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from stylepairs.datagen.reconstruction.settings import OptimiserSettings

BETAS = (0.9, 0.99)
EPS = 1e-8
Targets = dict[str, torch.Tensor]


@dataclass
class Job:
    """One portrait's start and fixed targets (tensors without batch dimension).

    targets may be a function: it is called, without gradients, when the portrait enters the batch, so that large
    targets are in memory for a batch of portraits and not for all of them.
    """

    u: torch.Tensor  # [L,C], whitened latent
    noise: list[torch.Tensor]  # maps [r,r]
    targets: Targets | Callable[[], Targets]
    multiplier: float = 1.0


@dataclass
class Outcome:
    u: torch.Tensor
    noise: list[torch.Tensor]
    steps: int
    figures: dict[str, float]


@dataclass
class State:
    """What the objective sees: leading dimension N, the width of the batch."""

    u: torch.Tensor  # [N,L,C]
    noise: list[torch.Tensor]  # [N,1,r,r]
    targets: Targets
    step: torch.Tensor  # [N] steps taken
    multiplier: torch.Tensor  # [N] of the keep constraint


@dataclass
class Verdict:
    """What the objective returns, each [N]; `met` lets a portrait leave early; `violation` > 0 raises its
    multiplier."""

    loss: torch.Tensor
    met: torch.Tensor
    violation: torch.Tensor
    figures: dict[str, torch.Tensor] = field(default_factory=dict)


Objective = Callable[[State], Verdict]
AfterStep = Callable[[State], None]
Progress = Callable[[int, int], None]


def optimise(
    jobs: Sequence[Job],
    objective: Objective,
    settings: OptimiserSettings,
    multiplier_rate: float = 0.0,
    after_step: AfterStep | None = None,
) -> Iterator[tuple[int, Outcome]]:
    """Yield (job index, outcome) as portraits leave, in order of leaving.

    A portrait leaves `decay_steps` after it was met or has used up `steps`; one whose loss is not finite leaves at
    once, with the figure `finite` = 0 and the last state that was finite. after_step may move the state in place after
    each step (back onto a sphere, ...), each portrait for itself.
    """
    if not jobs:
        return
    batch = _Batch(jobs, settings, after_step)
    while batch.alive():
        verdict = objective(batch.state)
        gradients = torch.autograd.grad(verdict.loss.sum(), batch.parameters())
        yield from batch.advance(verdict, gradients, multiplier_rate)


def optimise_all(
    jobs: Sequence[Job],
    objective: Objective,
    settings: OptimiserSettings,
    multiplier_rate: float = 0.0,
    progress: Progress | None = None,
    after_step: AfterStep | None = None,
) -> list[Outcome]:
    """The outcomes of `optimise` in the order of the jobs; progress(done, all) is called as portraits leave."""
    outcomes: dict[int, Outcome] = {}
    for index, outcome in optimise(jobs, objective, settings, multiplier_rate, after_step):
        outcomes[index] = outcome
        if progress is not None:
            progress(len(outcomes), len(jobs))
    return [outcomes[index] for index in range(len(jobs))]


class _Batch:
    def __init__(self, jobs: Sequence[Job], settings: OptimiserSettings, after_step: AfterStep | None):
        self.jobs, self.settings, self.after_step = jobs, settings, after_step
        width, first, targets = settings.batch, jobs[0], _made(jobs[0])
        self.slots: list[int | None] = [0, *[None] * (width - 1)]
        self.next_job = 1
        self.state = State(
            torch.stack([first.u] * width).requires_grad_(),
            [torch.stack([level] * width)[:, None].requires_grad_() for level in first.noise],
            {key: torch.stack([value] * width) for key, value in targets.items()},
            torch.zeros(width),
            torch.full((width,), first.multiplier),
        )
        self.decay_from = torch.full((width,), float(settings.steps))
        self.moments = [(torch.zeros_like(x), torch.zeros_like(x)) for x in self.parameters()]
        for place in range(1, width):
            self._enter(place)

    def alive(self) -> bool:
        return any(slot is not None for slot in self.slots)

    def advance(
        self, verdict: Verdict, gradients: Sequence[torch.Tensor], multiplier_rate: float
    ) -> Iterator[tuple[int, Outcome]]:
        """One step for every portrait; yields and replaces those that leave."""
        state, settings = self.state, self.settings
        finite = verdict.loss.detach().isfinite()
        for gradient in gradients:
            finite &= gradient.flatten(1).isfinite().all(1)
        with torch.no_grad():
            state.step += 1
            self._adam(gradients, finite)
            if self.after_step is not None:
                self.after_step(state)
            growth = (multiplier_rate * verdict.violation.detach().clamp(-1, 1)).exp()
            state.multiplier.mul_(torch.where(finite.cpu(), growth.cpu(), 1.0)).clamp_(0.1, 100.0)
            met = verdict.met.detach().cpu() & (state.step > settings.warmup_steps)
            self.decay_from = torch.where(met, torch.minimum(self.decay_from, state.step), self.decay_from)
        left = (state.step >= self.decay_from + settings.decay_steps) | ~finite.cpu()
        for place in torch.nonzero(left).flatten().tolist():
            index = self.slots[place]
            if index is not None:
                yield index, self._outcome(place, verdict, bool(finite[place]))
            self._enter(place)

    def _rate(self) -> torch.Tensor:
        """Share of the learning rate [N] at each portrait's own step: linear warm-up, cosine decay."""
        step, settings = self.state.step, self.settings
        warm = (step / settings.warmup_steps).clamp(max=1)
        decayed = ((step - self.decay_from) / settings.decay_steps).clamp(0, 1)
        return warm * (1 + (decayed * math.pi).cos()) / 2

    def _adam(self, gradients: Sequence[torch.Tensor], finite: torch.Tensor) -> None:
        step, rate = self.state.step, self._rate()
        correct = [1 - torch.tensor(beta).pow(step) for beta in BETAS]
        for index, (x, gradient) in enumerate(zip(self.parameters(), gradients, strict=True)):
            first, second = self.moments[index]
            shape = [-1] + [1] * (x.ndim - 1)
            gradient = torch.where(finite.view(shape), gradient, 0.0)
            first.lerp_(gradient, 1 - BETAS[0])
            second.lerp_(gradient.square(), 1 - BETAS[1])
            base = self.settings.learning_rate if index == 0 else self.settings.noise_learning_rate
            scale = (base * rate / correct[0]).to(x.device).view(shape)
            x -= scale * first / ((second / correct[1].to(x.device).view(shape)).sqrt() + EPS)
            if index > 0:  # noise maps keep zero mean and unit variance (StyleGAN2's projector)
                x -= x.mean((1, 2, 3), keepdim=True)
                x *= x.square().mean((1, 2, 3), keepdim=True).clamp_min(1e-8).rsqrt()

    def _outcome(self, place: int, verdict: Verdict, finite: bool) -> Outcome:
        figures = {key: float(value[place]) for key, value in verdict.figures.items()}
        figures |= {"finite": float(finite), "multiplier": float(self.state.multiplier[place])}
        noise = [maps[place, 0].detach().clone() for maps in self.state.noise]
        return Outcome(self.state.u[place].detach().clone(), noise, int(self.state.step[place]), figures)

    def _enter(self, place: int) -> None:
        """Put the next job in this place; without one, the place goes on with what it holds."""
        if self.next_job == len(self.jobs):
            self.slots[place] = None
            return
        job, self.slots[place] = self.jobs[self.next_job], self.next_job
        self.next_job += 1
        state = self.state
        with torch.no_grad():
            state.u[place] = job.u
            for maps, start in zip(state.noise, job.noise, strict=True):
                maps[place, 0] = start
            for key, value in _made(job).items():
                state.targets[key][place] = value
            state.step[place], state.multiplier[place] = 0, job.multiplier
            self.decay_from[place] = float(self.settings.steps)
            for first, second in self.moments:
                first[place], second[place] = 0, 0

    def parameters(self) -> list[torch.Tensor]:
        return [self.state.u, *(self.state.noise if self.settings.noise_learning_rate else [])]


@torch.no_grad()
def _made(job: Job) -> Targets:
    return job.targets() if callable(job.targets) else job.targets
